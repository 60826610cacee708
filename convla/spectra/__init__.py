"""Singular values of the matrix of a convolution: found, enclosed, estimated, and followed as the kernel changes."""

from convla.spectra.asymptotics import asymptotic_largest_singular_value
from convla.spectra.bounds import SingularValueBounds, singular_value_bounds
from convla.spectra.density import SpectralDensity, StableRank, spectral_density, stable_rank
from convla.spectra.gradients import (
    SpectralGradient,
    condition_number_and_gradient,
    largest_singular_value_and_gradient,
    singular_values_and_gradients,
    smallest_singular_value_and_gradient,
)
from convla.spectra.method import Method, Search
from convla.spectra.methods import Auto, Dense, Fourier, Inverse, Lanczos
from convla.spectra.result import SingularValues
from convla.spectra.status import Status
from convla.spectra.values import (
    ConditionNumber,
    condition_number,
    largest_singular_value,
    singular_values,
    smallest_singular_value,
)

__all__ = [
    "Auto",
    "ConditionNumber",
    "Dense",
    "Fourier",
    "Inverse",
    "Lanczos",
    "Method",
    "Search",
    "SingularValueBounds",
    "SingularValues",
    "SpectralDensity",
    "SpectralGradient",
    "StableRank",
    "Status",
    "asymptotic_largest_singular_value",
    "condition_number",
    "condition_number_and_gradient",
    "largest_singular_value",
    "largest_singular_value_and_gradient",
    "singular_value_bounds",
    "singular_values",
    "singular_values_and_gradients",
    "smallest_singular_value",
    "smallest_singular_value_and_gradient",
    "spectral_density",
    "stable_rank",
]
