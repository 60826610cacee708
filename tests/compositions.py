"""Maps made of maps, drawn by a seed, each with its matrix made of matrices: of small integers, and so exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from convla import ConvGeometry, ConvOperator, LinearMap, block_diagonal, diagonal, hstack, identity, vstack, zero
from convla.geometry import BOUNDARIES
from tests.geometries import keywords_of
from tests.naive import dense_matrix

Shape = tuple[int, ...]


class Scaling(LinearMap):
    """A user's map: one factor for each channel."""

    def __init__(self, factors: Any, shape: Shape) -> None:
        self.factors, self.shape_of_images = factors, shape

    @property
    def like(self) -> Any:
        return self.factors

    @property
    def domain_shape(self) -> Shape:
        return self.shape_of_images

    range_shape = domain_shape

    def apply(self, image: Any) -> Any:
        return image * self.factors.reshape(-1, *(1 for _ in self.shape_of_images[1:]))

    adjoint = apply

    def __abs__(self) -> LinearMap:
        return Scaling(abs(self.factors), self.shape_of_images)


class Pair(NamedTuple):
    """A map, and its matrix by other means."""

    map: LinearMap
    matrix: np.ndarray

    @property
    def T(self) -> Pair:
        return Pair(self.map.T, self.matrix.T)


class Draw:
    """Draws maps between arrays (c, n), of kernels that `asarray` makes of arrays of small integers."""

    def __init__(
        self, seed: int, asarray: Callable[[Any], Any] = lambda array: array.astype(float), *, own: bool = True
    ) -> None:
        self.rng, self.asarray, self.own = np.random.default_rng(seed), asarray, own

    def any(self, depth: int = 3) -> Pair:
        shapes = [(int(self.rng.integers(1, 4)), int(self.rng.choice([1, 3, 5, 6]))) for _ in range(2)]
        return self.between(shapes[0], shapes[int(self.rng.integers(0, 2))], depth)

    def between(self, domain: Shape, range_: Shape, depth: int) -> Pair:
        ways = ["sum", "product", "multiple", "transpose"]
        ways += ["rows"] * (range_[0] > 1) + ["columns"] * (domain[0] > 1)
        ways += ["blocks"] * (range_[0] > 1 and domain[0] > 1) + ["power"] * (domain == range_)
        if depth == 0:
            return self.leaf(domain, range_)
        return getattr(self, str(self.rng.choice(ways)))(domain, range_, depth - 1)

    def sum(self, domain: Shape, range_: Shape, depth: int) -> Pair:
        (a, A), (b, B) = self.between(domain, range_, depth), self.between(domain, range_, depth)
        return Pair(a + b, A + B) if self.rng.random() < 0.5 else Pair(a - b, A - B)

    def product(self, domain: Shape, range_: Shape, depth: int) -> Pair:
        middle = (int(self.rng.integers(1, 4)), int(self.rng.choice([domain[1], range_[1]])))
        (a, A), (b, B) = self.between(middle, range_, depth), self.between(domain, middle, depth)
        return Pair(a @ b, A @ B)

    def power(self, domain: Shape, range_: Shape, depth: int) -> Pair:
        a, A = self.between(domain, range_, min(depth, 1))
        exponent = int(self.rng.integers(0, 3))
        return Pair(a**exponent, np.linalg.matrix_power(A, exponent))

    def multiple(self, domain: Shape, range_: Shape, depth: int) -> Pair:
        a, A = self.between(domain, range_, depth)
        factor = int(self.rng.choice([-2, -1, 1, 3]))
        return Pair(-a if factor == -1 else factor * a, factor * A)

    def transpose(self, domain: Shape, range_: Shape, depth: int) -> Pair:
        return self.between(range_, domain, depth).T

    def rows(self, domain: Shape, range_: Shape, depth: int) -> Pair:
        pairs = [self.between(domain, (c, range_[1]), depth) for c in (1, range_[0] - 1)]
        return Pair(vstack([a for a, _ in pairs]), np.vstack([A for _, A in pairs]))

    def columns(self, domain: Shape, range_: Shape, depth: int) -> Pair:
        pairs = [self.between((c, domain[1]), range_, depth) for c in (1, domain[0] - 1)]
        return Pair(hstack([a for a, _ in pairs]), np.hstack([A for _, A in pairs]))

    def blocks(self, domain: Shape, range_: Shape, depth: int) -> Pair:
        first = self.between((1, domain[1]), (range_[0] - 1, range_[1]), depth)
        second = self.between((domain[0] - 1, domain[1]), (1, range_[1]), depth)
        matrix = np.zeros((len(first.matrix) + len(second.matrix), np.prod(domain)), np.int64)
        rows, columns = first.matrix.shape
        matrix[:rows, :columns], matrix[rows:, columns:] = first.matrix, second.matrix
        return Pair(block_diagonal([first.map, second.map]), matrix)

    def leaf(self, domain: Shape, range_: Shape) -> Pair:
        kind = self.rng.choice(["convolution", "convolution", "square", "zero"], p=[0.4, 0.25, 0.25, 0.1])
        if kind == "zero":
            return Pair(zero(range_, domain), np.zeros((np.prod(range_), np.prod(domain)), np.int64))
        if kind == "square" and domain == range_:
            return self.square(domain)
        return self.convolution(domain, range_)

    def square(self, shape: Shape) -> Pair:
        kinds = ["identity", "channels", "entries", *(["own"] if self.own else [])]
        kind = self.rng.choice(kinds)
        if kind == "identity":
            return Pair(identity(shape), np.eye(np.prod(shape), dtype=np.int64))
        values = self.rng.integers(-2, 3, shape if kind == "entries" else shape[:1])
        entries = np.broadcast_to(values if kind == "entries" else values[:, None], shape)
        made = Scaling(self.asarray(values), shape) if kind == "own" else diagonal(self.asarray(values), shape)
        return Pair(made, np.diag(entries.ravel()))

    def convolution(self, domain: Shape, range_: Shape) -> Pair:
        if domain[1] < range_[1]:
            return self.convolution(range_, domain).T
        n, m = domain[1], range_[1]
        kernel = self.rng.integers(-2, 3, (range_[0], domain[0], n - m + 1 if n > m else 3))
        geometry = ConvGeometry(
            kernel.shape,
            (n,),
            padding="valid" if n > m else "same",
            boundary=str(self.rng.choice(BOUNDARIES)),
        )
        operator = ConvOperator(self.asarray(kernel), (n,), **keywords_of(geometry))
        return Pair(operator, dense_matrix(kernel, geometry).astype(np.int64))
