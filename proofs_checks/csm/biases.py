"""CSM Table 7: what the biases of the printed networks do to the theory, which is of maps without."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

import convla
from convla import identities
from convla.descent import Adam
from convla.typing import NumPyArray as Array
from proofs_checks.draws import for_all, integers, pairs_and_inputs
from proofs_checks.statement import Kind, Statement, UnavailableError, Verdict, evidence

__all__ = ["STATEMENTS", "digits", "mean_cosine"]


@evidence(Kind.PROPERTY, "integer kernels, inputs and biases, exactly: 1 to 3 axes, several channels")
def biases_add_three_terms(examples: int) -> str:
    def check(drawn: tuple[Array, Array, Array], b1: int, b2: int) -> None:
        k1, k2, x = drawn
        f1, f2 = (convla.cross_correlate(x, k[:1], padding="full") for k in (k1, k2))
        f1, f2 = (f.reshape(len(f), -1) for f in (f1, f2))
        with_biases = ((f1 + b1) * (f2 + b2)).sum(axis=1)
        without = identities.correlation_inner_product(k1[:1], k2[:1], x, stacks=True)[:, 0, 0]
        # The sum of a fully padded map is the product of the sums, channel by channel.
        sums = [
            (k[0].reshape(k.shape[1], -1).sum(axis=1) * x.reshape(*x.shape[:2], -1).sum(axis=2)).sum(axis=1)
            for k in (k1, k2)
        ]
        assert np.array_equal(with_biases, without + b1 * sums[1] + b2 * sums[0] + f1.shape[1] * b1 * b2), drawn

    biases = st.integers(-9, 9)
    return for_all(examples, st.tuples(pairs_and_inputs(integers), biases, biases), check)


@evidence(Kind.COUNTEREXAMPLE, "K1 = 0, N = 1, M = 1, biases 1")
def a_bias_undoes_the_condition(_: int) -> str:
    kernels, x = np.array([[[0]], [[1]]]), np.array([[1]])
    assert int(convla.convolutional_similarity(kernels)) == 0
    maps = convla.cross_correlate(x, kernels, padding="full") + 1
    value = int((maps[0] * maps[1]).sum())
    assert value == 2, value
    return f"the similarity of K1 = 0 and K2 = 1 is 0, and <F1 + 1, F2 + 1> = {value}"


def digits() -> Array:
    """Return 100 images of handwritten digits, of shape (100, 1, 8, 8), values in [0, 1]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UnavailableError("images of digits need scikit-learn: pip install scikit-learn") from None
    return np.asarray(load_digits().images[:100, None] / 16.0)


def mean_cosine(maps: Array) -> float:
    """Return the mean modulus of the cosine over pairs of maps (batch, c_out, *output) of every image."""
    rows = maps.reshape(*maps.shape[:2], -1)
    rows = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    upper = np.triu_indices(rows.shape[1], 1)
    return float(np.abs((rows @ rows.swapaxes(1, 2))[:, upper[0], upper[1]]).mean())


@evidence(
    Kind.MEASUREMENT,
    "16 kernels 3x3 with biases as PyTorch draws them, 100 images of digits, Algorithm 1 with 500 steps of Adam: mean "
    "modulus of the cosine of two maps",
)
def biases_outlast_the_kernels(_: int) -> str:
    images = digits()
    rng = np.random.default_rng(0)
    kernels, biases = rng.uniform(-1 / 3, 1 / 3, (16, 1, 3, 3)), rng.uniform(-1 / 3, 1 / 3, 16)
    adam = Adam(0.003)
    after = kernels
    for _step in range(500):
        after = adam.step(after, convla.convolutional_similarity_gradient(after))
    norms = [float(np.linalg.norm(k.reshape(16, -1), axis=1).mean()) for k in (kernels, after)]
    found = []
    for k in (kernels, after):
        maps = convla.cross_correlate(images, k, padding="full")
        found.append((mean_cosine(maps), mean_cosine(maps + biases[:, None, None])))
    (linear, with_biases), (linear_after, with_biases_after) = found
    assert norms[1] < norms[0] / 5, norms
    # The kernels shrink and the biases do not, so that every map becomes its constant.
    assert with_biases_after > 0.9 > 0.7 > max(linear, with_biases), found
    return (
        f"without biases {linear:.3f} before, {linear_after:.3f} after; with them {with_biases:.3f} before, "
        f"{with_biases_after:.3f} after; the kernels' norms {norms[0]:.3f} and {norms[1]:.3f}"
    )


STATEMENTS = (
    Statement(
        id="CSM-bias",
        number="ours",
        title="layers with biases",
        claim=r"With biases $b_j$, $\langle F_1 + b_1, F_2 + b_2\rangle = \langle F_1, F_2\rangle + b_1\sum F_2 + b_2\sum F_1 + "
        r"n\,b_1b_2$ over $n$ outputs, $\sum F_j = \sum_c \sum K_j[c] \sum X[c]$ for full padding. So a vanishing "
        r"convolutional similarity does not make the maps of a layer with biases orthogonal.",
        verdict=Verdict.HOLDS,
        evidence=(biases_add_three_terms, a_bias_undoes_the_condition, biases_outlast_the_kernels),
        functions=("convla.identities.correlation_inner_product", "convla.convolutional_similarity_gradient"),
        note="CNN1 and CNN2 have biases: their parameter counts say so (CSM-params). Batch normalisation, which follows each of "
        "their convolutions, takes the mean of every map away, and its bias with it.",
    ),
)
