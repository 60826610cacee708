"""R_alpha as a module: values against the layer's own matrix, gradients, and what its buffers remember."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import numpy as np
import pytest

from convla.errors import ShapeError
from convla.penalties import Block
from convla.spectra import tracked_search

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from convla.frameworks import torch as adapter  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    # Of a copy that PyTorch makes.
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]

# Layers and the sizes of their images; more inputs than outputs, fewer, and as many.
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "valid": (lambda: torch.nn.Conv1d(2, 3, 3), (6,)),
    "same": (lambda: torch.nn.Conv2d(2, 2, 3, padding=1), (3, 4)),
    "same by name, even": (lambda: torch.nn.Conv2d(2, 2, (2, 4), padding="same"), (4, 5)),
    "same by name, dilated": (lambda: torch.nn.Conv1d(2, 2, 4, padding="same", dilation=2), (7,)),
    "valid by name": (lambda: torch.nn.Conv1d(3, 2, 2, padding="valid"), (5,)),
    "stride": (lambda: torch.nn.Conv2d(3, 2, (3, 2), stride=(2, 1), padding=(1, 0)), (5, 3)),
    "dilation and groups": (lambda: torch.nn.Conv1d(4, 6, 3, dilation=2, groups=2, padding=2), (7,)),
    "depthwise": (lambda: torch.nn.Conv2d(3, 3, 3, groups=3, padding=1), (3, 4)),
    "circular": (lambda: torch.nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), (4, 4)),
    "reflect": (lambda: torch.nn.Conv1d(2, 2, 3, padding=1, padding_mode="reflect"), (5,)),
    "replicate": (lambda: torch.nn.Conv1d(2, 2, 3, padding=1, padding_mode="replicate"), (5,)),
    "three axes": (lambda: torch.nn.Conv3d(1, 2, 2), (3, 3, 3)),
}


def _layer(name: str, *, scale: float = 1.0) -> tuple[Any, tuple[int, ...]]:
    make, image_shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make().double()
    with torch.no_grad():
        layer.weight.mul_(scale)
        layer.bias.zero_()
    return layer, image_shape


def _matrix(layer: Any, image_shape: tuple[int, ...]) -> Any:
    """Return the layer's matrix, from PyTorch's own convolution of every unit image."""
    size = layer.in_channels * math.prod(image_shape)
    images = torch.eye(size, dtype=torch.float64).reshape(size, layer.in_channels, *image_shape)
    with torch.no_grad():
        return layer(images).reshape(size, -1).T


def _expected(layer: Any, image_shape: tuple[int, ...], alpha: float, gram: str) -> float:
    matrix = _matrix(layer, image_shape)
    rows, columns = matrix.shape
    if gram == "smaller" and rows < columns:
        matrix = matrix.T
    eye = torch.eye(matrix.shape[1], dtype=torch.float64)
    return float(torch.linalg.matrix_norm(matrix.T @ matrix - alpha * eye, 2))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("gram", ["input", "smaller"])
@pytest.mark.parametrize("tracker", ["block", "power", "exact"])
@pytest.mark.parametrize("alpha", [0.5, 4.0])
def test_the_first_value_is_that_of_the_layers_matrix(name: str, gram: str, tracker: str, alpha: float) -> None:
    layer, image_shape = _layer(name)
    penalty = adapter.SpectralPenalty(layer, image_shape, alpha=alpha, gram=gram, tracker=tracker)
    value = penalty(layer.weight)
    assert value.dtype == torch.float64
    assert value.shape == ()
    assert value.item() == pytest.approx(_expected(layer, image_shape, alpha, gram), rel=1e-12)


# Where the leading eigenvalue is multiple the penalty has no gradient: under a circular boundary singular values come
# in pairs, and the matrix of a kernel of even size is nearly singular in several directions.
SIMPLE = [
    (name, end)
    for name in LAYERS
    for end in ("upper", "lower")
    if name != "circular" and not (end == "lower" and name in ("same by name, even", "same by name, dilated"))
]


@pytest.mark.parametrize(
    ("name", "end", "tracker"),
    [
        *((name, end, "exact") for name, end in SIMPLE),
        *((name, end, "block") for name, end in SIMPLE if name in ("valid", "depthwise", "three axes")),
    ],
)
def test_gradcheck(name: str, end: str, tracker: str, torch_device: Any) -> None:
    layer, image_shape = _layer(name, scale=3.0)
    squares = np.linalg.svd(_matrix(layer, image_shape).numpy(), compute_uv=False) ** 2
    alpha = (0.2 if end == "upper" else 0.95) * squares[0]
    distances = np.sort(np.abs(squares - alpha))
    assert distances[-1] - distances[-2] > 1e-4 * squares[0]  # the leading one is simple
    layer = layer.to(torch_device)
    penalty = adapter.SpectralPenalty(layer, image_shape, alpha=alpha, gram="smaller", tracker=tracker)
    penalty(layer.weight)
    # The vectors stay where they are, and with them the function: the block's iteration starts at its limit.
    penalty.eval()
    weight = layer.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(penalty, (weight,), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("tracker", ["block", "power", "exact"])
@pytest.mark.parametrize("gram", ["input", "smaller"])
def test_float32_is_close_to_float64(tracker: str, gram: str, torch_device: Any) -> None:
    layer, image_shape = _layer("stride", scale=3.0)
    results = []
    for dtype in (torch.float64, torch.float32):
        penalty = adapter.SpectralPenalty(layer.to(torch_device, dtype), image_shape, gram=gram, tracker=tracker)
        weight = layer.weight.detach().clone().requires_grad_()
        value = penalty(weight)
        value.backward()
        assert value.dtype == weight.grad.dtype == dtype
        assert value.device == weight.grad.device == weight.device
        results.append((value.item(), weight.grad.double()))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    scale = float(results[0][1].abs().max())
    torch.testing.assert_close(results[1][1], results[0][1], rtol=0.0, atol=1e-3 * scale)


def _descend(layer: Any, penalty: Any, optimizer: Any, steps: int) -> list[float]:
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = penalty(layer.weight)
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


@pytest.mark.parametrize("gram", ["input", "smaller"])
def test_the_block_follows_a_descent(gram: str) -> None:
    layer, image_shape = _layer("same", scale=4.0)
    penalty = adapter.SpectralPenalty(layer, image_shape, gram=gram, tracker=Block(cluster_rtol=0.01))
    optimizer = torch.optim.SGD([layer.weight], lr=0.04)
    for _ in range(30):
        expected = _expected(layer, image_shape, 1.0, gram)
        (value,) = _descend(layer, penalty, optimizer, 1)
        # The residuals of the block are at most a thousandth of sigma_max^2, which is at most the penalty plus alpha.
        assert abs(value - expected) <= 1e-3 * (expected + 1.0)
    assert expected < 1.0 < int(penalty.largest_updates) == 30
    assert 0 < int(penalty.smallest_updates) < 30


@pytest.mark.parametrize("tracker", ["block", "power"])
def test_the_second_pass_starts_from_the_first(tracker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, image_shape = _layer("same")
    penalty = adapter.SpectralPenalty(layer, image_shape, tracker=tracker)
    first = penalty(layer.weight).item()

    begin = tracked_search.Search.begin

    def refuse(search: Any, groups: list[int], bar: float) -> bool:
        assert not groups, "searched from nothing"
        return begin(search, groups, bar)

    monkeypatch.setattr(tracked_search.Search, "begin", refuse)
    assert penalty(layer.weight).item() == pytest.approx(first, rel=1e-6)
    penalty.reset()
    with pytest.raises(AssertionError, match="searched from nothing"):
        penalty(layer.weight)


@pytest.mark.parametrize("tracker", ["block", "power", "exact"])
@pytest.mark.parametrize("gram", ["input", "smaller"])
@pytest.mark.parametrize("name", ["same", "stride"])
def test_a_loaded_state_goes_on_with_the_same_numbers(name: str, gram: str, tracker: str) -> None:
    def make() -> tuple[Any, Any, Any]:
        layer, image_shape = _layer(name, scale=2.0)
        penalty = adapter.SpectralPenalty(layer, image_shape, gram=gram, tracker=tracker)
        return layer, penalty, torch.optim.SGD([layer.weight], lr=0.02, momentum=0.5)

    straight = make()
    expected = _descend(*straight, 12)
    stopped = make()
    _descend(*stopped, 5)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in stopped], file)
    file.seek(0)
    resumed = make()
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert _descend(*resumed, 7) == expected[5:]
    assert torch.equal(resumed[0].weight, straight[0].weight)


def test_a_state_of_other_options_is_refused() -> None:
    layer, image_shape = _layer("same")
    state = adapter.SpectralPenalty(layer, image_shape, tracker=Block(vectors=2)).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch for largest"):
        adapter.SpectralPenalty(layer, image_shape).load_state_dict(state)


def test_evaluation_reads_the_vectors_and_leaves_them() -> None:
    layer, image_shape = _layer("same")
    penalty = adapter.SpectralPenalty(layer, image_shape)
    penalty(layer.weight)
    before = copy.deepcopy(penalty.state_dict())
    penalty.eval()
    values = {penalty(1.1 * layer.weight).item() for _ in range(2)}
    assert len(values) == 1
    for name, buffer in penalty.state_dict().items():
        assert torch.equal(buffer, before[name])
    penalty.train()
    with torch.no_grad():
        penalty(1.1 * layer.weight)
    assert int(penalty.largest_updates) == 2


def test_the_module_moves_and_is_copied() -> None:
    layer, image_shape = _layer("same")
    penalty = adapter.SpectralPenalty(layer, image_shape)
    value = penalty(layer.weight).item()
    twin = copy.deepcopy(penalty).float()
    assert twin.largest_vectors.dtype == torch.float32
    assert twin(layer.weight.float()).item() == pytest.approx(value, rel=1e-5)
    # The weight decides the arithmetic, whatever the buffers are kept in.
    assert twin(layer.weight).dtype == torch.float64
    assert twin.half()(layer.weight).item() == pytest.approx(value, rel=1e-3)
    assert not list(penalty.parameters())


def test_no_tensor_on_another_device_becomes_a_numpy_array(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a device, taken in host memory: nothing of it is copied there."""

    def refuse(*_: object) -> None:
        raise AssertionError("a tensor was handed to NumPy")

    monkeypatch.setattr("convla.frameworks.torch.spectral._is_in_host_memory", lambda _: False)
    monkeypatch.setattr(torch.Tensor, "numpy", refuse)
    monkeypatch.setattr(torch.Tensor, "__array__", refuse)
    for tracker in ("block", "power", "exact"):
        layer, image_shape = _layer("same")
        penalty = adapter.SpectralPenalty(layer, image_shape, tracker=tracker)
        for _ in range(2):
            penalty(layer.weight).backward()


def test_autocasting_leaves_it_alone() -> None:
    layer, image_shape = _layer("same")
    layer = layer.float()
    penalty = adapter.SpectralPenalty(layer, image_shape)
    expected = penalty(layer.weight).item()
    penalty.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert penalty(layer.weight).item() == expected


def test_a_computed_weight() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(2, 2, 3).double())
    penalty = adapter.SpectralPenalty(layer, (6,), gram="smaller")
    penalty(layer.weight).backward()
    assert layer.parametrizations.weight.original1.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("layer", "image_shape", "options", "error", "message"),
    [
        (torch.nn.Linear(2, 2), (4,), {}, TypeError, r"layer must be a torch\.nn\.Conv1d, .* got torch\.Linear"),
        (torch.nn.ConvTranspose1d(2, 2, 3), (4,), {}, TypeError, "got torch.ConvTranspose1d"),
        (torch.nn.LazyConv1d(2, 3), (4,), {}, ValueError, "layer has no weight yet"),
        (torch.nn.Conv1d(2, 2, 3), (2,), {}, ShapeError, "the kernel must fit in the padded image"),
        (torch.nn.Conv1d(2, 2, 3), 4, {}, TypeError, "image_shape must be a sequence of integers, got 4"),
        (torch.nn.Conv1d(2, 2, 3), (4, 4), {}, ShapeError, "image_shape must have 1 axes"),
        (torch.nn.Conv1d(2, 2, 3), (4,), {"alpha": 0.0}, ValueError, "alpha must be positive, got 0"),
        (torch.nn.Conv1d(2, 2, 3), (4,), {"gram": "output"}, ValueError, "gram must be one of 'input', 'smaller'"),
        (torch.nn.Conv1d(2, 2, 3), (4,), {"tracker": "qr"}, ValueError, "tracker must be one of .*got 'qr'"),
        (torch.nn.Conv1d(2, 2, 3), (4,), {"tracker": 3}, TypeError, "tracker must be one of .*, got int"),
        (torch.nn.Conv1d(2, 2, 3), (600,), {"tracker": "exact"}, ValueError, "got 1196x1200: use 'block'"),
    ],
)
def test_bad_arguments_are_named(
    layer: Any, image_shape: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        adapter.SpectralPenalty(layer, image_shape, **options)


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (np.ones((2, 2, 3)), TypeError, r"weight must be a torch\.Tensor"),
        (torch.ones(2, 2, 2), ShapeError, r"weight must have shape \(2, 2, 3\), got \(2, 2, 2\)"),
        (torch.ones(2, 2, 3).half(), TypeError, r"float16"),
        (torch.full((2, 2, 3), float("nan")), ValueError, "must be finite"),
    ],
)
def test_bad_weights_are_named(weight: Any, error: type[Exception], message: str) -> None:
    penalty = adapter.SpectralPenalty(torch.nn.Conv1d(2, 2, 3), (4,))
    with pytest.raises(error, match=message):
        penalty(weight)
    assert int(penalty.largest_updates) == 0


def test_a_zero_weight_has_the_value_alpha() -> None:
    layer, image_shape = _layer("same", scale=0.0)
    penalty = adapter.SpectralPenalty(layer, image_shape, alpha=2.0)
    for _ in range(2):
        value = penalty(layer.weight)
        value.backward()
        assert value.item() == 2.0
        assert torch.count_nonzero(layer.weight.grad) == 0


def test_another_weight_is_noticed() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 3, 3, padding=1, groups=3).double()
    penalty = adapter.SpectralPenalty(layer, (8, 8))
    penalty(layer.weight)
    with torch.no_grad():
        layer.weight[1] *= 4.0
    assert penalty(layer.weight).item() == pytest.approx(_expected_weight(layer, (8, 8)), rel=1e-3)
    layer.load_state_dict(torch.nn.Conv2d(3, 3, 3, padding=1, groups=3).state_dict())
    assert penalty(layer.weight).item() == pytest.approx(_expected_weight(layer, (8, 8)), rel=1e-3)
    # The second channel is cut off from the first by zeros, and grows.
    dense = torch.nn.Conv2d(2, 2, 3, padding=1, bias=False).double()
    with torch.no_grad():
        dense.weight[0, 1] = dense.weight[1, 0] = 0.0
    penalty = adapter.SpectralPenalty(dense, (8, 8))
    for _ in range(12):
        assert penalty(dense.weight).item() == pytest.approx(_expected_weight(dense, (8, 8)), rel=1e-3, abs=1e-3)
        with torch.no_grad():
            dense.weight[1] *= 1.3


def _expected_weight(layer: Any, image_shape: tuple[int, ...]) -> float:
    bare = copy.deepcopy(layer)
    bare.bias = None
    return _expected(bare, image_shape, 1.0, "input")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", ["spectral_norm", "weight_norm"])
def test_a_weight_that_a_hook_computes(norm: str) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(getattr(torch.nn.utils, norm)(torch.nn.Conv1d(2, 2, 3).double()))
    (layer,) = network
    image = torch.zeros(1, 2, 6, dtype=torch.float64)
    alone = adapter.SpectralPenalty(layer, (6,), gram="smaller")
    if norm == "spectral_norm":
        with pytest.raises(ValueError, match="weight has no gradient: the layer's normalization computes it"):
            alone(layer.weight)
    together = adapter.NetworkSpectralPenalty(network, image, gram="smaller")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    value = together(network)
    value.backward()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    gradients = [p.grad for name, p in network.named_parameters() if "weight" in name]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
    network(image)  # computes the weight, from the same vectors
    assert value.item() == pytest.approx(alone(layer.weight).item(), rel=1e-9)


class TestWholeNetwork:
    def network(self) -> Any:
        torch.manual_seed(0)
        shared = torch.nn.Conv2d(4, 4, 3, padding=1)
        return torch.nn.Sequential(
            *(torch.nn.Conv2d(1, 4, 3, stride=2, padding=1), torch.nn.BatchNorm2d(4), torch.nn.Dropout()),
            *(
                shared,
                torch.nn.ReLU(),
                shared,
                torch.nn.AdaptiveAvgPool2d(1),
                torch.nn.Flatten(),
                torch.nn.Linear(4, 2),
            ),
        )

    def test_the_sum_and_its_parts(self) -> None:
        network = self.network()
        penalty = adapter.NetworkSpectralPenalty(network, torch.zeros(1, 1, 8, 8), gram="smaller")
        assert penalty.names == ("0", "3")
        parts = penalty.layers(network)
        for name, size in (("0", 8), ("3", 4)):
            alone = adapter.SpectralPenalty(network.get_submodule(name), (size, size), gram="smaller")
            assert parts[name].item() == pytest.approx(alone(network.get_submodule(name).weight).item(), rel=1e-6)
        total = penalty(network)
        assert total.item() == pytest.approx(sum(part.item() for part in parts.values()), rel=1e-6)
        total.backward()
        assert all((p.grad is None) != (p.ndim == 4) for p in network.parameters())

    def test_looking_at_a_network_leaves_it_as_it_was(self) -> None:
        network = self.network()
        network[1].eval()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        assert adapter.image_shapes(network, torch.randn(1, 1, 9, 7)) == {"0": (9, 7), "3": (5, 4)}
        assert [module.training for module in network] == [True, False, *[True] * 7]
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
        assert not any(module._forward_pre_hooks for module in network.modules())

    def test_the_largest_image_and_the_reached_layers_count(self) -> None:
        class Pyramid(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head, self.idle = torch.nn.Conv1d(1, 1, 3), torch.nn.Conv1d(1, 1, 3)

            def forward(self, x: Any) -> Any:
                return [self.head(x[..., ::step]) for step in (2, 1, 3)]

        assert adapter.image_shapes(Pyramid(), torch.zeros(1, 1, 12)) == {"head": (12,)}

    def test_bad_networks_are_named(self) -> None:
        network = self.network()
        penalty = adapter.NetworkSpectralPenalty(network, torch.zeros(1, 1, 8, 8))
        with torch.no_grad():
            network[3].weight.fill_(float("inf"))
        with pytest.raises(ValueError, match="layer 3: kernel must be finite"):
            penalty(network)
        with pytest.raises(ValueError, match=r"network must have the layers \('0', '3'\), got one without '3'"):
            penalty(network[:2])
        with pytest.raises(TypeError, match=r"network must be a torch\.nn\.Module, got torch\.Tensor"):
            penalty(torch.ones(3))
        with pytest.raises(TypeError, match=r"network must be a torch\.nn\.Module, got torch\.Tensor"):
            adapter.NetworkSpectralPenalty(torch.ones(3), torch.ones(3))
        with pytest.raises(ValueError, match="network must have a convolutional layer"):
            adapter.NetworkSpectralPenalty(torch.nn.Linear(2, 2), torch.ones(1, 2))
        with pytest.raises(ValueError, match="layer 0: alpha must be positive"):
            adapter.NetworkSpectralPenalty(network, torch.zeros(1, 1, 8, 8), alpha=-1.0)
