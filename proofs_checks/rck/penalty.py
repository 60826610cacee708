"""RCK Theorem 2.1: what the penalty R_alpha says of the singular values, and what alpha does."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import strategies as st

import convla
from convla import identities
from convla.testing import gamma
from convla.typing import NumPyArray as Array
from proofs_checks.draws import floats, for_all, operators, targets
from proofs_checks.statement import Kind, Statement, Verdict, evidence

__all__ = ["STATEMENTS", "eigenvalue_rounding", "matrix_and_target"]


def matrix_and_target(operator: convla.ConvOperator, ratio: float) -> tuple[Array, float]:
    """Return an operator's matrix, and the alpha that has this ratio to its squared norm (or is it, for a zero one)."""
    matrix = operator.to_dense()
    # Products of entries that underflow are far below this alpha.
    square = float(np.linalg.norm(matrix, 2)) ** 2
    return matrix, ratio * (square if square > 1e-250 else 1.0)


def eigenvalue_rounding(matrix: Array) -> float:
    """Bound the error of eigenvalues of M^T M computed by LAPACK: backward stable, a modest factor of its size."""
    return float(gamma(20 * sum(matrix.shape), np.float64) * np.linalg.norm(matrix) ** 2)


@evidence(
    Kind.PROPERTY, "operators, tall, square and wide, subnormal and ill-scaled too, by eigenvalues of M^T M - alpha I"
)
def penalty_is_the_larger_end(examples: int) -> str:
    def check(operator: convla.ConvOperator, ratio: float) -> None:
        matrix, alpha = matrix_and_target(operator, ratio)
        direct = float(np.linalg.norm(matrix.T @ matrix - alpha * np.eye(matrix.shape[1]), 2))
        slack = 2 * eigenvalue_rounding(matrix) + gamma(100, np.float64) * alpha * matrix.shape[1]
        from_values = identities.penalty_of_singular_values(
            np.linalg.svd(matrix, compute_uv=False), alpha, matrix.shape[1]
        )
        assert abs(direct - from_values) <= slack, (operator.kernel, alpha)
        assert abs(direct - float(convla.penalty(operator, alpha))) <= slack, (operator.kernel, alpha)

    return for_all(examples, st.tuples(operators(floats), targets()), check)


@evidence(Kind.PROPERTY, "operators, ill-scaled ones too, alpha about the middle of the squared singular values")
def penalty_encloses_singular_values(examples: int) -> str:
    applied = 0

    def check(operator: convla.ConvOperator, factor: float, part: float) -> None:
        nonlocal applied
        matrix = operator.to_dense()
        values = np.linalg.svd(matrix, compute_uv=False)
        alpha = factor * float(values[0] ** 2 + values[-1] ** 2) / 2
        if not alpha:
            return
        ratio = float(convla.penalty(operator, alpha)) / alpha
        if ratio < 1:
            t = ratio + (1 - ratio) * part
            lower, upper, condition = identities.singular_value_enclosure(alpha, t)
            slack = 2 * eigenvalue_rounding(matrix) + gamma(100, np.float64) * alpha
            assert lower**2 < values[-1] ** 2 + slack, (operator.kernel, alpha, t)
            assert values[0] ** 2 < upper**2 + slack, (operator.kernel, alpha, t)
            assert values[0] ** 2 < condition**2 * (values[-1] ** 2 + slack) + slack, (operator.kernel, alpha, t)
            applied += 1

    for_all(examples, st.tuples(operators(), st.floats(0.6, 1.5), st.sampled_from([1e-9, 0.5, 1.0])), check)
    assert applied or examples < 20, "the premise never holds"
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


@evidence(
    Kind.COUNTEREXAMPLE, "M = diag(sqrt((1 - t) alpha), sqrt((1 + t) alpha)): R = t alpha, and each bound is attained"
)
def every_bound_is_attained(_: int) -> str:
    for alpha, t in itertools.product((0.25, 1.0, 3.0), (0.125, 0.5, 0.875)):
        ends = [math.sqrt((1 - t) * alpha), math.sqrt((1 + t) * alpha)]
        diagonal = convla.ConvOperator(np.diag(ends)[:, :, None], (1,))
        assert math.isclose(float(convla.penalty(diagonal, alpha)), t * alpha, rel_tol=1e-14), (alpha, t)
        lower, upper, condition = identities.singular_value_enclosure(alpha, t)
        assert math.isclose(lower, ends[0], rel_tol=1e-15), (alpha, t)
        assert math.isclose(upper, ends[1], rel_tol=1e-15), (alpha, t)
        assert math.isclose(condition, ends[1] / ends[0], rel_tol=1e-15), (alpha, t)
        # With more columns than rows a zero joins the squares.
        assert identities.penalty_of_singular_values(np.array(ends), alpha, 3) == alpha, (alpha, t)
    return "9 pairs (alpha, t): the least singular value, the largest and their ratio are the bounds"


@evidence(
    Kind.PROPERTY,
    "(1, 2, 1) x (1, 2, 1) on 34x34, too large to decompose, whose singular values are known; one and two input channels",
)
def penalty_of_a_large_layer(_: int) -> str:
    taps, n = np.outer([1.0, 2.0, 1.0], [1.0, 2.0, 1.0]) / 16, 34
    ends = [((2 + 2 * math.cos(math.pi * j / (n + 1))) / 4) ** 2 for j in (1, n)]
    for channels in (1, 2):
        operator = convla.ConvOperator(np.stack([taps] * channels)[None], (n, n))
        for alpha in (0.1, 0.9, 2.0):
            largest = channels * ends[0] ** 2
            least = ends[1] ** 2 if channels == 1 else 0.0  # two equal channels: half of the space is the null space
            wanted = max(largest - alpha, alpha - least)
            value = float(convla.penalty(operator, alpha))
            assert abs(value - wanted) <= 1e-6 * (largest + alpha), (channels, alpha, value, wanted)
    return "6 values"


@evidence(Kind.PROPERTY, "operators, tall, square and wide, ill-scaled too, alpha beside the edge sigma_max^2 / 2")
def premise_holds_for_large_alpha(examples: int) -> str:
    seen = {True: 0, False: 0}

    def check(operator: convla.ConvOperator, ratio: float) -> None:
        matrix, alpha = matrix_and_target(operator, ratio)
        values = np.linalg.svd(matrix, compute_uv=False)
        slack = 2 * eigenvalue_rounding(matrix) + gamma(100, np.float64) * alpha
        injective = values[-1] ** 2 > slack and matrix.shape[0] >= matrix.shape[1]
        if abs(values[0] ** 2 - 2 * alpha) <= slack or (not injective and matrix.shape[0] >= matrix.shape[1]):
            return
        expected = bool(injective and values[0] ** 2 < 2 * alpha)
        assert (float(convla.penalty(operator, alpha)) < alpha) == expected, (operator.kernel, alpha)
        seen[expected] += 1

    for_all(examples, st.tuples(operators(), targets()), check)
    assert all(seen.values()) or examples < 50, f"one case only: {seen}"
    return f"{seen[True]} below alpha, {seen[False]} not"


@evidence(Kind.PROPERTY, "operators times 2^-20 to 2^20, ill-scaled ones too")
def penalty_is_homogeneous(examples: int) -> str:
    def check(operator: convla.ConvOperator, ratio: float, power: int) -> None:
        _, alpha = matrix_and_target(operator, ratio)
        scaled = operator.with_kernel(operator.kernel * 2.0**power)
        value = float(convla.penalty(operator, alpha))
        slack = gamma(4000, np.float64) * (value + alpha)
        assert abs(float(convla.penalty(scaled, alpha * 4.0**power)) / 4.0**power - value) <= slack, (operator, alpha)

    return for_all(examples, st.tuples(operators(), targets(), st.integers(-20, 20)), check)


@evidence(Kind.PROPERTY, "spectra of up to 6 values, equal ones too, condition to 1e8, against every multiple")
def scaling_turns_the_penalty_into_the_condition_number(examples: int) -> str:
    def check(powers: list[float], power: float) -> None:
        values, alpha = np.sort(10.0 ** np.array(powers))[::-1], 10.0**power
        least = identities.scaled_penalty_minimum(float(values[0] / values[-1]), alpha)
        best = math.sqrt(2 * alpha / (values[0] ** 2 + values[-1] ** 2))
        slack = gamma(40, np.float64) * alpha
        for scale in best * np.array([0.5, 0.9, 0.999, 1.001, 1.1, 2.0]):
            assert identities.penalty_of_singular_values(scale * values, alpha, values.size) > least - slack
        attained = identities.penalty_of_singular_values(best * values, alpha, values.size)
        assert abs(attained - least) <= slack, (values, attained, least)

    powers = st.lists(st.one_of(st.floats(-4, 4), st.sampled_from([0.0, 1.0])), min_size=1, max_size=6)
    return for_all(examples, st.tuples(powers, st.floats(-2, 2)), check)


STATEMENTS = (
    Statement(
        id="RCK-T2.1",
        number="Theorem 2.1",
        title="a small penalty encloses the singular values",
        claim=r"If $\sigma_{\max}(M^TM - \alpha I) < t\alpha$ with $0 < t \le 1$, then $\sqrt{(1-t)\alpha} < \sigma_{\min}"
        r"(M) \le \sigma_{\max}(M) < \sqrt{(1+t)\alpha}$ and $\kappa_2(M) < \sqrt{(1+t)/(1-t)}$.",
        verdict=Verdict.HOLDS,
        evidence=(
            penalty_encloses_singular_values,
            penalty_is_the_larger_end,
            every_bound_is_attained,
            penalty_of_a_large_layer,
            edges_of_the_enclosure,
        ),
        functions=(
            "convla.identities.singular_value_enclosure",
            "convla.identities.penalty_of_singular_values",
            "convla.penalty",
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
        functions=(
            "convla.identities.scaled_penalty_minimum",
            "convla.identities.penalty_of_singular_values",
        ),
        note="The source says that reducing the penalty is equivalent, up to a scaling, to reducing the condition number; "
        "this is the formula behind it, for at least as many rows as columns.",
    ),
    Statement(
        id="RCK-alpha",
        number="Section 2, after Theorem 2.1",
        title="what a larger alpha does",
        claim=r"With a larger $\alpha$ less reduction of $R_\alpha$ is needed to bound the singular values: $R_\alpha(K) < "
        r"\alpha$ exactly if $\sigma_{\min} > 0$ and $\sigma_{\max}^2 < 2\alpha$, and $R_{c^2\alpha}(cK) = "
        r"c^2R_\alpha(K)$.",
        verdict=Verdict.HOLDS,
        evidence=(premise_holds_for_large_alpha, penalty_is_homogeneous),
        functions=("convla.penalty",),
        note="So alpha sets the scale of the layer and nothing else: a larger one meets the premise of Theorem 2.1 sooner, "
        r"and bounds the norm by the larger $\sqrt{2\alpha}$.",
    ),
)
