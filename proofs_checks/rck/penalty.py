"""RCK Section 2: the penalty R_alpha, what it implies, and its gradient."""

from __future__ import annotations

import math

import numpy as np

import convla
from convla import identities
from convla.penalties.value import penalty_gradient_by_entries
from convla.testing import gamma
from convla.typing import Array
from proofs_checks.statement import Kind, Mutation, Statement, Verdict, evidence

__all__ = ["STATEMENTS", "random_operator"]

MATRICES = "convla.identities.matrices"
PENALTIES = "convla.penalties.value"
SHAPES = ((1, 1, 3, 3), (2, 1, 3, 3), (3, 2, 2, 3), (2, 2, 1, 1), (1, 3, 2, 2), (2, 3, 3, 3))


def random_operator(rng: np.random.Generator, shape: tuple[int, ...] | None = None) -> convla.ConvOperator:
    """Draw an operator on a 4x4 image, of any of six shapes, with a kernel between 0 and 1 as in the source."""
    chosen = SHAPES[int(rng.integers(len(SHAPES)))] if shape is None else shape
    return convla.ConvOperator(rng.uniform(0, 1, chosen) * 10.0 ** rng.integers(-2, 3), (4, 4))


def _rounding(matrix: Array) -> float:
    """Bound the error of eigenvalues of M^T M computed by LAPACK: backward stable, a modest factor of its size."""
    return float(gamma(20 * sum(matrix.shape), np.float64) * np.linalg.norm(matrix) ** 2)


@evidence(Kind.PROPERTY, "random operators, tall, square and wide, sigma_max(M^T M - alpha I) by eigenvalues of M^T M")
def penalty_is_the_larger_end(examples: int) -> str:
    rng = np.random.default_rng(1)
    for _draw in range(examples):
        operator, alpha = random_operator(rng), 10.0 ** rng.uniform(-2, 2)
        matrix = operator.to_dense()
        direct = float(np.linalg.norm(matrix.T @ matrix - alpha * np.eye(matrix.shape[1]), 2))
        slack = 2 * _rounding(matrix) + gamma(100, np.float64) * alpha * matrix.shape[1]
        from_values = identities.penalty_of_singular_values(
            np.linalg.svd(matrix, compute_uv=False), alpha, matrix.shape[1]
        )
        assert abs(direct - from_values) <= slack, (operator, alpha)
        assert abs(direct - float(convla.penalty(operator, alpha))) <= slack, (operator, alpha)
    return f"{examples} operators"


@evidence(Kind.PROPERTY, "random tall and square operators, t between R_alpha / alpha and 1")
def penalty_encloses_singular_values(examples: int) -> str:
    rng, applied, examples = np.random.default_rng(2), 0, max(examples, 20)  # enough to say how often the premise holds
    for _draw in range(examples):
        kernel = 0.15 * rng.standard_normal((3, 2, 3, 3))
        kernel[:2, :, 1, 1] += np.eye(2)  # near an orthogonal one, so that the premise holds
        operator = convla.ConvOperator(kernel, (4, 4))
        values = np.linalg.svd(operator.to_dense(), compute_uv=False)
        alpha = float(values[0] ** 2 + values[-1] ** 2) / 2 * rng.uniform(0.9, 1.2)
        ratio = float(convla.penalty(operator, alpha)) / alpha
        if ratio < 1 - 1e-9:
            t = ratio + (1 - ratio) * rng.choice([1e-9, 0.5, 1.0])
            lower, upper, condition = identities.singular_value_enclosure(alpha, t)
            assert lower < values[-1] <= values[0] < upper, (lower, values[-1], values[0], upper)
            assert values[0] / values[-1] < condition, (values[0] / values[-1], condition)
            applied += 1
    assert applied > examples // 2, "the premise holds too rarely for this to say anything"
    return f"the premise held for {applied} of {examples} operators"


@evidence(Kind.COUNTEREXAMPLE, "M = 2: R = t alpha exactly, t = 1, and a wide M")
def edges_of_the_enclosure(_: int) -> str:
    two = convla.ConvOperator(np.array([[[2.0]]]), (1,))
    lower, upper, _condition = identities.singular_value_enclosure(3.2, 0.25)
    assert float(convla.penalty(two, 3.2)) == 0.7999999999999998 == 4 - 3.2
    assert math.isclose(upper, 2.0, rel_tol=1e-15), "at R = t alpha the bound is attained: the premise must be strict"
    assert lower < 2.0
    assert identities.singular_value_enclosure(3.0, 1.0) == (0.0, math.sqrt(6.0), math.inf), (
        "t = 1: nothing of sigma_min"
    )
    wide = convla.ConvOperator(np.array([[[1.0], [0.5]]]), (3,))
    assert float(convla.penalty(wide, 1.0)) >= 1.0, "for a wide M no t <= 1 meets the premise"
    return "the bounds are sharp; t = 1 bounds no condition number; a wide M never meets the premise"


@evidence(Kind.PROPERTY, "random matrices of condition 2 to 1e8, against the condition number of every multiple")
def scaling_turns_the_penalty_into_the_condition_number(examples: int) -> str:
    rng = np.random.default_rng(3)
    for _draw in range(examples):
        values = np.sort(10.0 ** rng.uniform(-4, 4, 5))[::-1]
        alpha = 10.0 ** rng.uniform(-2, 2)
        least = identities.scaled_penalty_minimum(float(values[0] / values[-1]), alpha)
        best = math.sqrt(2 * alpha / (values[0] ** 2 + values[-1] ** 2))
        for scale in best * np.array([0.5, 0.9, 0.999, 1.001, 1.1, 2.0]):
            assert identities.penalty_of_singular_values(scale * values, alpha, 5) > least * (1 - 1e-12)
        attained = identities.penalty_of_singular_values(best * values, alpha, 5)
        assert abs(attained - least) <= gamma(40, np.float64) * alpha, (attained, least)
    return f"{examples} spectra"


def _perturbed_eigenvalue_bound(size: float, gap: float, quadratic: float) -> float:
    """Bound |lambda(A + E) - lambda - x^T E x| for symmetric A with a gap to its other eigenvalues (Kato and Temple)."""
    return size**2 / (gap - 2 * size) + quadratic


@evidence(Kind.PROPERTY, "random matrices up to 5x4, every simple singular value, steps 1e-2 to 1e-5 of the gap")
def singular_value_derivative(examples: int) -> str:
    rng = np.random.default_rng(4)
    for _draw in range(examples):
        matrix = rng.standard_normal((int(rng.integers(1, 6)), int(rng.integers(1, 5))))
        values = np.linalg.svd(matrix, compute_uv=False)
        index = int(rng.integers(values.size))
        # As eigenvalues of [[0, A], [A^T, 0]]: the singular values, their negatives, and zeros if A is not square.
        others = np.concatenate((np.delete(values, index), -values, [0.0] * (matrix.shape[0] != matrix.shape[1])))
        gap = float(np.abs(others - values[index]).min())
        step = gap * 10.0 ** rng.uniform(-5, -2) * rng.standard_normal(matrix.shape) / sum(matrix.shape)
        moved = np.linalg.svd(matrix + step, compute_uv=False)[index]
        predicted = values[index] + np.sum(identities.singular_value_gradient(matrix, index) * step)
        bound = _perturbed_eigenvalue_bound(float(np.linalg.norm(step, 2)), gap, _rounding(matrix) + 1e-15)
        bound += gamma(400, np.float64) * float(np.linalg.norm(step)) * values[0] / gap
        assert abs(moved - predicted) <= bound, (matrix, step, moved - predicted, bound)
    return f"{examples} matrices within the second-order bound"


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


@evidence(Kind.PROPERTY, "random matrices up to 5x4, alpha 0.1 to 10, second-order bound")
def penalty_derivative_by_entries(examples: int) -> str:
    rng = np.random.default_rng(5)
    for _draw in range(examples):
        matrix = rng.standard_normal((int(rng.integers(1, 6)), int(rng.integers(1, 5))))
        alpha = 10.0 ** rng.uniform(-1, 1)
        direction = rng.standard_normal(matrix.shape)
        slope = float(np.sum(identities.penalty_matrix_gradient(matrix, alpha) * direction))
        _check_derivative(matrix, direction, alpha, slope, rng)
    return f"{examples} matrices"


@evidence(Kind.PROPERTY, "random convolution kernels of six shapes, alpha 0.1 to 10, second-order bound")
def penalty_derivative_by_kernel(examples: int) -> str:
    rng = np.random.default_rng(6)
    for _draw in range(examples):
        operator = random_operator(rng, None)
        operator = operator.with_kernel(operator.kernel / np.abs(operator.kernel).max())
        alpha = 10.0 ** rng.uniform(-1, 1)
        direction = rng.standard_normal(operator.kernel.shape)
        slope = float(np.sum(convla.penalty_gradient(operator, alpha) * direction))
        _check_derivative(operator.to_dense(), operator.with_kernel(direction).to_dense(), alpha, slope, rng)
    return f"{examples} kernels"


def _check_derivative(matrix: Array, direction: Array, alpha: float, slope: float, rng: np.random.Generator) -> None:
    """Assert that the penalty has this slope along `direction`, up to second order."""
    _, value, gap = _active_gap(matrix, alpha)
    norm = float(np.linalg.norm(matrix, 2))
    if gap < 1e-6 * (norm**2 + alpha):
        return
    length = gap * 10.0 ** rng.uniform(-4, -2) / (1 + norm) / float(np.linalg.norm(direction, 2))
    step = length * direction
    size = float(np.linalg.norm(step, 2))
    moved = _active_gap(matrix + step, alpha)[1]
    change = 2 * norm * size + size**2
    rounding = 4 * _rounding(matrix) + gamma(100, np.float64) * (alpha + value)
    rounding += gamma(2000, np.float64) * float(np.linalg.norm(step)) * norm * (norm**2 + alpha) / gap
    bound = _perturbed_eigenvalue_bound(change, gap, size**2 + rounding)
    error = abs(moved - value - length * slope)
    assert error <= bound, f"off by {error:.3e} beyond {bound:.3e} for M of shape {matrix.shape}, alpha = {alpha}"


@evidence(Kind.PROPERTY, "random kernels of six shapes: Eqs. (2.3), (2.5) summed over Omega, entry by entry")
def gradient_is_the_sum_over_omega(examples: int) -> str:
    rng = np.random.default_rng(7)
    for _draw in range(max(5, examples // 5)):
        operator, alpha = random_operator(rng), 10.0 ** rng.uniform(-1, 1)
        matrix = operator.to_dense()
        _, value, gap = _active_gap(matrix, alpha)
        norm = float(np.linalg.norm(matrix, 2))
        if gap < 1e-6 * (norm**2 + alpha):
            continue
        left, _, right = np.linalg.svd(matrix.T @ matrix - alpha * np.eye(matrix.shape[1]))
        u, v = left[:, 0], right[0]
        literal = penalty_gradient_by_entries(operator, u, v)
        shipped = convla.penalty_gradient(operator, alpha)
        bound = gamma(4000, np.float64) * norm * (norm**2 + alpha + value) / gap * math.sqrt(matrix.size)
        assert np.abs(literal - shipped).max() <= bound, (operator, alpha, np.abs(literal - shipped).max(), bound)
        by_matrix = identities.penalty_matrix_gradient(matrix, alpha)
        for entry in np.ndindex(operator.kernel.shape):
            total = by_matrix[operator.geometry.omega(entry)].sum()
            assert abs(total - literal[entry]) <= bound, (operator, entry)
    return "every entry of every kernel"


@evidence(Kind.COUNTEREXAMPLE, "K = 2, alpha = 10: Eq. (2.5) with I where alpha I is meant")
def printed_identity_has_the_wrong_sign(_: int) -> str:
    operator = convla.ConvOperator(np.array([[[2.0]]]), (1,))
    right, printed = (float(convla.penalty_gradient(operator, alpha).item()) for alpha in (10.0, 1.0))
    assert (right, printed) == (-4.0, 4.0), (right, printed)
    return "the penalty |4 - 10| falls as K grows, slope -4; with I the slope is +4"


@evidence(Kind.PROPERTY, "random operators and alpha: u = v at the upper end, u = -v at the lower")
def left_vector_is_plus_or_minus_the_right(examples: int) -> str:
    rng, signs = np.random.default_rng(8), []
    for _draw in range(max(examples, 50)):  # enough to see both ends
        operator, alpha = random_operator(rng), 10.0 ** rng.uniform(-2, 3)
        matrix = operator.to_dense()
        eigenvalues, value, gap = _active_gap(matrix, alpha)
        scale = float(np.linalg.norm(matrix, 2)) ** 2 + alpha
        if gap < 1e-6 * scale:
            continue
        left, _, right = np.linalg.svd(matrix.T @ matrix - alpha * np.eye(matrix.shape[1]))
        sign = 1.0 if eigenvalues[-1] == value else -1.0
        error = float(np.abs(left[:, 0] - sign * right[0]).max())
        assert error <= gamma(400 * matrix.shape[1], np.float64) * scale / gap, (operator, alpha, error)
        # The gradient is that of +-|M v|^2: the sign says which end is active.
        gradient = convla.penalty_gradient(operator, alpha)
        inner = float(np.sum(gradient * operator.kernel))
        if inner:
            assert math.copysign(1.0, inner) == sign, (operator, alpha)
        signs.append(sign)
    assert {1.0, -1.0} <= set(signs), "both ends must be seen"
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
        id="RCK-T2.1",
        number="Theorem 2.1",
        title="a small penalty encloses the singular values",
        claim=r"If $\sigma_{\max}(M^TM - \alpha I) < t\alpha$ with $0 < t \le 1$, then $\sqrt{(1-t)\alpha} < \sigma_{\min}"
        r"(M) \le \sigma_{\max}(M) < \sqrt{(1+t)\alpha}$ and $\kappa_2(M) < \sqrt{(1+t)/(1-t)}$.",
        verdict=Verdict.HOLDS,
        evidence=(penalty_encloses_singular_values, penalty_is_the_larger_end, edges_of_the_enclosure),
        mutations=(
            Mutation(f"{MATRICES}:singular_value_enclosure", "math.sqrt((1 + t) * alpha)", "math.sqrt(alpha)"),
            Mutation(
                f"{MATRICES}:penalty_of_singular_values", "columns > values.shape[0]", "columns < values.shape[0]"
            ),
            Mutation(
                f"{MATRICES}:singular_value_enclosure",
                "return math.sqrt((1 - t) * alpha)",
                "return math.sqrt((1 + t) * alpha)",
            ),
        ),
        note="Sharp, and void at t = 1 for the condition number, and for wide M, which never meets the premise "
        "(RCK-barrier). The proof's eigenvalues are n, of an n x n matrix, where m is printed.",
    ),
    Statement(
        id="RCK-scale",
        number="Sections 1, 2",
        title="up to scaling the penalty is the condition number",
        claim=r"$\min_{c>0}\sigma_{\max}(c^2M^TM - \alpha I) = \alpha\,\frac{\kappa^2-1}{\kappa^2+1}$, increasing in the "
        r"condition number $\kappa$ of $M$, at the $c$ where both ends are equally far from $\alpha$.",
        verdict=Verdict.HOLDS,
        evidence=(scaling_turns_the_penalty_into_the_condition_number,),
        mutations=(Mutation(f"{MATRICES}:scaled_penalty_minimum", "(square + 1)", "square"),),
        note="The source says that reducing the penalty is equivalent, up to a scaling, to reducing the condition number; "
        "this is the formula behind it, for at least as many rows as columns.",
    ),
    Statement(
        id="RCK-L2.1",
        number="Lemma 2.1",
        title="derivative of a simple singular value",
        claim=r"$\partial\sigma/\partial a_{ij} = u(i)v(j)$ for a simple singular value $\sigma > 0$ of $A \in "
        r"\mathbb{R}^{m\times n}$.",
        verdict=Verdict.CORRECTED,
        correction='A is printed as m x m with "n >= p"; it is m x n. The value has to be positive as well as simple.',
        evidence=(singular_value_derivative, no_derivative_where_not_simple),
        mutations=(
            Mutation(
                f"{MATRICES}:singular_value_gradient", "left[:, index], right[index]", "left[:, index], -right[index]"
            ),
            Mutation(f"{MATRICES}:singular_value_gradient", "left[:, index], right[index]", "left[:, 0], right[0]"),
        ),
    ),
    Statement(
        id="RCK-L2.2",
        number="Lemma 2.2, Eq. (2.2)",
        title="derivative of the penalty by an entry of M",
        claim=r"$\partial\sigma_{\max}(M^TM-\alpha I)/\partial m_{ij} = v(j)\,u^TM^Te_i + u(j)\,e_i^TMv$ where the value is "
        r"simple and positive.",
        verdict=Verdict.CORRECTED,
        correction="e_i is a column of the m x m identity; n x n is printed.",
        evidence=(penalty_derivative_by_entries, no_derivative_where_not_simple),
        mutations=(
            Mutation(f"{MATRICES}:penalty_matrix_gradient", " + np.outer(matrix @ v, u)", ""),
            Mutation(f"{MATRICES}:penalty_matrix_gradient", "v) + np.outer", "v) - np.outer"),
        ),
    ),
    Statement(
        id="RCK-T2.2",
        number="Theorems 2.2, 2.3, Eqs. (2.3), (2.5)",
        title="gradient of the penalty by the kernel",
        claim=r"$\partial\sigma_{\max}(M^TM-\alpha I)/\partial k_{p,q,z,y} = \sum_{(i,j)\in\Omega}\big(\sum_t u(j)v(t)m_{it}"
        r" + \sum_s u(s)v(j)m_{is}\big)$, $\Omega$ the entries of $M$ that hold $k_{p,q,z,y}$, where the value is simple "
        r"and positive.",
        verdict=Verdict.CORRECTED,
        correction="Theorem 2.3, and parts of Theorem 2.2's proof, print I where alpha I is meant.",
        evidence=(penalty_derivative_by_kernel, gradient_is_the_sum_over_omega, printed_identity_has_the_wrong_sign),
        mutations=(
            Mutation(f"{PENALTIES}:pair_gradient", "2.0 * pairs.signs", "pairs.signs"),
            Mutation(f"{PENALTIES}:pair_gradient", "2.0 * pairs.signs", "2.0 * abs(pairs.signs)"),
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
        mutations=(Mutation(f"{PENALTIES}:pair_gradient", "2.0 * pairs.signs", "2.0 * abs(pairs.signs)"),),
    ),
)
