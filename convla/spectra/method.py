"""What a method of finding singular values is, and what is asked of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from convla._options import Option
from convla.linear_map import LinearMap
from convla.spectra.result import End, SingularValues
from convla.typing import Array

__all__ = ["Criterion", "Method", "MethodName", "Search", "SmallestMethodName"]

MethodName = Literal["auto", "dense", "fourier", "lanczos"]
SmallestMethodName = Literal["auto", "dense", "fourier", "inverse", "lanczos"]
Criterion = Literal["residual", "value"]


@dataclass(frozen=True)
class Search:
    """What is asked of a method, besides the map and how many values.

    Attributes
    ----------
    rtol : float
    criterion : {"residual", "value"}
        Whether the residual of every triplet has to be below the tolerance, or the error of every value.
    max_matvecs : int
        An iteration ends after this many applications of the map and its transpose, or solves.
    rng : numpy.random.Generator
    """

    rtol: float
    criterion: Criterion
    max_matvecs: int
    rng: np.random.Generator


class Method(Option, ABC):
    """A way to the singular values of a linear map.

    A subclass is a frozen dataclass with a `name`, which then stands for its default settings wherever a method is
    asked for. It is given maps of float32 or float64 with entries of order 1; what it returns is scaled back.

    Examples
    --------
    ARPACK, as SciPy has it, and then its name, where a method is asked for:

    >>> from dataclasses import dataclass
    >>> import numpy as np
    >>> from scipy.sparse.linalg import svds
    >>> from convla import ConvOperator, largest_singular_value
    >>> from convla.spectra import Method, SingularValues, Status
    >>> @dataclass(frozen=True)
    ... class Arpack(Method):
    ...     name = "arpack"
    ...
    ...     def largest(self, operator, k, search, start):
    ...         left, values, right = svds(operator.as_linear_operator(), k, tol=search.rtol)
    ...         return SingularValues(
    ...             values=values[::-1],
    ...             left=left.T[::-1].reshape(k, *operator.range_shape),
    ...             right=right[::-1].reshape(k, *operator.domain_shape),
    ...             residuals=None,
    ...             errors=search.rtol * values[::-1],
    ...             upper=np.inf,
    ...             matvecs=0,
    ...             status=Status.ESTIMATED,
    ...             method=self.name,
    ...         )
    ...
    ...     def smallest(self, operator, search):
    ...         raise ValueError("ARPACK seldom finds the smallest singular value")
    >>> layer = ConvOperator(np.array([[[1.0, 1.0]]]), (30,), padding="full")
    >>> largest_singular_value(layer, method="arpack", rtol=1e-8)
    <SingularValues 1.99743: estimated, by arpack>
    """

    whole: ClassVar[bool] = False
    """Whether it takes a convolution as a whole, and nothing else: not any map, by parts that share no entry."""

    complete: ClassVar[bool] = False
    """Whether it can give all singular values."""

    def chosen(self, operator: LinearMap, k: int | None, end: End) -> Method:  # noqa: ARG002
        """Return the method for a map that has not been split: itself, unless it is a rule of choice."""
        return self

    def all(self, operator: LinearMap) -> SingularValues:
        """Return all singular values of a map, without vectors, if it is `complete`."""
        raise NotImplementedError(f"method {self.name!r} does not give all singular values")

    @abstractmethod
    def largest(self, operator: LinearMap, k: int, search: Search, start: Array | None) -> SingularValues:
        """Return the k largest singular triplets, from one image, of shape (1, *domain_shape), if it is given."""

    @abstractmethod
    def smallest(self, operator: LinearMap, search: Search) -> SingularValues:
        """Return the smallest singular triplet."""
