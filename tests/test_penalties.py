"""The penalty and its gradient against dense matrices, finite differences, PyTorch's autograd and Eq. (2.5) itself."""

from __future__ import annotations

import importlib
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convla import ConvOperator, LinearMap, diagonal, identity, minimize_penalty, penalty, penalty_gradient
from convla.errors import ShapeError
from convla.penalties import Block, FixedStep, shifted
from convla.penalties.value import penalty_gradient_by_entries

# One of each kind of geometry: the paper's layer, wide and tall, strides, dilation, groups, boundaries, 1-D and 3-D,
# one channel, one pixel.
CASES = {
    "square": ((2, 2, 3, 3), (5, 5), {}),
    "wide": ((1, 3, 3, 3), (5, 5), {}),
    "tall": ((3, 1, 3, 3), (5, 5), {}),
    "column-stacked": ((2, 2, 3, 2), (5, 4), {"order": "F"}),
    "strided": ((4, 2, 3, 3), (6, 5), {"stride": 2}),
    "dilated": ((2, 1, 3, 3), (6, 6), {"dilation": 2}),
    "grouped": ((4, 1, 3, 3), (4, 4), {"groups": 2}),
    "full": ((2, 1, 2, 3), (4, 4), {"padding": "full"}),
    "valid": ((3, 1, 2, 2), (4, 5), {"padding": "valid"}),
    "circular": ((2, 2, 3, 3), (4, 5), {"boundary": "circular"}),
    "reflect": ((2, 2, 3), (7,), {"boundary": "reflect"}),
    "replicate": ((2, 1, 3), (7,), {"boundary": "replicate"}),
    "3-D": ((2, 1, 2, 2, 2), (3, 3, 2), {}),
    "one channel": ((1, 1, 3, 3), (6, 6), {}),
    "one pixel": ((3, 2, 3, 3), (1, 1), {}),
}
ALPHAS = (0.05, 1.0, 40.0)  # the upper end active, either, the lower end active


def make(name: str, dtype: type = np.float64, seed: int = 0) -> ConvOperator:
    shape, image, options = CASES[name]
    return ConvOperator(np.random.default_rng(seed).standard_normal(shape).astype(dtype), image, **options)


def shifted_gram(operator: ConvOperator, alpha: float, gram: str) -> np.ndarray:
    matrix = np.asarray(operator.to_dense(), np.float64)
    if gram == "smaller" and matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    return matrix.T @ matrix - alpha * np.eye(matrix.shape[1])


def gap(shifted: np.ndarray) -> float:
    """How far the leading singular value is from the next: what the conditioning of the gradient depends on."""
    values = np.linalg.svd(shifted, compute_uv=False)
    return float(values[0] - values[1]) if values.size > 1 else float(values[0])


@pytest.mark.parametrize("gram", ["input", "smaller"])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_penalty_is_the_norm_of_the_shifted_gram_matrix(name: str, alpha: float, gram: str, dtype: type) -> None:
    operator = make(name, dtype)
    expected = np.linalg.norm(shifted_gram(operator, alpha, gram), 2)
    value = penalty(operator, alpha, gram=gram)
    assert value.dtype == dtype
    # A backward stable SVD is off by a modest multiple of n eps |M|, so sigma^2 by twice that times |M|.
    scale = np.linalg.norm(operator.to_dense(), 2) ** 2 + alpha
    assert abs(float(value) - expected) <= 4 * max(operator.shape) * np.finfo(dtype).eps * scale


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", CASES)
def test_gradient_is_eq_2_5_entry_by_entry(name: str, alpha: float) -> None:
    operator = make(name)
    shifted = shifted_gram(operator, alpha, "input")
    left, values, right = np.linalg.svd(shifted)
    # One singular vector, or those of a tie: the null space of a wide M, the equal sublattices of a dilated kernel.
    size = int(np.sum(values > values[0] - 1e-8 * values[0]))
    expected = sum(penalty_gradient_by_entries(operator, left[:, i], right[i]) for i in range(size)) / size
    # Singular vectors of a Gram matrix are off by n eps |A| / gap, and the gradient is quadratic in them.
    norm = np.linalg.norm(operator.to_dense(), 2)
    separation = values[0] - (values[size] if size < values.size else 0.0)
    tolerance = 100 * max(operator.shape) * np.finfo(float).eps * values[0] / separation * norm
    np.testing.assert_allclose(penalty_gradient(operator, alpha), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("gram", ["input", "smaller"])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", CASES)
def test_gradient_against_finite_differences(name: str, alpha: float, gram: str) -> None:
    operator = make(name)
    shifted = shifted_gram(operator, alpha, gram)
    size = np.linalg.norm(shifted, 2)
    if gap(shifted) < 1e-3 * size:
        pytest.skip("not simple here: see the tests of the subgradient")
    gradient = penalty_gradient(operator, alpha, gram=gram)
    rng, step = np.random.default_rng(1), 1e-5
    for _ in range(3):
        direction = rng.standard_normal(operator.kernel.shape)
        # Scaled so that the matrix of the direction has the norm of M: one length scale for the error bound below.
        direction *= np.linalg.norm(operator.to_dense(), 2) / np.linalg.norm(
            operator.with_kernel(direction).to_dense(), 2
        )
        ahead, behind = (
            float(penalty(operator.with_kernel(operator.kernel + s * step * direction), alpha, gram=gram))
            for s in (1, -1)
        )
        # Truncation is h^2 times a third derivative of an eigenvalue, of order (size / gap)^2; rounding is eps / h.
        scale = size + alpha
        bound = (step**2 * 10 * (scale / gap(shifted)) ** 2 + 100 * np.finfo(float).eps / step) * scale
        assert abs((ahead - behind) / (2 * step) - np.sum(gradient * direction)) <= bound


@pytest.mark.torch
@pytest.mark.parametrize("gram", ["input", "smaller"])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", ["square", "wide", "tall", "strided", "dilated", "grouped", "circular", "one pixel"])
def test_gradient_against_autograd_on_the_dense_matrix(name: str, alpha: float, gram: str) -> None:
    torch = importlib.import_module("torch")
    options = CASES[name][2]
    operator = make(name)
    shifted = shifted_gram(operator, alpha, gram)
    if gap(shifted) < 1e-6 * np.linalg.norm(shifted, 2):
        pytest.skip("not simple here: autograd returns the gradient of one vector of the cluster")
    kernel = torch.tensor(operator.kernel, requires_grad=True)
    pads = [amount for low_high in reversed(operator.geometry.padding) for amount in low_high]
    units = torch.eye(operator.shape[1], dtype=torch.float64).reshape(-1, *operator.domain_shape)
    mode = "circular" if options.get("boundary") == "circular" else "constant"
    columns = torch.nn.functional.conv2d(
        torch.nn.functional.pad(units, pads, mode=mode),
        kernel,
        stride=options.get("stride", 1),
        dilation=options.get("dilation", 1),
        groups=options.get("groups", 1),
    )
    matrix = columns.reshape(operator.shape[1], -1)  # the transpose of M
    wide = matrix.shape[1] < matrix.shape[0]
    product = matrix.T @ matrix if gram == "smaller" and wide else matrix @ matrix.T
    value = torch.linalg.matrix_norm(product - alpha * torch.eye(product.shape[0], dtype=torch.float64), 2)
    value.backward()
    norm = np.linalg.norm(operator.to_dense(), 2)
    tolerance = 100 * max(operator.shape) * np.finfo(float).eps * float(value.detach()) / gap(shifted) * norm
    np.testing.assert_allclose(penalty_gradient(operator, alpha, gram=gram), kernel.grad.numpy(), atol=tolerance)


TIES = {
    "identity: every singular value is 1": ConvOperator(np.eye(2)[:, :, None, None] * 1.0, (4, 4)),
    "two equal channels": ConvOperator(
        np.stack([np.kron(np.eye(2)[i], tap).reshape(2, 3) for i in (0, 1) for tap in [[0.3, 1.0, 0.5]]]), (6,)
    ),
    "both ends active": ConvOperator(np.diag([np.sqrt(1.5), np.sqrt(0.5)])[:, :, None], (5,)),
    "symmetric kernel, two equal axes": ConvOperator(
        np.array([[[[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]]]), (5, 5), boundary="circular"
    ),
    "wide, null space active": ConvOperator(np.array([[[0.1, 0.2, 0.1], [0.0, 0.3, 0.1]]]), (6,)),
    "zero": ConvOperator(np.zeros((2, 2, 3)), (4,)),
}


@pytest.mark.parametrize("name", TIES)
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_where_it_is_not_simple_a_subgradient_is_returned(name: str, alpha: float) -> None:
    operator = TIES[name]
    gradient = penalty_gradient(operator, alpha)
    value, rng, step = float(penalty(operator, alpha)), np.random.default_rng(0), 1e-6
    for _ in range(20):
        direction = rng.standard_normal(operator.kernel.shape)
        size = np.linalg.norm(operator.with_kernel(direction).to_dense(), 2) ** 2 + value + alpha
        slope = (float(penalty(operator.with_kernel(operator.kernel + step * direction), alpha)) - value) / step
        # The directional derivative is the support function of the subgradients (the penalty is Clarke regular);
        # a step of h is off by h |M(D)|^2 from the second order, and by eps / h from rounding.
        assert np.sum(gradient * direction) <= slope + (step + 100 * np.finfo(float).eps / step) * size


def test_the_average_over_a_cluster_does_not_depend_on_the_basis() -> None:
    channel = np.array([0.3, 1.0, 0.5])
    alone = penalty_gradient(ConvOperator(channel[None, None, :], (6,)), 1.0)
    both = penalty_gradient(TIES["two equal channels"], 1.0)
    # sigma_max has one singular vector in each channel: half of each channel's gradient, nothing in between.
    expected = np.zeros((2, 2, 3))
    expected[0, 0] = expected[1, 1] = alone[0, 0] / 2
    np.testing.assert_allclose(both, expected, atol=1e3 * np.finfo(float).eps)


def test_a_wider_cluster_averages_what_a_narrow_one_separates() -> None:
    operator = ConvOperator(np.diag([3.0, 2.999])[:, :, None], (1,))
    narrow, wide = (penalty_gradient(operator, 1.0, cluster_rtol=rtol)[:, :, 0] for rtol in (1e-6, 1e-2))
    np.testing.assert_allclose(narrow, np.diag([6.0, 0.0]), atol=1e-12)
    np.testing.assert_allclose(wide, np.diag([3.0, 2.999]), atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 2), st.integers(1, 3), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_more_input_than_output_channels_bar_the_penalty_from_going_below_alpha(
    seed: int, out: int, more: int, alpha: float, size: float
) -> None:
    kernel = size * np.random.default_rng(seed).standard_normal((out, out + more, 3))
    operator = ConvOperator(kernel, (5,))
    value = float(penalty(operator, alpha))
    largest = np.linalg.norm(operator.to_dense(), 2) ** 2
    rounding = 100 * np.finfo(float).eps * (largest + alpha)
    assert value >= alpha
    assert abs(value - max(alpha, largest - alpha)) <= rounding
    if largest < 2 * alpha - rounding:
        assert value == alpha
        np.testing.assert_array_equal(penalty_gradient(operator, alpha, cluster_rtol=0.0), 0.0)


def test_a_matrix_too_large_for_lapack_goes_to_the_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = make("square")
    expected = [(float(penalty(operator, a)), penalty_gradient(operator, a)) for a in (0.05, 40.0)]
    monkeypatch.setattr("convla.penalties.pairs.DENSE_ENTRIES", 0)
    norm = np.linalg.norm(operator.to_dense(), 2)
    for alpha, (value, gradient) in zip((0.05, 40.0), expected, strict=True):
        # The iteration stops at residuals of 1e-6 |M|^2: a bound on the value, and over the gap on the vectors.
        assert abs(float(penalty(operator, alpha)) - value) <= 1e-6 * norm**2
        tolerance = 4 * norm * 1e-6 * norm**2 / gap(shifted_gram(operator, alpha, "input"))
        np.testing.assert_allclose(penalty_gradient(operator, alpha), gradient, atol=tolerance)


def test_other_array_libraries_stay_themselves() -> None:
    operator = make("square")
    device = array_api_strict.Device("device1")
    kernel = array_api_strict.asarray(operator.kernel.tolist(), dtype=array_api_strict.float64, device=device)
    there = ConvOperator(kernel, operator.geometry.image_shape)
    value, gradient = penalty(there, 1.0), penalty_gradient(there, 1.0)
    assert value.device == gradient.device == device
    assert abs(float(value) - float(penalty(operator, 1.0))) <= 1e-12
    there_gradient = np.asarray(gradient.to_device(array_api_strict.Device("CPU_DEVICE")))
    np.testing.assert_allclose(there_gradient, penalty_gradient(operator, 1.0), atol=1e-11)


def product(seed: int = 0) -> tuple[LinearMap, ConvOperator, ConvOperator]:
    """Two convolutions with a scaling of the channels in between, and a branch beside them."""
    rng = np.random.default_rng(seed)
    first = ConvOperator(rng.standard_normal((3, 2, 3)), (6,))
    second = ConvOperator(rng.standard_normal((2, 3, 3)), (6,), boundary="circular")
    return second @ diagonal(np.array([0.5, 1.0, 2.0]), (3, 6)) @ first + first.T @ first, first, second


@pytest.mark.parametrize("gram", ["input", "smaller"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_penalty_of_a_map_made_of_maps_and_its_gradient(alpha: float, gram: str) -> None:
    operator, _, _ = product()
    matrix = operator.to_dense()
    shifted = matrix.T @ matrix - alpha * np.eye(12)
    value = float(penalty(operator, alpha, gram=gram))
    size = np.linalg.norm(shifted, 2)
    assert value == pytest.approx(size, rel=1e-13)
    gradients = penalty_gradient(operator, alpha, gram=gram)
    assert [g.shape for g in gradients] == [kernel.shape for kernel in operator.kernels]
    rng, step = np.random.default_rng(1), 1e-6
    directions = [rng.standard_normal(kernel.shape) for kernel in operator.kernels]
    ahead, behind = (
        float(penalty(operator.with_kernels(moved), alpha, gram=gram))
        for moved in ([k + s * step * d for k, d in zip(operator.kernels, directions, strict=True)] for s in (1, -1))
    )
    slope = sum(float(np.sum(g * d)) for g, d in zip(gradients, directions, strict=True))
    # Truncation is h^2 times a third derivative, of order (size / gap)^2 and of degree four in the kernels.
    bound = (step**2 * 1e3 * (size / gap(shifted)) ** 2 + 100 * np.finfo(float).eps / step) * (size + alpha)
    assert abs((ahead - behind) / (2 * step) - slope) <= bound


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_penalty_of_a_transpose(alpha: float) -> None:
    operator = make("wide")
    other = penalty_gradient(operator, alpha, gram="smaller")
    np.testing.assert_allclose(penalty(operator.T, alpha), penalty(operator, alpha, gram="smaller"), rtol=1e-13)
    np.testing.assert_allclose(penalty_gradient(operator.T, alpha), other, atol=1e-11)


def test_a_map_without_kernels_has_a_penalty_and_no_gradient() -> None:
    scaling = 2.0 * identity((2, 3))
    assert float(penalty(scaling, 1.0)) == 3.0
    with pytest.raises(TypeError, match="operator must be made of convolutions to have a gradient"):
        penalty_gradient(scaling, 1.0)


@pytest.mark.parametrize("tracker", ["power", "exact", Block(cluster_rtol=0.01)])
def test_a_descent_on_a_map_made_of_maps(tracker: Any) -> None:
    operator, _, _ = product()
    descent = minimize_penalty(operator, 4.0, iterations=25, tracker=tracker, step=FixedStep(2e-4))
    assert descent.status == "iterations"
    assert descent.trace.true[-1] < 0.5 * descent.trace.true[0]
    assert [k.shape for k in descent.operator.kernels] == [k.shape for k in operator.kernels]
    final = float(penalty(descent.operator, 4.0))
    assert descent.trace.true[-1] == pytest.approx(final, rel=1e-12)
    assert abs(descent.value - final) <= 2e-2 * final
    with pytest.raises(TypeError, match="a descent is saved of a ConvOperator"):
        descent.save("nowhere.npz")


def test_integer_kernels_are_taken_as_float64() -> None:
    operator = ConvOperator(np.array([[[1, 2, 3]]]), (4,))
    assert penalty(operator, 1.0) == penalty(operator.with_kernel(operator.kernel * 1.0), 1.0)
    assert penalty_gradient(operator, 1.0).dtype == np.float64


@pytest.mark.parametrize("function", [penalty, penalty_gradient])
@pytest.mark.parametrize(
    ("alpha", "error", "message"),
    [
        (0.0, ValueError, "alpha must be positive, got 0.0"),
        (-1.0, ValueError, "alpha must be positive, got -1.0"),
        (float("nan"), ValueError, "alpha must be finite, got nan"),
        ("1", TypeError, "alpha must be a real number, got '1'"),
    ],
)
def test_bad_alpha(function: object, alpha: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        function(make("square"), alpha)


@pytest.mark.parametrize("function", [penalty, penalty_gradient])
@pytest.mark.parametrize(("dtype", "scale"), [(np.float64, 1e200), (np.float32, 1e30)])
@pytest.mark.parametrize("image", [(12,), (600,)], ids=["dense", "iteration"])
def test_a_penalty_beyond_the_dtype_is_an_error(function: object, dtype: type, scale: float, image: tuple[int]) -> None:
    kernel = np.random.default_rng(3).standard_normal((2, 2, 3)) * scale
    with pytest.raises(OverflowError, match=f"beyond {np.dtype(dtype)}: the square of sigma_max"):
        function(ConvOperator(kernel.astype(dtype), image), 1.0)


@pytest.mark.command
@pytest.mark.parametrize("gram", ["input", "smaller"])
@pytest.mark.parametrize("image", [(12,), (600,)], ids=["dense", "iteration"])
@pytest.mark.parametrize(("dtype", "scale"), [(np.float64, 1e-200), (np.float32, 1e-30), (np.float64, 1e150)])
def test_huge_and_tiny_kernels(dtype: type, scale: float, image: tuple[int], gram: str) -> None:
    kernel = np.random.default_rng(3).standard_normal((2, 2, 3))
    operator = ConvOperator((kernel * scale).astype(dtype), image)
    exact = float(np.linalg.norm(ConvOperator(kernel, image).to_dense(), 2))
    value = float(penalty(operator, 1.0, gram=gram))
    assert np.isclose(value, max((exact * scale) ** 2 - 1.0, 1.0), rtol=1e-6)
    gradient = penalty_gradient(operator, 1.0, gram=gram)
    assert np.isfinite(gradient).all()
    # By Cauchy and Schwarz: one entry of the kernel is a map of norm 1 at most.
    assert float(np.abs(gradient).max()) <= 2.001 * exact * scale


def test_alpha_beyond_the_dtype_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"alpha must be at most 3\.4e\+38 for a kernel of float32, got 1e\+39"):
        penalty(make("square", np.float32), 1e39)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="gram must be one of 'input', 'smaller', got 'output'"):
        penalty(make("square"), 1.0, gram="output")
    with pytest.raises(TypeError, match="operator must be a LinearMap, such as a ConvOperator, got ndarray"):
        penalty(np.eye(3), 1.0)
    with pytest.raises(ValueError, match=r"cluster_rtol must be at least 0\.0, got -1\.0"):
        penalty_gradient(make("square"), 1.0, cluster_rtol=-1.0)
    with pytest.raises(ValueError, match="kernel must be finite, got NaN or infinity"):
        ConvOperator(np.array([[[np.nan]]]), (4,))
    with pytest.raises(ShapeError, match=r"left must have 1 axes, of shape \(columns,\)"):
        penalty_gradient_by_entries(make("square"), np.eye(2), np.ones(50))


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
@pytest.mark.parametrize("gram", ["input", "smaller"])
@pytest.mark.parametrize("alpha", [0.5, 8.0])
@pytest.mark.parametrize("scale", [1.0, 1e-100])
def test_a_layer_of_one_tap_is_decomposed_as_its_channel_matrix(
    shape: tuple[int, int], gram: Any, alpha: float, scale: float
) -> None:
    matrix = np.random.default_rng(7).standard_normal(shape)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    lower = 0.0 if shape[0] < shape[1] and gram == "input" else values[-1] ** 2
    operator = ConvOperator(scale * matrix[:, :, None, None], (3, 2), padding="valid")
    value = penalty(operator, scale**2 * alpha, gram=gram)
    expected = max(values[0] ** 2 - alpha, alpha - lower)
    assert float(value) == pytest.approx(scale**2 * expected, rel=1e-13)
    if values[0] ** 2 - alpha > alpha - lower:
        slope = 2 * values[0] * np.outer(left[:, 0], right[0])
    elif lower:
        slope = -2 * values[-1] * np.outer(left[:, -1], right[-1])
    else:
        slope = np.zeros(shape)
    gradient = penalty_gradient(operator, scale**2 * alpha, gram=gram)[:, :, 0, 0]
    np.testing.assert_allclose(gradient, scale * slope, atol=1e-12 * scale)
    target = shifted(operator, scale**2 * alpha, gram)
    assert Block().initial(target) == {}
    assert Block().step(target, {})[0].value == float(value)
