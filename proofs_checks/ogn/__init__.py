"""OGN: orthonormalised gradients."""

from __future__ import annotations

import math

import numpy as np

import convla
from convla.testing import gamma
from convla.typing import Array
from proofs_checks import networks
from proofs_checks.draws import floats, for_all, layers
from proofs_checks.statement import Kind, Mutation, Statement, Verdict, evidence

__all__ = ["STATEMENTS"]

ORTHONORMAL = "convla.orthonormal"


def _gradients(examples: int, seed: int) -> list[Array]:
    """Draw gradients (N, 1, P) with P >= N, condition numbers to 1e4 and repeated singular values."""
    rng, drawn = np.random.default_rng(seed), []
    for _draw in range(examples):
        short = int(rng.integers(1, 6))
        long = short + int(rng.integers(0, 6))
        u, _ = np.linalg.qr(rng.standard_normal((short, short)))
        v, _ = np.linalg.qr(rng.standard_normal((long, short)))
        values = rng.choice([1.0, 1.0, 0.1, 1e-2, 1e-4], short) * 10.0 ** rng.integers(-30, 30)
        drawn.append(((u * values) @ v.T)[:, None, :])
    return drawn


@evidence(Kind.PROPERTY, "P >= N up to 5x10, condition to 1e4: orthonormal, and the inner product is the nuclear norm")
def polar_factor_is_nearest(examples: int) -> str:
    rng = np.random.default_rng(1)
    for gradient in _gradients(examples, 0):
        matrix = gradient[:, 0]
        rows, columns = matrix.shape
        nearest = convla.orthonormalize(gradient)[:, 0]
        values = np.linalg.svd(matrix, compute_uv=False)
        slack = gamma(400 * rows * columns, np.float64) * values[0] / values[-1]
        assert np.abs(nearest @ nearest.T - np.eye(rows)).max() <= slack, matrix
        # |G - Q|^2 = |G|^2 + N - 2 <G, Q>, and <G, Q> is at most the sum of the singular values: optimality.
        attained = float(np.sum(matrix * nearest))
        assert abs(attained - values.sum()) <= slack * values.sum(), (matrix, attained, values.sum())
        other, _ = np.linalg.qr(rng.standard_normal((columns, rows)))
        assert np.sum(matrix * other.T) <= attained + slack * values.sum(), matrix
    return f"{examples} gradients"


@evidence(Kind.COUNTEREXAMPLE, "N = 2 components of P = 1 parameter, G = (3, 4)")
def fewer_parameters_than_components(_: int) -> str:
    gradient = np.array([[[3.0]], [[4.0]]])
    factor = convla.orthonormalize(gradient)[:, 0, 0]
    assert np.abs(factor - [0.6, 0.8]).max() < 1e-15
    assert abs(factor[0] * factor[1]) > 0.4, "the components are not orthogonal, nor of norm 1"
    return "U V^T = (0.6, 0.8): one orthonormal parameter, not two orthonormal components"


@evidence(Kind.COUNTEREXAMPLE, "G = diag(1, 2^-k) and diag(1, -2^-k)")
def rank_deficiency_breaks_uniqueness(_: int) -> str:
    for k in (10, 20, 40):
        factors = [convla.orthonormalize(np.diag([1.0, s * 2.0**-k])[:, None, :])[:, 0] for s in (1, -1)]
        assert np.abs(factors[0] - np.diag([1.0, 1.0])).max() < 1e-12
        assert np.abs(factors[1] - np.diag([1.0, -1.0])).max() < 1e-12
    partial = convla.orthonormalize(np.diag([1.0, 0.0])[:, None, :])[:, 0]
    assert np.abs(partial - np.diag([1.0, 0.0])).max() < 1e-12, "by default the missing direction is left out"
    for sign in (1.0, -1.0):
        assert np.linalg.norm(np.diag([1.0, 0.0]) - np.diag([1.0, sign])) == 1.0, "both are equally near"
    return "diag(1, 1) and diag(1, -1) are equally near to diag(1, 0), and limits of U V^T there"


@evidence(Kind.PROPERTY, "the same gradients times 2^-40 to 2^40, bit for bit, and times 1e-9 to 1e9 within rounding")
def scale_does_not_matter(examples: int) -> str:
    rng = np.random.default_rng(2)
    for gradient in _gradients(examples, 3):
        first = convla.orthonormalize(gradient)
        power = convla.orthonormalize(gradient * 2.0 ** int(rng.integers(-40, 41)))
        assert np.array_equal(first, power), gradient
        values = np.linalg.svd(gradient[:, 0], compute_uv=False)
        scaled = convla.orthonormalize(gradient * 10.0 ** rng.uniform(-9, 9))
        slack = gamma(4000 * gradient.size, np.float64) * values[0] / values[-1]
        assert np.abs(first - scaled).max() <= slack, gradient
    return f"{examples} gradients"


@evidence(Kind.PROPERTY, "float64 layers, subnormal and ill-scaled entries too: norms of the whole and of each filter")
def normalised_gradients_have_norm_one(examples: int) -> str:
    def check(gradient: Array) -> None:
        terms = gamma(4 * gradient.size + 20, np.float64)
        whole = convla.normalized_gradient(gradient)
        assert abs(math.sqrt(float((whole**2).sum())) - bool(gradient.any())) <= terms, gradient
        for own, filter_ in zip(convla.normalized_gradient(gradient, per_filter=True), gradient, strict=True):
            assert abs(math.sqrt(float((own**2).sum())) - bool(filter_.any())) <= terms, gradient

    return for_all(examples, layers(floats, axes=2), check)


@evidence(Kind.PROOF, "the printed summary of BasicCNN")
def basic_cnn_parameters(_: int) -> str:
    convolutions = [networks.conv_parameters(a, b, 3) for a, b in ((3, 32), (32, 32), (32, 32))]
    dense = networks.linear_parameters(4 * 4 * 32, 10)
    assert (convolutions, dense) == ([896, 9248, 9248], 5130)
    total = sum(convolutions) + 3 * networks.batch_norm_parameters(32) + dense
    assert total == 24_714, total
    return f"{total:,}"


STATEMENTS = (
    Statement(
        id="OGN-5",
        number="Eqs. (3) to (5)",
        title="the nearest orthonormal matrix",
        claim=r"$O = UV^T$ of $G = U\Sigma V^T$, $P \times N$, minimises $\|O - G\|_F$ over matrices with orthonormal "
        r"columns.",
        verdict=Verdict.CORRECTED,
        correction="For P >= N and full rank. With P < N parameters no such matrix exists, and U V^T is a partial isometry; "
        "at rank deficiency the minimiser is not unique, and U V^T jumps.",
        evidence=(polar_factor_is_nearest, fewer_parameters_than_components, rank_deficiency_breaks_uniqueness),
        mutations=(Mutation(f"{ORTHONORMAL}:orthonormalize", "METHODS[method](", "0.9 * METHODS[method]("),),
        note="The gradients of a last layer under softmax are always rank deficient: their rows add up to 0.",
    ),
    Statement(
        id="OGN-scale",
        number="Section 4.1",
        title="the step does not depend on the gradient's magnitude",
        claim=r"$UV^T$ is the same for $G$ and $cG$, $c > 0$.",
        verdict=Verdict.HOLDS,
        evidence=(scale_does_not_matter,),
        mutations=(
            Mutation(
                f"{ORTHONORMAL}:orthonormalize", "METHODS[method](", "xp.max(xp.abs(gradient)) * METHODS[method]("
            ),
        ),
    ),
    Statement(
        id="OGN-norm",
        number="Section 4.1",
        title="normalised gradients",
        claim="N-SGDM divides a layer's gradient by its norm, CN-SGDM each component's by its own: norms are 1 where the "
        "gradient is not zero.",
        verdict=Verdict.HOLDS,
        evidence=(normalised_gradients_have_norm_one,),
        mutations=(Mutation("convla.gradients:normalized_gradient", "return ", "return 2.0 * "),),
    ),
    Statement(
        id="OGN-params",
        number="Appendix A.1",
        title="parameters of BasicCNN",
        claim="BasicCNN has 24,714 parameters.",
        verdict=Verdict.HOLDS,
        evidence=(basic_cnn_parameters,),
        mutations=(Mutation("proofs_checks.networks:linear_parameters", "inputs + 1", "inputs"),),
    ),
)
