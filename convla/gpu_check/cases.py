"""What is timed: the operations at the sizes of real layers, their floors, and PyTorch doing the same beside them."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from convla import (
    ConvOperator,
    laplacian_smoothing,
    largest_singular_value,
    network_similarity,
    orthonormalize_layers,
    reweighted_gradient,
    singular_value_bounds,
    sobolev_gradient,
)
from convla.autocorrelation import lag_index
from convla.experiments.csm.settings import Readings, table_settings
from convla.experiments.descents.outcome import run_setting
from convla.orthonormal import MUON_COEFFICIENTS, MUON_STEPS, OrthonormalMethod

__all__ = ["RESNET18", "Case", "cases"]

RESNET18 = [(64, 3, 7, 7), *[(64, 64, 3, 3)] * 4]
for _width in (128, 256, 512):
    RESNET18 += [(_width, _width // 2, 3, 3), *[(_width, _width, 3, 3)] * 3, (_width, _width // 2, 1, 1)]

CONVOLUTIONS = [
    ("1 channel", 1, 256, 32),
    ("16 channels", 16, 112, 32),
    ("64 channels", 64, 56, 32),
    ("256 channels", 256, 14, 32),
]
"""Square layers of 3x3 taps, "same": name, channels, side of the image, images."""


class Case(NamedTuple):
    """One line of the table.

    Attributes
    ----------
    name : str
    run : callable
        The operation on CuPy arrays that are there already.
    moved, operations : float
        The bytes and the floating-point operations that no way of doing it can spare.
    torch : callable or None
        PyTorch doing the same, on tensors that share the memory of the arrays.
    target : float or None
        Milliseconds that were set as the aim on an H100.
    least_ratio : float or None
        How many times as fast as PyTorch it was meant to be.
    """

    name: str
    run: Callable[[], Any]
    moved: float
    operations: float
    torch: Callable[[], Any] | None = None
    target: float | None = None
    least_ratio: float | None = None


def cases(torch: Any = None, *, shrink: int = 1) -> Iterator[Case]:
    """Yield the cases in float32, each made when it is its turn.

    Parameters
    ----------
    torch : module, optional
        PyTorch, where it finds the same device.
    shrink : int, default 1
        Divides channels, sides and repetitions, to try the command itself.
    """
    for group in (_similarity, _convolutions, _spectra, _polar_factors, _gradients, _tables):
        try:
            yield from group(torch, shrink)
        except Exception as error:  # of operands that cannot be made; the others go on
            yield Case(group.__name__.strip("_").replace("_", " "), functools.partial(_raise, error), 0.0, 0.0)


def _raise(error: Exception) -> None:
    raise error


def _random(shape: tuple[int, ...]) -> Any:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return importlib.import_module("cupy").asarray(values)


def _smaller(shape: tuple[int, ...], shrink: int) -> tuple[int, ...]:
    return (*(max(1, n // shrink) for n in shape[:2]), *shape[2:])


def _network(shrink: int) -> dict[str, Any]:
    return {f"{place} {shape}": _random(_smaller(shape, shrink)) for place, shape in enumerate(RESNET18)}


def _similarity(torch: Any, shrink: int) -> Iterator[Case]:
    kernels = _network(shrink)
    numbers = sum(array.size for array in kernels.values())
    lags = sum(array.size * (math.prod(array.shape[2:]) + 1) for array in kernels.values())

    def by_lags() -> Any:
        total = 0.0
        for tensor, index in zip(tensors, indices, strict=True):
            rows = tensor.double().flatten(2)
            lags = torch.zeros((len(rows), int(index.max()) + 1), dtype=rows.dtype, device=rows.device)
            lags = lags.index_add(1, index, (rows.mT @ rows).flatten(1))
            total = total + (lags.sum(0).square().sum() - lags.square().sum()) / 2
        return torch.autograd.grad(total, tensors)

    tensors = [torch.from_dlpack(array).requires_grad_() for array in kernels.values()] if torch else []
    indices = [torch.as_tensor(lag_index(t.shape[2:]).ravel(), device=t.device) for t in tensors]
    yield Case(
        "similarity of ResNet-18's 20 layers, value and gradient",
        lambda: network_similarity(kernels),
        # Kernels are read for the signatures and again for the gradient, which is written.
        3 * 4 * numbers,
        3 * lags,
        by_lags if torch else None,
        1.0,
    )


def _convolutions(torch: Any, shrink: int) -> Iterator[Case]:
    for name, channels, side, images in CONVOLUTIONS:
        c, n, count = (max(1, size // shrink) for size in (channels, side, images))
        kernel, image = _random((c, c, 3, 3)), _random((count, c, n, n))
        moved = 4.0 * (2 * image.size + kernel.size)
        runs, calls = _maps(ConvOperator(kernel, (n, n)), image), _torch_maps(torch, kernel, image)
        for what, run in runs.items():
            title = f"{what}, {name}, 3x3, {n}x{n}, {count} images"
            yield Case(title, run, moved, 2.0 * image.size * c * 9, calls.get(what), least_ratio=1.0)


def _maps(operator: ConvOperator, image: Any) -> dict[str, Callable[[], Any]]:
    # Without the checks of values, which PyTorch does not make either.
    return {
        "cross-correlation": lambda: operator._apply(image),
        "image adjoint": lambda: operator._adjoint(image),
        "kernel adjoint": lambda: operator._kernel_adjoint(image, image, operator.geometry),
    }


def _torch_maps(torch: Any, kernel: Any, image: Any) -> dict[str, Callable[[], Any]]:
    if torch is None:
        return {}
    w, x = torch.from_dlpack(kernel), torch.from_dlpack(image)
    grad = torch.nn.grad
    return {
        "cross-correlation": lambda: torch.nn.functional.conv2d(x, w, padding=1),
        "image adjoint": lambda: grad.conv2d_input(x.shape, w, x, padding=1),
        "kernel adjoint": lambda: grad.conv2d_weight(x, w.shape, x, padding=1),
    }


def _spectra(_: Any, shrink: int) -> Iterator[Case]:
    c, n = max(1, 512 // shrink), max(3, 28 // shrink)
    layer = ConvOperator(_random((c, c, 3, 3)), (n, n))
    products = 2.0 * 9 * c * c * n * n
    yield Case(
        f"largest singular value to 1e-6, {c} -> {c}, 3x3, {n}x{n}",
        lambda: largest_singular_value(layer, rtol=1e-6),
        4.0 * math.prod(layer.kernel.shape),
        2 * products,  # one application and one adjoint at least
        target=10.0,
    )
    c, n = max(1, 64 // shrink), max(5, 12 // shrink)
    small = ConvOperator(_random((c, c, 5, 5)), (n, n))
    yield Case(
        f"enclosure of the singular values, {c} -> {c}, 5x5, {n}x{n}",
        lambda: singular_value_bounds(small),
        4.0 * math.prod(small.kernel.shape),
        2.0 * math.prod(small.kernel.shape) * n * n,
        target=1.0,
    )


def _polar_factors(torch: Any, shrink: int) -> Iterator[Case]:
    network = _network(shrink)
    matrices = [array.reshape(array.shape[0], -1) for array in network.values()]
    sides = [sorted(matrix.shape) for matrix in matrices]
    tensors = [torch.from_dlpack(matrix) for matrix in matrices] if torch else []

    def svd(tensor: Any) -> Any:
        u, _, vh = torch.linalg.svd(tensor, full_matrices=False)
        return u @ vh

    def newton_schulz(tensor: Any) -> Any:
        a, b, c = MUON_COEFFICIENTS
        x = tensor.mT if tensor.shape[0] > tensor.shape[1] else tensor
        x = x / torch.linalg.matrix_norm(x)
        for _ in range(MUON_STEPS):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.mT if tensor.shape[0] > tensor.shape[1] else x

    methods: dict[OrthonormalMethod, Callable[[Any], Any]] = {"exact": svd, "newton-schulz": newton_schulz}
    for method, theirs in methods.items():
        yield Case(
            f"20 polar factors of ResNet-18, {method}",
            functools.partial(orthonormalize_layers, network, method=method),
            2 * 4.0 * sum(matrix.size for matrix in matrices),
            sum(4.0 * short * short * long for short, long in sides),  # the Gram matrix and one product
            functools.partial(lambda factor: [factor(tensor) for tensor in tensors], theirs) if torch else None,
            8.0,
        )


def _gradients(_: Any, shrink: int) -> Iterator[Case]:
    f = _random(_smaller((512, 512, 3, 3), shrink))
    for name, transform in (
        ("re-weighted gradient", lambda: reweighted_gradient(f, 5.0)),
        ("Sobolev gradient", lambda: sobolev_gradient(f, 1.0)),
        ("Laplacian smoothing, output channels", lambda: laplacian_smoothing(f, 1.0, axis=0)),
        ("Laplacian smoothing, rasterised", lambda: laplacian_smoothing(f, 1.0)),
    ):
        yield Case(f"{name}, {'x'.join(map(str, f.shape))}", transform, 2 * 4.0 * f.size, 4.0 * f.size)


def _tables(_: Any, shrink: int) -> Iterator[Case]:
    settings = [setting.descent(Readings()) for setting in table_settings()]
    settings = settings[:: shrink if shrink > 1 else 1]
    repetitions = max(2, 1000 // shrink)

    def tables() -> None:
        for setting in settings:
            run_setting(setting, repetitions=repetitions, seed=0, engine="cuda")

    # Two kernels, a product and a sum, and about six passes over the pairs of taps in each iteration.
    operations = sum(2 * 2 * 6.0 * s.taps**2 * s.iterations * repetitions for s in settings)
    yield Case(
        f"Tables 1-6, {repetitions} repetitions of {len(settings)} settings", tables, 0.0, operations, target=300.0
    )
