"""Checks of a claim of Achour, Malgouyres and Mamalet on orthogonal convolutional layers."""

import itertools

import numpy as np

import convla
from convla.similarity.orthogonality import ocnn_residual
from proofs_checks.draws import for_all, integers, layers
from proofs_checks.statement import Kind, evidence


def both_sides(kernel, n):
    """Return the squared Frobenius norm of M M^T - I, and the number of positions times the regulariser."""
    image = (n,) * (kernel.ndim - 2)
    matrix = convla.ConvOperator(kernel, image, boundary="circular").to_dense()
    residual = matrix @ matrix.T - np.eye(len(matrix), dtype=matrix.dtype)
    return int((residual**2).sum()), round(n ** len(image) * float(ocnn_residual(kernel)))


def norms_agree_on_a_grid(_):
    """All kernels with entries -2 .. 2: five values of each entry decide a polynomial of degree four."""
    count = 0
    for h, g, k in ((1, 1, 2), (1, 1, 3), (2, 1, 2), (1, 2, 2)):
        for entries in itertools.product(range(-2, 3), repeat=h * g * k):
            kernel = np.array(entries).reshape(h, g, k)
            left, right = both_sides(kernel, 2 * k - 1)
            assert left == right, f"{kernel.tolist()}: {left} is not {right}"
            count += 1
    return f"{count} integer equalities"


def norms_agree_on_integers(examples):
    """Random integer layers of one and two axes."""

    def check(kernel):
        left, right = both_sides(kernel, 2 * max(kernel.shape[2:]) - 1)
        assert left == right, f"{kernel.tolist()}: {left} is not {right}"

    return for_all(examples, layers(integers, axes=2), check)


@evidence(Kind.COUNTEREXAMPLE, "K = (1, 0, 1), N = 4, fewer than 2k - 1 samples")
def small_images_differ(_):
    """Lags that differ by N fall together."""
    kernel = np.array([[[1, 0, 1]]])
    found = [both_sides(kernel, n) for n in (4, 5)]
    assert found[0][0] != found[0][1], found
    assert found[1][0] == found[1][1], found
    return f"N = 4: {found[0][0]} is not {found[0][1]}; N = 5: {found[1][0]} twice"
