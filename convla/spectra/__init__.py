"""Singular values of the matrix of a convolution: found, enclosed, estimated, and followed as the kernel changes."""

from convla.spectra.asymptotics import asymptotic_largest_singular_value
from convla.spectra.bounds import SingularValueBounds, singular_value_bounds
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
    "ConditionNumber",
    "SingularValueBounds",
    "SingularValues",
    "Status",
    "asymptotic_largest_singular_value",
    "condition_number",
    "largest_singular_value",
    "singular_value_bounds",
    "singular_values",
    "smallest_singular_value",
]
