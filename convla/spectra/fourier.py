"""Singular values of convolutions on a torus: those of the symbol at the torus's frequencies, exactly."""

from __future__ import annotations

import math

import numpy as np

from convla._array import namespace, on_device_of, to_numpy
from convla.geometry import ConvGeometry
from convla.operators import ConvOperator
from convla.spectra.certificate import U64, gamma
from convla.spectra.dense import rounding
from convla.spectra.result import SingularValues
from convla.spectra.roundoff import schur_bound
from convla.spectra.status import Status
from convla.spectra.symbol import Symbol
from convla.spectra.torus import circular_lattice, circular_singular_values, circular_triplets

__all__ = ["fourier_is_exact", "fourier_triplets", "values_of_symbol"]


def fourier_is_exact(geometry: ConvGeometry) -> bool:
    """Tell whether the boundary is circular and the outputs visit the image's torus evenly."""
    return geometry.boundary == "circular" and circular_lattice(geometry).exact


def values_of_symbol(operator: ConvOperator) -> int:
    """Return how many singular values the symbol has at the frequencies of the outputs' lattice."""
    lattice = circular_lattice(operator.geometry)
    symbol = Symbol(operator.kernel, operator.geometry, stride=lattice.stride)
    return symbol.groups * min(symbol.rows, symbol.columns) * math.prod(lattice.sizes)


def fourier_triplets(operator: ConvOperator, k: int | None, *, smallest: bool = False) -> SingularValues:
    """Decompose the symbol at the torus's frequencies: all values, or the k largest, or smallest, triplets.

    Raises
    ------
    ValueError
        Unless the boundary is circular and the outputs visit the torus evenly, or if the symbol has not k values.
    """
    geometry = operator.geometry
    if not fourier_is_exact(geometry):
        raise ValueError(
            "method 'fourier' needs a circular boundary and outputs that visit the image's torus evenly, got boundary "
            f"{geometry.boundary!r}, image {geometry.image_shape}, stride {geometry.stride}, "
            f"output {geometry.output_shape}"
        )
    xp = namespace(operator.kernel)
    precise = operator.astype(xp.float64)
    left = right = residuals = None
    if k is None:
        values = circular_singular_values(precise.kernel, geometry)
    else:
        left, values, right = circular_triplets(precise.kernel, geometry, k, smallest=smallest)
        scales = on_device_of(values, precise.kernel, xp, dtype=xp.float64)
        difference = precise.adjoint(left) - right * xp.reshape(scales, (-1, *(1,) * (right.ndim - 1)))
        norms = xp.linalg.vector_norm(difference, axis=tuple(range(1, right.ndim)))
        residuals = np.asarray(to_numpy(norms), np.float64)
        left, right = (xp.astype(side, operator.dtype) for side in (left, right))
    size = schur_bound(precise) if smallest else float(values.max())
    # The symbol is a sum of all taps: where they cancel at every frequency, its values are of the size of its rounding.
    symbol = Symbol(precise.kernel, geometry, stride=circular_lattice(geometry).stride)
    # An angle has an absolute rounding error of its size, 2 pi for each lag.
    terms = symbol.rounding_terms + 16 * (1 + sum(symbol.degrees))
    errors = rounding(precise, size, np.asarray(values)) + gamma(terms, U64) * schur_bound(precise)
    singular = smallest and float(values[0]) <= errors[0]
    return SingularValues(
        values=on_device_of(values, precise.kernel, xp, dtype=xp.float64),
        left=left,
        right=right,
        residuals=residuals,
        errors=errors,
        upper=math.inf if smallest else float(size + errors[0]),
        matvecs=0,
        status=Status.RANK_DEFICIENT if singular else Status.EXACT,
        method="fourier",
    )
