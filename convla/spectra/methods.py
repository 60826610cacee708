"""The methods of finding singular values: "auto", "dense", "fourier", "inverse" and "lanczos"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from convla._validate import check_integer
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.dense import decomposition_is_cheap, decomposition_work, dense_triplets, dense_values
from convla.spectra.fourier import fourier_is_exact, fourier_triplets
from convla.spectra.inverse import factorisation_work
from convla.spectra.largest import fourier_is_best, largest_by_lanczos
from convla.spectra.method import Method, Search
from convla.spectra.result import End, SingularValues
from convla.spectra.smallest import smallest_by_factorisation, smallest_by_fourier, smallest_by_lanczos
from convla.typing import Array

__all__ = ["Auto", "Dense", "Fourier", "Inverse", "Lanczos"]

_DIRECT_LIMIT = 2e12  # operations of a decomposition or factorisation: about 20 s


@dataclass(frozen=True)
class Auto(Method):
    """The cheapest method that applies, for every part of a map by itself."""

    name: ClassVar[str] = "auto"
    complete: ClassVar[bool] = True

    def chosen(self, operator: LinearMap, k: int | None, end: End) -> Method:
        """Return "fourier" where it is exact and cheap, else itself."""
        if not isinstance(operator, ConvOperator):
            return self
        symbol = fourier_is_exact(operator.geometry) if end == "smallest" else fourier_is_best(operator, k)
        return Fourier() if symbol else self

    def all(self, operator: LinearMap) -> SingularValues:
        """Decompose the matrix."""
        return Dense().all(operator)

    def largest(self, operator: LinearMap, k: int, search: Search, start: Array | None) -> SingularValues:
        """Decompose the matrix where that is cheap, else iterate."""
        small = decomposition_is_cheap(operator) or 4 * k >= min(operator.shape)
        return (Dense() if small else Lanczos()).largest(operator, k, search, start)

    def smallest(self, operator: LinearMap, search: Search) -> SingularValues:
        """Decompose or factorise the matrix where that is affordable, else iterate."""
        return self._for_smallest(operator).smallest(operator, search)

    def _for_smallest(self, operator: LinearMap) -> Method:
        if decomposition_is_cheap(operator):
            return Dense()
        dense = decomposition_work(operator) if decomposition_is_cheap(operator, limit=_DIRECT_LIMIT) else math.inf
        sparse = factorisation_work(operator) if isinstance(operator, ConvOperator) else math.inf
        if min(dense, sparse) > _DIRECT_LIMIT:
            return Lanczos()
        return Dense() if dense <= sparse else Inverse()


@dataclass(frozen=True)
class Dense(Method):
    """The decomposition of the matrix, written out, by LAPACK or the library's own."""

    name: ClassVar[str] = "dense"
    complete: ClassVar[bool] = True

    def all(self, operator: LinearMap) -> SingularValues:
        """Return all singular values."""
        return dense_values(operator)

    def largest(self, operator: LinearMap, k: int, search: Search, start: Array | None) -> SingularValues:  # noqa: ARG002
        """Decompose the matrix."""
        return dense_triplets(operator, k)

    def smallest(self, operator: LinearMap, search: Search) -> SingularValues:  # noqa: ARG002
        """Decompose the matrix."""
        return dense_triplets(operator, 1, "smallest")


@dataclass(frozen=True)
class Fourier(Method):
    """The decomposition of the symbol: exact for circular boundaries whose outputs visit the torus evenly.

    References
    ----------
    H. Sedghi, V. Gupta and P. M. Long, The singular values of convolutional layers, ICLR 2019.
    """

    name: ClassVar[str] = "fourier"
    whole: ClassVar[bool] = True
    complete: ClassVar[bool] = True

    def all(self, operator: LinearMap) -> SingularValues:
        """Return all singular values."""
        return fourier_triplets(_convolution(self, operator), None)

    def largest(self, operator: LinearMap, k: int, search: Search, start: Array | None) -> SingularValues:  # noqa: ARG002
        """Decompose the symbol."""
        return fourier_triplets(_convolution(self, operator), k)

    def smallest(self, operator: LinearMap, search: Search) -> SingularValues:  # noqa: ARG002
        """Decompose the symbol."""
        return smallest_by_fourier(_convolution(self, operator))


@dataclass(frozen=True)
class Inverse(Method):
    """Lanczos on the pseudo-inverse, through a sparse LU factorisation: of NumPy and CuPy arrays, for the smallest."""

    name: ClassVar[str] = "inverse"

    def largest(self, operator: LinearMap, k: int, search: Search, start: Array | None) -> SingularValues:  # noqa: ARG002
        """Refuse: the pseudo-inverse shows the smallest values."""
        raise ValueError(f"method {self.name!r} is for the smallest singular value, got it for the largest")

    def smallest(self, operator: LinearMap, search: Search) -> SingularValues:
        """Factorise the matrix, and iterate with its inverse."""
        return smallest_by_factorisation(_convolution(self, operator), search)


@dataclass(frozen=True)
class Lanczos(Method):
    """Block Lanczos on the smaller Gram matrix, which is only multiplied by.

    Parameters
    ----------
    block : int
        How many vectors are multiplied at a time. A block of b tells up to b close values apart without a restart.
        For the largest value alone the search starts from the symbol's wave by itself, whatever this is.
    basis_size : int, optional
        How many vectors are kept at most, before the search restarts from the best of them; by default by k, the length
        of the vectors, and the memory they take. At least ``k + 6 * block`` are.

    References
    ----------
    J. Baglama and L. Reichel, Augmented implicitly restarted Lanczos bidiagonalization methods, SIAM J. Sci. Comput. 27
    (2005) 19-42.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, singular_values
    >>> from convla.spectra import Lanczos
    >>> depthwise = ConvOperator(np.ones((3, 1, 5)), (400,), groups=3)
    >>> singular_values(depthwise, 3, method=Lanczos(block=3)).values.round(4)
    array([4.9997, 4.9997, 4.9997])
    """

    name: ClassVar[str] = "lanczos"

    block: int = 2
    basis_size: int | None = None

    def __post_init__(self) -> None:
        check_integer("block", self.block, minimum=1)
        if self.basis_size is not None:
            check_integer("basis_size", self.basis_size, minimum=1)

    def largest(self, operator: LinearMap, k: int, search: Search, start: Array | None) -> SingularValues:
        """Iterate; the largest value is confirmed where that is cheap."""
        return largest_by_lanczos(operator, k, search, start, block=self.block, basis_size=self.basis_size)

    def smallest(self, operator: LinearMap, search: Search) -> SingularValues:
        """Iterate, which seldom converges."""
        return smallest_by_lanczos(operator, search, block=self.block, basis_size=self.basis_size)


def _convolution(method: Method, operator: LinearMap) -> ConvOperator:
    if not isinstance(operator, ConvOperator):
        raise ValueError(f"method {method.name!r} needs a convolution, got {type(operator).__name__}")
    return operator
