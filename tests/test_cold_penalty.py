"""The first value of a block tracker, which is looked for only as accurately as it can matter, and what that costs."""

from __future__ import annotations

import math
from typing import Any

import array_api_strict
import numpy as np
import pytest

from convla import ConvOperator
from convla.penalties import Block, shifted
from convla.spectra.batch import Batch
from convla.spectra.block_iteration import orthonormal
from convla.spectra.krylov import KrylovSpace, extended
from convla.spectra.status import Status


def standard(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Weights whose layer has singular values up to about 2, as those of He's initialisation."""
    return rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))


def near_duplicate(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    kernel = standard(rng, shape)
    kernel[1] = kernel[0] + 1e-4 * kernel[1]
    return kernel


def flat(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """An orthogonal matrix at one tap, all singular values nearly 1."""
    kernel = 1e-3 * standard(rng, shape)
    kernel[:, :, 1, 1] += np.linalg.qr(rng.standard_normal(shape[:2]))[0]
    return kernel


def one_sided(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Far from singular: the lower end counts as well as the upper one."""
    return flat(rng, shape) + 0.3 * standard(rng, shape)


CASES: list[tuple[Any, tuple[int, ...], tuple[int, int], dict[str, Any]]] = [
    (standard, (12, 12, 3, 3), (7, 8), {}),
    (near_duplicate, (12, 12, 3, 3), (7, 8), {"boundary": "circular"}),
    (flat, (12, 12, 3, 3), (7, 8), {}),
    (one_sided, (12, 12, 3, 3), (7, 8), {}),
    (standard, (12, 6, 3, 3), (10, 10), {"groups": 2}),
    (standard, (20, 4, 3, 3), (13, 12), {"stride": 2, "padding": 1}),
    (standard, (11, 12, 3, 3), (7, 8), {}),
]


@pytest.mark.parametrize("scale", [0.55, 0.75, 1.3])
@pytest.mark.parametrize(("draw", "shape", "image", "options"), CASES)
def test_the_first_value_is_right_and_later_ones_stay_so(
    draw: Any, shape: tuple[int, ...], image: tuple[int, int], options: dict[str, Any], scale: float
) -> None:
    rng = np.random.default_rng([len(str(options)), *shape])
    operator = ConvOperator(scale * draw(rng, shape), image, **options)
    tracker = Block()
    state = tracker.initial(shifted(operator, 1.0, "input"))
    for _ in range(3):
        pairs, state = tracker.step(shifted(operator, 1.0, "input"), state)
        matrix = operator.to_dense()
        squares = np.linalg.eigvalsh(matrix.T @ matrix)
        assert abs(pairs.value - max(squares[-1] - 1.0, 1.0 - squares[0])) <= 1e-3 * squares[-1]
        assert pairs.status == Status.ESTIMATED
        # The vectors are what the value says, to rounding, so that a gradient is that of a value within its error.
        norms = np.sum(pairs.images**2, axis=(1, 2, 3))
        np.testing.assert_allclose(pairs.signs * (norms - 1.0), pairs.value, rtol=1e-6)
        operator = operator.with_kernel(operator.kernel + 0.02 * scale * standard(rng, shape))


class Counted(ConvOperator):
    """A convolution that counts to how many images it, or its adjoint, was applied."""

    applied = 0

    def _apply(self, images: Any) -> Any:
        type(self).applied += int(np.prod(images.shape[: images.ndim - len(self.domain_shape)]))
        return super()._apply(images)


@pytest.mark.parametrize(
    ("scale", "most"),
    [
        # The Ritz values next to 0 of a spectrum that begins with its inverse root are those of a Jacobi polynomial:
        # the first of k is (pi / 4 k)^2 of sigma_max^2, within 1e-3 of it from k = 25 on.
        (0.58, 30),
        # Twice that at the upper end, which ends like a root, until the residual is as small.
        (1.41, 60),
    ],
)
def test_a_first_call_takes_few_products(scale: float, most: int) -> None:
    kernel = (scale * standard(np.random.default_rng(0), (32, 32, 3, 3))).astype(np.float32)
    operator = Counted(kernel, (12, 12))
    Counted.applied = 0
    tracker, target = Block(), shifted(operator, 1.0, "input")
    pairs, state = tracker.step(target, tracker.initial(target))
    assert type(target.factor) is Counted
    assert 5 < Counted.applied <= most
    # As long as the upper end cannot have become too large it is not looked at, and the lower one has settled.
    Counted.applied = 0
    again = Counted(kernel * np.float32(1.0001), (12, 12))
    value = tracker.step(shifted(again, 1.0, "input"), state)[0].value
    assert value == pytest.approx(pairs.value, abs=1e-3 * scale**2 * 4)
    if scale < 1.0:
        assert Counted.applied <= 10


@pytest.mark.parametrize("seed", range(4))
def test_no_singular_value_is_above_what_a_random_vector_shows(seed: int) -> None:
    # One singular value stands out, which a few products hardly show; the others are far below what is of interest.
    rng = np.random.default_rng(seed)
    diagonal = np.linspace(0.0, 1.0, 600)
    diagonal[-1] = 1.6
    operator = ConvOperator(np.diag(diagonal)[:, :, None], (1,))
    start = orthonormal(rng.standard_normal((1, 1, 600)), np)
    space = KrylovSpace(Batch(operator, 1), start)
    block, known, _, above = extended(space, end="largest", count=2, rtol=1e-3, bar=1.5)
    assert known
    assert above >= 1.6**2 or math.isinf(above)
    assert float(block.squares[0, 0]) == pytest.approx(1.6**2, rel=1e-3)


def test_a_krylov_space_is_orthonormal_and_projects_the_gram_matrix() -> None:
    # Float32, and values that converge: without orthogonalisation the rows would repeat themselves.
    rng = np.random.default_rng(5)
    operator = ConvOperator(
        (rng.standard_normal((4, 4, 3, 3)) + 3 * np.eye(4)[:, :, None, None]).astype(np.float32), (9, 9)
    )
    start = orthonormal(rng.standard_normal((1, 1, 324)).astype(np.float32), np)
    space = KrylovSpace(Batch(operator, 1), start)
    while space.rows < 60:
        assert space.extend()
    squares, ritz = np.linalg.eigh(space.gram)
    block = space.block(ritz[:, ::-1])
    vectors, matrix = block.vectors[0].astype(np.float64), operator.astype(np.float64).to_dense()
    norm = np.linalg.norm(matrix, 2) ** 2
    blur = 30 * float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(60), atol=blur)
    np.testing.assert_allclose(block.images[0], vectors @ matrix.T, atol=blur * norm**0.5)
    np.testing.assert_allclose(block.squares[0], squares[::-1], atol=blur * norm)
    beside = vectors @ matrix.T @ matrix - squares[::-1, None] * vectors
    np.testing.assert_allclose(block.residuals[0], np.linalg.norm(beside, axis=1), atol=blur * norm)
    assert np.all(block.residuals[0][0] <= blur * norm)


def test_a_value_without_vectors_is_on_the_device_of_the_map() -> None:
    # A wide map far below alpha: its null space alone is active.
    device = array_api_strict.Device("device1")
    kernel = array_api_strict.asarray([[[0.1, 0.2]] * 3], dtype=array_api_strict.float64, device=device)
    tracker, target = Block(), shifted(ConvOperator(kernel, (40,)), 1.0, "input")
    pairs, _ = tracker.step(target, tracker.initial(target))
    assert pairs.value == 1.0
    assert pairs.vectors.shape[0] == 0
    assert {array.device for array in (pairs.signs, pairs.vectors, pairs.images)} == {device}
