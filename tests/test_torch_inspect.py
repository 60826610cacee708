"""PyTorch modules as they run: the layers that are found, and the bound of the whole against true constants."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

import convla

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from convla.frameworks.torch import operator, operators  # noqa: E402
from convla.frameworks.torch.recording import read_module  # noqa: E402

pytestmark = pytest.mark.torch


def matrix_of(module: Any, size: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return the Jacobian of a module at random data, by autograd."""
    x = torch.randn(1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = torch.autograd.functional.jacobian(module.double().eval(), x)
    return np.asarray(found.reshape(-1, x.numel()).numpy())


def norm_of(module: Any, size: tuple[int, ...]) -> float:
    return float(np.linalg.norm(matrix_of(module, size), 2))


def normalized(channels: int, kind: Any = nn.BatchNorm2d) -> Any:
    layer = kind(channels)
    with torch.no_grad():
        layer.running_var.uniform_(0.2, 3.0)
        layer.running_mean.normal_()
        layer.weight.normal_()
    return layer


LAYERS = {
    "plain": (nn.Conv2d(2, 3, 3, padding=1), (2, 6, 5)),
    "strided": (nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), (2, 6, 5)),
    "same": (nn.Conv2d(2, 3, (4, 3), padding="same", dilation=2), (2, 7, 6)),
    "circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 6, 5)),
    "reflected": (nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect"), (2, 6, 5)),
    "replicated": (nn.Conv1d(2, 3, 3, padding=2, padding_mode="replicate"), (2, 9)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 5, 5)),
    "depthwise": (nn.Conv2d(3, 6, 3, groups=3, padding=1, dilation=2), (3, 6, 6)),
    "three axes": (nn.Conv3d(2, 2, 2, stride=2), (2, 4, 4, 4)),
    "transposed": (nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1), (3, 4, 3)),
    "transposed in groups": (nn.ConvTranspose1d(4, 6, 4, stride=3, groups=2, dilation=2), (4, 5)),
    "linear": (nn.Linear(7, 4), (7,)),
    "normalisation": (normalized(3), (3, 4, 4)),
    "weight_norm": (nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3, padding=1)), (2, 5, 5)),
}


@pytest.mark.parametrize("case", LAYERS)
def test_the_operator_of_a_layer_is_its_jacobian(case: str) -> None:
    layer, size = LAYERS[case]
    wanted = matrix_of(layer, size)
    found = operator(layer, size[1:])
    if case == "normalisation":  # one factor for each channel
        assert np.allclose(np.diag(wanted)[:: math.prod(size[1:])], np.diag(np.asarray(found.to_dense())), rtol=1e-14)
        return
    assert np.allclose(np.asarray(found.to_dense()), wanted, rtol=0.0, atol=1e-12)
    row = convla.inspect(layer, torch.zeros(1, *size, dtype=torch.float64), measures=["sigma_max", "sigma_min"])
    values = np.linalg.svd(wanted, compute_uv=False)
    quantities = row.layers[0].quantities
    assert quantities["sigma_max"] == pytest.approx(values[0], rel=1e-9)
    assert quantities["sigma_min"] == pytest.approx(values[-1], rel=1e-6, abs=1e-12 * values[0])
    assert quantities["at_least"] <= values[0] * (1 + 1e-13)
    assert values[0] * (1 - 1e-13) <= quantities["at_most"]
    lower = row.certificate.lower  # type: ignore[union-attr]
    assert values[0] * 0.6 <= lower <= values[0] * (1 + 1e-12)


def test_operator_refuses_other_modules() -> None:
    with pytest.raises(TypeError, match="layer must be a convolution"):
        operator(nn.ReLU(), (4, 4))


class Tangled(nn.Module):
    """A functional convolution used twice, in-place activations, padding by hand, a branch, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.randn(3, 3, 3, 3) / 5)
        self.down = nn.Conv2d(6, 4, 2, stride=2)
        self.norm = normalized(4)
        self.last = nn.Linear(16, 3)

    def forward(self, x: Any) -> Any:
        y = nn.functional.conv2d(nn.functional.pad(x, (1, 2, 1, 0)), self.filters)
        y = nn.functional.relu(y, inplace=True)
        z = torch.conv2d(y, self.filters, padding=1)
        z += y
        z = torch.cat([z, y], 1)
        return self.last(self.norm(self.down(z)).flatten(1))


def test_functional_convolutions_and_layers_used_twice() -> None:
    torch.manual_seed(0)
    module = Tangled().eval()
    example = torch.zeros(1, 3, 5, 4)
    network = read_module(module, example)
    assert list(network.layers) == ["filters", "filters (2)", "down", "norm", "last"]
    first = network.layers["filters"].geometry
    assert (first.image_shape, first.padding, first.output_shape) == ((5, 4), ((1, 0), (1, 2)), (4, 5))
    assert network.layers["filters (2)"].geometry.padding == ((1, 1), (1, 1))
    assert network.runs() == [("down", "norm")]
    assert list(operators(module, example)) == list(network.layers)
    report = convla.inspect(module, example, measures=["sigma_max"])
    names = [row.name for row in report]
    assert names == ["filters", "filters (2)", "down", "norm", "down + norm", "last"]
    certificate = report.certificate
    assert certificate is not None
    of = {row.name: row.quantities["at_most"] for row in report}
    b = of["filters"]
    assert b is not None
    joined = math.hypot(b * of["filters (2)"] + b, b)  # type: ignore[operator]
    assert certificate.upper == pytest.approx(joined * of["down + norm"] * of["last"], rel=1e-6)  # type: ignore[operator]
    assert certificate.lower <= certificate.upper
    assert certificate.largest_shares[0].share > 1.0


def drawn(seed: int) -> tuple[Any, tuple[int, ...]]:
    """Draw a small network: a chain of what a layer may be, with sums and poolings between."""
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    channels, size = int(generator.integers(1, 4)), [int(n) for n in generator.integers(4, 7, 2)]
    start = (channels, *size)
    parts: list[Any] = []
    for _ in range(int(generator.integers(1, 4))):
        choice = generator.integers(0, 11)
        if choice <= 2:
            maps = int(generator.integers(1, 4))
            mode = ["zeros", "circular", "replicate"][int(generator.integers(0, 3))]
            parts.append(nn.Conv2d(channels, maps, 3, padding=1, padding_mode=mode))
            channels = maps
        elif choice == 3:
            parts.append(Residual(nn.Conv2d(channels, channels, 3, padding=1)))
        elif choice == 4 and min(size) >= 4:
            kernel, stride = int(generator.integers(2, 4)), int(generator.integers(1, 3))
            kind = [nn.MaxPool2d, nn.AvgPool2d][int(generator.integers(0, 2))]
            parts.append(kind(kernel, stride, 1))
            size = [(n + 2 - kernel) // stride + 1 for n in size]
        elif choice == 5:
            parts.append(normalized(channels))
        elif choice == 6:
            parts.append(nn.Upsample(scale_factor=2, mode=["nearest", "bilinear"][int(generator.integers(0, 2))]))
            size = [2 * n for n in size]
        elif choice == 7:
            groups, stride = channels, int(generator.integers(1, 3))
            parts.append(nn.Conv2d(channels, 2 * channels, 3, stride, 2, dilation=2, groups=groups))
            channels, size = 2 * channels, [(n - 1) // stride + 1 for n in size]
        elif choice == 8 and max(size) < 8:
            parts.append(nn.ConvTranspose2d(channels, 2 * channels, 3, 2, 1, output_padding=1, groups=channels))
            channels, size = 2 * channels, [2 * n for n in size]
        elif choice == 9:
            parts.append(Joined(nn.Conv2d(channels, 1, 3, padding=1), nn.Sequential(nn.PReLU(), normalized(channels))))
            channels += 1
        activations = [nn.ReLU(inplace=True), nn.LeakyReLU(0.3), nn.Tanh(), nn.GELU(), nn.ELU(1.5), nn.SiLU()]
        activations += [nn.PReLU(init=2.0), nn.Hardswish(), nn.Identity()]
        parts.append(activations[int(generator.integers(0, len(activations)))])
    parts += [nn.Flatten(), nn.Linear(channels * size[0] * size[1], 3)]
    return nn.Sequential(*parts).eval(), start


class Residual(nn.Module):
    def __init__(self, branch: Any) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Any) -> Any:
        return x + self.branch(x)


class Joined(nn.Module):
    def __init__(self, *branches: Any) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Any) -> Any:
        return torch.cat([branch(x) for branch in self.branches], 1)


@pytest.mark.command
@pytest.mark.parametrize("first", range(0, 20, 10))
def test_the_bound_holds_on_drawn_networks(first: int) -> None:
    check_drawn(first)


def check_drawn(first: int) -> set[str]:
    """Check ten networks, and return the types of their modules."""
    held_apart, seen = [], set[str]()
    for seed in range(first, first + 10):
        network, size = drawn(seed)
        seen.update(type(part).__name__ for part in network.modules())
        report = convla.inspect(network, torch.randn(1, *size), measures=["sigma_max"])
        upper = report.certificate.upper  # type: ignore[union-attr]
        assert math.isfinite(upper)
        data = 3 * torch.randn(6, *size, generator=torch.Generator().manual_seed(seed))
        network.double()

        def whole(x: Any, network: Any = network) -> Any:
            return network(x.clone())  # a first step may be in place

        jacobians = [torch.autograd.functional.jacobian(whole, one[None].double()) for one in data]
        lower = max(float(torch.linalg.matrix_norm(one.reshape(3, -1), 2)) for one in jacobians)
        assert lower <= upper * (1 + 1e-12)
        if lower > 0.0:  # all of its ReLUs may be off
            held_apart.append(upper / lower)
    assert min(held_apart) < 4.0  # the bounds are of the size of what they bound
    return seen


@pytest.mark.slow
def test_the_bound_holds_on_two_hundred_drawn_networks() -> None:
    seen = set.union(*(check_drawn(first) for first in range(0, 200, 10)))
    assert seen >= {"BatchNorm2d", "ConvTranspose2d", "Joined", "MaxPool2d", "PReLU", "Residual", "Upsample"}


@pytest.mark.parametrize("seed", range(4))
def test_the_exact_constant_of_one_hidden_layer(seed: int) -> None:
    """The constant of W2 relu(W1 x) is the largest norm of W2 D W1 over the patterns that the hyperplanes cut out."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    first, second = (network[i].weight.detach().numpy() for i in (0, 2))
    patterns = [np.array([pattern >> k & 1 for k in range(5)]) for pattern in range(32)]
    exact = 0.0
    points = torch.randn(4000, 4, dtype=torch.float64) * 4
    seen = {tuple((row > 0).astype(int)) for row in (network[0](points).detach().numpy())}
    for pattern in patterns:
        if tuple(pattern) in seen:
            exact = max(exact, float(np.linalg.norm(second @ (pattern[:, None] * first), 2)))
    certificate = convla.inspect(network, points[:1], measures=["sigma_max"], data=points[:1]).certificate
    assert certificate is not None
    assert exact <= certificate.upper
    product = float(np.linalg.norm(first, 2) * np.linalg.norm(second, 2))
    assert certificate.upper == pytest.approx(product, rel=1e-9)


def test_a_linear_network_of_several_layers_is_bounded_by_its_product() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(normalized(2), nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 2, stride=2), normalized(2))
    exact = norm_of(network, (2, 6, 6))
    report = convla.inspect(network, torch.zeros(1, 2, 6, 6, dtype=torch.float64))
    run = report["0 + 1 + 2 + 3"]
    assert run.quantities["sigma_max"] == pytest.approx(exact, rel=1e-10)
    assert run.quantities["at_least"] <= exact <= run.quantities["at_most"]
    assert exact <= report.certificate.upper <= exact * (1 + 1e-9)  # type: ignore[union-attr]
    assert report.certificate.lower == pytest.approx(exact, rel=0.1)  # type: ignore[union-attr]


POOLINGS = {
    "average with padding": nn.AvgPool2d(3, 2, 1),
    "average without its padding": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average, rounded up": nn.AvgPool2d(3, 2, ceil_mode=True),
    "adaptive": nn.AdaptiveAvgPool2d((3, 2)),
    "bilinear": nn.Upsample(scale_factor=1.7, mode="bilinear"),
    "bilinear with corners": nn.Upsample(size=(9, 5), mode="bilinear", align_corners=True),
    "nearest": nn.Upsample(size=(7, 9), mode="nearest"),
    "mirror": nn.ReflectionPad2d((1, 2, 0, 3)),
    "shuffle": nn.PixelShuffle(1),
}


@pytest.mark.parametrize("case", POOLINGS)
def test_linear_steps_without_weights_have_their_exact_norm(case: str) -> None:
    exact = norm_of(POOLINGS[case], (1, 6, 5))
    upper = convla.inspect(POOLINGS[case], torch.zeros(1, 1, 6, 5)).certificate.upper  # type: ignore[union-attr]
    assert exact <= upper * (1 + 1e-12)
    assert upper == pytest.approx(exact, rel=1e-6)  # the weights of a resampling are computed in single precision


@pytest.mark.parametrize(
    ("activation", "largest"),
    [
        (nn.GELU(), 1.12890), (nn.GELU(approximate="tanh"), 1.129), (nn.SiLU(), 1.0998), (nn.Mish(), 1.0884),
        (nn.Hardswish(), 1.4999), (nn.SELU(), 1.7577), (nn.ELU(2.5), 2.499), (nn.Sigmoid(), 0.24999),
        (nn.Hardsigmoid(), 0.16666), (nn.Softplus(3.0), 0.99999), (nn.LeakyReLU(2.0), 1.99), (nn.CELU(0.3), 0.999),
        (nn.Tanhshrink(), 0.999), (nn.Softsign(), 0.999), (nn.Hardtanh(-2, 3), 0.999), (nn.LogSigmoid(), 0.999),
    ],
    ids=str,
)  # fmt: skip
def test_constants_of_activations(activation: Any, largest: float) -> None:
    """Each constant is above all slopes on a fine grid, and not by much."""
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    y = activation(x)
    slopes = ((y[1:] - y[:-1]) / (x[1:] - x[:-1])).abs()
    upper = convla.inspect(activation, torch.zeros(1, 3)).certificate.upper  # type: ignore[union-attr]
    assert float(slopes.max()) <= upper * (1 + 1e-9)
    assert largest <= upper <= 1.01 * largest


def test_what_depends_on_the_input_is_refused_in_words() -> None:
    class Attention(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.softmax(x @ x.transpose(1, 2), -1) @ x

    class Gate(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * (x > 0).float() * x.mean()

    class Reader(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * float(x.max())

    class InPlace(nn.Module):
        def forward(self, x: Any) -> Any:
            y = x * 2
            view = y.view(-1)
            view.mul_(3)
            return y

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, bias=False)

        def forward(self, x: Any) -> Any:
            y = nn.functional.pad(x[:, None], (1, 1, 1, 1))
            y *= 3.0  # what the convolution takes is no longer what the padding made
            return self.conv(y)

    network = read_module(Padded(), torch.randn(1, 4, 4))
    assert network.nodes["conv"].inputs == ("mul",)
    assert network.layers["conv"].geometry.image_shape == (6, 6)
    for module, words in (
        (Attention(), "attention"),
        (Gate(), "depend"),
        (Reader(), "taken out of a tensor"),
        (InPlace(), "in place"),
        (nn.BatchNorm1d(4, track_running_stats=False), "by the batch"),
    ):
        certificate = convla.inspect(module, torch.randn(2, 4, 4)).certificate
        assert certificate is not None
        assert certificate.upper == math.inf, module
        assert any(words in reason for reason in certificate.reasons), certificate.reasons


def test_an_exported_program_is_the_module() -> None:
    module = nn.Sequential(
        *(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), normalized(3), nn.ReLU6(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(), nn.Linear(12, 2)),
    ).eval()
    example = torch.zeros(1, 2, 4, 4)
    with warnings.catch_warnings(action="ignore"):  # of PyTorch, about itself
        program = torch.export.export(module, (example,)).module()
        found, wanted = (convla.inspect(one, example, measures=["sigma_max"]) for one in (program, module))
    assert [row.name for row in found] == [row.name for row in wanted]
    assert found.certificate.upper == wanted.certificate.upper  # type: ignore[union-attr]


def test_the_module_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5))
    module[1].eval()
    before = [parameter.clone() for parameter in (*module.parameters(), *module.buffers())]
    convla.inspect(module, torch.randn(2, 1, 6, 6), measures=["sigma_max"])
    assert [one.training for one in module] == [True, False, True]
    assert all(not one._forward_hooks and not one._forward_pre_hooks for one in module.modules())
    after = [*module.parameters(), *module.buffers()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_half_precision_and_reuse_of_equal_layers() -> None:
    layer = nn.Conv2d(2, 2, 3, padding=1).bfloat16()
    report = convla.inspect(layer, torch.zeros(1, 2, 5, 5, dtype=torch.bfloat16), certify=False)
    assert "its weight of bfloat16 is taken as float32" in report.layers[0].notes
    assert report.layers[0].dtype == "float32"


def test_results_as_records_csv_json_and_frame() -> None:
    import json

    report = convla.inspect(nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 6, 5))
    (record,) = report.records()
    names = ("layer", "sigma_max", "at_least", "at_most", "sigma_min", "condition", "stable_rank", "status")
    assert [name for name in record if name in names] == list(names)
    assert (record["image"], record["stride"], record["padding"], record["kind"]) == (
        "6x5",
        "1x1",
        "0x0",
        "convolution",
    )
    assert report.to_csv().splitlines()[0].split(",")[0] == "layer"
    data = json.loads(report.to_json())
    assert data["schema"] == "convla-inspection-1"
    assert data["certificate"]["upper"] == report.certificate.upper  # type: ignore[union-attr]
    assert "Lipschitz constant <= " in repr(report)
    pandas = pytest.importorskip("pandas")
    frame = report.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["sigma_max"][0] == report.layers[0].quantities["sigma_max"]


def test_ctrl_c_keeps_the_rows_and_a_budget_says_what_is_estimated() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    report = convla.inspect(network, torch.zeros(1, 1, 8, 8), progress=stop)
    assert (len(report), report.complete, report.certificate) == (1, False, None)
    large = nn.Conv2d(8, 8, 3, padding=1)
    hurried = convla.inspect(large, torch.zeros(1, 8, 40, 40), budget=0.0, measures=["sigma_max", "sigma_min"])
    quantities = hurried.layers[0].quantities
    assert hurried.layers[0].status["sigma_max"] in ("not converged", "estimated")
    assert quantities["sigma_min"] is None
    assert quantities["at_least"] <= quantities["at_most"]
    assert any("left out to save time" in note for note in hurried.layers[0].notes)
