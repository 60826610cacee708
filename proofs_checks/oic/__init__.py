"""OIC: orthogonal initialisation of convolutional layers."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import strategies as st

import convla
from convla.initializers import KernelMethod
from convla.testing import gamma
from convla.typing import NumPyArray as Array
from convla.typing import Padding
from proofs_checks.bases import unit_kernels
from proofs_checks.draws import for_all, moderate_floats
from proofs_checks.statement import Kind, Statement, Verdict, evidence

__all__ = ["STATEMENTS"]

METHODS: tuple[KernelMethod, ...] = ("haar", "svd")


@st.composite
def _shapes(draw: st.DrawFn) -> tuple[int, ...]:
    """Draw the shape of a layer of one or two axes, with more filters than taps or fewer."""
    kernel = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    return draw(st.integers(1, 6)), draw(st.integers(1, 4)), *kernel


@evidence(
    Kind.PROPERTY, "both methods, layers of one and two axes, wide and tall, and the source's 64x32x3x3: U U^T = I"
)
def filters_are_orthonormal(examples: int) -> str:
    def check(shape: tuple[int, ...], method: KernelMethod, seed: int) -> None:
        rows = convla.orthogonal_kernel(shape, method=method, rng=seed).reshape(shape[0], -1)
        if rows.shape[0] > rows.shape[1]:
            rows = rows.T
        error = np.abs(rows @ rows.T - np.eye(len(rows))).max()
        assert error <= gamma(100 * rows.shape[1] + 1000, np.float64) * 10, (shape, method, seed, error)

    for method in METHODS:
        check((64, 32, 3, 3), method, 0)
    return for_all(examples, st.tuples(_shapes(), st.sampled_from(METHODS), st.integers(0, 2**32)), check)


@evidence(
    Kind.PROPERTY,
    "wide and tall layers, both methods: the Gaussian matrix of the seed, less its part along the rows, is 0; times their "
    "transpose it has orthogonal columns (svd), or is triangular with a positive diagonal (haar)",
)
def rows_are_those_of_the_recipe(examples: int) -> str:
    def check(shape: tuple[int, ...], method: KernelMethod, seed: int) -> None:
        rows = convla.orthogonal_kernel(shape, method=method, rng=seed).reshape(shape[0], -1)
        rows = rows if rows.shape[0] <= rows.shape[1] else rows.T
        gaussian = np.random.default_rng(seed).standard_normal(rows.shape)
        coordinates = gaussian @ rows.T
        slack = gamma(4000 * rows.size, np.float64) * float(np.linalg.norm(gaussian))
        assert np.abs(coordinates @ rows - gaussian).max() <= slack, (shape, method, seed)
        if method == "svd":
            gram = coordinates.T @ coordinates
            assert np.abs(gram - np.diag(np.diagonal(gram))).max() <= slack * float(np.linalg.norm(gaussian)), (
                shape,
                seed,
            )
            assert (np.diff(np.diagonal(gram)) <= slack).all(), "largest first"
        else:
            assert np.abs(np.triu(coordinates, 1)).max() <= slack, (shape, seed)
            assert (np.diagonal(coordinates) > 0).all(), (shape, seed)

    check((64, 32, 3, 3), "svd", 0)
    check((64, 32, 3, 3), "haar", 0)
    return for_all(examples, st.tuples(_shapes(), st.sampled_from(METHODS), st.integers(0, 2**32)), check)


@evidence(Kind.PROPERTY, "square matrices of weights up to 6x6: norms of inputs, ill-scaled ones too")
def dense_layers_preserve_norms(examples: int) -> str:
    def check(x: Array, seed: int) -> None:
        weights = convla.orthogonal_kernel((x.size, x.size), rng=seed)
        change = abs(float(np.linalg.norm(weights @ x) - np.linalg.norm(x)))
        assert change <= gamma(1000 * x.size, np.float64) * float(np.linalg.norm(x)), (weights, x)

    strategy = st.integers(1, 6).flatmap(lambda side: moderate_floats((side,)))
    return for_all(examples, st.tuples(strategy, st.integers(0, 2**32)), check)


@evidence(Kind.PROOF, "all unit weights and inputs, n <= 2 channels, k x k <= 3 x 3: one output of the layer")
def an_output_is_the_inner_product_with_a_patch(_: int) -> str:
    for channels, k in itertools.product((1, 2), (1, 2, 3)):
        units = unit_kernels(channels, (k, k))
        outputs = convla.cross_correlate(units, units, padding="valid")[..., 0, 0]
        assert np.array_equal(outputs, np.eye(len(units))), (channels, k)
    return "6 sizes"


@evidence(Kind.COUNTEREXAMPLE, "one filter (1, 1, 1) / sqrt 3 and (1, 1) / sqrt 2, X constant and alternating")
def orthonormal_filters_stretch_and_shrink(_: int) -> str:
    long = convla.ConvOperator(np.ones((1, 1, 3)) / math.sqrt(3), (64,))
    stretched = np.linalg.norm(long @ np.ones(64)) / 8
    assert stretched > 1.7, stretched
    short = convla.ConvOperator(np.ones((1, 1, 2)) / math.sqrt(2), (63,), padding="valid")
    shrunk = np.linalg.norm(short @ np.array([(-1.0) ** i for i in range(63)]))
    assert shrunk == 0.0, shrunk
    return f"norms grow by {stretched:.3f} and vanish"


@evidence(
    Kind.PROPERTY,
    "layers of one and two axes, ill-scaled too, and orthonormalised; stride 1, every padding: at most the root of the "
    "taps times the norm of the matrix of filters",
)
def norm_is_at_most_the_root_of_the_taps(examples: int) -> str:
    largest = 0.0

    def check(kernel: Array, padding: Padding) -> None:
        nonlocal largest
        taps = math.prod(kernel.shape[2:])
        image = tuple(n + 2 for n in kernel.shape[2:])
        for layer in (kernel, convla.orthonormalize(kernel)):
            bound = math.sqrt(taps) * float(np.linalg.norm(layer.reshape(layer.shape[0], -1), 2))
            norm = float(np.linalg.norm(convla.ConvOperator(layer, image, padding=padding).to_dense(), 2))
            assert norm <= bound * (1 + gamma(4000, np.float64)), (layer, padding, norm)
        if bound and taps > 1:
            largest = max(largest, norm / bound)

    for_all(examples, st.tuples(_shapes().flatmap(moderate_floats), st.sampled_from(["full", "same", "valid"])), check)
    return f"up to {largest:.2f} of the bound"


@evidence(
    Kind.COUNTEREXAMPLE,
    "the kernel of k x k equal entries 1 / k on n x n images, n = 4 .. 32: the bound k is approached",
)
def bound_is_sharp(_: int) -> str:
    found = []
    for n in (4, 8, 16, 32):
        operator = convla.ConvOperator(np.full((1, 1, 3, 3), 1 / 3), (n, n))
        norm = float(convla.largest_singular_value(operator).value)
        wanted = (1 + 2 * math.cos(math.pi / (n + 1))) ** 2 / 3
        assert abs(norm - wanted) < 1e-8, (n, norm, wanted)
        found.append(norm)
    assert 2.98 < found[-1] < 3
    return f"sigma_max = {', '.join(f'{value:.4f}' for value in found)}, towards k = 3"


@evidence(
    Kind.MEASUREMENT, "random orthonormal filters, same padding, 8x8 images: both ends; and delta-orthogonal kernels"
)
def singular_values_of_initial_layers(_: int) -> str:
    found = []
    for shape in ((2, 1, 3, 3), (4, 4, 3, 3), (9, 1, 3, 3)):
        values = np.linalg.svd(
            convla.ConvOperator(convla.orthogonal_kernel(shape, rng=0), (8, 8)).to_dense(), compute_uv=False
        )
        assert values[0] > 1.2, f"{shape}: sigma_max = {values[0]}"
        assert values[0] / values[-1] > 1.5, f"{shape}: {values[0]}, {values[-1]}"
        found.append(f"{'x'.join(map(str, shape))}: {values[0]:.2f}, {values[-1]:.2g}")
        delta = convla.ConvOperator(convla.delta_orthogonal_kernel((4, 2, *shape[2:]), rng=0), (8, 8)).to_dense()
        isometry = np.linalg.svd(delta, compute_uv=False)
        assert np.abs(isometry - 1).max() < gamma(4000, np.float64), isometry
    return "sigma_max, sigma_min: " + "; ".join(found) + "; delta-orthogonal: 1, 1"


@evidence(Kind.PROPERTY, "both methods, gains 1e-3 to 1e3, wide and tall layers: every singular value is the gain")
def every_singular_value_is_the_gain(examples: int) -> str:
    def check(shape: tuple[int, ...], method: KernelMethod, power: float, seed: int) -> None:
        gain = 10.0**power
        kernel = convla.orthogonal_kernel(shape, gain=gain, method=method, rng=seed).reshape(shape[0], -1)
        values = np.linalg.svd(kernel, compute_uv=False)
        assert np.abs(values - gain).max() <= gamma(1000 * kernel.size, np.float64) * gain, (shape, method, gain)
        delta = convla.delta_orthogonal_kernel((*shape[:3], 2), gain=gain, rng=seed)
        values = np.linalg.svd(delta[(..., *((k - 1) // 2 for k in delta.shape[2:]))], compute_uv=False)
        assert np.abs(values - gain).max() <= gamma(1000 * kernel.size, np.float64) * gain, (shape, gain)

    strategy = st.tuples(_shapes(), st.sampled_from(METHODS), st.floats(-3, 3), st.integers(0, 99))
    return for_all(examples, strategy, check)


@evidence(Kind.PROPERTY, "8x8 and 8x32 orthonormal weights, random inputs x and -x: squared norms after ReLU, added")
def root_two_compensates_for_relu(_: int) -> str:
    for columns, seed in itertools.product((8, 32), range(20)):
        x = np.random.default_rng(seed).standard_normal(columns)
        z = convla.orthogonal_kernel((8, columns), gain=math.sqrt(2.0), rng=seed) @ x
        unit = convla.orthogonal_kernel((8, columns), rng=seed) @ x
        halves = [float(np.sum(np.maximum(side, 0) ** 2)) for side in (z, -z)]
        # relu(z)^2 + relu(-z)^2 = z^2: over inputs as likely as their negatives the mean is |z|^2 / 2 = |W x|^2.
        assert abs(sum(halves) / 2 - float(unit @ unit)) <= gamma(400, np.float64) * float(z @ z), (columns, seed)
    return "the mean over x and -x is that without ReLU and factor; not for a single x"


@evidence(Kind.MEASUREMENT, "3x4 layers, 400 draws of each method: second moments of the rows")
def recipe_has_no_preferred_direction(_: int) -> str:
    found = []
    for method in METHODS:
        kernels = np.stack([convla.orthogonal_kernel((3, 4), method=method, rng=seed) for seed in range(400)])
        # Rotated from the right a Gaussian matrix is as likely, so the span of the rows is uniform, and so is each row
        # up to its sign. Standard errors are below 0.02.
        second = np.einsum("nri,nrj->ij", kernels, kernels) / (400 * 3)
        error = float(np.abs(second - np.eye(4) / 4).max())
        assert error < 0.03, f"{method}: {second}"
        found.append(f"{method}: within {error:.3f} of I / 4")
        if method == "haar":
            largest = float(np.abs(kernels.mean(axis=0)).max())
            assert largest < 0.1, f"the mean of a Haar matrix is 0: {largest}"
    return "; ".join(found)


STATEMENTS = (
    Statement(
        id="OIC-gain",
        number="Implementation",
        title="scaling for the activation",
        claim="In practice the elements of W are scaled to compensate for the change in norm brought about by the activation "
        "function.",
        verdict=Verdict.HOLDS,
        evidence=(every_singular_value_is_the_gain, root_two_compensates_for_relu),
        functions=("convla.orthogonal_kernel", "convla.delta_orthogonal_kernel"),
        note=r"For ReLU the factor is $\sqrt2$, on average over inputs as likely as their negatives.",
    ),
    Statement(
        id="OIC-rows",
        number="Implementation",
        title="orthonormal weight vectors from a singular value decomposition",
        claim=r"The rows of $V^T$ in $X = U\Sigma V^T$, $X$ Gaussian of $m$ rows and $nk^2$ columns, are orthonormal weight "
        r"vectors.",
        verdict=Verdict.HOLDS,
        evidence=(filters_are_orthonormal, rows_are_those_of_the_recipe, recipe_has_no_preferred_direction),
        functions=("convla.orthogonal_kernel",),
        note="For at most as many filters as taps; with more, the columns are orthonormal.",
    ),
    Statement(
        id="OIC-dense",
        number="Introduction",
        title="an orthogonal matrix preserves the norm",
        claim=r"$\|Wx\| = \|x\|$ for the $m \times m$ orthogonal matrix of a dense layer.",
        verdict=Verdict.HOLDS,
        evidence=(dense_layers_preserve_norms,),
        functions=("convla.orthogonal_kernel",),
    ),
    Statement(
        id="OIC-patch",
        number="Convolutional Layers",
        title="a layer's output as an inner product",
        claim=r"$x * w = \sum_i x_i w_i$: with the kernels of a filter's channels stacked as one weight vector of $nk^2$ "
        r"entries, an output is its inner product with the patch of the input under it.",
        verdict=Verdict.HOLDS,
        evidence=(an_output_is_the_inner_product_with_a_patch,),
        functions=("convla.cross_correlate",),
        note="As cross-correlation; the sum is printed for one channel.",
    ),
    Statement(
        id="OIC-norm",
        number="Convolutional Layers",
        title="orthonormal weight vectors and the norm of the convolutional layer",
        claim="With orthonormal weight vectors the convolutional layer keeps the norm, as a dense layer does.",
        verdict=Verdict.REFUTED,
        counterexample=r"One filter $(1,1,1)/\sqrt3$ stretches a constant signal by almost $\sqrt3$; $(1,1)/\sqrt2$ maps the "
        r"alternating one to 0. What holds is $\sigma_{\max}(M) \le k$, the root of the number of taps, for stride 1 and "
        "k x k filters, and no smaller bound does.",
        evidence=(
            orthonormal_filters_stretch_and_shrink,
            singular_values_of_initial_layers,
            norm_is_at_most_the_root_of_the_taps,
            bound_is_sharp,
        ),
        functions=(
            "convla.delta_orthogonal_kernel",
            "convla.orthogonal_kernel",
        ),
        suggested=True,
        note="The source says that orthogonal matrices preserve norms, and then asks how that can be had in convolutional layers; it "
        "does not state the answer. The matrix of filters is an isometry, the layer is not. Delta-orthogonal kernels make the layer one.",
    ),
)
