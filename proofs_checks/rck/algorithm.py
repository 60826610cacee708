"""RCK Eqs. (1.3), (1.4), Algorithm 2.1, and the projection of a full-sized kernel."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
from hypothesis import strategies as st

import convla
from convla.errors import ConvergenceWarning
from convla.penalties import FixedStep, Settled
from convla.penalties.iterate import GROWTH, Course
from convla.penalties.power import Power
from convla.testing import gamma
from convla.typing import AnyArray
from convla.typing import NumPyArray as Array
from proofs_checks.draws import for_all, operators
from proofs_checks.rck.penalty import eigenvalue_rounding
from proofs_checks.statement import Kind, Statement, Verdict, evidence

__all__ = ["STATEMENTS"]


@evidence(
    Kind.PROPERTY, "operators, tall, square and wide, ill-scaled too: the norms of M x over unit x, and their ends"
)
def norms_change_by_singular_values(examples: int) -> str:
    def check(operator: convla.ConvOperator, seed: int) -> None:
        matrix = operator.to_dense()
        _, values, right = np.linalg.svd(matrix)
        least = values[-1] if matrix.shape[0] >= matrix.shape[1] else 0.0
        slack = gamma(200 * sum(matrix.shape), np.float64) * values[0]
        x = np.random.default_rng(seed).standard_normal(matrix.shape[1])
        x /= np.linalg.norm(x)
        norm = float(np.linalg.norm(operator @ x))
        assert least - slack <= norm <= values[0] + slack, (operator.kernel, x)
        ends = [float(np.linalg.norm(operator @ right[i])) for i in (0, -1)]
        assert abs(ends[0] - values[0]) <= slack, operator.kernel
        assert abs(ends[1] - least) <= slack, operator.kernel
        largest = float(convla.largest_singular_value(operator).value)
        assert abs(largest - values[0]) <= slack + 1e-10 * values[0], operator.kernel

    # A layer large enough for an iteration: to ten digits by itself, to six if asked, and at once from its own vector.
    layer = convla.ConvOperator(np.random.default_rng(0).standard_normal((8, 8, 3, 3)), (8, 8))
    norm, found = float(np.linalg.norm(layer.to_dense(), 2)), convla.largest_singular_value(layer)
    less = convla.largest_singular_value(layer, rtol=1e-6)
    assert abs(float(found.value) - norm) <= 1e-10 * norm
    assert 1e-10 * norm < abs(float(less.value) - norm) <= 1e-6 * norm
    assert found.right is not None
    own: Array = found.right
    near = np.where(np.abs(own) > 1e-2 * np.abs(own).max(), own, 0.0)[0]
    for start, share in ((own, 4), (near, 1.2)):
        again = convla.largest_singular_value(layer, start=start)
        assert abs(float(again.value) - norm) <= 1e-10 * norm
        assert again.matvecs < found.matvecs / share, (again.matvecs, found.matvecs)
    return for_all(examples, st.tuples(operators(), st.integers(0, 99)), check)


@evidence(Kind.PROPERTY, "operators with h >= g: R_1 against P = max(|sigma_max - 1|, |sigma_min - 1|)")
def both_penalties_vanish_together(examples: int) -> str:
    def check(operator: convla.ConvOperator) -> None:
        matrix = operator.to_dense()
        values = np.linalg.svd(matrix, compute_uv=False)
        if matrix.shape[0] < matrix.shape[1]:
            return
        first = float(max(abs(values[0] - 1), abs(values[-1] - 1)))
        second = float(convla.penalty(operator, 1.0))
        slack = 2 * eigenvalue_rounding(matrix) + gamma(200, np.float64) * (1 + second)
        # |s^2 - 1| = |s - 1| (s + 1), and s lies in [1 - P, 1 + P].
        assert second <= first * (2 + first) + slack, operator.kernel
        assert second >= first - slack, operator.kernel

    return for_all(examples, st.tuples(operators()), check)


def _literal_algorithm(
    kernel: Array, image: tuple[int, int], alpha: float, rate: float, steps: int
) -> list[tuple[float, Array]]:
    """Run Algorithm 2.1 as printed on dense matrices, two multiplications in step 6; return sigma and K of each step."""
    operator = convla.ConvOperator(kernel, image)

    def shifted(k: Array) -> AnyArray:
        matrix = operator.with_kernel(k).to_dense()
        return matrix.T @ matrix - alpha * np.eye(matrix.shape[1])

    # Step 2: the two largest singular values of A = M^T M - alpha I; u = v or -v, as Section 2.1 says, by the sign of A.
    eigenvalues, vectors = np.linalg.eigh(shifted(kernel))
    order = np.argsort(-np.abs(eigenvalues))[:2]
    carried = [vectors[:, i] for i in order]
    v, sigma = carried[0], abs(float(eigenvalues[order[0]]))
    found = [(sigma, kernel)]
    for _ in range(steps):
        u = np.sign(v @ shifted(kernel) @ v) * v
        matrix = operator.with_kernel(kernel).to_dense()
        slope = np.outer(matrix @ u, v) + np.outer(matrix @ v, u)  # Eq. (2.2), by the entries of M
        gradient = np.empty_like(kernel)
        for entry in np.ndindex(kernel.shape):
            gradient[entry] = slope[operator.geometry.omega(entry)].sum()  # Eq. (2.5)
        kernel = kernel - rate * gradient
        gram = shifted(kernel)
        ends = []
        for i in range(2):
            for _multiplication in range(2):
                last = carried[i]
                product = gram @ last
                carried[i] = product / np.linalg.norm(product)
            ends.append((float(np.linalg.norm(product)), last))
        sigma, v = ends[0] if ends[0][0] >= ends[1][0] else ends[1]
        found.append((sigma, kernel))
    return found


@evidence(
    Kind.PROPERTY,
    "12 descents, of 3x3 and 2x2 kernels, h = 1 to 3, alpha = 0.5, 1, 5, 40, 8 steps, against the printed steps on dense "
    "matrices",
)
def descent_is_the_printed_algorithm(_: int) -> str:
    grown = 0
    for shape, alpha in itertools.product(((1, 1, 3, 3), (2, 1, 3, 3), (3, 1, 2, 2)), (0.5, 1.0, 5.0, 40.0)):
        kernel = np.random.default_rng(3).uniform(0, 1, shape)
        descent = convla.minimize_penalty(convla.ConvOperator(kernel, (4, 4)), alpha, iterations=8)
        literal = _literal_algorithm(kernel, (4, 4), alpha, 0.01, 8)
        for step, (sigma, _kernel) in enumerate(literal):
            assert abs(descent.trace.reported[step] - sigma) <= 1e-8 * (sigma + alpha), (shape, alpha, step)
        assert np.abs(descent.kernel - literal[-1][1]).max() <= 1e-8 * alpha, (shape, alpha)
        # Where the lower end is the farther one, u = -v and the kernel grows.
        grown += bool(np.linalg.norm(literal[-1][1]) > np.linalg.norm(kernel))
    assert 3 <= grown < 12, grown
    return f"12 descents, {grown} of them on the lower end"


@evidence(
    Kind.PROPERTY, "kernels 2x2 that begin with two nearly equal singular values: step 7 takes the larger triplet"
)
def the_larger_triplet_is_taken(_: int) -> str:
    changes = 0
    for seed in range(12):
        # Two channels, each with its own value; the larger one shrinks faster and is overtaken.
        kernel = np.zeros((2, 2, 1, 1))
        kernel[0, 0], kernel[1, 1] = 1.6, 1.5 + 0.01 * seed
        descent = convla.minimize_penalty(convla.ConvOperator(kernel, (1, 1)), iterations=6, step=FixedStep(0.02))
        literal = _literal_algorithm(kernel, (1, 1), 1.0, 0.02, 6)
        assert np.abs(descent.kernel - literal[-1][1]).max() <= 1e-9, seed
        moved = np.abs(literal[-1][1] - kernel)
        changes += bool(moved[0, 0].max() > 1e-3 and moved[1, 1].max() > 1e-3)
        assert np.allclose(descent.trace.reported, [sigma for sigma, _ in literal], rtol=1e-9), seed
    assert changes >= 6, changes
    return f"in {changes} of 12 descents the second triplet overtakes the first"


@evidence(
    Kind.PROPERTY,
    "one tap k, alpha = 1/4 and 1: steps just within and beyond 1e4 times |K| + root alpha, gradients just above and below rounding",
)
def descents_end_where_they_say(_: int) -> str:
    def descent(k: float, rate: float, alpha: float, steps: int = 1, **options: Any) -> convla.PenaltyDescent[Any]:
        layer = convla.ConvOperator(np.array([[[k]]]), (1,))
        return convla.minimize_penalty(layer, alpha, iterations=steps, step=FixedStep(rate), **options)

    # The gradient of k^2 - alpha is 2 k, and a step leads to k (1 - 2 rate).
    bound = GROWTH * (1 + 0.5)
    for factor, grown in ((0.9, False), (1.1, True)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ended = descent(1.0, (1 + factor * bound) / 2, 0.25)
        assert (str(ended.status) == "diverged") == grown, factor
        assert [issubclass(w.category, ConvergenceWarning) for w in caught] == [True] * grown, factor
        assert ended.iteration == 1
    # Below the rounding of sigma, eps root(R + alpha), a gradient says nothing. Near 0, R + alpha is 2 alpha.
    eps = float(np.finfo(np.float64).eps)
    for share, status in ((1.2, "stationary"), (1.6, "iterations")):
        assert str(descent(share * eps / 2, 0.1, 1.0).status) == status, share
    # And by the rule of its own: the least penalty has not fallen by a tenth of a thousandth over 3 steps.
    slow = descent(1.5, 0.05, 1.0, 400, stop=Settled(1e-4, patience=3), measure=False)
    reported = slow.trace.reported
    least = np.minimum.accumulate(reported)
    ends = [n for n in range(3, len(least)) if least[n - 3] - least[n] <= 1e-4 * least[n]]
    assert str(slow.status) == "converged", slow
    assert ends[0] == slow.iteration == len(reported) - 1, (ends, slow.iteration)
    return f"ends by growth, by rounding, and after {slow.iteration} steps by the rule that is asked for"


@evidence(
    Kind.PROPERTY,
    "diagonal layers of 3 channels that change places, at scales from 2^-20 to 2^20: estimates against the true value",
)
def a_lost_estimate_is_begun_anew(_: int) -> str:
    for power in (-20, -10, 0, 20):
        scale = math.ldexp(1.0, power)

        def layer(*entries: float, scale: float = scale) -> convla.ConvOperator:
            return convla.ConvOperator(scale * np.diag(entries)[:, :, None], (1,))

        first = layer(3.0, 2.5, 1.0)
        course = Course.of(first, scale**2, "input", Power())
        begun = course.begin(first, confirmed=False)
        assert course.confirmed(begun).state is begun.state, "what is right is kept"
        # The two triplets are those of the first channels, and the third has overtaken both.
        lost = course.estimated(layer(0.9, 1.1, 3.0), begun)
        assert lost.pairs.value < 0.3 * scale**2, power
        found = course.confirmed(lost)
        assert math.isclose(found.pairs.value, 8 * scale**2, rel_tol=1e-12), power
        slope = np.asarray(course.gradient(found).kernels[0])[:, :, 0] / scale
        assert np.allclose(slope, np.diag([0.0, 0.0, 6.0]), atol=1e-12), (power, slope)
    return "estimates of 0.2 alpha where it is 8 alpha are found out"


@evidence(
    Kind.COUNTEREXAMPLE, "one channel, N = 5, moduli of the transform clipped to 1 / 2, 3 taps kept; 20 random kernels"
)
def projection_exceeds_the_bound(_: int) -> str:
    largest = 0.0
    for seed in range(20):
        kernel = np.random.default_rng(seed).standard_normal(5)
        spectrum = np.fft.fft(kernel)
        clipped = np.real(np.fft.ifft(spectrum * np.minimum(1.0, 0.5 / np.abs(spectrum))))
        whole = float(np.linalg.norm(convla.circulant_matrix(clipped, 5), 2))
        assert whole <= 0.5 * (1 + gamma(200, np.float64)), "the full-sized kernel keeps the bound"
        small = np.zeros(5)
        # The taps of offsets -1, 0, 1 about the kernel's own centre.
        small[1:4] = clipped[1:4]
        largest = max(largest, float(np.linalg.norm(convla.circulant_matrix(small, 5), 2)))
    assert largest > 0.55, largest
    return f"the three taps that are kept have norm {largest:.3f}, beyond 1/2"


STATEMENTS = (
    Statement(
        id="RCK-1.3",
        number="Eqs. (1.3), (1.4), Section 1",
        title="norms, and the penalty that was not chosen",
        claim=r"$\sigma_{\min}\|x\| \le \|Mx\| \le \sigma_{\max}\|x\|$, so that (1.3) holds as the singular values are near 1; "
        r"$\max\{|\sigma_{\max}-1|, |\sigma_{\min}-1|\}$ would be another penalty for it.",
        verdict=Verdict.HOLDS,
        evidence=(norms_change_by_singular_values, both_penalties_vanish_together),
        functions=("convla.penalty", "convla.largest_singular_value"),
        correction="Eq. (1.4) prints norms where the sentence before it has their squares.",
        note=r"The two penalties are equivalent: with P the one above, $P \le R_1 \le P(2+P)$ for $h \ge g$. For $h < g$ the "
        r"lower end of $\|Mx\|$ is 0.",
    ),
    Statement(
        id="RCK-alg",
        number="Algorithm 2.1",
        title="the descent as printed",
        claim="Two triplets of M^T M - alpha I, each updated by a power method of its own, the larger of which gives the gradient "
        "of the next step.",
        verdict=Verdict.HOLDS,
        evidence=(
            descent_is_the_printed_algorithm,
            the_larger_triplet_is_taken,
            descents_end_where_they_say,
            a_lost_estimate_is_begun_anew,
        ),
        functions=(
            "convla.minimize_penalty",
            "convla.PenaltyDescent.run",
            "convla.penalties.iterate.Course",
            "convla.penalties.power.Power",
            "convla.penalties.pairs.pair_gradients",
        ),
        note="`convla.minimize_penalty` by its defaults. The text leaves open when a triplet is read off; here it is (|A v|, +-v, v) "
        "of the last v that was multiplied.",
    ),
    Statement(
        id="RCK-projection",
        number="Section 1",
        title="the projection of a full-sized kernel to a small one",
        claim="Clipping the singular values of a full-sized periodic kernel and projecting to a small one may not preserve the "
        "bound.",
        verdict=Verdict.HOLDS,
        evidence=(projection_exceeds_the_bound,),
        functions=("convla.circulant_matrix",),
    ),
)
