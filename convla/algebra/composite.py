"""Maps made of maps of matching shapes: multiples, sums and products."""

from __future__ import annotations

import functools
import math
import operator
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, final

import numpy as np

from convla._array import device_of, is_exact, namespace, sparse_library
from convla._checks import check_integer_sums
from convla._validate import check_choice
from convla.linear_map import LinearMap
from convla.toeplitz import SPARSE_FORMATS
from convla.typing import AnyArray, Array, ArrayLike

__all__ = [
    "Composite",
    "Converted",
    "OfMaps",
    "Product",
    "Scaled",
    "Sum",
    "steps_of",
    "summed",
]


_SHOWN = 4  # parts of a map, by its name
_MODERATE = 60  # the exponent of a factor that is applied in one step


class Composite(LinearMap):
    """A map made of others, which says what it does to an array and what its transpose is made of."""

    def __init__(self, parts: tuple[LinearMap, ...]) -> None:
        self._parts = parts
        self.order = parts[0].order

    def __repr__(self) -> str:
        rows, columns = self.shape
        kinds = [type(part).__name__ for part in self._parts]
        shown = ", ".join(kinds[:_SHOWN]) + ", ..." * (len(kinds) > _SHOWN)
        return f"<{rows}x{columns} {type(self).__name__} of {len(kinds)} map(s): {shown}>"

    @property
    def parts(self) -> tuple[LinearMap, ...]:
        """The maps that this one is made of."""
        return self._parts

    @property
    def like(self) -> Array:
        """As of the first part."""
        return self._parts[0].like

    @abstractmethod
    def _transposed(self) -> Composite:
        """Return the transpose, made of transposes."""

    @abstractmethod
    def _forward(self, array: Array, door: str) -> Array:
        """Map an array by what the parts do: their `apply` or their unchecked door `_apply`."""

    @abstractmethod
    def _assembled(self, matrices: Sequence[Any], library: Any) -> Any:
        """Return a sparse matrix, given those of the parts."""

    @functools.cached_property
    def _transpose(self) -> Composite:
        return self._transposed()

    @property
    def T(self) -> LinearMap:
        """The transpose."""
        return self._transpose

    def apply(self, image: ArrayLike) -> AnyArray:
        """Map arrays (..., *domain_shape) to (..., *range_shape)."""
        return self._bordered("image", image)

    def adjoint(self, features: ArrayLike) -> AnyArray:
        """Apply the transpose."""
        return self._transpose._bordered("features", features)

    def _apply(self, image: Array) -> Array:
        return self._forward(image, "_apply")

    def _adjoint(self, features: Array) -> Array:
        return self.T._apply(features)

    def _bordered(self, name: str, value: ArrayLike) -> Array:
        array = self._checked(name, value, self.domain_shape)
        # Integers are checked at each step: their sums may leave the range of the dtype.
        return self._forward(array, "apply" if is_exact(array) else "_apply")

    def astype(self, dtype: Any) -> LinearMap:
        """Return the map made of the parts in another dtype."""
        return self._changed(lambda leaf: leaf if leaf.dtype == dtype else leaf.astype(dtype))

    def to_sparse(self, format: str = "csr") -> Any:  # noqa: A002
        """Return the matrix as a SciPy (CuPy) sparse array in format "csr", "csc" or "coo".

        Raises
        ------
        TypeError
            If a part has no sparse form, or the map holds exact objects.
        OverflowError
            If integers could leave the range of their dtype.
        """
        check_choice("format", format, SPARSE_FORMATS)
        if self.dtype == object:
            raise TypeError("sparse matrices hold no exact objects: take to_dense()")
        library = sparse_library(self.like)
        matrices = [part.to_sparse("csr") for part in self._parts]
        if is_exact(self.like):
            moduli = self._assembled([abs(matrix.astype(np.float64)) for matrix in matrices], library)
            limit = np.iinfo(np.dtype(self.dtype)).max
            if moduli.nnz and float(moduli.max()) * (1 + 2.0**-20) > limit:
                raise OverflowError(
                    f"entries of the matrix can reach {float(moduli.max()):.3g}, beyond the largest {self.dtype}, "
                    f"{limit}: take astype() of floats"
                )
        return self._assembled(matrices, library).asformat(format)

    def __abs__(self) -> LinearMap:
        return self._rebuilt(tuple(abs(part) for part in self._parts))


class OfMaps(Composite):
    """A map that is made of one or more of its own shapes."""

    @property
    def domain_shape(self) -> tuple[int, ...]:
        """That of each part."""
        return self._parts[0].domain_shape

    @property
    def range_shape(self) -> tuple[int, ...]:
        """That of each part."""
        return self._parts[0].range_shape


@final
class Scaled(OfMaps):
    """A map times a number.

    Attributes
    ----------
    factor : Fraction, int or exact number
        For floats a fraction, so that factors of factors neither round nor overflow.
    steps : tuple
        What an array is multiplied by, one after the other.
    """

    def __init__(self, linear_map: LinearMap, factor: Any) -> None:
        super().__init__((linear_map,))
        self.factor = factor
        self.steps = (factor,) if is_exact(linear_map.like) else steps_of(factor)

    def __repr__(self) -> str:
        shown = f"{float(self.factor):.6g}" if isinstance(self.factor, Fraction) else self.factor
        return f"<{shown} times {self._parts[0]!r}>"

    @property
    def unscaled(self) -> LinearMap:
        """The map that is multiplied."""
        return self._parts[0]

    def _transposed(self) -> Composite:
        return Scaled(self.unscaled.T, self.factor)

    def _forward(self, array: Array, door: str) -> Array:
        image = getattr(self.unscaled, door)(array)
        if door == "apply" and image.dtype != object:
            check_integer_sums("the values of a map", image, abs(self.factor))
        return self._times(image)

    def _times(self, array: Array) -> Array:
        for step in self.steps:
            array = array * step
        return array

    def _assembled(self, matrices: Sequence[Any], library: Any) -> Any:  # noqa: ARG002
        found = matrices[0].copy()
        found.data = self._times(found.data)
        return found

    def _factors(self, u: Array, v: Array) -> Iterator[tuple[LinearMap, Array, Array]]:
        yield self.unscaled, self._times(u), v

    def _rebuilt(self, parts: tuple[LinearMap, ...]) -> LinearMap:
        scaled: LinearMap = parts[0] * self.factor
        return scaled

    def __abs__(self) -> LinearMap:
        modulus: LinearMap = abs(self.unscaled) * abs(self.factor)
        return modulus


def steps_of(factor: Fraction) -> tuple[float, ...]:
    """Return numbers within the range of float32 and float64 whose product is a fraction, but for one rounding.

    A power of two is one of powers of two, whatever it is: multiplying by it rounds nothing but what becomes subnormal.
    """
    exponent = abs(factor.numerator).bit_length() - factor.denominator.bit_length()
    if abs(exponent) <= _MODERATE:
        return (float(factor),)
    mantissa = float(factor / Fraction(2) ** exponent)
    whole, rest = divmod(abs(exponent), _MODERATE)
    step = 2.0 ** math.copysign(_MODERATE, exponent)
    return (*((mantissa,) if mantissa != 1 else ()), 2.0 ** math.copysign(rest, exponent), *(step,) * whole)


@final
class Converted(OfMaps):
    """A map for arrays of another dtype, which works in its own."""

    def __init__(self, linear_map: LinearMap, dtype: Any) -> None:
        super().__init__((linear_map,))
        self._dtype = dtype

    @property
    def like(self) -> Array:
        """An array without entries, of the dtype."""
        xp, like = namespace(self._parts[0].like), self._parts[0].like
        return xp.empty(0, dtype=self._dtype, device=device_of(like))

    def astype(self, dtype: Any) -> LinearMap:
        """Return the map for arrays of yet another dtype."""
        return self._parts[0].astype(dtype)

    def _transposed(self) -> Composite:
        return Converted(self._parts[0].T, self._dtype)

    def _forward(self, array: Array, door: str) -> Array:
        xp = namespace(array)
        image = getattr(self._parts[0], door)(xp.astype(array, self._parts[0].dtype))
        return xp.astype(image, self._dtype)

    def _assembled(self, matrices: Sequence[Any], library: Any) -> Any:  # noqa: ARG002
        return matrices[0].astype(self._dtype)

    def _factors(self, u: Array, v: Array) -> Iterator[tuple[LinearMap, Array, Array]]:
        xp, part = namespace(u), self._parts[0]
        yield part, xp.astype(u, part.dtype), xp.astype(v, part.dtype)

    def _rebuilt(self, parts: tuple[LinearMap, ...]) -> LinearMap:
        return parts[0].astype(self._dtype)


@final
class Sum(OfMaps):
    """The sum of maps of the same shapes."""

    def _transposed(self) -> Composite:
        return Sum(tuple(part.T for part in self._parts))

    def _forward(self, array: Array, door: str) -> Array:
        return summed([getattr(part, door)(array) for part in self._parts], door)

    def _assembled(self, matrices: Sequence[Any], library: Any) -> Any:  # noqa: ARG002
        return functools.reduce(operator.add, matrices)

    def _factors(self, u: Array, v: Array) -> Iterator[tuple[LinearMap, Array, Array]]:
        for part in self._parts:
            yield part, u, v

    def _rebuilt(self, parts: tuple[LinearMap, ...]) -> LinearMap:
        return functools.reduce(operator.add, parts)


@final
class Product(Composite):
    """The product of maps, the last of which is applied first."""

    @property
    def domain_shape(self) -> tuple[int, ...]:
        """That of the last factor."""
        return self._parts[-1].domain_shape

    @property
    def range_shape(self) -> tuple[int, ...]:
        """That of the first factor."""
        return self._parts[0].range_shape

    def _transposed(self) -> Composite:
        return Product(tuple(part.T for part in reversed(self._parts)))

    def _forward(self, array: Array, door: str) -> Array:
        for part in reversed(self._parts):
            array = getattr(part, door)(array)
        return array

    def _assembled(self, matrices: Sequence[Any], library: Any) -> Any:  # noqa: ARG002
        return functools.reduce(operator.matmul, matrices)

    def _factors(self, u: Array, v: Array) -> Iterator[tuple[LinearMap, Array, Array]]:
        rights = [v]
        for part in reversed(self._parts[1:]):
            rights.append(part._apply(rights[-1]))
        for part, right in zip(self._parts, reversed(rights), strict=True):
            yield part, u, right
            u = part._adjoint(u)

    def _rebuilt(self, parts: tuple[LinearMap, ...]) -> LinearMap:
        return functools.reduce(operator.matmul, parts)


def summed(terms: Sequence[Array], door: str) -> Array:
    """Return the sum of arrays; where integers are checked, `OverflowError` is raised before it leaves their dtype."""
    if door == "apply" and len(terms) > 1 and terms[0].dtype != object:
        check_integer_sums("the terms of a sum", namespace(terms[0]).stack(terms), len(terms))
    return functools.reduce(operator.add, terms)
