"""`LinearMap`: a real linear map between arrays of two shapes, as a matrix that is never written out.

What sums, products and multiples of maps are is in `convla.algebra`.
"""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

from convla._array import describe, device_of, is_exact, namespace, sparse_library
from convla._checks import match_dtypes
from convla._validate import check_array, check_choice, layer_advice
from convla.errors import ShapeError
from convla.toeplitz import SPARSE_FORMATS, Order, check_room, unvec, vec
from convla.typing import AnyArray, Array, ArrayLike

__all__ = ["LinearMap", "Transpose", "check_linear_map"]


class LinearMap(ABC):
    """A real linear map between arrays of two shapes, seen as a matrix through vec().

    A subclass supplies the two shapes, the two maps on batches, and an array like those it works on; products with
    vectors and matrices, the transpose, the dense matrix, SciPy's LinearOperator and the spectral functions follow, and
    so do sums, differences, multiples, products and powers with other maps.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator, identity
    >>> blur = ConvOperator(np.array([[[0.25, 0.5, 0.25]]]), (4,))
    >>> sharpen = 2 * identity((1, 4)) - blur
    >>> sharpen @ np.array([0.0, 1.0, 0.0, 0.0])
    array([-0.25,  1.5 , -0.25,  0.  ])
    >>> (blur.T @ sharpen**2).shape
    (4, 4)
    """

    order: Order = "C"
    _parts: tuple[LinearMap, ...] = ()
    """The maps that this one is made of, if any."""

    @property
    @abstractmethod
    def domain_shape(self) -> tuple[int, ...]:
        """The shape of one argument of `apply`: channels, then positions."""

    @property
    @abstractmethod
    def range_shape(self) -> tuple[int, ...]:
        """The shape of one value of `apply`: channels, then positions."""

    @abstractmethod
    def apply(self, image: Array) -> AnyArray:
        """Map arrays (..., *domain_shape) to (..., *range_shape)."""

    @abstractmethod
    def adjoint(self, features: Array) -> AnyArray:
        """Map arrays (..., *range_shape) to (..., *domain_shape) by the transpose."""

    def _apply(self, image: Array) -> Array:
        """Do what `apply` does, for arrays that need no check: those that the library has made itself."""
        features: Array = self.apply(image)
        return features

    def _adjoint(self, features: Array) -> Array:
        """Do what `adjoint` does, for arrays that need no check."""
        image: Array = self.adjoint(features)
        return image

    @property
    def like(self) -> Array:
        """An array of the library, device and dtype that the map works in: by default its attribute `kernel`."""
        kernel: Array | None = getattr(self, "kernel", None)
        if kernel is None:
            raise TypeError(
                f"{type(self).__name__} must define `like`, an array of the library, device and dtype that it works in"
            )
        return kernel

    @property
    def T(self) -> LinearMap:
        """The transpose."""
        return Transpose(self)

    def to_dense(self) -> AnyArray:
        """Return the matrix as an array of the map's library: the images of the unit vectors."""
        xp = namespace(self.like)
        rows, columns = self.shape
        check_room(self.shape, self.like)
        wide = rows < columns  # then there are fewer rows, the images of the transpose
        inputs, outputs = (self.range_shape, self.domain_shape) if wide else (self.domain_shape, self.range_shape)
        unit = xp.eye(min(rows, columns), dtype=self.dtype, device=device_of(self.like))
        exact = is_exact(self.like)  # whose sums may leave the dtype's range
        forward, backward = (self.apply, self.adjoint) if exact else (self._apply, self._adjoint)
        images = (backward if wide else forward)(unvec(unit, inputs, order=self.order))
        images = vec(images, len(outputs) - 1, order=self.order)
        return images if wide else xp.matrix_transpose(images)

    def to_sparse(self, format: str = "csr") -> Any:  # noqa: A002, ARG002
        """Return the matrix as a SciPy (CuPy) sparse array in format "csr", "csc" or "coo", where the map has one.

        Raises
        ------
        TypeError
            If the map, or one that it is made of, has no sparse form.
        """
        raise TypeError(f"{type(self).__name__} has no sparse form: take to_dense(), or define to_sparse")

    def astype(self, dtype: Any) -> LinearMap:
        """Return the map for arrays of another dtype: by default it converts them, and works in its own."""
        from convla.algebra.composite import Converted

        if dtype == self.dtype:
            return self
        if is_exact(self.like):
            raise TypeError(f"{type(self).__name__} works in {self.dtype}, and must define astype to work in {dtype}")
        return Converted(self, dtype)

    def __abs__(self) -> LinearMap:
        """Return a map whose matrix bounds the moduli of this one's entries: the factor of rounding bounds."""
        raise TypeError(f"{type(self).__name__} must define __abs__, a map that bounds the moduli of its entries")

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

    def matvec(self, vector: ArrayLike) -> AnyArray:
        """Multiply a vector: (n,) to (m,), or one column (n, 1) to (m, 1), for shape (m, n)."""
        return self._multiply(vector, None)

    def matmat(self, vectors: ArrayLike) -> AnyArray:
        """Multiply the columns of a matrix: (n, j) to (m, j) for shape (m, n)."""
        return self._multiply(vectors, 2)

    def rmatvec(self, vector: ArrayLike) -> AnyArray:
        """Multiply a vector by the transpose: (m,) to (n,) for shape (m, n)."""
        return self.T.matvec(vector)

    def rmatmat(self, vectors: ArrayLike) -> AnyArray:
        """Multiply the columns of a matrix by the transpose: (m, j) to (n, j) for shape (m, n)."""
        return self.T.matmat(vectors)

    __array_ufunc__ = None  # NumPy leaves array @ operator to __rmatmul__

    def __array__(self, *_: Any, **__: Any) -> Any:
        # Without this NumPy would make an array of no axes that holds the map.
        rows, columns = self.shape
        raise TypeError(
            f"a LinearMap is no array: to_dense() makes its {rows} x {columns} matrix, to_sparse() a sparse one"
        )

    def __matmul__(self, other: Any) -> Any:
        if not isinstance(other, LinearMap):
            return self._multiply(other, None)
        from convla.algebra.arithmetic import product

        return product(self, other)

    def __rmatmul__(self, other: ArrayLike) -> Array:
        _refuse_no_array("the left operand of @", other)
        xp = namespace(other)
        array = check_array("the left operand of @", other, xp, min_ndim=1, axes="(m,) or (j, m)")
        return self.T @ array if array.ndim == 1 else xp.matrix_transpose(self.T @ xp.matrix_transpose(array))

    def __add__(self, other: Any) -> LinearMap:
        from convla.algebra.arithmetic import total

        return total(self, other)

    def __radd__(self, other: Any) -> LinearMap:
        # The built-in sum starts with the number 0.
        return self if isinstance(other, int) and other == 0 else self + other

    def __sub__(self, other: Any) -> LinearMap:
        from convla.algebra.arithmetic import total

        return total(self, -other if isinstance(other, LinearMap) else other)

    def __neg__(self) -> LinearMap:
        return -1 * self

    def __mul__(self, factor: Any) -> LinearMap:
        from convla.algebra.arithmetic import multiple

        return multiple(self, factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> LinearMap:
        from convla.algebra.arithmetic import multiple, reciprocal

        return multiple(self, reciprocal(self, divisor))

    def __pow__(self, exponent: Any) -> LinearMap:
        from convla.algebra.arithmetic import power

        return power(self, exponent)

    # The kernels of the convolutions in the map: what is learnt of it.

    @property
    def kernels(self) -> tuple[Array, ...]:
        """The kernels of the convolutions that the map is made of, in order of appearance, each once.

        A map of one's own that has some defines this, `kernel_gradients` and `with_kernels`.
        """
        found = {id(kernel): kernel for part in self._parts for kernel in part.kernels}
        return tuple(found.values())

    def kernel_gradients(self, u: ArrayLike, v: ArrayLike) -> tuple[AnyArray, ...]:
        """Return the gradients of ``<u, A v>`` with respect to each of the kernels, summed over a batch.

        Parameters
        ----------
        u : array of shape (..., *range_shape)
        v : array of shape (..., *domain_shape)
            With the same leading axes.

        Returns
        -------
        tuple of arrays
            One for each of `kernels`, of its shape. That of a kernel that stands in several places is the sum over
            them. With a singular triplet these are the gradients of the singular value.

        Raises
        ------
        TypeError, ShapeError, ValueError
            If `u` and `v` are not such arrays of the map's library and dtype.

        Examples
        --------
        >>> import numpy as np
        >>> from convla import ConvOperator
        >>> square = ConvOperator(np.array([[[3.0]]]), (1,)) ** 2  # v -> k^2 v, whose derivative is 2 k v
        >>> square.kernel_gradients(np.array([[1.0]]), np.array([[5.0]]))
        (array([[[30.]]]),)
        """
        u = self._checked("u", u, self.range_shape)
        v = self._checked("v", v, self.domain_shape)
        batches = u.shape[: -len(self.range_shape)], v.shape[: -len(self.domain_shape)]
        if batches[0] != batches[1]:
            raise ShapeError(
                f"u and v must have the same leading axes, got shapes {tuple(u.shape)} and {tuple(v.shape)}"
            )
        return self._kernel_gradients(u, v)

    def with_kernels(self, kernels: Sequence[ArrayLike]) -> LinearMap:
        """Return the map with other kernels, one for each of `kernels`, wherever that stands.

        Raises
        ------
        ValueError
            If there are more or fewer.
        TypeError, ShapeError
            If the maps with these kernels do not fit each other.

        Examples
        --------
        >>> import numpy as np
        >>> from convla import ConvOperator
        >>> square = ConvOperator(np.array([[[3.0]]]), (1,)) ** 2
        >>> square.with_kernels([np.array([[[5.0]]])]).to_dense()
        array([[25.]])
        """
        mine = self.kernels
        if not isinstance(kernels, Sized):
            raise TypeError(f"kernels must be a sequence of arrays, got {describe(kernels)}")
        if len(kernels) != len(mine):
            raise ValueError(f"kernels must hold {len(mine)} arrays, one for each of the map's, got {len(kernels)}")
        return self._exchanged(kernels, lambda leaf, new: leaf.with_kernels(new)) if self._parts else self

    def _with_kernels(self, kernels: Sequence[Array]) -> LinearMap:
        """Do what `with_kernels` does, for arrays that need no check, and that nobody writes to any more."""
        if not self._parts:
            return self.with_kernels(kernels)
        return self._exchanged(kernels, lambda leaf, new: leaf._with_kernels(new))

    def _exchanged(
        self, kernels: Sequence[ArrayLike], exchange: Callable[[LinearMap, Sequence[Any]], LinearMap]
    ) -> LinearMap:
        new = {id(old): kernel for old, kernel in zip(self.kernels, kernels, strict=True)}

        def changed(leaf: LinearMap) -> LinearMap:
            return exchange(leaf, [new[id(old)] for old in leaf.kernels]) if leaf.kernels else leaf

        return self._changed(changed)

    def _kernel_gradients(self, u: Array, v: Array) -> tuple[Array, ...]:
        """Do what `kernel_gradients` does, for arrays that need no check."""
        if not self._parts:
            if not self.kernels:
                return ()
            if type(self).kernel_gradients is LinearMap.kernel_gradients:
                raise TypeError(f"{type(self).__name__} has kernels, and must define kernel_gradients and with_kernels")
            return self.kernel_gradients(u, v)
        totals: dict[int, Array] = {}
        for part, left, right in self._factors(u, v):
            for kernel, gradient in zip(part.kernels, part._kernel_gradients(left, right), strict=True):
                before = totals.get(id(kernel))
                totals[id(kernel)] = gradient if before is None else before + gradient
        return tuple(totals[id(kernel)] for kernel in self.kernels)

    def _factors(self, u: Array, v: Array) -> Iterator[tuple[LinearMap, Array, Array]]:
        """Yield for each place of a part P arrays a, b such that ``<a, P b>`` is what P contributes to ``<u, A v>``.

        In each, a and b do not depend on P at its place: the chain rule is the sum over the places.
        """
        raise NotImplementedError

    def _rebuilt(self, parts: tuple[LinearMap, ...]) -> LinearMap:
        """Return what is made in this map's way of other parts."""
        raise NotImplementedError

    def _changed(self, change: Callable[[LinearMap], LinearMap], made: dict[int, LinearMap] | None = None) -> LinearMap:
        """Return the map with each of the maps that it is made of in the end changed, one that stands twice once."""
        made = {} if made is None else made
        if id(self) not in made:
            parts = tuple(part._changed(change, made) for part in self._parts)
            kept = all(new is old for new, old in zip(parts, self._parts, strict=True))
            made[id(self)] = change(self) if not parts else self if kept else self._rebuilt(parts)
        return made[id(self)]

    def _leaves(self) -> Iterator[LinearMap]:
        """Yield the maps that this one is made of in the end: itself, if it is made of none."""
        if not self._parts:
            yield self
        for part in self._parts:
            yield from part._leaves()

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
                multiplied: Array = getattr(maps[dtype], method)(xp.astype(vectors, dtype, copy=False))
                return multiplied

            return multiply

        methods = {method: product(method) for method in ("matvec", "rmatvec", "matmat", "rmatmat")}
        return library.linalg.LinearOperator(self.shape, **methods, dtype=floating.dtype)

    def _checked(self, name: str, value: ArrayLike, shape: tuple[int, ...]) -> Array:
        """Return an argument as an array (..., *shape) of the map's library and dtype."""
        xp = namespace(value, self.like)
        axes = f"(..., {', '.join(map(str, shape))})"
        array = check_array(name, value, xp, min_ndim=len(shape), axes=axes)
        if tuple(array.shape[-len(shape) :]) != shape:
            raise ShapeError(f"{name} must have shape {axes} for a map of shape {self.shape}, got {tuple(array.shape)}")
        array, like = match_dtypes(name, array, "the map", self.like, xp)
        if like.dtype != self.dtype:
            raise TypeError(f"{name} must have the map's dtype {self.dtype}, got {array.dtype}")
        return array

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
        self._parts = (linear_map,)
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

    def apply(self, image: Array) -> AnyArray:
        """Apply the map's adjoint."""
        return self._transposed.adjoint(image)

    def adjoint(self, features: Array) -> AnyArray:
        """Apply the map."""
        return self._transposed.apply(features)

    def _apply(self, image: Array) -> Array:
        return self._transposed._adjoint(image)

    def _adjoint(self, features: Array) -> Array:
        return self._transposed._apply(features)

    def __abs__(self) -> LinearMap:
        return abs(self._transposed).T

    def astype(self, dtype: Any) -> LinearMap:
        """Return the transpose of the map in another dtype."""
        return self._transposed.astype(dtype).T

    def to_dense(self) -> AnyArray:
        """Return the transposed matrix of the map."""
        return namespace(self.like).matrix_transpose(self._transposed.to_dense())

    def to_sparse(self, format: str = "csr") -> Any:  # noqa: A002
        """Return the transposed sparse matrix of the map."""
        check_choice("format", format, SPARSE_FORMATS)
        return self._transposed.to_sparse("csr").T.asformat(format)

    def _factors(self, u: Array, v: Array) -> Iterator[tuple[LinearMap, Array, Array]]:
        yield self._transposed, v, u

    def _rebuilt(self, parts: tuple[LinearMap, ...]) -> LinearMap:
        return parts[0].T


def check_linear_map(operator: object, name: str = "operator") -> None:
    """Raise `TypeError` unless an argument is a map."""
    if not isinstance(operator, LinearMap):
        raise TypeError(
            f"{name} must be a LinearMap, such as a ConvOperator, got {type(operator).__name__}{layer_advice(operator)}"
        )


def _refuse_no_array(name: str, value: object) -> None:
    if isinstance(value, numbers.Number) or hasattr(value, "toarray"):
        raise TypeError(f"{name} must be a dense vector or matrix, got {describe(value)}")
