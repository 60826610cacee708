"""Whether a value is the largest singular value: the inertia of a banded matrix, by a Cholesky factorisation.

An iteration knows its Krylov space alone, and estimates what it does not see. Where the Gram matrix has a narrow band,
as for long signals, ``s^2 I - M^T M`` is factorised in a few milliseconds, and the factorisation completes if and only
if no singular value is above s (Sylvester's law of inertia). The same factors then find the value that was missed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.linalg import LinAlgError, cho_solve_banded, cholesky_banded

from convla._array import namespace, on_device_of, to_numpy
from convla.geometry import ConvGeometry
from convla.operators import ConvOperator
from convla.spectra.lanczos import golub_kahan_lanczos
from convla.spectra.symbol import FloatArray
from convla.spectra.triplets import SingularValues
from convla.toeplitz import Order, convolution_matrix, unvec

__all__ = ["BandedGram", "confirm_largest", "factorisation_is_cheap"]

_WORK_LIMIT = 5e8  # operations of a factorisation: about 30 ms
_WIDENING = 8.0  # of the interval above a value, until no singular value is above it
_ROUNDS = 4  # of shift and invert; the first is all that was ever seen to be needed


def factorisation_is_cheap(geometry: ConvGeometry) -> bool:
    """Tell whether the Gram matrix of a convolution has a band narrow enough to factorise it at the cost of little.

    Only for zeros around the image: other boundaries couple its ends, or its edges with a reach of their own.
    """
    if geometry.boundary != "zero":
        return False
    longest = geometry.longest_axis
    reach = (geometry.kernel_size[longest] - 1) * geometry.dilation[longest]
    shape = (geometry.in_channels, *geometry.image_shape)
    if geometry.shape[0] < geometry.shape[1]:
        shape, reach = (geometry.out_channels, *geometry.output_shape), reach // geometry.stride[longest]
    front = math.prod(shape) // shape[1 + longest]
    return math.prod(shape) * (front * (reach + 1)) ** 2 <= _WORK_LIMIT


class BandedGram:
    """The smaller of ``M^T M`` and ``M M^T`` in float64, its positions along the longest axis of the image last.

    Parameters
    ----------
    operator : ConvOperator
        With entries of order 1 and zeros around the image.

    Attributes
    ----------
    tall : scipy sparse array of shape (m, n), n <= m
        M or its transpose.
    rounding : float
        A bound on what rounding does to `solver_above`, relative to the singular value.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import ConvOperator
    >>> from convla.spectra.inertia import BandedGram
    >>> gram = BandedGram(ConvOperator(np.array([[[1.0, 0.0, -1.0]]]), (6,)))  # its norm is 2 cos(pi / 7) = 1.8019
    >>> gram.solver_above(1.80) is None, gram.solver_above(1.81) is None
    (True, False)
    """

    def __init__(self, operator: ConvOperator) -> None:
        geometry = operator.geometry
        kernel = np.asarray(to_numpy(operator.kernel), np.float64)
        matrix = convolution_matrix(kernel, geometry, order=operator.order, format="csr")
        wide = matrix.shape[0] < matrix.shape[1]
        self.tall = matrix.T.tocsr() if wide else matrix
        shape = operator.range_shape if wide else operator.domain_shape
        self._places = _longest_axis_last(shape, 1 + geometry.longest_axis, operator.order)
        columns = self.tall[:, self._places]
        gram = (columns.T @ columns).tocoo()
        below = gram.row - gram.col
        kept = below >= 0
        width = int(below.max(initial=0)) + 1
        self._bands = np.zeros((width, gram.shape[0]))
        self._bands[below[kept], gram.col[kept]] = -gram.data[kept]
        # Of the sums that are entries of the Gram matrix and of its factors.
        self.rounding = 4.0 * (width + 1) * float(np.finfo(np.float64).eps)

    def solver_above(self, bound: float) -> Callable[[FloatArray], FloatArray] | None:
        """Return the map ``x -> (bound^2 I - G)^-1 x``, or None where a singular value is above `bound`."""
        bands = self._bands.copy()
        bands[0, :] += bound**2
        try:
            factor = cholesky_banded(bands, overwrite_ab=True, lower=True, check_finite=False)
        except LinAlgError:
            return None

        def solve(vector: FloatArray) -> FloatArray:
            solution = np.empty_like(vector)
            solution[self._places] = cho_solve_banded((factor, True), vector[self._places], check_finite=False)
            return solution

        return solve


def confirm_largest(
    operator: ConvOperator, found: SingularValues, rtol: float, *, max_matvecs: int, rng: np.random.Generator
) -> SingularValues:
    """Return a triplet as it is, if no singular value is above its by more than `rtol`, or the largest one instead.

    Parameters
    ----------
    operator : ConvOperator
        For which `factorisation_is_cheap`, with entries of order 1.
    found : SingularValues
        With k = 1 and a positive value.
    rtol : float
        The relative accuracy of the value.
    max_matvecs : int
        What was found has the status "not converged" where it would take more solves and applications together.
    rng : numpy.random.Generator

    Returns
    -------
    SingularValues
        If it is not `found` itself, its error is a bound, proved but for the rounding of the factorisation.

    Notes
    -----
    The eigenvalues of ``(s^2 I - G)^-1``, s just above the largest singular value, are far apart where those of G are
    close: Lanczos on it takes a few steps, whatever the start.
    """
    gram = BandedGram(operator)
    slack = rtol + gram.rounding
    value, matvecs = found.value, found.matvecs
    if gram.solver_above(value * (1.0 + slack)) is not None:
        return found
    for _ in range(_ROUNDS):
        width = slack
        while (solve := gram.solver_above(above := value * (1.0 + width))) is None:
            width *= _WIDENING
        top = golub_kahan_lanczos(
            solve,
            solve,
            rng.standard_normal(gram.tall.shape[1]),
            1,
            rows=gram.tall.shape[1],
            rtol=1e-6,
            basis_size=20,
            max_matvecs=max_matvecs - matvecs,
            rng=rng,
        )
        vector = np.asarray(top.right[0, :])
        image = gram.tall @ vector
        value = float(np.linalg.norm(image))
        matvecs += top.matvecs + 1
        confirmed = gram.solver_above(value * (1.0 + slack)) is not None
        error = slack * value if confirmed else above - value
        if confirmed or matvecs >= max_matvecs:
            break
    image /= value
    residual = float(np.linalg.norm(gram.tall.T @ image - value * vector))
    left, right = (image, vector) if gram.tall.shape == operator.shape else (vector, image)
    xp = namespace(operator.kernel)
    left, right = (
        unvec(on_device_of(flat[None, :], operator.kernel, xp, dtype=operator.dtype), shape, order=operator.order)
        for flat, shape in ((left, operator.range_shape), (right, operator.domain_shape))
    )
    return replace(
        found,
        values=on_device_of([value], operator.kernel, xp, dtype=operator.dtype),
        left=left,
        right=right,
        residuals=np.array([residual]),
        errors=np.array([error]),
        matvecs=matvecs,
        status="converged" if confirmed else "not converged",
    )


def _longest_axis_last(shape: tuple[int, ...], longest: int, order: Order) -> np.ndarray:
    """Return the places in vec() of an image's entries, those along one axis farthest apart, the channels nearest."""
    places = unvec(np.arange(math.prod(shape)), shape, order=order)
    others = [axis for axis in range(1, len(shape)) if axis != longest]
    return np.transpose(places, (longest, *others, 0)).reshape(-1)
