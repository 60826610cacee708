"""CSM Table 7, Section 6: what batch normalisation and leaky ReLU leave of a similarity, and whether kernels alone can say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

import convla
from convla import identities
from convla.descent import Adam
from convla.testing import gamma
from convla.typing import NumPyArray as Array
from convla.typing import Padding
from proofs_checks.bases import quadratic_basis
from proofs_checks.csm.biases import digits, mean_cosine
from proofs_checks.draws import for_all, integers, moderate_floats, pairs_and_inputs
from proofs_checks.statement import Kind, Statement, Verdict, evidence

__all__ = ["STATEMENTS"]

SLOPE = 0.2
"""Of CSM's leaky ReLU."""


@evidence(
    Kind.PROOF,
    "all basis inputs, every symmetric and antisymmetric basis kernel, N <= 5, M <= 6, and 2x2, 3x2 on 3x3: products, sums and even "
    "similarities are 0; convolutional similarities are not",
)
def symmetric_and_antisymmetric_kernels_never_meet(_: int) -> str:
    count = 0
    sizes = [((n,), (m,)) for n in range(2, 6) for m in range(1, 7)] + [((2, 2), (3, 3)), ((3, 2), (3, 3))]
    for size, image in sizes:
        taps = math.prod(size)
        units = np.eye(taps, dtype=np.int64).reshape(taps, *size)
        turned = np.flip(units, axis=tuple(range(1, units.ndim)))
        even, odd = ([k for k in (units + sign * turned)[: (taps + 1) // 2] if k.any()] for sign in (1, -1))
        for k1, k2 in itertools.product(even, odd):
            assert float(identities.even_similarity(k1, k2)) == 0.0
            assert int(convla.convolutional_similarity(np.stack((k1, k2))[:, None])) > 0
            for inputs in quadratic_basis(1, image, 1 << 12):
                for x in inputs[:, 0]:
                    assert int(identities.feature_inner_product(k1, k2, x)) == 0, (k1, k2, x)
                    count += 1
            # A fully padded map sums to the kernel's sum times the input's: what a mean takes away is 0 too.
            assert int(k2.sum()) == 0
    return f"{count} products"


@evidence(
    Kind.PROPERTY,
    "integer kernels and inputs, 1 to 3 axes: <F1, F2>^2 <= E |X (x) X|^2, E <= CS, equal for symmetric kernels",
)
def inputs_see_the_even_part(examples: int) -> str:
    def check(k1: Array, k2: Array, x: Array) -> None:
        a, b, image = k1[0, 0], k2[0, 0], x[0, 0]
        product = int(identities.feature_inner_product(a, b, image))
        seen = 4 * float(identities.even_similarity(a, b))
        energy = int(identities.input_energy(image, tuple(n - 1 for n in a.shape)))
        products = identities.kernel_correlation(a, b)
        doubled = products + np.flip(products)
        assert seen == int((doubled * doubled).sum())
        assert 4 * product**2 <= seen * energy
        assert seen <= 4 * int((products * products).sum())
        symmetric = a + np.flip(a), b + np.flip(b)
        whole = int(convla.convolutional_similarity(np.stack(symmetric)[:, None]))
        assert float(identities.even_similarity(*symmetric)) == whole
        for dtype in (np.float32, np.float64):
            assert identities.even_similarity(a.astype(dtype), b.astype(dtype)).dtype == dtype

    return for_all(examples, pairs_and_inputs(integers), check)


@evidence(
    Kind.PROPERTY,
    "3 to 8 random kernels of 2 to 7 taps, inputs of one frequency over whole periods: after batch normalisation a pair is as parallel "
    "as lines in a plane, the cosine at least cos(pi / S); at the highest frequency all are parallel",
)
def waves_make_maps_parallel(examples: int) -> str:
    largest, attained = 0.0, 1.0

    def check(count: int, n: int, frequency: int, seed: int) -> None:
        nonlocal largest, attained
        kernels = np.random.default_rng(seed).standard_normal((count, 1, n))
        period = 24
        for place in (frequency, period // 2):
            # Outputs over three whole periods: what valid padding leaves.
            x = np.cos(
                2 * np.pi * place * np.arange(3 * period + n - 1) / period + (0.3 if place < period // 2 else 0.0)
            )
            covariance = identities.window_covariance(x[None, None], (n,), padding="valid")
            maps = convla.cross_correlate(x[None], kernels, padding="valid")
            if np.linalg.norm(maps, axis=1).min() < 1e-6:
                return
            cosines = np.abs(identities.map_correlation(kernels, covariance))[np.triu_indices(count, 1)]
            wanted = 1.0 if place == period // 2 else math.cos(math.pi / count)
            worst = cosines.min() if place == period // 2 else cosines.max()
            assert worst >= wanted - 1e-6, (count, n, place, worst)
            if place < period // 2:
                largest, attained = max(largest, float(worst)), min(attained, float(worst) - wanted)

    drawn = st.tuples(st.integers(3, 8), st.integers(2, 7), st.integers(1, 11), st.integers(0, 2**32))
    return f"{for_all(examples, drawn, check)}, the closest {attained:.3f} above the bound"


@evidence(
    Kind.PROPERTY, "layers and batches of 1 and 2 axes, paddings full, same and valid: against maps that are normalised"
)
def batch_normalisation_leaves_the_covariance(examples: int) -> str:
    compared = 0

    def check(drawn: tuple[Array, Array, Array], padding: Padding) -> None:
        nonlocal compared
        _, kernels, x = drawn
        if kernels.ndim > 4:
            return
        maps = convla.cross_correlate(x, kernels, padding=padding)
        rows = np.moveaxis(maps, 1, 0).reshape(len(kernels), -1)
        centred = rows - rows.mean(axis=1, keepdims=True)
        wanted = centred @ centred.T / rows.shape[1]
        covariance = identities.window_covariance(x, kernels.shape[2:], padding=padding)
        flat = kernels.reshape(len(kernels), -1)
        sizes = np.abs(flat).sum(axis=1) * np.abs(x).max()
        slack = gamma(20 * (x.size + flat.shape[1] ** 2), np.float64) * np.outer(sizes, sizes) + 1e-290
        assert (np.abs(flat @ covariance @ flat.T - wanted) <= slack).all(), (drawn, padding)
        deviations = np.sqrt(np.diagonal(wanted))
        if (deviations > 1e-3 * sizes).all() and sizes.min() > 1e-100:
            correlation = identities.map_correlation(kernels, covariance)
            assert np.abs(correlation - wanted / np.outer(deviations, deviations)).max() < 1e-6
            compared += 1

    paddings = st.sampled_from(["full", "same", "valid"])
    said = for_all(examples, st.tuples(pairs_and_inputs(moderate_floats), paddings), check)
    assert compared > 0, "no map varied"
    return said


@evidence(
    Kind.PROOF,
    "slopes 0, 0.2, 1, correlations -1 to 1: against Gauss and Legendre in the angle of a normal pair; increasing and convex",
)
def activation_keeps_the_order(_: int) -> str:
    nodes, weights = np.polynomial.legendre.leggauss(40)
    grid = np.linspace(-1, 1, 201)
    for slope in (0.0, 0.2, 1.0):

        def activate(z: Array, slope: float = slope) -> Array:
            return np.where(z > 0, z, slope * z)

        for r in (-1.0, -0.7, 0.0, 0.3, 0.9, 1.0):
            # E f(Z1) f(Z2) is over the angle of (Z1, Z2): the length gives a factor that cancels. Kinks stand where one is 0.
            kinks = sorted({0.0, *(t % (2 * np.pi) for t in _kinks(r)), 2 * np.pi})
            parts = [
                (low + (high - low) * (nodes + 1) / 2, weights * (high - low))
                for low, high in itertools.pairwise(kinks)
            ]
            angle, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
            first, second = np.cos(angle), r * np.cos(angle) + math.sqrt(1 - r * r) * np.sin(angle)
            moments = [float((weight * activate(u) * activate(v)).sum()) for u, v in ((first, second), (first, first))]
            assert abs(float(identities.activated_cosine(r, slope)) - moments[0] / moments[1]) < 1e-12, (slope, r)
        values = np.asarray(identities.activated_cosine(grid, slope))
        assert (np.diff(values) >= -1e-12).all()
        assert (np.diff(values, 2) >= -1e-12).all()
        assert abs(values[100] - (1 - slope) ** 2 / (math.pi * (1 + slope**2))) < 1e-14
    return "18 values"


def _kinks(r: float) -> list[float]:
    turn = math.atan2(math.sqrt(1 - r * r), r)
    return [math.pi / 2, 3 * math.pi / 2, turn + math.pi / 2, turn - math.pi / 2]


@evidence(
    Kind.PROPERTY,
    "random correlations of 2 to 12 maps, slopes 0 to 1: the mean over pairs, and the simplex, which attains it",
)
def activated_maps_have_a_floor(examples: int) -> str:
    def check(maps: int, rank: int, slope: float, seed: int) -> None:
        rows = np.random.default_rng(seed).standard_normal((maps, rank))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        pairs = np.triu_indices(maps, 1)
        floor = float(identities.activated_cosine(-1.0 / (maps - 1), slope))
        seen = np.clip((rows @ rows.T)[pairs], -1, 1)
        assert float(np.mean(identities.activated_cosine(seen, slope))) >= floor - 1e-12
        centred = np.eye(maps) - 1.0 / maps
        simplex = np.asarray(identities.map_correlation(centred[:, None], np.eye(maps)))[pairs]
        assert np.abs(identities.activated_cosine(simplex, slope) - floor).max() < 1e-7

    return for_all(
        examples, st.tuples(st.integers(2, 12), st.integers(1, 12), st.floats(0, 1), st.integers(0, 99)), check
    )


def _normalised_descent(kernels: Array) -> Array:
    """Descend on the scale-invariant convolutional similarity, every kernel kept at its norm."""
    adam, norms = Adam(0.01), np.linalg.norm(kernels.reshape(len(kernels), -1), axis=1)[:, None, None, None]
    for _ in range(300):
        kernels = adam.step(kernels, convla.convolutional_similarity_gradient(kernels, normalized=True))
        kernels = kernels * norms / np.linalg.norm(kernels.reshape(len(kernels), -1), axis=1)[:, None, None, None]
    return kernels


def _polar(rows: Array) -> Array:
    u, _, v = np.linalg.svd(rows, full_matrices=False)
    return np.asarray(u @ v)


@evidence(
    Kind.MEASUREMENT,
    "8 kernels 3x3 from 3 seeds, 100 images of digits, full padding: mean modulus of the correlation over the batch, and mean modulus of the "
    "cosine within an image before, after batch normalisation, and after leaky ReLU too",
)
def what_survives_on_digits(_: int) -> str:
    images = digits()
    covariance = np.asarray(identities.window_covariance(images, (3, 3)))
    values, vectors = np.linalg.eigh(covariance)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    makers: dict[str, Callable[[Array], Array]] = {
        "at the start": lambda k: k,
        "normalised convolutional similarity": _normalised_descent,
        "orthogonal": lambda k: _polar(k.reshape(8, 9)).reshape(k.shape),
        "orthogonal in the covariance": lambda k: (_polar(k.reshape(8, 9)) @ root).reshape(k.shape),
    }
    table = {}
    for name, make in makers.items():
        rows = []
        for seed in range(3):
            kernels = make(np.random.default_rng(seed).uniform(-1 / 3, 1 / 3, (8, 1, 3, 3)))
            maps = convla.cross_correlate(images, kernels, padding="full")
            axes = (0, 2, 3)
            normal = (maps - maps.mean(axes, keepdims=True)) / maps.std(axes, keepdims=True)
            correlation = np.abs(identities.map_correlation(kernels, covariance))[np.triu_indices(8, 1)].mean()
            rows.append(
                [correlation, *(mean_cosine(m) for m in (maps, normal, np.where(normal > 0, normal, SLOPE * normal)))]
            )
        table[name] = np.mean(rows, axis=0)
    floor = float(identities.activated_cosine(-1 / 7, SLOPE))
    start, descended, whitened = (table[name] for name in ("at the start", *list(makers)[1::2]))
    assert whitened[0] < 1e-10, table
    # Both bring the cosines down before and after normalisation; after the activation none is below the floor.
    assert max(descended[1], descended[2], whitened[1], whitened[2]) < min(start[1:3]) / 3, table
    assert table["orthogonal"][2] > 2 * max(descended[2], whitened[2]), table
    assert floor < min(row[3] for row in table.values()) < start[3] < 0.5, (floor, table)
    shown = [f"{name}: {', '.join(f'{v:.3f}' for v in row)}" for name, row in table.items()]
    return "; ".join([*shown, f"least mean cosine of 8 normal maps after leaky ReLU: {floor:.3f}"])


STATEMENTS = (
    Statement(
        id="CSM-even",
        number="ours",
        title="kernels whose maps are orthogonal for every input",
        claim=r"With full padding $\langle F_1, F_2\rangle$ sees only the even part of $K_1 \circledast K_2$, and $\langle F_1, "
        r"F_2\rangle^2 \le E(K_1,K_2)\,\lVert X \circledast X\rVert^2$ with its squared norm $E \le CS$. $E = 0$ for a symmetric and an "
        r"antisymmetric kernel of any norms: their maps are orthogonal for every input, after batch normalisation too. Of three kernels "
        r"of one channel no input-free condition makes all maps orthogonal.",
        verdict=Verdict.HOLDS,
        evidence=(symmetric_and_antisymmetric_kernels_never_meet, inputs_see_the_even_part),
        functions=("convla.identities.even_similarity",),
        note="So the condition S (CSM-15), void for non-zero kernels, is sufficient and not necessary: convolutional similarity counts an "
        "odd part that no input meets.",
    ),
    Statement(
        id="CSM-norm",
        number="ours",
        title="a similarity that survives batch normalisation and leaky ReLU",
        claim=r"No function of the kernels alone bounds the cosines of normalised maps: of $S \ge 3$ kernels some pair has a cosine of at "
        r"least $\cos(\pi/S)$ on an input of any one frequency, and all are parallel at the highest. With the covariance $\Sigma$ of the "
        r"input's windows batch normalisation leaves exactly $K_1^T\Sigma K_2/\sqrt{K_1^T\Sigma K_1\,K_2^T\Sigma K_2}$. Leaky ReLU takes "
        r"jointly normal maps of correlation $r$ to an increasing, convex function of $r$, so that the mean over $S$ maps stays above its "
        r"value at $-1/(S-1)$ whatever the kernels.",
        verdict=Verdict.HOLDS,
        evidence=(
            waves_make_maps_parallel,
            batch_normalisation_leaves_the_covariance,
            activation_keeps_the_order,
            activated_maps_have_a_floor,
            what_survives_on_digits,
        ),
        functions=(
            "convla.identities.window_covariance",
            "convla.identities.map_correlation",
            "convla.identities.activated_cosine",
        ),
        note="The verdict on the question. As a bound: no, with the kernels alone; yes, exactly, with the covariance of the windows. In the "
        "mean over images: the scale-invariant convolutional similarity survives batch normalisation on digits as well as what knows the "
        "covariance. What the activation adds is the cosine of its mean, which no kernel takes away and the next normalisation does.",
    ),
)
