"""CSM Section 5: how often a decrease of similarity is not, as kernels, inputs and the length of the descent vary."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

import convla
from convla import identities
from convla.experiments.descents.pairs import descend_pairs
from convla.similarity.pairs import feature_map_gram
from convla.typing import AnyArray, Padding
from convla.typing import NumPyArray as Array
from proofs_checks.draws import for_all
from proofs_checks.statement import Kind, Statement, Verdict, evidence

__all__ = ["STATEMENTS"]


def _products(k1: Array, k2: Array, grams: Array) -> AnyArray:
    """Return <F1, F2> = K1^T T K2 of every pair."""
    return np.einsum("ri,rij,rj->r", k1, np.broadcast_to(grams, (len(k1), *grams.shape[-2:])), k2)


def _grams(x: Array, n: int, padding: Padding = "full") -> Array:
    return np.asarray(feature_map_gram(x[:, None], (n,), padding=padding))


@evidence(
    Kind.PROPERTY,
    "N = 2, 3, 9, full and valid padding, uniform and normal inputs: 60 descents each with steps of SGD, their ends against the closed "
    "form; and the criterion against the products before and after",
)
def orthogonal_ends_in_closed_form(_: int) -> str:
    compared = 0
    paddings: tuple[Padding, ...] = ("full", "valid")
    for n, padding, white in itertools.product((2, 3, 9), paddings, (False, True)):
        rng = np.random.default_rng(n)
        k1, k2 = rng.uniform(-1, 1, (2, 60, n))
        x = rng.standard_normal((60, 20)) if white else rng.uniform(0, 1, (60, 20))
        grams = _grams(x, n, padding)
        ends = identities.orthogonalized_pair(k1, k2)
        sums = [np.linalg.norm(ends[0] + sign * ends[1], axis=1) for sign in (1, -1)]
        starts = [np.linalg.norm(k1 + sign * k2, axis=1) for sign in (1, -1)]
        # Both have the geometric mean of their lengths, to rounding, along what they were.
        assert np.allclose(sums[0], sums[1], rtol=1e-13, atol=0)
        assert np.allclose(sums[0] ** 2, starts[0] * starts[1], rtol=1e-13, atol=0)
        for sign, length in zip((1, -1), starts, strict=True):
            along = np.sum((ends[0] + sign * ends[1]) * (k1 + sign * k2), axis=1)
            assert np.allclose(along, sums[0] * length, rtol=1e-12, atol=0)
        run = descend_pairs(
            k1, k2, grams, loss="kernel", toeplitz=padding == "full", optimizer="SGD", learning_rate=0.02 / n, iterations=4000
        )  # fmt: skip
        for end, reached in zip(ends, (run.k1, run.k2), strict=True):
            cosine = np.sum(end * reached, axis=1) / np.linalg.norm(end, axis=1) / np.linalg.norm(reached, axis=1)
            # What is left of <K1, K2> after finitely many steps is its root of the loss.
            left = np.sqrt(run.loss[:, 1]) / np.linalg.norm(reached, axis=1) ** 2
            assert (1 - cosine <= left + 1e-9).all(), (n, padding, white)
            assert (np.linalg.norm(reached, axis=1) <= np.linalg.norm(end, axis=1) * (1 + left) + 1e-12).all()
        before, after = np.abs(_products(k1, k2, grams)), np.abs(_products(k1, k2, grams))
        clear = np.abs(after - before) > 1e-9 * (1 + before)
        fails = identities.orthogonality_fails(k1, k2, grams)
        assert np.array_equal(fails[clear], (after >= before)[clear]), (n, padding, white)
        compared += int(clear.sum())
    return f"{compared} ends and verdicts"


@evidence(
    Kind.PROPERTY,
    "random kernels of 2 to 6 taps, inputs of 3 to 8 entries, ill-scaled: the criterion against the products before and after",
)
def orthogonality_fails_by_the_quotients(examples: int) -> str:
    failures = 0

    def check(n: int, m: int, seed: int, power: int) -> None:
        nonlocal failures
        rng = np.random.default_rng(seed)
        k1, k2 = rng.standard_normal((2, 8, n)) * 2.0**power
        k2 *= 10.0 ** rng.integers(-2, 3)
        grams = _grams(rng.standard_normal((8, m)) + rng.integers(0, 3), n)
        before, after = (np.abs(_products(*pair, grams)) for pair in ((k1, k2), identities.orthogonalized_pair(k1, k2)))
        clear = np.abs(after - before) > 1e-9 * (before + after)
        fails = identities.orthogonality_fails(k1, k2, grams)
        assert np.array_equal(fails[clear], (after >= before)[clear]), (n, m, seed, power)
        failures += int(fails.sum())

    drawn = st.tuples(st.integers(2, 6), st.integers(3, 8), st.integers(0, 2**32), st.integers(-20, 20))
    said = for_all(examples, drawn, check)
    assert failures > 0, "no failure was drawn"
    assert bool(identities.orthogonality_fails([1.0, 0.0], [0.0, 1.0], [[2.0, 1.0], [1.0, 2.0]])), (
        "nothing is to be made"
    )
    return f"{said} of 8 pairs, {failures} failures among them"


@evidence(
    Kind.MEASUREMENT,
    "3,000 pairs with entries uniform on (-1, 1), in closed form: inputs uniform on (0, 1), N = 4, 16, 64, M = 4 N; white inputs, N = "
    "64, M = 128 and 512, beside the limit",
)
def orthogonality_fails_every_second_time(_: int) -> str:
    found = []
    for n in (4, 16, 64):
        rng = np.random.default_rng(0)
        k1, k2 = rng.uniform(-1, 1, (2, 3000, n))
        share = float(np.mean(identities.orthogonality_fails(k1, k2, _grams(rng.uniform(0, 1, (3000, 4 * n)), n))))
        # Below 1/2 by a skewness, which goes like 1 / sqrt(N); the standard error of the share is 0.009.
        assert 0.2 / math.sqrt(n) - 0.02 < 0.5 - share < 0.4 / math.sqrt(n) + 0.02, (n, share)
        found.append(f"inputs with a mean, N = {n}: {share:.3f}")
    for m in (128, 512):
        rng = np.random.default_rng(1)
        k1, k2 = rng.uniform(-1, 1, (2, 3000, 64))
        share = float(np.mean(identities.orthogonality_fails(k1, k2, _grams(rng.standard_normal((3000, m)), 64))))
        limit = identities.orthogonality_failure_limit(64, m)
        assert abs(share - limit) < 3 * math.sqrt(limit * (1 - limit) / 3000), (m, share, limit)
        found.append(f"white inputs, N = 64, M = {m}: {share:.3f}, limit {limit:.3f}")
    return "; ".join(found)


@evidence(
    Kind.PROOF,
    "Sheppard's probability against the count of 400,000 directions, and the sum under the root term by term",
)
def limits_are_the_probabilities_they_claim(_: int) -> str:
    angles = (np.arange(400_000) + 0.5) * (2 * np.pi / 400_000)
    for ratio, correlation in itertools.product((0.01, 0.3, 1.0, 4.0), (-0.9, 0.0, 0.5)):
        # A normal pair is a random direction times a length, which does not decide.
        first = np.cos(angles)
        second = ratio * (correlation * np.cos(angles) + math.sqrt(1 - correlation**2) * np.sin(angles))
        share = float(np.mean(np.abs(second) >= np.abs(first)))
        # The event is two arcs: each of four ends is off by less than one direction.
        assert abs(share - identities.crossing_probability(ratio, correlation)) <= 4 / 400_000
    for n, m in itertools.product((1, 2, 5, 16), (16, 40)):
        # Kernels of signs: <K1, K2> has variance N, the sum of its squared lags (C_t + C_-t)^2 the mean 2 (N - t).
        spread = sum(Fraction(2 * (n - t) * (m - t), n * m * m) for t in range(1, n))
        wanted = math.atan(2 * math.sqrt(spread)) / math.pi
        assert abs(identities.orthogonality_failure_limit(n, m) - wanted) < 1e-14
    return "12 probabilities, 8 limits"


@evidence(
    Kind.COUNTEREXAMPLE,
    "exhaustive over kernels with entries -2 .. 2 and inputs 0, 1, in the order of their size; one exact step",
)
def similarity_is_never_guaranteed(_: int) -> str:
    for n in (1, 2):
        for taps in itertools.product(range(-2, 3), repeat=2 * n):
            kernels = np.array([Fraction(v) for v in taps], dtype=object).reshape(2, 1, n)
            slope = convla.convolutional_similarity_gradient(kernels)
            stepped = kernels - Fraction(1, 100) * slope
            for m in (1, 2):
                for entries in itertools.product((0, 1), repeat=m):
                    x = np.array(entries, dtype=object)
                    before, after = (
                        abs(identities.feature_inner_product(k[0, 0], k[1, 0], x)) for k in (kernels, stepped)
                    )
                    if after > before:
                        assert n > 1, "kernels of one tap decrease always"
                        rest = convla.convolutional_similarity(stepped) / convla.convolutional_similarity(kernels)
                        assert rest < 1
                        return (
                            f"K1 = {taps[:n]}, K2 = {taps[n:]}, X = {entries}: |<F1, F2>| grows from {before} to "
                            f"{float(after):.4f} while the similarity falls to {float(rest):.2f} of itself"
                        )
    raise AssertionError("the similarity of the maps never grew")


@evidence(
    Kind.PROPERTY,
    "200 pairs, N = 2, 5, 9, both engines, 30 steps: kernels twice as large at a quarter of the rate, bit for bit",
)
def scale_and_rate_are_one_number(_: int) -> str:
    for n, engine in itertools.product((2, 5, 9), ("reference", "numba")):
        k1, k2 = np.random.default_rng(n).uniform(-1, 1, (2, 200, n))
        grams = np.broadcast_to(np.eye(n), (200, n, n)).copy()
        runs = [
            descend_pairs(
                scale * k1, scale * k2, grams, loss="convolutional", toeplitz=True, optimizer="SGD", engine=engine,
                learning_rate=0.02 / scale**2, iterations=30,
            )
            for scale in (1.0, 2.0)
        ]  # fmt: skip
        assert np.array_equal(2.0 * runs[0].k1, runs[1].k1)
        assert np.array_equal(2.0 * runs[0].k2, runs[1].k2)
    return "1,200 ends"


@evidence(
    Kind.MEASUREMENT,
    "4,000 pairs uniform on (-1, 1), N = 5, 400 steps of SGD at rate 0.02, inputs uniform on (0, 1): failures over M and padding, beside "
    "those for the mean of T over M, which knows mean and variance of the inputs alone",
)
def inputs_enter_by_mean_and_variance(_: int) -> str:
    n, count = 5, 4000
    rng = np.random.default_rng(0)
    k1, k2 = rng.uniform(-1, 1, (2, count, n))
    limit = 0.25 * np.ones((n, n)) + np.eye(n) / 12
    run = descend_pairs(
        k1, k2, np.broadcast_to(limit, (count, n, n)).copy(), loss="convolutional", toeplitz=True, optimizer="SGD",
        learning_rate=0.02, iterations=400,
    )  # fmt: skip

    def failures(grams: Array) -> float:
        return float(np.mean(np.abs(_products(run.k1, run.k2, grams)) >= np.abs(_products(k1, k2, grams))))

    wanted = failures(limit[None])
    error = math.sqrt(2 * wanted * (1 - wanted) / count)
    found = [f"limit {100 * wanted:.2f} %"]
    paddings: tuple[Padding, ...] = ("full", "same", "valid")
    for m, padding in ((16, "full"), *((64, padding) for padding in paddings), (512, "full")):
        share = failures(_grams(rng.uniform(0, 1, (count, m)), n, padding))
        assert abs(share - wanted) < 4 * error, (m, padding, share, wanted)
        found.append(f"M = {m}, {padding}: {100 * share:.2f} %")
    return "; ".join(found)


@evidence(
    Kind.MEASUREMENT,
    "N = 3, 1,000 pairs uniform on (-1, 1), inputs uniform on (0, 1), M = 64; times rate * steps = 4, 16, 64, 256, 1024: the shorter "
    "kernel of every pair against its bound, and the mean modulus of <F1, F2> with the power of the time that it falls by",
)
def products_fall_like_the_square_of_time(_: int) -> str:
    rng = np.random.default_rng(0)
    n, count, rate = 3, 1000, 0.02
    start = rng.uniform(-1, 1, (2, count, n))
    grams = _grams(rng.uniform(0, 1, (count, 64)), n)
    floor = identities.least_similarity_enclosure(n)[0]
    squares = np.sort((start**2).sum(axis=2), axis=0)
    (k1, k2), times = start, (4, 16, 64, 256, 1024)
    sizes = [float(np.abs(_products(k1, k2, grams)).mean())]
    for time, before in zip(times, (0, *times), strict=False):
        run = descend_pairs(
            k1, k2, grams, loss="convolutional", toeplitz=True, optimizer="SGD", learning_rate=rate,
            iterations=round((time - before) / rate),
        )  # fmt: skip
        k1, k2 = run.k1, run.k2
        shorter, longer = np.sort([(k1**2).sum(axis=1), (k2**2).sum(axis=1)], axis=0)
        # A step takes 4 rate CS off the square, and adds the square of a slope, which is at most rate N |K1|^2 of that. Steps
        # move the gap a little, which the flow keeps: the lesser of before and after.
        gap = np.minimum(squares[1] - squares[0], longer - shorter)
        flowed = time * (1 - rate * n * squares[1])
        bound = gap / (np.exp(np.minimum(4 * floor * gap * flowed, 700)) * (1 + gap / squares[0]) - 1)
        assert (shorter <= bound + 1e-300).all(), (time, float((shorter / bound).max()))
        sizes.append(float(np.abs(_products(k1, k2, grams)).mean()))
    powers = [math.log(b / a, 4) for a, b in itertools.pairwise(sizes[1:])]
    # They fall to their end, about which a mean over so few pairs of a heavy-tailed law moves.
    assert powers[0] > powers[1] > max(powers[2:]), powers
    assert all(-2.1 < power < -1.6 for power in powers[2:]), powers
    return "; ".join(
        [f"time 4: {sizes[1]:.3g}"]
        + [f"time {t}: {v:.3g}, power {p:.2f}" for t, v, p in zip(times[1:], sizes[2:], powers, strict=True)]
    )


@evidence(
    Kind.PROOF,
    "times 0.01 to 2000: against the flow of every pair of powers, integrated numerically and averaged by Gauss and Laguerre; the "
    "leading term at long times",
)
def long_kernels_decouple(_: int) -> str:
    from scipy.integrate import solve_ivp

    nodes, weights = np.polynomial.laguerre.laggauss(24)
    a, b = (m.ravel() for m in np.meshgrid(nodes, nodes))
    weight = np.outer(weights, weights).ravel() * a * b
    for time in (0.01, 0.5, 2.0):
        # Each power falls by the product of the two, at the rate 4 times their scale, which time has in it.
        flow = solve_ivp(
            lambda _t, y: np.concatenate([-y[: a.size] * y[a.size :]] * 2), (0, time), np.concatenate((a, b)), rtol=1e-9,
            atol=1e-12,
        )  # fmt: skip
        end = flow.y[:, -1]
        factor = np.sqrt(end[: a.size] * end[a.size :] / (a * b))
        zeroth, first, second = (float((weight * factor**power).sum()) for power in (0, 1, 2))
        assert abs(zeroth - 1) < 1e-12
        wanted = identities.crossing_probability(math.sqrt(second), first / math.sqrt(second))
        found = identities.similarity_failure_limit(time)
        # The rule of 24 points is off where g has its kink, at a = b, the more so the longer the time.
        assert abs(found / wanted - 1) < 0.02, (time, found, wanted)
    ratios = [identities.similarity_failure_limit(t) * t**1.5 * math.sqrt(3) / 2 for t in (200.0, 2000.0, 20000.0)]
    assert all(abs(ratio - 1) < 1.2 * wanted for ratio, wanted in zip(ratios, (0.05, 0.01, 0.002), strict=True)), ratios
    return f"times the power 3/2 of the time, over 2 / sqrt(3): {', '.join(f'{r:.4f}' for r in ratios)}"


@evidence(
    Kind.MEASUREMENT,
    "3,000 pairs of normal kernels, N = 32, white inputs in the limit of their length, steps of SGD to times 4 N rate * steps of 2 and "
    "8, beside the limit of long kernels",
)
def long_kernels_follow_the_limit(_: int) -> str:
    n, count, rate = 32, 3000, 0.0005
    k1, k2 = np.random.default_rng(0).standard_normal((2, count, n))
    found = []
    for time in (2.0, 8.0):
        run = descend_pairs(
            k1, k2, np.broadcast_to(np.eye(n), (count, n, n)).copy(), loss="convolutional", toeplitz=True, optimizer="SGD",
            learning_rate=rate, iterations=round(time / (4 * n * rate)),
        )  # fmt: skip
        share = float(np.mean(run.similarity[:, 1] >= run.similarity[:, 0]))
        limit = identities.similarity_failure_limit(time)
        # Three standard errors, and a few 1 / N by which a finite length is off.
        assert abs(share - limit) < 3 * math.sqrt(limit * (1 - limit) / count) + 4 / n * limit, (time, share, limit)
        found.append(f"time {time:g}: {100 * share:.2f} %, limit {100 * limit:.2f} %")
    return "; ".join(found)


STATEMENTS = (
    Statement(
        id="CSM-end",
        number="ours",
        title="where kernels made orthogonal end, and how often that fails",
        claim=r"Minimising $\langle K_1, K_2\rangle^2$ by gradient flow only changes the lengths of $S = K_1 + K_2$ and $D = K_1 - "
        r"K_2$, to their geometric mean. It leaves $|\langle F_1, F_2\rangle|$ no smaller than it was exactly if the longer of $S$ and "
        r"$D$ has the smaller quotient $\lVert F\rVert^2/\lVert K\rVert$, for every input and padding. For independent entries of "
        r"mean 0 the probability of that tends, as $N \to \infty$ with $M \gg N$, to $\frac12$ if the inputs have a mean, and as $N/M "
        r"\to \kappa$ to $\frac1\pi\arctan 2\sqrt{\kappa(1-\kappa/3)}$ if they are white.",
        verdict=Verdict.HOLDS,
        evidence=(
            orthogonal_ends_in_closed_form,
            orthogonality_fails_by_the_quotients,
            limits_are_the_probabilities_they_claim,
            orthogonality_fails_every_second_time,
        ),
        functions=(
            "convla.identities.orthogonalized_pair",
            "convla.identities.orthogonality_fails",
            "convla.identities.crossing_probability",
            "convla.identities.orthogonality_failure_limit",
        ),
        note="The proofs stand in [what we found](what-we-found.md).",
    ),
    Statement(
        id="CSM-guarantee",
        number="ours",
        title='when "guaranteed to decrease" is true',
        claim=r"For $N = 1$ the gradient flow of convolutional similarity always decreases $|\langle F_1, F_2\rangle|$; for $N \ge 2$ it fails "
        r"with positive probability, after any time. Kernels $s$ times as large at a rate $s^{-2}$ times as large do the "
        r"same; as $M$ grows, input and padding enter by the input's mean autocorrelation alone; for fixed $N \ge 3$ the probability is "
        r"$O(\tau^{-2})$ in the time $\tau$, rate times steps; and for long kernels and white inputs it tends to a function of "
        r"$t = 4Ns^2\tau$ alone, which is about $\frac{2}{\sqrt3}\,t^{-3/2}$ for long times.",
        verdict=Verdict.STATISTICAL,
        evidence=(
            similarity_is_never_guaranteed,
            scale_and_rate_are_one_number,
            long_kernels_decouple,
            long_kernels_follow_the_limit,
            inputs_enter_by_mean_and_variance,
            products_fall_like_the_square_of_time,
        ),
        functions=(
            "convla.identities.similarity_failure_limit",
            "convla.experiments.descents.pairs.descend_pairs",
            "convla.convolutional_similarity_gradient",
            "convla.identities.least_similarity_enclosure",
        ),
        note=r"$s^2$ is the variance of a kernel's entries. The derivations stand in [what we found](what-we-found.md); the limits are "
        "limits, and at finite sizes the figures are what the checks found.",
    ),
)
