"""What a small penalty says of the taps beside the centre, with the sharp constant; and why descents stop above the infimum."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import scipy.optimize
from hypothesis import strategies as st

import convla
from convla import identities
from convla.penalties import Exact
from convla.testing import gamma
from convla.typing import NumPyArray as Array
from proofs_checks.draws import for_all, moderate_floats
from proofs_checks.rck.isometry import gram_distance, penalty_bounds_the_taps_beside_the_centre
from proofs_checks.statement import Kind, Statement, Verdict, evidence

__all__ = ["STATEMENTS"]


@evidence(
    Kind.COUNTEREXAMPLE,
    "three filters of one tap each, 2, 1 and 2, for every input channel, N = 3 .. 6, g = 1, 2, exact integers; two filters, 1 and "
    "2, of 2 taps",
)
def constants_are_attained(_: int) -> str:
    for n, g in itertools.product(range(3, 7), (1, 2)):
        for taps, alpha, factor in ((((2, 0, 0), (0, 1, 0), (0, 0, 2)), 7, 4), (((1, 0), (0, 2)), 3, 2)):
            kernel = np.einsum(
                "oi,on->oin", np.tile(np.eye(g, dtype=np.int64), (len(taps), 1)), np.repeat(taps, g, axis=0)
            )
            matrix = convla.ConvOperator(kernel, (n,)).to_dense()
            gram = matrix.T @ matrix - alpha * np.eye(g * n, dtype=np.int64)
            # M^T M is diagonal: the squares of the taps that reach an output, 5 and 9, or 1 and 5.
            assert not (gram - np.diag(np.diagonal(gram))).any(), kernel
            value = int(np.abs(np.diagonal(gram)).max())
            defect = identities.boundary_defect(kernel)
            assert np.array_equal(defect, factor * value * np.eye(g)), (defect, value)
            assert abs(float(convla.penalty(convla.ConvOperator(kernel, (n,)), float(alpha))) - value) < 1e-12
    return "the taps beside the centre have 8 = 4 * 2 and 4 = 2 * 2, the penalties being 2"


@evidence(
    Kind.COUNTEREXAMPLE, "K = (-e, 1, e, e^2), one channel, e = 1/10, 1/100, 1/1000, N = 4 .. 12: least over alpha"
)
def one_filter_approaches_the_constant(_: int) -> str:
    found = []
    for power in (1, 2, 3):
        e = Fraction(1, 10**power)
        least = 4.0
        for n in range(4, 13):
            kernel = np.array([[[-e, Fraction(1), e, e * e]]], dtype=object)
            exact = convla.ConvOperator(kernel, (n,)).to_dense()
            gram = exact.T @ exact
            # Scaled by e^-2 after taking I away, which is where all digits are.
            shifted = np.array(
                [[float((v - (i == j)) / e**2) for j, v in enumerate(row)] for i, row in enumerate(gram)]
            )
            values = np.linalg.eigvalsh(shifted)
            defect = float(identities.boundary_defect(kernel)[0, 0] / e**2)
            least = min(least, defect / float(values[-1] - values[0]) * 2)
        found.append(least)
    assert found[0] < found[1] < found[2] < 4, found
    assert found[2] > 3.98, found
    return f"ratios {', '.join(f'{value:.4f}' for value in found)} at least, towards 4 for every N"


@evidence(Kind.PROPERTY, "kernels of at most two taps along each axis, 1 and 2 axes, ill-scaled: 2 in place of 4")
def two_taps_have_half_the_constant(examples: int) -> str:
    largest = 0.0

    def check(kernel: Array, power: float) -> None:
        nonlocal largest
        operator = convla.ConvOperator(kernel, tuple(k + 1 for k in kernel.shape[2:]))
        square = float(np.linalg.norm(operator.to_dense(), 2)) ** 2
        alpha = 10.0**power * (square or 1.0)
        value = float(convla.penalty(operator, alpha))
        defect = float(np.linalg.norm(identities.boundary_defect(kernel), 2))
        assert defect <= 2 * value + gamma(4000, np.float64) * (alpha + kernel.size * square), kernel
        largest = max(largest, defect / value if value else 0.0)

    shapes = st.tuples(st.integers(1, 3), st.integers(1, 2), st.sampled_from([(2,), (1, 2), (2, 2)]))
    strategy = st.tuples(shapes.flatmap(lambda s: moderate_floats((s[0], s[1], *s[2]))), st.floats(-1, 1))
    for_all(examples, strategy, check)
    return f"up to {largest:.2f} times the penalty"


@evidence(
    Kind.MEASUREMENT,
    "4x2x3x3 kernels uniform on (-1/2, 1/2), 5x5 images, alpha = 1, three starts: where the descent on R_1 stops; a step along the "
    "least of the subgradients there; and a descent on |M^T M - I|, first its Frobenius norm",
)
def why_descents_stall(_: int) -> str:
    found = []
    for seed in range(3):
        start = np.random.default_rng(seed).uniform(-0.5, 0.5, (4, 2, 3, 3))
        descent = convla.minimize_penalty(
            convla.ConvOperator(start, (5, 5)),
            iterations=200,
            tracker=Exact(cluster_rtol=0.02),
            step="backtracking",
            measure=False,
        )
        operator = descent.operator
        stalled = float(convla.penalty(operator, 1.0))
        share = float(np.trace(identities.boundary_defect(operator.kernel)) / np.sum(np.asarray(operator.kernel) ** 2))
        assert 0.3 < stalled < 0.7, stalled
        assert share > 0.5, share
        # Gradients of the upper ends and of the lower ones: their average does not descend, the shortest vector of their
        # convex hull does, unless it is 0.
        eigenvalues, vectors = np.linalg.eigh(operator.to_dense().T @ operator.to_dense())
        active = np.flatnonzero(np.abs(eigenvalues - 1) >= 0.98 * stalled)
        images = vectors.T[active].reshape(-1, *operator.domain_shape)
        slopes = np.stack(
            [
                2 * np.sign(eigenvalues[i] - 1) * operator.kernel_adjoint(operator.apply(v[None]), v[None]).ravel()
                for i, v in zip(active, images, strict=True)
            ]
        )
        least = _shortest(slopes)
        steps = [
            float(convla.penalty(operator.with_kernel(operator.kernel - t * least.reshape(start.shape)), 1.0))
            for t in 10.0 ** np.arange(-5, -1, 0.5)
        ]
        gain = stalled - min(steps)
        assert gain > 1e-6, f"no descent along the shortest subgradient: {gain}"
        smooth = scipy.optimize.minimize(
            gram_distance(operator, 1.0), np.asarray(operator.kernel).ravel(), jac=True, method="L-BFGS-B",
            options={"maxiter": 400, "ftol": 0, "gtol": 1e-9},
        )  # fmt: skip
        end = operator.with_kernel(smooth.x.reshape(start.shape))
        reached = float(convla.penalty(end, 1.0))
        rest = float(np.trace(identities.boundary_defect(end.kernel)) / np.sum(np.asarray(end.kernel) ** 2))
        assert reached < 1e-3, reached
        assert rest < 1e-3, rest
        found.append(
            f"R = {stalled:.2f} with {share:.0%} of the energy beside the centre, {len(active)} ends active; the shortest subgradient "
            f"has norm {np.linalg.norm(least):.2f} and gains {gain:.1e}; by the Frobenius norm R < 1e-3"
        )
    return "; ".join(found)


def _shortest(slopes: Array) -> Array:
    """Return the shortest convex combination of the rows, by non-negative least squares with the weights' sum held at 1."""
    heavy = 1e3 * float(np.abs(slopes).max())
    rows = np.concatenate((slopes.T, heavy * np.ones((1, len(slopes)))))
    weights, _ = scipy.optimize.nnls(rows, np.concatenate((np.zeros(slopes.shape[1]), [heavy])))
    return np.asarray(weights @ slopes / weights.sum())


STATEMENTS = (
    Statement(
        id="RCK-bought",
        number="ours",
        title="what the penalty buys",
        claim=r"For zero padding to the same size and $N \ge k$, $\lambda_{\max}(\sum_{t\ne0}W_t^TW_t) \le "
        r"C\,\sigma_{\max}(M^TM-\alpha I)$ for every $\alpha$ with $C = 4$, and $C = 2$ if no axis has more than two taps; no "
        r"smaller $C$ will do.",
        verdict=Verdict.HOLDS,
        evidence=(
            constants_are_attained,
            one_filter_approaches_the_constant,
            two_taps_have_half_the_constant,
            penalty_bounds_the_taps_beside_the_centre,
        ),
        functions=("convla.identities.boundary_defect", "convla.penalty"),
        note=r"$C=4$ is attained by three filters of one tap each, and approached by one filter of four taps, $(-\epsilon, 1, "
        r"\epsilon, \epsilon^2)$, as $\epsilon \to 0$. So whatever brings the penalty down to $\delta$ brings the taps beside the "
        r"centre down to $2\sqrt\delta$: the penalty drives a layer of stride 1 towards a 1x1 one. The proof is in RCK-delta.",
    ),
    Statement(
        id="RCK-stall",
        number="ours",
        title="why descents on the penalty stop far above its infimum",
        claim=r"For $h \ge g$ the infimum of $R_\alpha$ is 0, attained by 1x1 layers only. Descents stop where both ends of the "
        "spectrum are active: the average of their gradients is no direction of descent, though the shortest vector of their "
        "convex hull is one. A descent on the Frobenius norm of the same matrix, which is smooth, goes on to 0.",
        verdict=Verdict.STATISTICAL,
        evidence=(why_descents_stall,),
        functions=("convla.minimize_penalty", "convla.identities.boundary_defect"),
        note="So the stall is one of the method, not of the problem: no stationary point of the penalty is where they stop.",
    ),
)
