"""Lehmann's bounds, and the vectors that hide from a Krylov space."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from convla.spectra.companion import conjugate_wave
from convla.spectra.ritz import Ritz, lehmann_bounds


def krylov(matrix: np.ndarray, start: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Ritz values, decreasing, and their residuals in the next block, of a block Krylov space."""
    blocks = [np.linalg.qr(start)[0]]
    for _ in range(steps):
        known = np.concatenate(blocks, axis=1)
        image = matrix @ blocks[-1]
        for _ in range(2):
            image = image - known @ (known.T @ image)
        blocks.append(np.linalg.qr(image)[0])
    basis = np.concatenate(blocks[:-1], axis=1)
    values, vectors = np.linalg.eigh(basis.T @ matrix @ basis)
    ritz = (basis @ vectors)[:, ::-1]
    return values[::-1], blocks[-1].T @ (matrix @ ritz)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(3, 5), st.integers(1, 2))
def test_lehmann_bounds_hold_and_are_sharper_than_residuals_over_gaps(
    seed: int, count: int, steps: int, block: int
) -> None:
    rng = np.random.default_rng(seed)
    eigenvalues = np.sort(rng.random(20))[::-1]
    eigenvalues[:count] += rng.random()  # so that most bases see all of them
    values, couplings = krylov(np.diag(eigenvalues), rng.standard_normal((20, block)), steps)
    rest = eigenvalues[count]
    assume(values[count - 1] > rest + 1e-6)
    bounds = lehmann_bounds(values, couplings, rest, count)
    rounding = 1e-12
    assert (bounds >= eigenvalues[:count] - rounding).all()
    if count == 1:
        temple = values[0] + np.sum(couplings[:, 0] ** 2) / (values[0] - rest)
        assert bounds[0] <= temple * (1 + rounding)


def test_lehmann_bound_beyond_a_coupled_value_is_infinite() -> None:
    assert lehmann_bounds(np.array([2.0, 1.0]), np.array([[0.1, 0.1]]), 1.0, 1)[0] == np.inf


def test_errors_are_no_smaller_than_rounding_and_no_larger_than_residuals() -> None:
    values, couplings = np.array([[9.0, 4.0, 1.0]]), np.array([[[1e-9, 1e-3, 0.5]]])
    ritz = Ritz(values, np.eye(3)[None], couplings, rtol=1e-6, rounding=1e-7, spacing=1.0, down=True)
    errors = ritz.errors[0]
    # Of the squares, the error is 9e-7 by rounding; half of that over the root is that of the values.
    assert errors[0] == pytest.approx(0.5 * 1e-7 * 9 / 3)
    assert errors[0] <= errors[1] <= 0.5 * 1e-3 / 2 * (1 + 1e-12)
    np.testing.assert_allclose(ritz.residuals[0], [1e-9 / 3, 1e-3 / 2, 0.5])


def test_errors_at_the_lower_end_are_residuals_and_what_rounding_leaves_of_a_root() -> None:
    values, couplings = np.array([[0.0, 1e-20, 4.0, 9.0]]), np.array([[[0.0, 0.0, 0.1, 0.5]]])
    ritz = Ritz(values, np.eye(4)[None], couplings, rtol=1e-6, rounding=1e-15, spacing=1.0, down=False)
    some = np.sqrt(9e-15)
    wanted = [some, np.sqrt(1e-20 + 9e-15) - 1e-10, 2 - np.sqrt(3.9), 3 - np.sqrt(8.5)]
    np.testing.assert_allclose(ritz.errors[0], wanted, rtol=1e-12)


@pytest.mark.parametrize("sizes", [(12,), (9, 8), (6, 5, 4)])
def test_the_companion_is_the_same_wave_a_quarter_of_a_period_on(sizes: tuple[int, ...]) -> None:
    positions = np.meshgrid(*map(np.arange, sizes), indexing="ij")
    phase = sum(2 * np.pi * (axis + 1) * x / n for axis, (x, n) in enumerate(zip(positions, sizes, strict=True)))
    amplitudes = np.array([1.0, -2.0, 0.5])
    shifts = np.array([0.0, 0.3, 1.0])
    waves = [np.stack([a * f(phase + s) for a, s in zip(amplitudes, shifts, strict=True)]) for f in (np.cos, np.sin)]
    np.testing.assert_allclose(conjugate_wave(waves[0]), waves[1], atol=1e-12)
    assert conjugate_wave(waves[0].astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("sizes", [(1,), (1, 1), (2, 2), (8, 8)])
def test_waves_without_a_phase_have_no_companion(sizes: tuple[int, ...]) -> None:
    alternating = np.prod(np.meshgrid(*[(-1.0) ** np.arange(n) for n in sizes], indexing="ij"), axis=0)
    assert conjugate_wave(np.stack([alternating, 2 * alternating])) is None
