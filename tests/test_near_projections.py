"""Near kernels, and what is followed from one to the next: against dense decompositions and the nearest kernels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import convla
from convla import ConvGeometry, ConvOperator, clip_singular_values
from convla.projections import clipping, following
from convla.projections.blocks import TorusBlocks
from convla.projections.changes import bound_after
from convla.projections.excess import Follower
from convla.projections.following import FollowedKernel
from convla.projections.nearest import extrapolated, largest_value
from convla.spectra.bounds import proved_upper_bound

SETTINGS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "same": ((3, 2, 3), (7,), {}),
    "full": ((2, 3, 2), (5,), {"padding": "full"}),
    "valid, stride, groups": ((4, 2, 3, 2), (6, 5), {"padding": "valid", "stride": (2, 1), "groups": 2}),
    "depthwise": ((5, 1, 3, 3), (6, 4), {"groups": 5}),
    "dilated": ((2, 2, 3), (9,), {"dilation": 2}),
    "circular": ((4, 3, 3, 3), (4, 5), {"boundary": "circular"}),
    "circular, stride": ((3, 2, 3), (8,), {"boundary": "circular", "stride": 2}),
    "circular, wrapped": ((2, 1, 5), (3,), {"boundary": "circular", "padding": 2}),
    "reflect": ((2, 2, 3), (6,), {"boundary": "reflect"}),
    "replicate": ((2, 1, 3, 3), (4, 4), {"boundary": "replicate"}),
    "symmetric": ((2, 2, 3), (6,), {"boundary": "symmetric"}),
    "three axes": ((2, 1, 2, 2, 2), (3, 3, 3), {}),
    "size 1": ((1, 1, 1), (1,), {}),
    "pointwise": ((4, 3, 1, 1), (3, 2), {}),
}


def _random(shape: tuple[int, ...], seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def _largest(kernel: Any, image_shape: tuple[int, ...], settings: dict[str, Any]) -> float:
    dense = ConvOperator(np.asarray(kernel, np.float64), image_shape, **settings).to_dense()
    return float(np.linalg.svd(dense, compute_uv=False)[0])


_ROUNDING = 1 + 500 * float(np.finfo(np.float64).eps)  # of the largest value of a matrix of some hundred rows


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", ["matrix", "torus"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_near_kernel_obeys_and_is_near(name: str, dtype: Any, method: Any, share: float) -> None:
    shape, image_shape, settings = SETTINGS[name]
    kernel = _random(shape).astype(dtype)
    largest = _largest(kernel, image_shape, settings)
    options: dict[str, Any] = {"maximum": share * largest, **settings}
    near = clip_singular_values(kernel, image_shape, nearest=False, method=method, **options)
    assert near.upper <= share * largest
    assert _largest(near.kernel, image_shape, settings) <= near.upper * _ROUNDING
    assert near.kernel.dtype == dtype
    assert (near.status, near.least_distance) == ("estimated", 0.0)
    moved = float(np.linalg.norm(near.kernel.astype(float) - kernel.astype(float)))
    assert math.isclose(moved, near.distance, rel_tol=1e-12)
    nearest = clip_singular_values(kernel, image_shape, method="matrix", rtol=1e-3, **options)
    assert nearest.least_distance > 0.0
    size = float(np.linalg.norm(kernel.astype(float)))
    roundoff = float(np.finfo(dtype).eps) * size
    assert nearest.least_distance <= moved + roundoff
    if method == "matrix":
        assert moved <= 1.25 * nearest.least_distance + 2e-3 * size
    # To scale it down moves it farther, but for what is left below the maximum, and what the torus is above the layer.
    scaled = convla.singular_value_bounds(ConvOperator(kernel, image_shape, **settings), method="symbol").upper
    assert moved <= (1 - share * largest / scaled) * size * 1.05 + 2e-3 * size


BOUNDARIES = ("zero", "zero", "circular", "reflect")


def _drawn(seed: int) -> tuple[Any, tuple[int, ...], dict[str, Any], np.random.Generator]:
    """Return a kernel, the size of its images and its setting, and what to draw from further."""
    rng = np.random.default_rng(seed)
    axes, groups, boundary = int(rng.integers(1, 3)), int(rng.choice([1, 1, 2, 3])), str(rng.choice(BOUNDARIES))
    outer, inner = (int(channels) for channels in rng.integers(1, 5, 2))
    size = tuple(int(k) for k in rng.integers(1, 5, axes))
    image_shape = tuple(int(n) for n in rng.integers(5, 8 if axes == 2 else 40, axes))
    settings = {"stride": int(rng.choice([1, 1, 2])), "groups": groups, "boundary": boundary}
    kernel = rng.standard_normal((outer * groups, inner, *size))
    kind = int(rng.integers(4))
    if kind == 0 and outer > 1:  # two filters that nearly coincide, or all of them; or of another size
        kernel[1] = kernel[0] * (1 + 1e-4)
    elif kind == 1:
        kernel = kernel[:1] + 1e-3 * kernel
    elif kind == 2:
        kernel *= 10.0 ** rng.integers(-6, 6)
    return kernel.astype(rng.choice([np.float32, np.float64])), image_shape, settings, rng


@pytest.mark.parametrize("first", [0, 25, 50, *(pytest.param(n, marks=pytest.mark.slow) for n in range(75, 200, 25))])
def test_scaling_down_moves_no_kernel_less(first: int) -> None:
    for seed in range(first, first + 25):
        kernel, image_shape, settings, rng = _drawn(seed)
        largest = _largest(kernel, image_shape, settings)
        maximum = float(rng.choice([0.02, 0.3, 0.9, 0.99, 0.999, 1 - 1e-5, 1 - 1e-7])) * largest
        options: dict[str, Any] = {
            "max_iterations": int(rng.choice([1, 5])),
            "method": str(rng.choice(["auto", "torus"])),
        }
        # What a scaled kernel is rounded by, and the margin for that: 1, 4 and 16 times the roundoff of the dtype.
        rounding = 32 * float(np.finfo(kernel.dtype).eps)
        near = clip_singular_values(kernel, image_shape, maximum=maximum, nearest=False, **settings, **options)
        operator = ConvOperator(kernel, image_shape, **settings)
        upper = convla.singular_value_bounds(operator).upper
        size = float(np.linalg.norm(kernel.astype(float)))
        assert near.distance <= (max(0.0, 1 - maximum / upper) + rounding) * size, seed
        followed = FollowedKernel(maximum, **options)
        for step in range(2):
            kept = followed.kept(operator)
            assert _largest(kept.operator.kernel, image_shape, settings) <= kept.upper * _ROUNDING
            assert kept.upper <= maximum, (seed, step)
            given = np.asarray(operator.kernel, float)
            moved, size = np.linalg.norm(kept.operator.kernel - given), np.linalg.norm(given)
            # The proved norm is the one that such a kernel is proved by, on the smallest torus, or the enclosure's.
            upper = max(convla.singular_value_bounds(operator).upper, proved_upper_bound(operator, maximum))
            assert moved <= (max(0.0, 1 - maximum / upper) + rounding) * size, (seed, step)
            move = float(rng.choice([1e-5, 1e-3, 0.05])) * size / math.sqrt(kernel.size)
            changed = kept.operator.kernel + move * rng.standard_normal(kernel.shape)
            operator = operator.with_kernel(changed.astype(kernel.dtype))


@pytest.mark.parametrize("exponent", [-700, 700])
@pytest.mark.parametrize("method", ["matrix", "torus"])
def test_near_kernels_whose_squares_are_out_of_range(exponent: int, method: Any) -> None:
    kernel, options = _random((2, 2, 3)), {"boundary": "circular", "method": method, "nearest": False}
    one = clip_singular_values(kernel, (6,), maximum=1.5, **options)
    other = clip_singular_values(np.ldexp(kernel, exponent), (6,), maximum=math.ldexp(1.5, exponent), **options)
    assert np.allclose(np.ldexp(other.kernel, -exponent), one.kernel, rtol=1e-12)
    assert math.isclose(math.ldexp(other.distance, -exponent), one.distance, rel_tol=1e-9)


def test_a_maximum_far_below_is_kept_too() -> None:
    near = clip_singular_values(_random((2, 2, 3)), (6,), maximum=1e-250, nearest=False)
    assert 0.0 < _largest(near.kernel * 1e200, (6,), {}) <= 1e-50 * (1 + 1e-12)
    assert near.upper <= 1e-250


@pytest.mark.parametrize(("rows", "columns"), [(40, 40), (64, 30), (30, 64)])
def test_what_is_followed_is_what_a_decomposition_gives(rows: int, columns: int) -> None:
    rng = np.random.default_rng(0)
    left, right = (
        np.linalg.qr(rng.standard_normal((4, side, side)) + 1j * rng.standard_normal((4, side, side)))[0]
        for side in (rows, columns)
    )
    values = np.zeros((4, rows, columns))
    order = min(rows, columns)
    # Three values above the limit, a pair of them equal; one matrix is zero, and one has a single value.
    spectrum = np.concatenate(([1.5, 1.2, 1.2], np.linspace(0.7, 0.0, order - 3)))
    values[:2, range(order), range(order)] = spectrum
    values[2, 0, 0] = 1.3
    stack = left @ values @ right
    follower = Follower()
    for step in range(4):
        found = follower.excess(stack, 1.0)
        u, s, vh = np.linalg.svd(stack, full_matrices=False)
        above = np.maximum(s - 1.0, 0.0)
        expected = u * above[:, None, :] @ vh
        # The vectors are those of the last stack at first: an error of the square of what they turned by.
        allowed = 1e-12 if step == 0 else 2e-2
        assert np.allclose(found.stack, expected, rtol=0, atol=allowed)
        assert np.allclose(found.sums, above.sum(axis=-1), atol=allowed)
        assert np.allclose(found.squares, (above**2).sum(axis=-1), atol=allowed)
        assert found.largest <= s.max() * (1 + 1e-12)
        assert math.isclose(found.largest, s.max(), abs_tol=allowed)
        assert math.isclose(follower.largest(stack), s.max(), abs_tol=1e-3)
        stack = stack + 0.02 * (rng.standard_normal(stack.shape) / math.sqrt(order))


def test_values_that_rise_beyond_those_that_are_followed_are_found() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((3, 48, 48)))[0]
    follower = Follower()
    for count in (1, 7, 30):
        # Those that were followed span an invariant space, to which the vectors of the new ones are orthogonal.
        values = np.where(np.arange(48) < count, 2.0, 0.5)
        sums = [follower.excess(basis * values, 1.0).sums for _ in range(8)]
        assert np.allclose(sums[-1], count), count


@pytest.mark.parametrize("name", ["circular", "circular, stride"])
def test_extrapolated_steps_end_within_the_limit_and_near_every_kernel_that_is(name: str) -> None:
    shape, image_shape, settings = SETTINGS[name]
    blocks = TorusBlocks(ConvGeometry(shape, image_shape, **{"padding": "same", **settings}))
    given = _random(blocks.shape)
    limit = 0.6 * largest_value(blocks, given)
    near = extrapolated(blocks, given, limit, max_iterations=20)
    assert math.isclose(near.norm, largest_value(blocks, near.kernel), rel_tol=1e-12)
    assert near.norm <= limit
    assert near.iterations < 20
    for seed in range(3):
        other = _random(blocks.shape, seed)
        other *= 0.999 * limit / largest_value(blocks, other)
        before = given
        for steps in range(1, near.iterations + 1):
            after = extrapolated(blocks, given, limit, max_iterations=steps)
            if after.norm < limit * 0.9999 or steps == near.iterations:  # else it has been scaled
                assert np.linalg.norm(after.kernel - other) <= np.linalg.norm(before - other) * (1 + 1e-12)
                before = after.kernel
    again = extrapolated(blocks, near.kernel, limit, max_iterations=20)
    assert again.iterations == 0
    assert again.kernel is near.kernel


@pytest.mark.parametrize("name", SETTINGS)
def test_an_upper_bound_that_holds_is_proved_as_it_is(name: str) -> None:
    shape, image_shape, settings = SETTINGS[name]
    operator = ConvOperator(_random(shape), image_shape, **settings)
    largest = _largest(operator.kernel, image_shape, settings)
    for guess in (1e-3 * largest, largest, 1e5 * largest):
        bound = proved_upper_bound(operator, guess)
        assert bound * _ROUNDING >= largest
        assert bound <= max(guess, 1.01 * largest)  # these matrices are small, and their bounds tight


@pytest.mark.parametrize(
    "settings", [{}, {"stride": 2}, {"boundary": "circular"}, {"groups": 2}, {"boundary": "reflect"}]
)
def test_an_upper_bound_of_a_large_layer(settings: dict[str, Any]) -> None:
    operator = ConvOperator(_random((6, 6 // settings.get("groups", 1), 3, 3)), (14, 15), **settings)
    largest = float(convla.largest_singular_value(operator))
    tight = proved_upper_bound(operator, 0.5 * largest)
    assert largest <= tight * (1 + 1e-12) <= (2.1 if settings.get("boundary") == "reflect" else 1.1) * largest
    assert 2 * tight * (1 - 1e-9) <= proved_upper_bound(operator, 2 * tight) <= 2 * tight or tight < 1.01 * largest


@pytest.mark.parametrize(
    "settings",
    [{}, {"stride": 2}, {"boundary": "circular"}, {"groups": 2}, {"groups": 32}, {"boundary": "replicate"}],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_kernel_that_changes_is_kept_below_the_maximum(settings: dict[str, Any], dtype: Any) -> None:
    rng, image_shape = np.random.default_rng(0), (10, 9)
    kernel = rng.standard_normal((32, 32 // settings.get("groups", 1), 3, 3)).astype(dtype)
    kernel[1] = kernel[0] * dtype(1.0001)  # filters that nearly coincide
    operator = ConvOperator(kernel, image_shape, **settings)
    maximum = 0.8 * float(convla.largest_singular_value(operator))
    followed = FollowedKernel(maximum)
    for step in range(4):
        kept = followed.kept(operator)
        assert kept.upper <= maximum
        largest = convla.largest_singular_value(kept.operator)
        assert float(largest) <= kept.upper * (1 + 1e-12)
        assert kept.operator.dtype == dtype
        moved = float(np.linalg.norm(kept.operator.kernel - np.asarray(operator.kernel, float)))
        assert (moved > 1e-4 * np.linalg.norm(kernel)) == (step < 2)
        again = followed.kept(kept.operator)
        assert again.operator is kept.operator
        assert again.iterations == 0
        # Once a move that leads above the maximum, and then one of the size of the room that is left, if there is any.
        move = rng.standard_normal(kernel.shape).astype(dtype)
        operator = kept.operator.with_kernel(kept.operator.kernel + dtype(0.1 if step == 0 else 1e-7) * move)


def test_what_obeys_the_maximum_is_not_moved() -> None:
    operator = ConvOperator(_random((20, 20, 3, 3)), (9, 9))
    upper = convla.singular_value_bounds(operator).upper
    kept = FollowedKernel(1.2 * upper).kept(operator)
    assert kept.operator is operator
    found = clip_singular_values(operator.kernel, (9, 9), maximum=1.2 * upper, nearest=False)
    assert np.array_equal(found.kernel, operator.kernel)
    assert (found.status, found.distance, found.iterations) == ("exact", 0.0, 0)


@pytest.mark.parametrize(("scale", "maximum"), [(1.0, 1e-17), (1e17, 1.0), (1.0, 1e-30), (1.0, 1e-46)])
@pytest.mark.parametrize("boundary", ["zero", "reflect"])
@pytest.mark.parametrize("shape", [((1, 1, 1), (4,)), ((2, 2, 3), (300,))])
def test_limits_far_below_the_kernel(scale: float, maximum: float, boundary: Any, shape: Any) -> None:
    kernel = (scale * np.random.default_rng(0).standard_normal(shape[0])).astype(np.float32)
    padding = shape[0][2] // 2
    clipped = clip_singular_values(kernel, shape[1], maximum=maximum, padding=padding, boundary=boundary, nearest=False)
    matrix = ConvOperator(clipped.kernel.astype(np.float64), shape[1], padding=padding, boundary=boundary).to_dense()
    assert np.linalg.norm(matrix, 2) <= clipped.upper <= maximum


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e200])
def test_a_norm_grows_by_no_more_than_is_said_of_the_change(name: str, size: float) -> None:
    shape, image_shape, settings = SETTINGS[name]
    before = ConvOperator(_random(shape), image_shape, **settings)
    after = ConvOperator(before.kernel + size * _random(shape, 2), image_shape, **settings)
    largest, change = (_largest(k, image_shape, settings) for k in (before.kernel, after.kernel - before.kernel))
    bound = bound_after(before, largest, after)
    assert bound >= largest + change * (1 - 500 * np.finfo(float).eps)
    assert bound >= _largest(after.kernel, image_shape, settings) / _ROUNDING
    channels, taps = shape[0] * shape[1], math.prod(shape[2:])
    assert bound <= largest + 3 * change * math.sqrt(min(channels, *shape[:2]) * taps)
    assert bound_after(before, largest, before) == largest


def test_the_bound_of_a_change_is_attained() -> None:
    # All taps alike and a constant image, on a torus.
    before, change = _random((1, 1, 3, 3)), np.ones((1, 1, 3, 3))
    operators = [ConvOperator(kernel, (6, 6), boundary="circular") for kernel in (before, before + change)]
    assert math.isclose(bound_after(operators[0], 7.0, operators[1]), 16.0, rel_tol=1e-12)


@pytest.mark.parametrize("name", ["conv", "reflect"])
def test_what_a_proof_says_of_small_changes_is_not_proved_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"conv": {}, "reflect": {"boundary": "reflect"}}[name]
    operator = ConvOperator(_random((20, 20, 3, 3)), (9, 9), **settings)
    maximum = 1.5 * convla.singular_value_bounds(operator).upper
    followed, proofs = FollowedKernel(maximum), []
    for place in ("proved_upper_bound", "singular_value_bounds"):
        proof = getattr(following, place)
        monkeypatch.setattr(following, place, lambda *given, proof=proof: proofs.append(0) or proof(*given))
    for share in (0.0, 1e-3, 2e-3, -2e-3):
        changed = operator.with_kernel(operator.kernel + share * _random(operator.kernel.shape, 3))
        kept = followed.kept(changed)
        assert kept.operator is changed
        assert convla.singular_value_bounds(changed).lower <= kept.upper <= maximum
        assert len(proofs) == 1
    # One that may have carried it over is proved; one that has is moved.
    assert followed.kept(operator.with_kernel(1.4 * operator.kernel)).upper <= maximum
    assert len(proofs) == 2
    far = operator.with_kernel(3.0 * operator.kernel)
    kept = followed.kept(far)
    assert kept.operator is not far
    assert float(convla.largest_singular_value(kept.operator)) <= kept.upper <= maximum


def test_the_kernel_given_is_proved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, kernels = _random((6, 5, 3, 3)), []
    for module, name in (
        (clipping, "singular_value_bounds"),
        (following, "singular_value_bounds"),
        (following, "proved_upper_bound"),
    ):
        proof = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, proof=proof: kernels.append(given[0].kernel) or proof(*given))
    clipped = clip_singular_values(kernel, (12, 12), maximum=2.0, nearest=False)
    assert clipped.distance > 0
    assert sum(np.array_equal(kernel, proved) for proved in kernels) == 1
