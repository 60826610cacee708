"""Lehmann's bounds, and the vectors that hide from a Krylov space."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from convla.spectra.companion import conjugate_wave
from convla.spectra.ritz import Ritz, lehmann_bounds


def krylov(matrix: np.ndarray, start: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Ritz values, decreasing, and the norms of their residuals, of the Krylov space of a symmetric matrix."""
    powers = [start / np.linalg.norm(start)]
    for _ in range(steps - 1):
        image = matrix @ powers[-1]
        for _ in range(2):
            image = image - np.array(powers).T @ (np.array(powers) @ image)
        powers.append(image / np.linalg.norm(image))
    basis = np.array(powers).T
    values, vectors = np.linalg.eigh(basis.T @ matrix @ basis)
    ritz = (basis @ vectors)[:, ::-1]
    return values[::-1], np.linalg.norm(matrix @ ritz - ritz * values[::-1], axis=0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(4, 7))
def test_lehmann_bounds_hold_and_are_sharper_than_residuals_over_gaps(seed: int, count: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    eigenvalues = np.sort(rng.random(20))[::-1]
    values, residuals = krylov(np.diag(eigenvalues), rng.standard_normal(20), steps)
    rest = eigenvalues[count]
    assume(values[count - 1] > rest + 1e-6)
    bounds = lehmann_bounds(values, residuals, rest, count)
    rounding = 1e-12
    assert (bounds >= eigenvalues[:count] - rounding).all()
    if count == 1:
        temple = values[0] + residuals[0] ** 2 / (values[0] - rest)
        assert bounds[0] <= temple * (1 + rounding)


def test_lehmann_bound_beyond_a_coupled_value_is_infinite() -> None:
    assert lehmann_bounds(np.array([2.0, 1.0]), np.array([0.1, 0.1]), 1.0, 1)[0] == np.inf


def test_errors_are_no_smaller_than_rounding_and_no_larger_than_residuals() -> None:
    residuals = np.array([1e-9, 1e-3, 0.5])
    ritz = Ritz(np.array([3.0, 2.0, 1.0]), np.eye(3), np.eye(3), residuals, rounding=1e-7)
    errors = ritz.errors(2)
    assert errors[0] == 1e-7
    assert 1e-7 <= errors[1] <= 1e-3


@pytest.mark.parametrize("sizes", [(12,), (9, 8), (6, 5, 4)])
def test_the_companion_is_the_same_wave_a_quarter_of_a_period_on(sizes: tuple[int, ...]) -> None:
    positions = np.meshgrid(*map(np.arange, sizes), indexing="ij")
    phase = sum(2 * np.pi * (axis + 1) * x / n for axis, (x, n) in enumerate(zip(positions, sizes, strict=True)))
    amplitudes = np.array([1.0, -2.0, 0.5])
    shifts = np.array([0.0, 0.3, 1.0])
    waves = [np.stack([a * f(phase + s) for a, s in zip(amplitudes, shifts, strict=True)]) for f in (np.cos, np.sin)]
    np.testing.assert_allclose(conjugate_wave(waves[0]), waves[1].ravel(), atol=1e-12)
    assert conjugate_wave(waves[0].astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("sizes", [(1,), (1, 1), (2, 2), (8, 8)])
def test_waves_without_a_phase_have_no_companion(sizes: tuple[int, ...]) -> None:
    alternating = np.prod(np.meshgrid(*[(-1.0) ** np.arange(n) for n in sizes], indexing="ij"), axis=0)
    assert conjugate_wave(np.stack([alternating, 2 * alternating])) is None
