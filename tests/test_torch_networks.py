"""The sources' networks: numbers of parameters, printed shapes, and the residual networks against a plain rewriting."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

from convla.errors import ShapeError

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from convla.experiments.training import networks as adapter  # noqa: E402

pytestmark = pytest.mark.torch

functional = torch.nn.functional


def _count(network: Any) -> int:
    return sum(p.numel() for p in network.parameters())


def _shapes_of(name: str, **options: Any) -> Any:
    """Build a network whose parameters have shapes and no values."""
    with torch.device("meta"):
        return adapter.NETWORKS[name](**options)


def _residual_count(stem: int, widths: list[tuple[int, int]], blocks: int, *, projections: bool) -> int:
    """Count the parameters of a residual network from its widths alone; each normalisation has two for each map."""
    total = 3 * widths[0][0] * stem**2 + 2 * widths[0][0]
    for before, maps in widths:
        total += 9 * (before * maps + (2 * blocks - 1) * maps * maps) + 2 * (2 * blocks * maps)
        if projections and before != maps:
            total += before * maps + 2 * maps
    return total + 10 * widths[-1][1] + 10


THIN = [(16, 16), (16, 32), (32, 64)]
BROAD = [(64, 64), (64, 128), (128, 256), (256, 512)]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cnn1", 118_858),  # CSM, Section 6.3
        ("cnn2", 458_890),
        ("cnn2-512", 7_143_946),
        ("basic-cnn", 24_714),  # OGN, Appendix A.1
        ("resnet18", _residual_count(3, BROAD, 2, projections=True)),
        ("resnet18-imagenet", _residual_count(7, BROAD, 2, projections=True)),
        ("resnet20", _residual_count(3, THIN, 3, projections=False)),
        ("resnet44", _residual_count(3, THIN, 7, projections=False)),
        ("resnet56", _residual_count(3, THIN, 9, projections=False)),
    ],
)
def test_the_number_of_parameters(name: str, count: int) -> None:
    assert _count(_shapes_of(name)) == count


def test_the_residual_numbers_are_the_known_ones() -> None:
    # He et al. print 0.27M, 0.66M, 0.85M.
    for depth, millions in ((20, 0.27), (44, 0.66), (56, 0.85)):
        for order in (True, False):
            network = adapter.cifar_resnet(depth=depth, preactivation=order)
            assert abs(_count(network) / 1e6 - millions) < 0.01
            weights = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
            assert len(weights) == depth


@pytest.mark.parametrize(
    ("name", "published", "inputs"),
    [
        ("resnet18-imagenet", 11_689_512, 512),
        ("resnet34-imagenet", 21_797_672, 512),
        ("resnet50-imagenet", 25_557_032, 2048),
        ("resnext50-imagenet", 25_028_904, 2048),
        ("wide-resnet50-imagenet", 68_883_240, 2048),
        ("densenet121-imagenet", 7_978_856, 1024),
        ("densenet161-imagenet", 28_681_000, 2208),
    ],
)
def test_the_networks_of_imagenet_have_the_published_numbers(name: str, published: int, inputs: int) -> None:
    # torchvision's, for 1000 classes; OGN trains them with 10.
    assert _count(_shapes_of(name, classes=1000)) == published
    assert _count(_shapes_of(name)) == published - 990 * (inputs + 1)


def test_the_linear_layers_of_table_7() -> None:
    for name, inputs in (("cnn1", 576), ("cnn2", 1152)):
        assert adapter.NETWORKS[name]()[-1].in_features == inputs


def test_the_printed_shapes_of_the_basic_cnn() -> None:
    shapes = []
    network = adapter.basic_cnn()
    for layer in network:
        if not isinstance(layer, torch.nn.ReLU | torch.nn.Flatten):
            layer.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    network(torch.zeros(2, 3, 32, 32))
    pairs = [(32, 16, 16)] * 2 + [(32, 8, 8)] * 2 + [(32, 4, 4)] * 2
    assert shapes == [*pairs, (10,)]


BROADER = [name for name in adapter.NETWORKS if name.endswith("-imagenet") and name != "resnet18-imagenet"]
"""Built of the blocks of others, and each tens of millions of parameters."""


@pytest.mark.command
@pytest.mark.parametrize("name", [name for name in adapter.NETWORKS if name not in BROADER])
@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 8, 10), (3, (5, 9), 4)])
def test_every_network_learns_from_other_images(name: str, channels: int, size: Any, classes: int) -> None:
    if name == "vgg16":  # halved five times
        size = (32, 40) if isinstance(size, tuple) else 32
    network = adapter.NETWORKS[name](in_channels=channels, image_size=size, classes=classes)
    height, width = size if isinstance(size, tuple) else (size, size)
    out = network(torch.randn(2, channels, height, width))
    assert out.shape == (2, classes)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", ["cnn1", "basic-cnn", "resnet18", "resnet20"])
def test_a_single_pixel_is_enough_for_those_that_say_any_size(name: str) -> None:
    network = adapter.NETWORKS[name](image_size=1).eval()
    assert network(torch.zeros(1, 3, 1, 1)).shape == (1, 10)


@pytest.mark.command
@pytest.mark.parametrize("name", BROADER)
def test_the_shapes_of_the_broader_networks(name: str) -> None:
    assert _shapes_of(name, in_channels=2, classes=4)(torch.empty(2, 2, 32, 40, device="meta")).shape == (2, 4)


def _normalise(values: Any, layer: Any) -> Any:
    return functional.batch_norm(values, None, None, layer.weight, layer.bias, training=True)


@pytest.mark.parametrize("order", ["resnet18", "resnet20", "resnet56"])
def test_the_residual_networks_against_a_plain_rewriting(order: str) -> None:
    """The same arithmetic from the weights in their order alone, written as the papers' figures read."""
    torch.manual_seed(0)
    network = adapter.NETWORKS[order]()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.weight)
            torch.nn.init.normal_(layer.bias)
    x = torch.randn(3, 3, 16, 16)
    parts: Iterator[Any] = iter([m for m in network.modules() if not list(m.children()) and list(m.parameters())])
    take = lambda: next(parts)  # noqa: E731

    def convolve(values: Any, stride: int = 1) -> Any:
        weight = take().weight
        return functional.conv2d(values, weight, stride=stride, padding=weight.shape[-1] // 2)

    widths, blocks = (
        ([64, 128, 256, 512], 2) if order == "resnet18" else ([16, 32, 64], 3 if order == "resnet20" else 9)
    )
    y = torch.relu(_normalise(convolve(x), take()))
    for stage, maps in enumerate(widths):
        for place in range(blocks):
            stride = 2 if stage and not place else 1
            if order == "resnet20":
                entry = y if stage == place == 0 else torch.relu(_normalise(y, take()))
                branch = convolve(torch.relu(_normalise(convolve(entry, stride), take())))
            else:
                branch = _normalise(convolve(torch.relu(_normalise(convolve(y, stride), take()))), take())
            short = y
            if stride == 2 and order == "resnet18":
                short = _normalise(functional.conv2d(y, take().weight, stride=2), take())
            elif stride == 2:
                short = torch.zeros_like(branch)
                short[:, : maps // 2] = y[:, :, ::2, ::2]
            y = branch + short if order == "resnet20" else torch.relu(branch + short)
    if order == "resnet20":
        y = torch.relu(_normalise(y, take()))
    expected = functional.linear(y.mean(dim=(2, 3)), *take().parameters())
    assert next(parts, None) is None
    torch.testing.assert_close(network(x), expected)


def _leaves(network: Any) -> Iterator[Any]:
    """Yield what has parameters, in the order of the code, normalisations with values that tell them apart."""
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.weight)
            torch.nn.init.normal_(layer.bias)
        if list(layer.parameters(recurse=False)):
            yield layer


def test_a_densenet_against_a_plain_rewriting() -> None:
    network = adapter.densenet(growth=3, first=4, blocks=(2, 1), in_channels=2, image_size=12, classes=5)
    layers = _leaves(network)

    def convolve(values: Any, **options: Any) -> Any:
        return functional.conv2d(values, next(layers).weight, **options)

    def activate(values: Any) -> Any:
        return torch.relu(_normalise(values, next(layers)))

    x = torch.randn(3, 2, 12, 12)
    y = functional.max_pool2d(activate(convolve(x, stride=2, padding=3)), 3, stride=2, padding=1)
    for count in (2, 1):
        if count == 1:
            y = functional.avg_pool2d(convolve(activate(y)), 2)
        for _ in range(count):
            y = torch.cat([y, convolve(activate(convolve(activate(y))), padding=1)], dim=1)
    expected = functional.linear(activate(y).mean(dim=(2, 3)), *next(layers).parameters())
    assert next(layers, None) is None
    torch.testing.assert_close(network(x), expected)


def test_a_bottleneck_against_a_plain_rewriting() -> None:
    network = adapter.resnet(depth=50, groups=2, width=4, image_size=9)
    block, x = network[4], torch.randn(2, 64, 5, 5)
    layers = _leaves(block)
    y = x
    for place in range(3):
        weight = next(layers).weight
        groups = 2 if place == 1 else 1
        y = _normalise(functional.conv2d(y, weight, padding=weight.shape[-1] // 2, groups=groups), next(layers))
        y = torch.relu(y) if place < 2 else y
    short = _normalise(functional.conv2d(x, next(layers).weight), next(layers))
    assert y.shape[1] == 256
    torch.testing.assert_close(block(x), torch.relu(y + short))
    strides = [layer.stride[0] for layer in network[7].modules() if isinstance(layer, torch.nn.Conv2d)]
    assert strides == [1, 2, 1, 2]  # the last is the shortcut's


@pytest.mark.parametrize(("name", "fan"), [("resnet34-imagenet", "out"), ("densenet121-imagenet", "in")])
def test_kernels_are_drawn_as_torchvision_draws_them(name: str, fan: str) -> None:
    torch.manual_seed(0)
    network = adapter.NETWORKS[name]()
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            maps = layer.out_channels if fan == "out" else layer.in_channels
            expected = 2 / (maps * layer.weight[0, 0].numel())
            # The variance of a normal sample of n has a relative standard deviation of sqrt(2 / n).
            assert abs(float(layer.weight.detach().var()) / expected - 1) < 6 * (2 / layer.weight.numel()) ** 0.5


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        (
            "cdg-cnn",
            {"image_size": 3},
            ShapeError,
            "image_size must be at least 4 along both axes for this network, got 3",
        ),
        ("cdg-cnn", {"image_size": (8, 2)}, ShapeError, r"image_size must be at least 4 .* got \(8, 2\)"),
        ("cnn1", {"image_size": 0}, ValueError, r"image_size\[0\] must be at least 1, got 0"),
        ("cnn1", {"image_size": 8.0}, TypeError, r"image_size\[0\] must be an integer, got 8.0"),
        ("resnet18", {"image_size": (1, 2, 3)}, ShapeError, r"image_size must be an integer or a pair"),
        ("resnet18", {"stem": "tiny"}, ValueError, "stem must be one of 'imagenet', 'cifar', got 'tiny'"),
        ("resnet18", {"depth": 20}, ValueError, "depth must be one of 18, 34, 50, got 20"),
        ("resnet18", {"groups": 2}, ValueError, "groups and width are of bottlenecks"),
        ("densenet121-imagenet", {"image_size": 28}, ShapeError, "image_size must be at least 29"),
        ("densenet121-imagenet", {"blocks": (1, 0)}, ValueError, r"blocks\[1\] must be at least 1, got 0"),
        ("resnet20", {"depth": 18}, ValueError, r"depth must be 6 n \+ 2 for n blocks of each width, got 18"),
        ("resnet20", {"depth": 2}, ValueError, "depth must be at least 8, got 2"),
        ("basic-cnn", {"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
        ("basic-cnn", {"classes": 2.5}, TypeError, "classes must be an integer, got 2.5"),
        ("cnn1", {"maps": 0}, ValueError, "maps must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(name: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        adapter.NETWORKS[name](**options)


@pytest.mark.command
def test_the_documentation_quotes_the_numbers_that_hold() -> None:
    for builder, names in (
        (adapter.csm_cnn, ("cnn1", "cnn2", "cnn2-512")),
        (adapter.basic_cnn, ("basic-cnn",)),
        (adapter.cifar_resnet, ("resnet20",)),
    ):
        for name in names:
            assert f"{_count(_shapes_of(name)):,}" in builder.__doc__
    for name in BROADER:
        builder = adapter.densenet if name.startswith("densenet") else adapter.resnet
        assert f"{_count(_shapes_of(name, classes=1000)):,}" in builder.__doc__
    page = pathlib.Path(__file__).parent.parent / "docs" / "regularise-a-pytorch-network.md"
    rows = [row for row in page.read_text().splitlines() if row.startswith("| `") and re.search(r"\d,\d{3}", row)]
    quoted = {name: n for row in rows for name, n in zip(*_names_and_numbers(row), strict=True)}
    assert quoted == {name: f"{_count(_shapes_of(name)):,}" for name in adapter.NETWORKS}


def test_the_script_of_the_documentation_trains() -> None:
    page = pathlib.Path(__file__).parent.parent / "docs" / "regularise-a-pytorch-network.md"
    script, recipe = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    network = adapter.basic_cnn(in_channels=1, image_size=8)
    before = [p.detach().clone() for p in network.parameters()]
    batches = [(torch.rand(4, 1, 8, 8), torch.arange(4))] * 2
    names = {"network": network, "batches": batches}
    exec(script, names)
    exec(recipe, names)
    assert torch.isfinite(names["loss"])
    for old, new in zip(before, network.parameters(), strict=True):
        assert torch.isfinite(new).all()
        assert not torch.equal(old, new)


def _names_and_numbers(row: str) -> tuple[list[str], list[str]]:
    _, names, _, numbers, _ = row.split("|")
    return re.findall("`([^`]+)`", names), re.findall(r"\d[\d,]{3,}", numbers)
