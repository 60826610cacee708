"""`LinearMap`: a real linear map between arrays of two shapes, as a matrix that is never written out."""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

from convla._array import describe, device_of, namespace, sparse_library
from convla._validate import check_array
from convla.errors import ShapeError
from convla.toeplitz import Order, check_room, unvec, vec
from convla.typing import Array, ArrayLike

__all__ = ["LinearMap", "OfMap", "Scaled", "Transpose"]


class LinearMap(ABC):
    """A real linear map between arrays of two shapes, seen as a matrix through vec().

    A subclass supplies the two shapes, the two maps on batches, and an array like those it works on; products with
    vectors and matrices, the transpose, the dense matrix, SciPy's LinearOperator and the spectral functions follow.
    """

    order: Order = "C"

    @property
    @abstractmethod
    def domain_shape(self) -> tuple[int, ...]:
        """The shape of one argument of `apply`: channels, then positions."""

    @property
    @abstractmethod
    def range_shape(self) -> tuple[int, ...]:
        """The shape of one value of `apply`: channels, then positions."""

    @abstractmethod
    def apply(self, image: Array) -> Array:
        """Map arrays (..., *domain_shape) to (..., *range_shape)."""

    @abstractmethod
    def adjoint(self, features: Array) -> Array:
        """Map arrays (..., *range_shape) to (..., *domain_shape) by the transpose."""

    def _apply(self, image: Array) -> Array:
        """Do what `apply` does, for arrays that need no check: those that the library has made itself."""
        return self.apply(image)

    def _adjoint(self, features: Array) -> Array:
        """Do what `adjoint` does, for arrays that need no check."""
        return self.adjoint(features)

    @property
    def like(self) -> Array:
        """An array of the library, device and dtype that the map works in: by default its attribute `kernel`."""
        kernel: Array = getattr(self, "kernel", None)
        if kernel is None:
            raise TypeError(
                f"{type(self).__name__} must define `like`, an array of the library, device and dtype that it works in"
            )
        return kernel

    @property
    def T(self) -> LinearMap:
        """The transpose."""
        return Transpose(self)

    def to_dense(self) -> Array:
        """Return the matrix as an array of the map's library: the images of the unit vectors."""
        xp = namespace(self.like)
        rows, columns = self.shape
        check_room(self.shape, self.like)
        wide = rows < columns  # then there are fewer rows, the images of the transpose
        inputs, outputs = (self.range_shape, self.domain_shape) if wide else (self.domain_shape, self.range_shape)
        unit = xp.eye(min(rows, columns), dtype=self.dtype, device=device_of(self.like))
        images = (self._adjoint if wide else self._apply)(unvec(unit, inputs, order=self.order))
        images = vec(images, len(outputs) - 1, order=self.order)
        return images if wide else xp.matrix_transpose(images)

    def astype(self, dtype: Any) -> LinearMap:
        """Return the map for arrays of another dtype: by default it converts them, and works in its own."""
        return self if dtype == self.dtype else _Converted(self, dtype)

    @property
    def H(self) -> LinearMap:
        """The conjugate transpose: the transpose, as the map is real."""
        return self.T

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the matrix: (entries of a value, entries of an argument)."""
        return math.prod(self.range_shape), math.prod(self.domain_shape)

    @property
    def dtype(self) -> Any:
        """The dtype of arguments and of values."""
        return self.like.dtype

    def matvec(self, vector: ArrayLike) -> Array:
        """Multiply a vector: (n,) to (m,), or one column (n, 1) to (m, 1), for shape (m, n)."""
        return self._multiply(vector, None)

    def matmat(self, vectors: ArrayLike) -> Array:
        """Multiply the columns of a matrix: (n, j) to (m, j) for shape (m, n)."""
        return self._multiply(vectors, 2)

    def rmatvec(self, vector: ArrayLike) -> Array:
        """Multiply a vector by the transpose: (m,) to (n,) for shape (m, n)."""
        return self.T.matvec(vector)

    def rmatmat(self, vectors: ArrayLike) -> Array:
        """Multiply the columns of a matrix by the transpose: (m, j) to (n, j) for shape (m, n)."""
        return self.T.matmat(vectors)

    __array_ufunc__ = None  # NumPy leaves array @ operator to __rmatmul__

    def __matmul__(self, other: ArrayLike) -> Array:
        return self._multiply(other, None)

    def __rmatmul__(self, other: ArrayLike) -> Array:
        _refuse_no_array("the left operand of @", other)
        xp = namespace(other)
        array = check_array("the left operand of @", other, xp, min_ndim=1, axes="(m,) or (j, m)")
        return self.T @ array if array.ndim == 1 else xp.matrix_transpose(self.T @ xp.matrix_transpose(array))

    def as_linear_operator(self) -> Any:
        """Return the map as a SciPy LinearOperator (CuPy's for CuPy arrays), for `scipy.sparse.linalg`.

        As for a sparse matrix, a product has the dtype that the kernel's and the vector's promote to, and is computed
        in it: solvers pass float64 vectors to a float32 operator. An integer kernel is taken in float64.

        Raises
        ------
        TypeError
            If the kernel is neither a NumPy nor a CuPy array, or holds exact objects.

        Examples
        --------
        >>> import numpy as np
        >>> from scipy.sparse.linalg import svds
        >>> from convla import ConvOperator
        >>> identity = ConvOperator(np.array([[[0.0, 1.0, 0.0]]]), (8,))
        >>> bool(np.isclose(svds(identity.as_linear_operator(), k=1, return_singular_vectors=False)[0], 1.0))
        True
        """
        library, xp = sparse_library(self.like), namespace(self.like)
        if self.dtype == object:
            raise TypeError("as_linear_operator takes kernels of float32, float64 or integers, got dtype object")
        floating = self if xp.isdtype(self.dtype, "real floating") else self.astype(xp.float64)
        maps = {floating.dtype: floating}

        def product(method: str) -> Callable[[Array], Array]:
            def multiply(vectors: Array) -> Array:
                dtype = xp.result_type(vectors.dtype, floating.dtype)
                if dtype not in maps:
                    maps[dtype] = self.astype(dtype)
                return getattr(maps[dtype], method)(xp.astype(vectors, dtype, copy=False))

            return multiply

        methods = {method: product(method) for method in ("matvec", "rmatvec", "matmat", "rmatmat")}
        return library.linalg.LinearOperator(self.shape, **methods, dtype=floating.dtype)

    def _multiply(self, other: ArrayLike, ndim: int | None) -> Array:
        _refuse_no_array("the right operand of @", other)
        xp = namespace(other, self.like)
        columns = self.shape[1]
        array = check_array(
            "the right operand of @", other, xp, ndim=ndim, min_ndim=1, axes=f"({columns},) or ({columns}, j)"
        )
        if array.ndim > 2 or array.shape[0] != columns:
            raise ShapeError(
                f"the right operand of @ must have shape ({columns},) or ({columns}, j) for an operator of shape "
                f"{self.shape}, got {tuple(array.shape)}"
            )
        rows = array if array.ndim == 1 else xp.matrix_transpose(array)
        values = self.apply(unvec(rows, self.domain_shape, order=self.order))
        result = vec(values, len(self.range_shape) - 1, order=self.order)
        return result if array.ndim == 1 else xp.matrix_transpose(result)


class Transpose(LinearMap):
    """The transpose of a map, whose transpose is the map again."""

    def __init__(self, linear_map: LinearMap) -> None:
        self._transposed = linear_map
        self.order = linear_map.order

    def __repr__(self) -> str:
        return f"<transpose of {self._transposed!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._transposed,)

    @property
    def domain_shape(self) -> tuple[int, ...]:
        """The range of the map."""
        return self._transposed.range_shape

    @property
    def range_shape(self) -> tuple[int, ...]:
        """The domain of the map."""
        return self._transposed.domain_shape

    @property
    def like(self) -> Array:
        """As of the map."""
        return self._transposed.like

    @property
    def T(self) -> LinearMap:
        """The map."""
        return self._transposed

    def apply(self, image: Array) -> Array:
        """Apply the map's adjoint."""
        return self._transposed.adjoint(image)

    def adjoint(self, features: Array) -> Array:
        """Apply the map."""
        return self._transposed.apply(features)

    def _apply(self, image: Array) -> Array:
        return self._transposed._adjoint(image)

    def _adjoint(self, features: Array) -> Array:
        return self._transposed._apply(features)

    def __abs__(self) -> LinearMap:
        return abs(self._transposed).T  # type: ignore[arg-type]

    def astype(self, dtype: Any) -> LinearMap:
        """Return the transpose of the map in another dtype."""
        return self._transposed.astype(dtype).T

    def to_dense(self) -> Array:
        """Return the transposed matrix of the map."""
        return namespace(self.like).matrix_transpose(self._transposed.to_dense())


class OfMap(LinearMap):
    """A map that is made of another one of the same shapes, by what `apply` and `adjoint` do to it."""

    def __init__(self, linear_map: LinearMap) -> None:
        self._map = linear_map
        self.order = linear_map.order

    @property
    def domain_shape(self) -> tuple[int, ...]:
        """The domain of the map."""
        return self._map.domain_shape

    @property
    def range_shape(self) -> tuple[int, ...]:
        """The range of the map."""
        return self._map.range_shape

    @property
    def like(self) -> Array:
        """As of the map."""
        return self._map.like


@final
class Scaled(OfMap):
    """A map times a power of two, which is exact but for what becomes subnormal."""

    def __init__(self, linear_map: LinearMap, exponent: int) -> None:
        super().__init__(linear_map)
        self.exponent = exponent

    def apply(self, image: Array) -> Array:
        """Apply the map, and scale."""
        return self._scaled(self._map.apply(image))

    def adjoint(self, features: Array) -> Array:
        """Apply the map's adjoint, and scale."""
        return self._scaled(self._map.adjoint(features))

    def astype(self, dtype: Any) -> LinearMap:
        """Return the scaled map for arrays of another dtype."""
        return Scaled(self._map.astype(dtype), self.exponent)

    def _scaled(self, array: Array) -> Array:
        # In two factors: the power itself may be beyond the dtype's range.
        half = self.exponent // 2
        return array * 2.0**half * 2.0 ** (self.exponent - half)


@final
class _Converted(OfMap):
    """A map for arrays of another dtype, which works in its own."""

    def __init__(self, linear_map: LinearMap, dtype: Any) -> None:
        super().__init__(linear_map)
        self._dtype = dtype

    @property
    def like(self) -> Array:
        return namespace(self._map.like).astype(self._map.like, self._dtype)

    def apply(self, image: Array) -> Array:
        return self._through(self._map.apply, image)

    def adjoint(self, features: Array) -> Array:
        return self._through(self._map.adjoint, features)

    def _through(self, function: Callable[[Array], Array], array: Array) -> Array:
        xp = namespace(array)
        return xp.astype(function(xp.astype(array, self._map.dtype)), self._dtype)


def _refuse_no_array(name: str, value: object) -> None:
    if isinstance(value, LinearMap):
        raise TypeError(
            f"{name} must be a dense vector or matrix, got {describe(value)} of shape {value.shape}: apply one map to "
            "what the other gives, or multiply by its to_dense()"
        )
    if isinstance(value, numbers.Number) or hasattr(value, "toarray"):
        raise TypeError(f"{name} must be a dense vector or matrix, got {describe(value)}")
