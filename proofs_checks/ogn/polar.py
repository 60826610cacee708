"""OGN Section 2.2, 4 and Appendix A: the polar factor of a gradient, its steps, and the network they were tried on."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import strategies as st

import convla
from convla.orthonormal import OrthonormalMethod, RankDeficient
from convla.testing import gamma
from convla.typing import NumPyArray as Array
from proofs_checks import networks
from proofs_checks.draws import floats, for_all, integers, layers, matrices, moderate_floats
from proofs_checks.statement import Kind, Statement, UnavailableError, Verdict, evidence

__all__ = ["ACCURACY", "CONDITION", "STATEMENTS", "singular_values"]


ACCURACY = 1e-11
"""What `convla.orthonormalize` states of its relative distance, in the Frobenius norm, to the polar factor."""
CONDITION = 1e5
"""Up to this condition number the polar factor is determined well enough to be checked."""


def singular_values(matrix: Array) -> Array:
    """Return the singular values of a matrix scaled by a power of two, so that none overflows or is subnormal."""
    largest = float(np.abs(matrix).max())
    return np.linalg.svd(np.ldexp(matrix, -math.frexp(largest)[1]), compute_uv=False)


@evidence(Kind.PROPERTY, "P >= N up to 5x8, subnormal to 1e60: orthonormal, and the inner product is the nuclear norm")
def polar_factor_is_nearest(examples: int) -> str:
    applied = 0

    def check(matrix: Array, other: Array) -> None:
        nonlocal applied
        rows, columns = matrix.shape
        values = singular_values(matrix)
        if CONDITION * values[-1] <= values[0]:
            return
        nearest = convla.orthonormalize(matrix[:, None])[:, 0]
        slack = gamma(400 * rows * columns, np.float64) * values[0] / values[-1]
        assert np.abs(nearest @ nearest.T - np.eye(rows)).max() <= slack, matrix
        # |G - Q|^2 = |G|^2 + N - 2 <G, Q>, and <G, Q> is at most the sum of the singular values: optimality.
        matrix = np.ldexp(matrix, -math.frexp(float(np.abs(matrix).max()))[1])
        attained = float(np.sum(matrix * nearest))
        assert abs(attained - values.sum()) <= slack * values.sum(), (matrix, attained, values.sum())
        frame, _ = np.linalg.qr(other[:columns, :rows])
        assert np.sum(matrix * frame.T) <= attained + slack * values.sum(), matrix
        applied += 1

    strategy = st.tuples(matrices(5, 8, wide=True, entries=floats), integers((8, 5)).map(np.float64))
    for_all(examples, strategy, check)
    assert applied or examples < 20, "every gradient was rank deficient"
    return f"{applied} gradients of full rank"


@evidence(
    Kind.PROPERTY,
    "gradients up to 5x8 and their transposes, both exact methods: the same factor, and the same in groups",
)
def methods_and_groups_agree(examples: int) -> str:
    def check(matrix: Array) -> None:
        values = singular_values(matrix)
        if CONDITION * values[-1] <= values[0]:
            return
        slack = gamma(4000 * matrix.size, np.float64) * values[0] / values[-1] + 10 * ACCURACY
        for gradient in (matrix[:, None], matrix.T[:, None]):
            exact, svd = (convla.orthonormalize(gradient, method=method) for method in ("exact", "svd"))
            assert np.abs(exact - svd).max() <= slack, matrix
            small = np.ldexp(gradient[:, 0], -math.frexp(float(np.abs(matrix).max()))[1])
            assert abs(float(np.sum(svd[:, 0] * small)) - values.sum()) <= slack * values.sum(), matrix
            both = np.concatenate((gradient, 2 * gradient[::-1]))
            for method in ("exact", "svd"):
                halves = convla.orthonormalize(both, groups=2, method=method)
                one, other = np.split(halves, 2)
                assert np.abs(one - exact).max() <= slack, matrix
                assert np.abs(other - exact[::-1]).max() <= slack, matrix
            # A layer's components are its filters, all weights of each in a row; layers stacked stay apart.
            layer = np.stack((gradient[:, 0], gradient[::-1, 0])).reshape(2, len(gradient), 1, -1, 1)
            stacked = convla.orthonormalize(layer, batch_axes=1).reshape(2, len(gradient), -1)
            assert np.abs(stacked[0] - exact[:, 0]).max() <= slack, matrix
            assert np.abs(stacked[1] - exact[::-1, 0]).max() <= slack, matrix

    return for_all(examples, st.tuples(matrices(5, 8, wide=True)), check)


@evidence(
    Kind.PROPERTY,
    "random 4x9 and 9x4 gradients of condition 1 to 1000: the two polynomial methods against the polar factor",
)
def polynomial_methods_approach_the_factor(_: int) -> str:
    worst = 0.0
    for seed, power in itertools.product(range(6), (0.0, 1.0, 3.0)):
        rng = np.random.default_rng(seed)
        frames = [np.linalg.qr(rng.standard_normal((side, 4)))[0] for side in (4, 9)]
        matrix = frames[0] @ np.diag(10.0 ** np.linspace(0, -power, 4)) @ frames[1].T
        for gradient, factor in ((matrix, frames[0] @ frames[1].T), (matrix.T, frames[1] @ frames[0].T)):
            near = convla.orthonormalize(7.0 * gradient[:, None], method="polar-express")[:, 0]
            assert np.abs(near - factor).max() < 1e-6, (seed, power)
            rough = np.linalg.svd(
                convla.orthonormalize(gradient[:, None], method="newton-schulz")[:, 0], compute_uv=False
            )
            assert rough[0] < 1.25, rough
            assert rough[-1] > (0.65 if power < 2 else 0.2), (power, rough)
            worst = max(worst, float(np.abs(near - factor).max()))
    return f"polar-express within {worst:.0e}; Newton and Schulz leave singular values of 0.65 to 1.25 to condition 10"


@evidence(
    Kind.COUNTEREXAMPLE, "diag(1, r), r on both sides of rtol, and of the default; partial and complete, both methods"
)
def what_counts_as_zero(_: int) -> str:
    epsilon = float(np.finfo(np.float64).eps)
    methods: tuple[OrthonormalMethod, ...] = ("exact", "svd")
    ranks: tuple[RankDeficient, ...] = ("partial", "complete")
    for method, (ratio, rtol, kept) in itertools.product(
        methods,
        (
            (1e-3, None, True),
            (1e-12, None, True),
            (2 * epsilon, None, False),
            (8 * epsilon, None, True),
            (0.1, 0.2, False),
            (0.1, 0.05, True),
        ),
    ):
        gradient = np.diag([1.0, ratio])[:, None]
        factor = convla.orthonormalize(gradient, method=method, rtol=rtol)[:, 0]
        assert np.abs(factor - np.diag([1.0, float(kept)])).max() < 1e-9, (method, ratio, rtol, factor)
        whole = convla.orthonormalize(gradient, method=method, rtol=rtol, rank_deficient="complete")[:, 0]
        assert np.abs(whole @ whole.T - np.eye(2)).max() < 1e-9, (method, ratio, rtol, whole)
    for method, rank in itertools.product(methods, ranks):
        assert not convla.orthonormalize(np.zeros((2, 1, 3)), method=method, rank_deficient=rank).any(), (
            "zeros stay zeros"
        )
    return "by default what is below 4 epsilon of the largest"


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


@evidence(Kind.PROPERTY, "gradients times 2^-600 to 2^600, bit for bit, and times 1e-9 to 1e9 within rounding")
def scale_does_not_matter(examples: int) -> str:
    applied = 0

    def check(matrix: Array, exponent: int, power: float) -> None:
        nonlocal applied
        gradient = matrix[:, None]
        first = convla.orthonormalize(gradient)
        assert np.array_equal(first, convla.orthonormalize(gradient * 2.0**exponent)), matrix
        values = singular_values(matrix)
        if CONDITION * values[-1] <= values[0]:
            return
        slack = gamma(4000 * gradient.size, np.float64) * values[0] / values[-1]
        scaled = convla.orthonormalize(gradient * 10.0**power)
        assert np.abs(first - scaled).max() <= slack, (matrix, power)
        applied += 1

    strategy = st.tuples(matrices(5, 8, wide=True), st.integers(-600, 600), st.floats(-9, 9))
    for_all(examples, strategy, check)
    assert applied or examples < 20, "every gradient was rank deficient"
    return f"{examples} gradients, {applied} of full rank"


@evidence(
    Kind.PROPERTY, "the last layer under softmax, 2 to 5 classes, batches of 1 to 8: U V^T has rank N - 1 at most"
)
def softmax_gradients_are_rank_deficient(examples: int) -> str:
    def check(logits: Array, inputs: Array, labels: list[int]) -> None:
        batch, classes = logits.shape
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        errors = shares - np.eye(classes)[[label % classes for label in labels[:batch]]]
        gradient = errors.T @ inputs[:batch]
        values = np.linalg.svd(gradient, compute_uv=False)
        terms = 20 * (batch + sum(gradient.shape))
        assert (
            np.abs(gradient.sum(axis=0)).max() <= gamma(terms, np.float64) * np.abs(errors).sum() * np.abs(inputs).max()
        )
        factor = convla.orthonormalize(gradient[:, None], rtol=1e-9)[:, 0]
        kept = int((values > 1e-9 * values[0]).sum())
        assert kept < classes, (logits, inputs)
        assert round(float(np.sum(factor**2))) == kept, "the missing direction is left out"

    sizes = st.tuples(st.integers(1, 8), st.integers(2, 5))
    layer = sizes.flatmap(
        lambda size: st.lists(st.floats(-3, 3), min_size=size[0] * size[1], max_size=size[0] * size[1]).map(
            lambda v: np.array(v).reshape(size)
        )
    )
    inputs = integers((8, 6)).map(np.float64)
    labels = st.lists(st.integers(0, 4), min_size=8, max_size=8)
    return for_all(examples, st.tuples(layer, inputs, labels), check)


@evidence(Kind.PROPERTY, "float64 layers, subnormal and ill-scaled entries too: norms of the whole and of each filter")
def normalised_gradients_have_norm_one(examples: int) -> str:
    def check(gradient: Array) -> None:
        terms = gamma(4 * gradient.size + 20, np.float64)
        whole = convla.normalized_gradient(gradient)
        assert abs(math.sqrt(float((whole**2).sum())) - bool(gradient.any())) <= terms, gradient
        for own, filter_ in zip(convla.normalized_gradient(gradient, per_filter=True), gradient, strict=True):
            assert abs(math.sqrt(float((own**2).sum())) - bool(filter_.any())) <= terms, gradient

    return for_all(examples, layers(floats, axes=2), check)


@evidence(Kind.COUNTEREXAMPLE, "N = P = 2: gradients diag(1, 1) and then (0 1; 1 0)")
def momentum_is_not_orthogonal(_: int) -> str:
    gradients = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    momentum, velocity = 0.5, np.zeros((2, 2))
    for gradient in gradients:
        velocity = momentum * velocity + convla.orthonormalize(gradient[:, None, :])[:, 0]
    inner = float(velocity[0] @ velocity[1])
    assert abs(inner - 2 * momentum) < 1e-12, velocity
    norms = np.linalg.svd(velocity, compute_uv=False)
    assert np.abs(norms - [1 + momentum, 1 - momentum]).max() < 1e-12
    return f"at gamma = {momentum} the second velocity is {velocity.round(12).tolist()}: its components have inner product {inner:g}"


@evidence(Kind.PROPERTY, "sequences of gradients, momentum 0 to 0.95: the norm of the velocity of Eq. (6)")
def velocity_stays_bounded(examples: int) -> str:
    def check(gradients: list[Array], momentum: float) -> None:
        velocity = np.zeros((3, 4))
        for gradient in gradients:
            step = convla.orthonormalize(gradient[:, None, :])[:, 0]
            velocity = momentum * velocity + step
            bound = (1 + math.sqrt(3) * ACCURACY) * (1 + gamma(100, np.float64)) / (1 - momentum)
            assert np.linalg.norm(velocity, 2) <= bound, (gradients, momentum)
            assert momentum or np.array_equal(velocity, step), "without momentum the step is orthonormal"

    gradients = st.lists(moderate_floats((3, 4)), min_size=1, max_size=6)
    return for_all(examples, st.tuples(gradients, st.one_of(st.just(0.0), st.floats(0, 0.95))), check)


@evidence(Kind.PROOF, "the printed output shapes and sizes of BasicCNN: strides 2 and padding 1, float32")
def basic_cnn_shapes(_: int) -> str:
    sides = [32]
    for _layer in range(3):
        sides.append(networks.side_after(sides[-1], 3, stride=2, padding=1))
    assert sides == [32, 16, 8, 4], sides
    # A convolution and a normalisation at each side, the dense layer and the network's own output; forward and backward.
    outputs = sum(2 * 32 * side**2 for side in sides[1:]) + 2 * 10
    sizes = [4 * count / 2**20 for count in (3 * 32**2, 2 * outputs, 24_714)]
    assert [round(size, 2) for size in (*sizes, sum(sizes))] == [0.01, 0.16, 0.09, 0.27], sizes
    return "sides 16, 8, 4; 0.01 + 0.16 + 0.09 = 0.27 MiB before rounding"


@evidence(Kind.PROOF, "720.3 seconds, 96.4 of them decompositions")
def overhead_of_the_decomposition(_: int) -> str:
    share = round(100 * 96.4 / (720.3 - 96.4), 1)
    assert share == 15.5, share
    return f"{share} % over the rest"


@evidence(Kind.PROOF, "the modules that `convla.experiments.training.networks.basic_cnn` builds, on a 32x32 image")
def built_network_is_as_printed(_: int) -> str:
    try:
        import torch

        from convla.experiments.training.networks import basic_cnn
    except ImportError:
        raise UnavailableError("the network needs PyTorch: pip install 'convla[torch]'") from None
    network, value, shapes, counts = basic_cnn().eval(), torch.zeros(1, 3, 32, 32), [], []
    for layer in network:
        value = layer(value)
        if any(True for _parameter in layer.parameters()):
            shapes.append(tuple(value.shape[1:]))
            counts.append(sum(parameter.numel() for parameter in layer.parameters()))
    assert shapes == [(32, 16, 16)] * 2 + [(32, 8, 8)] * 2 + [(32, 4, 4)] * 2 + [(10,)], shapes
    assert counts == [896, 64, 9248, 64, 9248, 64, 5130], counts
    assert sum(parameter.numel() for parameter in network.parameters()) == 24_714
    return "seven layers with the printed shapes and counts, 24,714 in all"


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
        correction=r"For $P\ge N$ and full rank. With $P<N$ parameters no such matrix exists, and $UV^T$ is a partial isometry; "
        r"at rank deficiency the minimiser is not unique, and $UV^T$ jumps.",
        evidence=(
            polar_factor_is_nearest,
            methods_and_groups_agree,
            polynomial_methods_approach_the_factor,
            what_counts_as_zero,
            fewer_parameters_than_components,
            rank_deficiency_breaks_uniqueness,
            softmax_gradients_are_rank_deficient,
        ),
        functions=("convla.orthonormalize",),
        note="The gradients of a last layer under softmax are always rank deficient: their rows add up to 0.",
    ),
    Statement(
        id="OGN-6",
        number="Eqs. (6), (7)",
        title="steps in orthogonal directions",
        claim=r"With $v \leftarrow \gamma v + \eta O$, $\theta \leftarrow \theta - v$ the components are pushed in orthogonal "
        r"directions.",
        verdict=Verdict.CORRECTED,
        correction=r"Without momentum. With $\gamma>0$ the velocity is a sum of isometries, not a multiple of one; its norm is "
        r"at most $\eta/(1-\gamma)$.",
        evidence=(velocity_stays_bounded, momentum_is_not_orthogonal),
        functions=("convla.orthonormalize",),
    ),
    Statement(
        id="OGN-scale",
        number="Section 4.1",
        title="the step does not depend on the gradient's magnitude",
        claim=r"$UV^T$ is the same for $G$ and $cG$, $c > 0$.",
        verdict=Verdict.HOLDS,
        evidence=(scale_does_not_matter,),
        functions=("convla.orthonormalize",),
    ),
    Statement(
        id="OGN-norm",
        number="Section 4.1",
        title="normalised gradients",
        claim="N-SGDM divides a layer's gradient by its norm, CN-SGDM each component's by its own: norms are 1 where the "
        "gradient is not zero.",
        verdict=Verdict.HOLDS,
        evidence=(normalised_gradients_have_norm_one,),
        functions=("convla.normalized_gradient",),
    ),
    Statement(
        id="OGN-params",
        number="Appendix A.1",
        title="parameters and sizes of BasicCNN",
        claim="BasicCNN has 24,714 parameters and maps of sides 16, 8, 4, of 0.27 MB in all; a decomposition of 96.4 in 720.3 "
        "seconds adds 15.5 % (Section 4.4).",
        verdict=Verdict.HOLDS,
        evidence=(basic_cnn_parameters, built_network_is_as_printed, basic_cnn_shapes, overhead_of_the_decomposition),
        functions=("convla.experiments.training.networks.basic_cnn",),
    ),
)
