"""Second derivatives of simple singular values in the kernel of a convolution: products with their Hessians.

The gradient is bilinear in the singular vectors, whose first-order change is that of eigenvectors: the resolvent of the
Gram matrix at the squared singular value, on what is orthogonal to the vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from convla._array import namespace, row_dots
from convla._convergence import warn
from convla.linear_map import LinearMap
from convla.operators import ConvOperator
from convla.spectra.result import SingularValues
from convla.spectra.scaling import scaled_to_unit
from convla.typing import Array

__all__ = ["hessian_product", "minres"]

_RTOL = 1e-12  # of the residual
_KEPT = 1e-6  # of the residual, above which a warning is due


def hessian_product(operator: LinearMap, found: SingularValues, place: int, direction: Array) -> Array:
    """Return the derivative of a singular value's gradient along a direction in the space of kernels.

    Parameters
    ----------
    operator : ConvOperator or its transpose
        Of float32 or float64.
    found : SingularValues
        With vectors.
    place : int
        Of the singular value among those found: simple, and not 0.
    direction : array of the kernel's shape and dtype

    Returns
    -------
    array of the kernel's shape and dtype
        The product of the Hessian with the direction.

    Raises
    ------
    TypeError
        If `operator` is made of several convolutions: it is not linear in their kernels.

    Warns
    -----
    ConvergenceWarning
        If the linear system is not solved to six digits, as where another singular value is very near.

    Notes
    -----
    With ``M v = sigma u``, ``M^T u = sigma v`` and D the layer of the direction, ``sigma' = u^T D v``, and the vectors
    move, orthogonally to themselves, by

        (sigma^2 - M^T M) v' = sigma P D^T u + M^T Q D v,    sigma u' = Q D v + M v',

    P and Q being the projections onto what is orthogonal to v and u. The product is the kernel adjoint of (u', v) and
    of (u, v'). The system is symmetric, and indefinite but for the largest value: it is solved by MINRES, in float64.

    References
    ----------
    J. R. Magnus, On Differentiating Eigenvalues and Eigenvectors, Econometric Theory 1 (1985) 179-191.

    Examples
    --------
    The singular values of a matrix of channels with entries a, b, 0, d are those of ``hypot(a, b)`` where d is 0, whose
    second derivative in b at 0 is 1 / a:

    >>> import numpy as np
    >>> from convla import ConvOperator, singular_values
    >>> from convla.spectra.curvature import hessian_product
    >>> channels = ConvOperator(np.diag([2.0, 0.0])[:, :, None], (1,))
    >>> direction = np.array([[0.0, 1.0], [0.0, 0.0]])[:, :, None]
    >>> hessian_product(channels, singular_values(channels, 1), 0, direction)[:, :, 0].round(12) + 0.0
    array([[0. , 0.5],
           [0. , 0. ]])
    """
    transposed = not isinstance(operator, ConvOperator)
    convolution = operator.T if transposed else operator
    if not isinstance(convolution, ConvOperator):
        raise TypeError(
            f"second derivatives are those of one convolution, got a {type(operator).__name__}: a map that is made of "
            "several is not linear in their kernels"
        )
    if found.left is None or found.right is None:
        raise ValueError("found must hold singular vectors, got a result without them")
    xp = namespace(convolution.kernel)
    u, v = (found.right, found.left) if transposed else (found.left, found.right)
    scaled, exponent = scaled_to_unit(convolution.astype(xp.float64))
    system = _System.of(scaled, xp.astype(u[place, ...], xp.float64), xp.astype(v[place, ...], xp.float64))
    product = system.product(convolution.with_kernel(direction).astype(xp.float64))
    half = exponent // 2  # homogeneous of degree -1 in the kernel; 2^-e itself may be beyond the range
    return xp.astype(product * 2.0**-half * 2.0 ** (half - exponent), direction.dtype)


@dataclass(frozen=True)
class _System:
    """A convolution, one of its singular values and its vectors, in float64."""

    operator: ConvOperator
    u: Array
    v: Array
    value: float

    @classmethod
    def of(cls, operator: ConvOperator, u: Array, v: Array) -> _System:
        xp = namespace(u)
        v = v / xp.linalg.vector_norm(v)
        image = operator.apply(v)
        value = xp.linalg.vector_norm(image)
        return cls(operator, image / value if float(value) else u, v, float(value))

    def product(self, change: ConvOperator) -> Array:
        """Return the change of the kernel adjoint of both vectors."""
        right = _without(change.apply(self.v), self.u)
        left = _without(change.adjoint(self.u), self.v)
        wanted = _without(self.value * left + self.operator.adjoint(right), self.v)
        dv = _without(minres(self._resolvent, wanted, rtol=_RTOL, steps=4 * sum(self.operator.shape)), self.v)
        du = (right + self.operator.apply(dv)) / self.value
        changed: Array = self.operator.kernel_adjoint(du, self.v) + self.operator.kernel_adjoint(self.u, dv)
        return changed

    def _resolvent(self, image: Array) -> Array:
        image = _without(image, self.v)
        gram = self.operator.adjoint(self.operator.apply(image))
        return _without(self.value**2 * image - gram, self.v)


def minres(apply: Callable[[Array], Array], wanted: Array, *, rtol: float, steps: int) -> Array:
    """Solve a symmetric system ``A x = b``, definite or not, by the minimal residual method.

    Parameters
    ----------
    apply : callable
        ``A x`` for an array like `wanted`.
    wanted : array
        b, in the range of A.
    rtol : float
        Of the residual's norm to that of b.
    steps : int
        At most.

    Warns
    -----
    ConvergenceWarning
        If the residual is above a part in a million of b in the end.

    References
    ----------
    C. C. Paige and M. A. Saunders, Solution of Sparse Indefinite Systems of Linear Equations, SIAM Journal on Numerical
    Analysis 12 (1975) 617-629.

    Examples
    --------
    >>> import numpy as np
    >>> from convla.spectra.curvature import minres
    >>> minres(lambda x: np.array([2.0, -1.0]) * x, np.array([4.0, 3.0]), rtol=1e-12, steps=9).round(12)
    array([ 2., -3.])
    """
    xp = namespace(wanted)
    solution, size = xp.zeros_like(wanted), _norm(wanted)
    if not size:
        return solution
    before, vector = xp.zeros_like(wanted), wanted / size
    older, old = xp.zeros_like(wanted), xp.zeros_like(wanted)
    beta, residual = 0.0, size
    (cos_before, sin_before), (cos, sin) = (1.0, 0.0), (1.0, 0.0)
    for _ in range(steps):
        image = apply(vector)
        alpha = _dot(vector, image)
        image = image - alpha * vector - beta * before
        following = _norm(image)
        # The last column of the tridiagonal matrix, by the two rotations before, and a new one.
        first, second = sin_before * beta, sin * alpha + cos * cos_before * beta
        pivot = cos * alpha - sin * cos_before * beta
        diagonal = math.hypot(pivot, following)
        if not diagonal:
            break
        (cos_before, sin_before), (cos, sin) = (cos, sin), (pivot / diagonal, following / diagonal)
        older, old = old, (vector - first * older - second * old) / diagonal
        solution = solution + cos * residual * old
        residual = -sin * residual
        if abs(residual) <= rtol * size or not following:
            break
        before, vector, beta = vector, image / following, following
    if not _norm(wanted - apply(solution)) <= _KEPT * size:
        warn("the change of a singular vector is not found to six digits", stacklevel=2)
    return solution


def _without(array: Array, unit: Array) -> Array:
    return array - _dot(array, unit) * unit


def _dot(a: Array, b: Array) -> float:
    xp = namespace(a)
    return float(row_dots(xp.reshape(a, (-1,)), xp.reshape(b, (-1,)), xp))


def _norm(array: Array) -> float:
    return float(namespace(array).linalg.vector_norm(array))
