"""The simplest maps: identity, zero, and one factor for each channel or entry."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, final

import numpy as np

from convla._array import device_of, is_numpy, namespace, on_device_of, sparse_library
from convla._checks import check_integer_range, check_integer_sums
from convla._validate import check_array, check_choice, check_sizes
from convla.errors import ShapeError
from convla.linear_map import LinearMap
from convla.toeplitz import SPARSE_FORMATS, Order, vec
from convla.typing import AnyArray, Array, ArrayLike

__all__ = [
    "Diagonal",
    "Free",
    "Identity",
    "Leaf",
    "Symmetric",
    "Zero",
    "diagonal",
    "identity",
    "zero",
]


def identity(shape: Sequence[int]) -> LinearMap:
    """Return the identity on arrays of a shape: the skip connection of a residual block.

    Parameters
    ----------
    shape : sequence of int
        Channels, then positions.

    Returns
    -------
    LinearMap
        Of NumPy arrays of float64 by itself; together with other maps, of their library, device and dtype.

    Raises
    ------
    TypeError, ValueError, ShapeError
        If `shape` is not a sequence of two to four positive integers.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, identity
    >>> branch = ConvOperator(np.array([[[0.0, 1.0, 0.5]]], np.float32), (3,))
    >>> residual = identity(branch.domain_shape) + branch
    >>> residual.to_dense()
    array([[2. , 0.5, 0. ],
           [0. , 2. , 0.5],
           [0. , 0. , 2. ]], dtype=float32)
    """
    return Identity(_map_shape("shape", shape))


def zero(range_shape: Sequence[int], domain_shape: Sequence[int]) -> LinearMap:
    """Return the map of arrays of `domain_shape` to zeros of `range_shape`.

    Parameters
    ----------
    range_shape, domain_shape : sequence of int
        Channels, then positions.

    Returns
    -------
    LinearMap
        Of NumPy arrays of float64 by itself; together with other maps, of their library, device and dtype.

    Raises
    ------
    TypeError, ValueError, ShapeError
        As `identity`.

    Examples
    --------
    >>> from convla import zero
    >>> zero((1, 2), (1, 3)).to_dense()
    array([[0., 0., 0.],
           [0., 0., 0.]])
    """
    return Zero(_map_shape("range_shape", range_shape), _map_shape("domain_shape", domain_shape))


def diagonal(values: ArrayLike, shape: Sequence[int] | None = None) -> LinearMap:
    """Return the map that multiplies entry by entry, or channel by channel: what batch normalisation does at test time.

    Parameters
    ----------
    values : array of shape (c,) or (c, *positions)
        One factor for each channel, or one for each entry.
    shape : sequence of int, optional
        The shape (c, *positions) of an argument: that of `values` by default.

    Returns
    -------
    LinearMap

    Raises
    ------
    TypeError, ValueError
        If `values` is no array of finite real numbers.
    ShapeError
        If it has one axis and no `shape` is given, or does not fit the shape.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import diagonal
    >>> gamma, variance = np.array([1.0, 6.0]), np.array([4.0, 9.0])
    >>> normalisation = diagonal(gamma / np.sqrt(variance), (2, 2))
    >>> normalisation.apply(np.ones((2, 2)))
    array([[0.5, 0.5],
           [2. , 2. ]])
    """
    array = check_array("values", values, namespace(values), min_ndim=1, axes="(c,) or (c, *positions)")
    found = tuple(array.shape)
    wanted = _map_shape("shape", found if shape is None else shape)
    if found not in ((wanted[0],), wanted):
        raise ShapeError(f"values must have shape ({wanted[0]},) or {wanted}, got {found}")
    return Diagonal(array, wanted)


class Leaf(LinearMap):
    """A map of this module that is made of no others."""

    def __init__(self, like: Array, order: Order) -> None:
        self._like, self.order = like, order

    @property
    def like(self) -> Array:
        """An array of the library, device and dtype that the map works in."""
        return self._like

    @abstractmethod
    def settled(self, like: Array, order: Order) -> LinearMap:
        """Return the map among others, of their library, device and dtype where it has no numbers of its own."""

    @abstractmethod
    def _forward(self, array: Array) -> Array:
        """Map an array that needs no check."""

    def apply(self, image: ArrayLike) -> AnyArray:
        """Map arrays (..., *domain_shape) to (..., *range_shape)."""
        return self._forward(self._checked("image", image, self.domain_shape))

    def adjoint(self, features: ArrayLike) -> AnyArray:
        """Apply the transpose."""
        return self.T.apply(self._checked("features", features, self.range_shape))

    def _apply(self, image: Array) -> Array:
        return self._forward(image)

    def _adjoint(self, features: Array) -> Array:
        return self.T._apply(features)

    def __abs__(self) -> LinearMap:
        return self


class Free(Leaf):
    """A map without numbers of its own, which works in any library and dtype."""

    def __init__(self, like: Array | None, order: Order) -> None:
        like = np.empty(0) if like is None else like
        # An array of its own: a slice would be of the graph that autograd keeps of the other one.
        super().__init__(namespace(like).empty(0, dtype=like.dtype, device=device_of(like)), order)

    def settled(self, like: Array, order: Order) -> LinearMap:
        """Return the map among others, of their library, dtype, device and order of vec()."""
        mine = self.like
        same = (type(like), like.dtype, order) == (type(mine), mine.dtype, self.order)
        return self if same and device_of(like) == device_of(mine) else self._in(like, order)

    @abstractmethod
    def _in(self, like: Array, order: Order) -> LinearMap:
        """Return the map in another setting."""

    def astype(self, dtype: Any) -> LinearMap:
        """Return the map for arrays of another dtype."""
        return self.settled(namespace(self.like).astype(self.like, dtype), self.order)


class Symmetric(Leaf):
    """A map of a space to itself that is its own transpose."""

    _shape: tuple[int, ...]

    @property
    def domain_shape(self) -> tuple[int, ...]:
        """The shape."""
        return self._shape

    range_shape = domain_shape

    @property
    def T(self) -> LinearMap:
        """The map itself."""
        return self


@final
class Identity(Symmetric, Free):
    """The identity on arrays of a shape."""

    def __init__(self, shape: tuple[int, ...], *, like: Array | None = None, order: Order = "C") -> None:
        super().__init__(like, order)
        self._shape = shape

    def __repr__(self) -> str:
        return f"<identity on {self._shape}>"

    def _in(self, like: Array, order: Order) -> LinearMap:
        return Identity(self._shape, like=like, order=order)

    def to_sparse(self, format: str = "csr") -> Any:  # noqa: A002
        """Return the identity as a SciPy (CuPy) sparse array."""
        check_choice("format", format, SPARSE_FORMATS)
        return _sparse_diagonal(_ones(self.shape[0], self.like)).asformat(format)

    def _forward(self, array: Array) -> Array:
        return array


@final
class Zero(Free):
    """The map of everything to zero."""

    def __init__(
        self,
        range_shape: tuple[int, ...],
        domain_shape: tuple[int, ...],
        *,
        like: Array | None = None,
        order: Order = "C",
    ) -> None:
        super().__init__(like, order)
        self._range_shape, self._domain_shape = range_shape, domain_shape

    def __repr__(self) -> str:
        return f"<zero from {self._domain_shape} to {self._range_shape}>"

    @property
    def domain_shape(self) -> tuple[int, ...]:
        """As given."""
        return self._domain_shape

    @property
    def range_shape(self) -> tuple[int, ...]:
        """As given."""
        return self._range_shape

    @property
    def T(self) -> LinearMap:
        """The zero the other way."""
        return Zero(self._domain_shape, self._range_shape, like=self.like, order=self.order)

    def _in(self, like: Array, order: Order) -> LinearMap:
        return Zero(self._range_shape, self._domain_shape, like=like, order=order)

    def to_sparse(self, format: str = "csr") -> Any:  # noqa: A002
        """Return a SciPy (CuPy) sparse array without entries."""
        check_choice("format", format, SPARSE_FORMATS)
        library = sparse_library(self.like)
        matrix = library.csr_array if is_numpy(self.like) else library.csr_matrix
        return matrix(self.shape, dtype=self.dtype).asformat(format)

    def _forward(self, array: Array) -> Array:
        xp = namespace(array)
        batch = tuple(array.shape[: array.ndim - len(self._domain_shape)])
        return xp.zeros((*batch, *self._range_shape), dtype=array.dtype, device=device_of(array))


@final
class Diagonal(Symmetric):
    """One factor for each channel, or for each entry, of an array.

    Attributes
    ----------
    values : array of shape (c, 1, ...) or (c, *positions)
    """

    def __init__(self, values: Array, shape: tuple[int, ...], order: Order = "C") -> None:
        super().__init__(values, order)
        self._shape = shape
        whole = len(values.shape) == len(shape)
        self.values = values if whole else namespace(values).reshape(values, (-1, *(1 for _ in shape[1:])))

    def __repr__(self) -> str:
        return f"<diagonal map on {self._shape}, factors of shape {tuple(self.values.shape)}>"

    @property
    def entries(self) -> Array:
        """The factor of each entry: an array of the shape of an argument."""
        return namespace(self.values).broadcast_to(self.values, self._shape)

    def settled(self, like: Array, order: Order) -> LinearMap:  # noqa: ARG002
        """Return the map in another order of vec()."""
        return self if order == self.order else Diagonal(self.values, self._shape, order)

    def astype(self, dtype: Any) -> LinearMap:
        """Return the map of the factors in another dtype."""
        return Diagonal(namespace(self.values).astype(self.values, dtype), self._shape, self.order)

    def to_sparse(self, format: str = "csr") -> Any:  # noqa: A002
        """Return the diagonal matrix as a SciPy (CuPy) sparse array."""
        check_choice("format", format, SPARSE_FORMATS)
        return _sparse_diagonal(vec(self.entries, len(self._shape) - 1, order=self.order)).asformat(format)

    def apply(self, image: ArrayLike) -> AnyArray:
        """Multiply arrays (..., *shape) by the factors."""
        image = self._checked("image", image, self._shape)
        check_integer_range(image, self.values, 1)
        return self._forward(image)

    def __abs__(self) -> LinearMap:
        check_integer_sums("values", self.values, 1)  # the modulus of the least integer is none
        moduli = abs(self.values) if self.dtype == object else namespace(self.values).abs(self.values)
        return Diagonal(moduli, self._shape, self.order)

    def _forward(self, array: Array) -> Array:
        return array * self.values


def _ones(count: int, like: Array) -> Array:
    return namespace(like).ones(count, dtype=like.dtype, device=device_of(like))


def _sparse_diagonal(values: Array) -> Any:
    """Return the diagonal matrix of some values (n,) in CSR form."""
    library = sparse_library(values)
    matrix = library.csr_array if is_numpy(values) else library.csr_matrix
    count = values.shape[0]
    places = (on_device_of(np.arange(n), values, namespace(values)) for n in (count, count + 1))
    return matrix((values, *places), shape=(count, count))


def _map_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    found = check_sizes(name, shape)
    if not 2 <= len(found) <= 4:
        raise ShapeError(f"{name} must be (c, *positions) with 1 to 3 axes of positions, got {found}")
    return found
