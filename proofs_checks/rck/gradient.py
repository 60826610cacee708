"""RCK Lemmas 2.1, 2.2 and Theorems 2.2, 2.3: derivatives of singular values, and the penalty's gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

import convla
from convla import identities
from convla.penalties.value import penalty_gradient_by_entries
from convla.testing import gamma
from convla.typing import NumPyArray as Array
from proofs_checks.draws import for_all, integers, matrices, operators, targets
from proofs_checks.rck.penalty import eigenvalue_rounding, matrix_and_target
from proofs_checks.statement import Kind, Statement, Verdict, evidence

__all__ = ["STATEMENTS"]

SIMPLE = 1e-6
"""Below this part of its size a gap does not make a value simple in floating point: the premise fails."""


def _perturbed_eigenvalue_bound(size: float, gap: float, quadratic: float) -> float:
    """Bound |lambda(A + E) - lambda - x^T E x| for symmetric A with a gap to its other eigenvalues (Kato and Temple)."""
    return size**2 / (gap - 2 * size) + quadratic


@st.composite
def _with_direction(draw: st.DrawFn, drawn: st.SearchStrategy[Any]) -> tuple[Any, Array, float, float]:
    """Draw a matrix or operator, a direction of its shape that is not 0, the ratio of alpha, and a short step."""
    value = draw(drawn)
    shape = value.shape if isinstance(value, np.ndarray) else value.kernel.shape
    direction = draw(integers(shape).filter(np.any)).astype(np.float64)
    return value, direction, draw(targets()), 10.0 ** draw(st.floats(-5, -2))


@evidence(Kind.PROPERTY, "matrices up to 5x4, repeated and ill-scaled values too, every simple one; second-order bound")
def singular_value_derivative(examples: int) -> str:
    applied = 0

    def check(matrix: Array, direction: Array, _: float, step: float) -> None:
        nonlocal applied
        values = np.linalg.svd(matrix, compute_uv=False)
        for index in range(values.size):
            # As eigenvalues of [[0, A], [A^T, 0]]: singular values, their negatives, and zeros if A is not square.
            others = np.concatenate((np.delete(values, index), -values, [0.0] * (matrix.shape[0] != matrix.shape[1])))
            gap = float(np.abs(others - values[index]).min())
            if gap <= SIMPLE * values[0]:
                continue
            move = gap * step * direction / np.linalg.norm(direction)
            moved = np.linalg.svd(matrix + move, compute_uv=False)[index]
            predicted = values[index] + np.sum(identities.singular_value_gradient(matrix, index) * move)
            rounding = 2 * gamma(20 * sum(matrix.shape), np.float64) * np.linalg.norm(matrix)
            rounding += gamma(400, np.float64) * np.linalg.norm(move) * values[0] / gap
            bound = _perturbed_eigenvalue_bound(float(np.linalg.norm(move, 2)), gap, float(rounding))
            assert abs(moved - predicted) <= bound, (matrix, index, move, moved - predicted, bound)
            applied += 1

    for_all(examples, _with_direction(matrices(5, 4)), check)
    assert applied or examples < 20, "no singular value was simple"
    return f"{applied} singular values within the second-order bound"


@evidence(Kind.COUNTEREXAMPLE, "A = I and A = 0: a double and a vanishing singular value")
def no_derivative_where_not_simple(_: int) -> str:
    for matrix, direction in ((np.eye(2), np.diag([1.0, -1.0])), (np.zeros((1, 1)), np.ones((1, 1)))):
        ends = [np.linalg.svd(matrix + s * 2.0**-10 * direction, compute_uv=False)[0] for s in (-1, 1)]
        middle = np.linalg.svd(matrix, compute_uv=False)[0]
        assert ends[0] == ends[1] == middle + 2.0**-10, "one-sided derivatives agree"
        one_sided = np.sum(identities.singular_value_gradient(matrix) * direction)
        assert abs(abs(one_sided) - 1) < 1e-12, "u v^T gives one of the two slopes at best"
    return "sigma_max(I + t diag(1, -1)) = 1 + |t| and sigma_max(t) = |t| have a kink at 0"


def _active_gap(matrix: Array, alpha: float) -> tuple[Array, float, float]:
    """Return the eigenvalues of M^T M - alpha I, the modulus farthest from 0, and its gap to all others."""
    eigenvalues = np.linalg.eigvalsh(matrix.T @ matrix) - alpha
    order = np.argsort(np.abs(eigenvalues))
    active = eigenvalues[order[-1]]
    mirrored = np.concatenate((eigenvalues[order[:-1]], -eigenvalues))
    return eigenvalues, float(abs(active)), float(np.abs(np.sign(active) * mirrored - abs(active)).min())


@evidence(Kind.PROPERTY, "matrices up to 5x4 as above, alpha 1e-3 to 1e3 times sigma_max^2, second-order bound")
def penalty_derivative_by_entries(examples: int) -> str:
    applied = 0

    def check(matrix: Array, direction: Array, ratio: float, step: float) -> None:
        nonlocal applied
        alpha = ratio * (float(np.linalg.norm(matrix, 2)) ** 2 or 1.0)
        slope = float(np.sum(identities.penalty_matrix_gradient(matrix, alpha) * direction))
        applied += _has_slope(matrix, direction, alpha, slope, step)

    for_all(examples, _with_direction(matrices(5, 4)), check)
    assert applied or examples < 20, "no value was simple"
    return f"{applied} matrices with a simple value"


@evidence(Kind.PROPERTY, "kernels of one and two axes, even and size 1 too, alpha as above, second-order bound")
def penalty_derivative_by_kernel(examples: int) -> str:
    applied = 0

    def check(operator: convla.ConvOperator, direction: Array, ratio: float, step: float) -> None:
        nonlocal applied
        matrix, alpha = matrix_and_target(operator, ratio)
        slope = float(np.sum(convla.penalty_gradient(operator, alpha) * direction))
        applied += _has_slope(matrix, operator.with_kernel(direction).to_dense(), alpha, slope, step)

    for_all(examples, _with_direction(operators()), check)
    assert applied or examples < 20, "no value was simple"
    return f"{applied} kernels with a simple value"


def _has_slope(matrix: Array, direction: Array, alpha: float, slope: float, step: float) -> bool:
    """Assert that the penalty has this slope along `direction`, up to second order; False if its value is not simple."""
    _, value, gap = _active_gap(matrix, alpha)
    norm = float(np.linalg.norm(matrix, 2))
    if gap < SIMPLE * (norm**2 + alpha) or not direction.any():
        return False
    # So that M^T M moves by at most the step's part of the gap.
    length = step * min(gap / (3 * norm) if norm else math.inf, math.sqrt(gap)) / float(np.linalg.norm(direction, 2))
    move = length * direction
    size = float(np.linalg.norm(move, 2))
    moved = _active_gap(matrix + move, alpha)[1]
    change = 2 * norm * size + size**2
    rounding = 4 * eigenvalue_rounding(matrix) + gamma(100, np.float64) * (alpha + value)
    rounding += gamma(2000, np.float64) * float(np.linalg.norm(move)) * norm * (norm**2 + alpha) / gap
    bound = _perturbed_eigenvalue_bound(change, gap, size**2 + rounding)
    error = abs(moved - value - length * slope)
    assert error <= bound, f"off by {error:.3e} beyond {bound:.3e} for M of shape {matrix.shape}, alpha = {alpha}"
    return True


@evidence(Kind.PROPERTY, "kernels of one and two axes: Eqs. (2.3), (2.5) summed over Omega, entry by entry")
def gradient_is_the_sum_over_omega(examples: int) -> str:
    applied = 0

    def check(operator: convla.ConvOperator, ratio: float) -> None:
        nonlocal applied
        matrix, alpha = matrix_and_target(operator, ratio)
        _, value, gap = _active_gap(matrix, alpha)
        norm = float(np.linalg.norm(matrix, 2))
        if gap < SIMPLE * (norm**2 + alpha):
            return
        left, _, right = np.linalg.svd(matrix.T @ matrix - alpha * np.eye(matrix.shape[1]))
        u, v = left[:, 0], right[0]
        literal = penalty_gradient_by_entries(operator, u, v)
        shipped = convla.penalty_gradient(operator, alpha)
        bound = gamma(4000, np.float64) * norm * (norm**2 + alpha + value) / gap * math.sqrt(matrix.size)
        assert np.abs(literal - shipped).max() <= bound, (operator.kernel, alpha, bound)
        by_matrix = identities.penalty_matrix_gradient(matrix, alpha)
        for entry in np.ndindex(operator.kernel.shape):
            total = by_matrix[operator.geometry.omega(entry)].sum()
            assert abs(total - literal[entry]) <= bound, (operator.kernel, entry)
        applied += 1

    for_all(examples, st.tuples(operators(), targets()), check)
    assert applied or examples < 20, "no value was simple"
    whole = convla.ConvOperator(np.array([[[1, -2, 3]]]), (4,))
    u, v = np.array([0.5, -1.5, 0.25, 2.0]), np.array([1.0, 0.75, -0.5, 0.125])
    assert np.array_equal(
        penalty_gradient_by_entries(whole, u, v), penalty_gradient_by_entries(whole.astype(np.float64), u, v)
    ), "the kernel's integers do not round the vectors"
    # A single output: the outer taps are at no place of M, and their Omega is empty.
    single = convla.ConvOperator(np.array([[[5.0, 2.0, 7.0]]]), (1,))
    one = np.array([1.0])
    assert np.array_equal(penalty_gradient_by_entries(single, one, one), np.array([[[0.0, 4.0, 0.0]]]))
    return f"every entry of {applied} kernels"


@evidence(Kind.COUNTEREXAMPLE, "K = (1, 1), N = 2, alpha = 1: the same entry of M for two entries of K")
def omega_is_of_places_not_of_values(_: int) -> str:
    operator = convla.ConvOperator(np.array([[[1.0, 1.0]]]), (2,))
    matrix, gradient = operator.to_dense(), identities.penalty_matrix_gradient(operator.to_dense(), 1.0)
    by_place = [float(gradient[operator.geometry.omega((0, 0, tap))].sum()) for tap in (0, 1)]
    by_value = float(gradient[matrix == 1.0].sum())
    assert np.allclose(by_place, convla.penalty_gradient(operator, 1.0).ravel(), rtol=1e-12)
    assert math.isclose(by_value, sum(by_place), rel_tol=1e-12), "the places of both entries together"
    assert by_value > 1.3 * max(by_place), (by_value, by_place)
    return f"derivatives {by_place[0]:.4f} and {by_place[1]:.4f}; summed where m_ij = 1, {by_value:.4f} for both"


@evidence(Kind.COUNTEREXAMPLE, "K = 2, alpha = 10: Eq. (2.5) with I where alpha I is meant")
def printed_identity_has_the_wrong_sign(_: int) -> str:
    operator = convla.ConvOperator(np.array([[[2.0]]]), (1,))
    right, printed = (float(convla.penalty_gradient(operator, alpha).item()) for alpha in (10.0, 1.0))
    assert (right, printed) == (-4.0, 4.0), (right, printed)
    return "the penalty |4 - 10| falls as K grows, slope -4; with I the slope is +4"


@evidence(Kind.PROPERTY, "operators, ill-scaled ones too, and alpha: u = v at the upper end, u = -v at the lower")
def left_vector_is_plus_or_minus_the_right(examples: int) -> str:
    signs = []

    def check(operator: convla.ConvOperator, ratio: float) -> None:
        # Up to 1/2 the upper end is active, from 1 on the lower.
        for target in (ratio, 1 / ratio):
            at_target(operator, target)

    def at_target(operator: convla.ConvOperator, ratio: float) -> None:
        matrix, alpha = matrix_and_target(operator, ratio)
        eigenvalues, value, gap = _active_gap(matrix, alpha)
        scale = float(np.linalg.norm(matrix, 2)) ** 2 + alpha
        if gap < SIMPLE * scale:
            return
        left, _, right = np.linalg.svd(matrix.T @ matrix - alpha * np.eye(matrix.shape[1]))
        sign = 1.0 if eigenvalues[-1] == value else -1.0
        error = float(np.abs(left[:, 0] - sign * right[0]).max())
        assert error <= gamma(400 * matrix.shape[1], np.float64) * scale / gap, (operator.kernel, alpha, error)
        # The gradient is that of +-|M v|^2: the sign says which end is active.
        inner = float(np.sum(convla.penalty_gradient(operator, alpha) * operator.kernel))
        if abs(inner) > eigenvalue_rounding(matrix):
            assert math.copysign(1.0, inner) == sign, (operator.kernel, alpha)
        signs.append(sign)

    for_all(examples, st.tuples(operators(), targets()), check)
    assert {1.0, -1.0} <= set(signs) or examples < 50, "both ends must be seen"
    return f"{signs.count(1.0)} upper ends, {signs.count(-1.0)} lower"


@evidence(Kind.COUNTEREXAMPLE, "M^T M - alpha I = diag(1, -1)")
def balanced_ends_have_other_vectors(_: int) -> str:
    gram = np.diag([1.0, -1.0])
    v = np.array([1.0, 1.0]) / math.sqrt(2)
    u = gram @ v
    assert abs(np.linalg.norm(u) - 1) < 1e-15
    assert np.allclose(gram.T @ u, v)
    assert abs(u @ v) < 1e-15, "u is neither v nor -v"
    matrix = np.diag([math.sqrt(2.0), 0.0])
    assert abs(identities.penalty_of_singular_values(np.diag(matrix), 1.0, 2) - 1) < 1e-15
    return "u = (1, -1), v = (1, 1) over sqrt 2 are singular vectors of the double value 1"


STATEMENTS = (
    Statement(
        id="RCK-L2.1",
        number="Lemma 2.1",
        title="derivative of a simple singular value",
        claim=r"$\partial\sigma/\partial a_{ij} = u(i)v(j)$ for a simple singular value $\sigma > 0$ of $A \in "
        r"\mathbb{R}^{m\times n}$.",
        verdict=Verdict.CORRECTED,
        correction='A is printed as m x m with "n >= p"; it is m x n. The value has to be positive as well as simple.',
        evidence=(singular_value_derivative, no_derivative_where_not_simple),
        functions=("convla.identities.singular_value_gradient",),
    ),
    Statement(
        id="RCK-L2.2",
        number="Lemma 2.2, Eq. (2.2)",
        title="derivative of the penalty by an entry of M",
        claim=r"$\partial\sigma_{\max}(M^TM-\alpha I)/\partial m_{ij} = v(j)\,u^TM^Te_i + u(j)\,e_i^TMv$ where the value is "
        r"simple and positive.",
        verdict=Verdict.CORRECTED,
        correction=r"e_i is a column of the $m\times m$ identity; $n\times n$ is printed. The entries of $M^TM$ that change are those of row "
        'and column j; "volume" is printed.',
        evidence=(penalty_derivative_by_entries, no_derivative_where_not_simple),
        functions=("convla.identities.penalty_matrix_gradient",),
    ),
    Statement(
        id="RCK-T2.2",
        number="Theorems 2.2, 2.3, Eqs. (2.3), (2.5)",
        title="gradient of the penalty by the kernel",
        claim=r"$\partial\sigma_{\max}(M^TM-\alpha I)/\partial k_{p,q,z,y} = \sum_{(i,j)\in\Omega}\big(\sum_t u(j)v(t)m_{it}"
        r" + \sum_s u(s)v(j)m_{is}\big)$, $\Omega$ the entries of $M$ that hold $k_{p,q,z,y}$, where the value is simple "
        r"and positive.",
        verdict=Verdict.CORRECTED,
        correction=r"Theorem 2.3, and parts of Theorem 2.2's proof, print I where alpha I is meant. $\Omega$ is the set of the "
        r"places (i, j) that hold the entry of K, not of all with $m_{ij}=k_{p,q}$: entries of K may be equal.",
        evidence=(
            penalty_derivative_by_kernel,
            gradient_is_the_sum_over_omega,
            printed_identity_has_the_wrong_sign,
            omega_is_of_places_not_of_values,
        ),
        functions=(
            "convla.penalty_gradient",
            "convla.penalties.pairs.pair_gradients",
            "convla.penalties.value.penalty_gradient_by_entries",
        ),
        note="With u = +-v it is twice the kernel adjoint of M v and v, so no sets Omega and no matrix are needed.",
    ),
    Statement(
        id="RCK-uv",
        number="Section 2.1",
        title="left and right singular vectors of M^T M - alpha I",
        claim=r"$u = v$ or $u = -v$, as the largest or the smallest eigenvalue is active.",
        verdict=Verdict.CORRECTED,
        correction="Only where the singular value is simple: where both ends are equally far from alpha, which is where the "
        "descent settles (SPEC-balance), u and v may be orthogonal.",
        evidence=(left_vector_is_plus_or_minus_the_right, balanced_ends_have_other_vectors),
        functions=(
            "convla.penalty_gradient",
            "convla.penalties.pairs.pair_gradients",
        ),
    ),
)
