"""What is true of a layer, from the definition alone: no index table, product or decomposition of the library.

Singular values come from LAPACK in float64, part by part where channels fall into groups; where LAPACK's own rounding
could decide, from one-sided Jacobi rotations in long double, and the rank from elimination modulo a prime.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tests.fuzz.draw import Layer
from tests.naive import read

EPS = float(np.finfo(np.float64).eps)
PRIME = 2**31 - 1


class Axis(NamedTuple):
    """Along one axis: the image index behind each output and tap, -1 for a zero, and the image's size."""

    table: Any
    size: int


@functools.lru_cache(maxsize=4096)
def axis_table(size: int, taps: int, padding: Any, stride: int, dilation: int, boundary: str) -> Axis:
    """Index every product along one axis, from the documented meaning of the options."""
    extent = (taps - 1) * dilation + 1
    named = {"full": (extent - 1, extent - 1), "same": ((extent - 1) // 2, extent // 2), "valid": (0, 0)}
    low, high = named[padding] if isinstance(padding, str) else padding
    outputs = (size + low + high - extent) // stride + 1
    found = [[read(o * stride + a * dilation - low, size, boundary) for a in range(taps)] for o in range(outputs)]
    return Axis(np.array([[-1 if p is None else p for p in row] for row in found]).reshape(outputs, taps), size)


def axes_of(layer: Layer) -> list[Axis]:
    options = layer.setting.options
    padding = options["padding"]
    image = layer.setting.image_shape
    if isinstance(padding, int):
        padding = ((padding, padding),) * len(image)
    paddings = (padding,) * len(image) if isinstance(padding, str) else padding
    return [
        axis_table(n, k, p, s, d, options["boundary"])
        for n, k, p, s, d in zip(
            image, layer.kernel.shape[2:], paddings, options["stride"], options["dilation"], strict=True
        )
    ]


def outputs_of(layer: Layer) -> tuple[int, ...]:
    return tuple(len(axis.table) for axis in axes_of(layer))


def positions(axes: list[Axis]) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Each tap with the flat image position that each flat output position reads through it, -1 for a zero."""
    for tap in itertools.product(*(range(axis.table.shape[1]) for axis in axes)):
        flat = np.zeros(1, np.int64)
        inside = np.ones(1, bool)
        for axis, a in zip(axes, tap, strict=True):
            column = axis.table[:, a]
            flat = (flat[:, None] * axis.size + column).reshape(-1)
            inside = (inside[:, None] & (column >= 0)).reshape(-1)
        yield tap, np.where(inside, flat, -1)


def matrices(kernel: Any, axes: list[Axis], groups: int) -> Any:
    """The matrix of each group: (groups, its outputs' entries, its inputs' entries), in the kernel's dtype."""
    outputs, size = (math.prod(n) for n in ([len(axis.table) for axis in axes], [axis.size for axis in axes]))
    parts = kernel.reshape(groups, -1, *kernel.shape[1:])
    found = np.zeros((groups, parts.shape[1], parts.shape[2], outputs, size), kernel.dtype)
    for tap, place in positions(axes):
        rows = np.flatnonzero(place >= 0)
        # Through one tap each output reads one position, so that no place is written to twice.
        found[..., rows, place[rows]] += parts[(..., *tap)][..., None]
    return np.moveaxis(found, 2, 3).reshape(groups, parts.shape[1] * outputs, parts.shape[2] * size)


class Scaled(NamedTuple):
    """A layer's kernel over 2^exponent, its largest live entry in [0.5, 1); entries that meet no image are zero."""

    kernel: Any
    exponent: int
    moduli: float  # a bound of the norm of the matrix of the entries' moduli
    meeting: int  # the most taps in one entry of the matrix


def scale(layer: Layer) -> Scaled:
    axes = axes_of(layer)
    kernel = layer.kernel.astype(np.longdouble)
    live = np.zeros(kernel.shape[2:], bool)
    readers = np.zeros(math.prod(axis.size for axis in axes), np.int64)
    for tap, place in positions(axes):
        live[tap] = bool(np.any(place >= 0))
        readers += np.bincount(place[place >= 0], minlength=readers.size)
    kernel = kernel * live
    exponent = int(np.frexp(np.max(np.abs(kernel)))[1])
    kernel = np.ldexp(kernel, -exponent).astype(np.float64)
    # Schur's test, with the sums over all taps as row sums.
    rows = np.abs(kernel).sum(axis=tuple(range(1, kernel.ndim))).max(initial=0.0)
    columns = np.abs(kernel).max(initial=0.0) * len(kernel) / layer.groups * readers.max(initial=0)
    meeting = 1
    for axis in axes:
        meeting *= max(int(np.bincount(row[row >= 0]).max(initial=1)) for row in axis.table)
    return Scaled(kernel, exponent, math.sqrt(float(rows * columns)), meeting)


class Truth(NamedTuple):
    """All min(m, n) singular values over 2^exponent, decreasing, and what rounding may have done to each."""

    values: Any
    exponent: int
    floor: float

    @property
    def largest(self) -> float:
        return float(self.values[0])

    @property
    def smallest(self) -> float:
        return float(self.values[-1])

    def unscaled(self, value: Any) -> float:
        """A value of the layer in the units of this truth; long double has range to spare."""
        return float(np.ldexp(np.longdouble(value), -self.exponent))


def singular_values(layer: Layer) -> Truth:
    """The singular values by the cheapest independent way."""
    axes = axes_of(layer)
    prepared = scale(layer)
    sides = matrix_shape(layer)
    if layer.factors is not None or math.prod(layer.kernel.shape[2:]) == 1:
        values = _of_factors(layer, axes, prepared)
    elif (
        layer.setting.options["boundary"] == "circular"
        and outputs_of(layer) == layer.setting.image_shape
        and set(layer.setting.options["stride"]) == {1}
    ):
        values = _of_symbol(layer, axes, prepared)
    else:
        parts = np.linalg.svd(matrices(prepared.kernel, axes, layer.groups), compute_uv=False)
        values = np.sort(parts.reshape(-1))[::-1]
    largest = float(values[0]) if len(values) else 0.0
    floor = (max(sides) + 8) * EPS * largest + (prepared.meeting - 1) * EPS * prepared.moduli
    return Truth(values, prepared.exponent, floor)


def matrix_shape(layer: Layer) -> tuple[int, int]:
    image = math.prod(layer.setting.image_shape)
    return len(layer.kernel) * math.prod(outputs_of(layer)), layer.kernel.shape[1] * layer.groups * image


def _of_factors(layer: Layer, axes: list[Axis], prepared: Scaled) -> Any:
    """All products of one singular value of each Kronecker factor, group by group."""
    channels, kernels = layer.factors or (prepared.kernel.reshape(layer.kernel.shape[:2]), [np.ones(1)] * len(axes))
    lines = [
        np.linalg.svd(matrices(np.reshape(k, (1, 1, -1)).astype(float), [axis], 1)[0], compute_uv=False)
        for axis, k in zip(axes, kernels, strict=True)
    ]
    blocks = np.linalg.svd(np.asarray(channels, float).reshape(layer.groups, -1, channels.shape[1]), compute_uv=False)
    values = blocks.reshape(-1)
    for line in lines:
        values = np.multiply.outer(values, line).reshape(-1)
    # Of a product of tall and wide factors some singular values are not products: they are zero.
    values = np.concatenate((values, np.zeros(min(matrix_shape(layer)) - len(values))))
    if layer.factors is not None:
        values = np.ldexp(values, -prepared.exponent)
    return np.sort(values)[::-1]


def _of_symbol(layer: Layer, axes: list[Axis], prepared: Scaled) -> Any:
    """The singular values of the symbol at the frequencies of the torus."""
    image, parts = layer.setting.image_shape, prepared.kernel.reshape(layer.groups, -1, *prepared.kernel.shape[1:])
    wrapped = np.zeros((*parts.shape[:3], *image))
    for tap, place in positions(axes):
        wrapped[(..., *np.unravel_index(place[0], image))] += parts[(..., *tap)]
    symbol = np.fft.fftn(wrapped, axes=range(3, wrapped.ndim)).reshape(*parts.shape[:3], -1)
    return np.sort(np.linalg.svd(np.moveaxis(symbol, 3, 1), compute_uv=False).reshape(-1))[::-1]


def precise_singular_values(layer: Layer) -> tuple[Any, int]:
    """The singular values in long double, over 2^exponent: for sides up to a few hundred."""
    prepared = scale(layer)
    kernel = np.ldexp(layer.kernel.astype(np.longdouble), -prepared.exponent)
    live = prepared.kernel != 0
    parts = [jacobi(part) for part in matrices(kernel * live, axes_of(layer), layer.groups)]
    return np.sort(np.concatenate(parts))[::-1], prepared.exponent


def jacobi(matrix: Any) -> Any:
    """The column norms of a matrix after one-sided Jacobi rotations, half of all columns at a time."""
    a = (matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T).copy()
    count = a.shape[1]
    a = np.concatenate((a, np.zeros((len(a), count % 2), a.dtype)), axis=1)
    order = np.arange(a.shape[1])
    eps = float(np.finfo(a.dtype).eps)
    total = float(np.sqrt((a * a).sum()))
    for sweep in range(60):
        worst = 0.0
        # Columns that are rounding errors of larger ones never become orthogonal to each other.
        least = (eps * total) ** 2 if sweep >= 12 else 0.0
        for _ in range(len(order) - 1):
            i, j = order[: len(order) // 2], order[: len(order) // 2 - 1 : -1]
            x, y = a[:, i], a[:, j]
            xx, yy, xy = (x * x).sum(axis=0), (y * y).sum(axis=0), (x * y).sum(axis=0)
            size = np.sqrt(xx * yy)
            apart = (np.abs(xy) > eps * size) & (np.minimum(xx, yy) > least)
            worst = max(worst, float(np.max(np.where(apart, np.abs(xy) / np.where(size > 0, size, 1), 0), initial=0.0)))
            zeta = (yy - xx) / np.where(apart, 2 * xy, 1)
            t = np.where(apart, np.where(zeta >= 0, 1, -1) / (np.abs(zeta) + np.sqrt(1 + zeta * zeta)), 0)
            c = 1 / np.sqrt(1 + t * t)
            a[:, i], a[:, j] = c * x - c * t * y, c * t * x + c * y
            order = np.concatenate((order[:1], order[-1:], order[1:-1]))
        if worst <= 8 * eps:
            break
    return np.sort(np.sqrt((a * a).sum(axis=0)))[::-1][:count]


def is_rank_deficient(layer: Layer) -> bool:
    """Whether the matrix has not full rank: by elimination modulo a prime, of the floats as the rationals they are.

    A matrix of full rank is taken for a deficient one only if the prime divides one of its minors.
    """
    axes = axes_of(layer)
    residues = np.array([_residue(x) for x in layer.kernel.reshape(-1).tolist()], np.int64).reshape(layer.kernel.shape)
    parts = matrices(residues, axes, layer.groups) % PRIME
    return any(_rank(part) < min(part.shape) for part in parts)


def _residue(number: float) -> int:
    numerator, denominator = float(number).as_integer_ratio()
    return numerator * pow(denominator, -1, PRIME) % PRIME


def _rank(matrix: Any) -> int:
    a = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T).copy()
    rank = 0
    for row in range(len(a)):
        live = np.flatnonzero(a[row])
        if not len(live):
            continue
        rank += 1
        multiples = a[row + 1 :, live[0]] * pow(int(a[row, live[0]]), -1, PRIME) % PRIME
        used = np.flatnonzero(multiples)
        places = row + 1 + used[:, None], live
        a[places] = (a[places] - multiples[used, None] * a[row, live]) % PRIME
    return rank


def apply(layer: Layer, kernel: Any, image: Any) -> Any:
    """The features (batch, c_out, *outputs) of images (batch, c_in, *image), tap by tap."""
    groups, x = layer.groups, image.reshape(len(image), layer.groups, -1, math.prod(layer.setting.image_shape))
    parts = kernel.reshape(groups, -1, *kernel.shape[1:])
    y = np.zeros((len(x), groups, parts.shape[1], math.prod(outputs_of(layer))), np.result_type(kernel, image))
    for tap, place in positions(axes_of(layer)):
        rows = np.flatnonzero(place >= 0)
        y[..., rows] += parts[(..., *tap)] @ x[..., place[rows]]
    return y.reshape(len(x), len(kernel), *outputs_of(layer))


def adjoint(layer: Layer, kernel: Any, features: Any) -> Any:
    """The transpose of `apply`."""
    groups, y = layer.groups, features.reshape(len(features), layer.groups, -1, math.prod(outputs_of(layer)))
    parts = kernel.reshape(groups, -1, *kernel.shape[1:])
    size = math.prod(layer.setting.image_shape)
    x = np.zeros((size, len(y), groups, parts.shape[2]), np.result_type(kernel, features))
    for tap, place in positions(axes_of(layer)):
        rows = np.flatnonzero(place >= 0)
        np.add.at(x, place[rows], np.moveaxis(np.swapaxes(parts[(..., *tap)], 1, 2) @ y[..., rows], -1, 0))
    return np.moveaxis(x, 0, -1).reshape(len(y), -1, *layer.setting.image_shape)


def kernel_adjoint(layer: Layer, features: Any, image: Any) -> Any:
    """The transpose of ``kernel -> apply(image)``, summed over the batch."""
    groups = layer.groups
    y = features.reshape(len(features), groups, -1, math.prod(outputs_of(layer)))
    x = image.reshape(len(image), groups, -1, math.prod(layer.setting.image_shape))
    kernel = np.zeros((groups, y.shape[2], *layer.kernel.shape[1:]), np.result_type(features, image))
    for tap, place in positions(axes_of(layer)):
        rows = np.flatnonzero(place >= 0)
        kernel[(..., *tap)] = (y[..., rows] @ np.swapaxes(x[..., place[rows]], -1, -2)).sum(axis=0)
    return kernel.reshape(layer.kernel.shape)
