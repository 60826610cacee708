"""CDG Section 1.2, Appendix C, Figure 11: whether averaging over channels denoises gradients, and what it does to weights."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

import convla
from convla.experiments.statistics import paired_difference
from convla.typing import NumPyArray as Array
from proofs_checks.draws import for_all, integers, layers
from proofs_checks.statement import Kind, Statement, UnavailableError, Verdict, evidence
from proofs_checks.training import AVERAGED, SEEDS, averaging_gains, digits_training, recorded, run

__all__ = ["STATEMENTS"]

MARGIN = 0.2
"""Of the logarithm of a gain: what is less is taken to be none."""


@evidence(
    Kind.PROPERTY,
    "rational signals and noises, 1 to 3 axes, lambda = 1/2, 1, 2, 3, every engine that takes them: the gain, exactly, and its sign",
)
def averaging_helps_where_the_signal_is_common(examples: int) -> str:
    helped = 0

    def check(signal: Array, noise: Array) -> None:
        nonlocal helped
        if signal.shape != noise.shape:
            noise = np.resize(noise, signal.shape)
        if not signal.any() or not noise.any():
            return
        for lam in (Fraction(1, 2), Fraction(1), Fraction(2), Fraction(3)):
            energies, shares = [], []
            for part in (signal, noise):
                exact = np.array([Fraction(int(v)) for v in part.ravel()], dtype=object).reshape(part.shape)
                energies.append([(f * f).sum() for f in (exact, convla.reweighted_gradient(exact, lam))])
                mean = exact.sum(axis=0) / Fraction(len(exact))
                shares.append(len(exact) * (mean * mean).sum() / energies[-1][0])
            gain = energies[0][1] * energies[1][0] / (energies[0][0] * energies[1][1])
            wanted = [share + (1 - share) / lam**2 for share in shares]
            assert gain == wanted[0] / wanted[1], (signal, noise, lam)
            if lam > 1:
                assert (gain > 1) == (shares[0] > shares[1]), (signal, noise, lam)
                helped += gain > 1

    drawn = layers(integers, least=2).map(lambda d: d[0])
    said = for_all(examples, st.tuples(drawn, drawn), check)
    assert helped > 0, "no gain was above 1"
    return said


@evidence(
    Kind.MEASUREMENT,
    "BasicCNN on the digits, batches of 16, lambda = 3, 16 seeds, recorded: gain of the signal over the noise in each convolution, before "
    "training and after 3 epochs, as factors with intervals for all six; below 1.22 is none",
)
def gains_on_digits(_: int) -> str:
    gains = np.log(np.array(recorded()["gains"]))
    assert gains.shape == (SEEDS, 2, 3)
    found = []
    for time, words in enumerate(("before", "after 3 epochs")):
        for layer in range(3):
            gap = paired_difference(gains[:, time, layer].tolist(), [0.0] * SEEDS, 6)
            assert gap.within(MARGIN), (words, layer, gap)
            low, mean, high = (float(np.exp(v)) for v in (gap.simultaneous_low, gap.mean, gap.simultaneous_high))
            found.append(f"{words}, layer {layer + 1}: {mean:.3f} [{low:.3f}, {high:.3f}]")
    return "; ".join(found)


@evidence(
    Kind.MEASUREMENT,
    "the runs of `cdg-figure11` on the digits, 16 seeds in pairs, recorded: mean cosine of two filters and of two input channels' weights after "
    "training, mean over the layers",
)
def output_channels_come_to_correlate(_: int) -> str:
    arms = recorded()["cdg-figure11"]
    means = {
        arm: np.array([[np.nanmean(np.array(v, dtype=float)) for v in seed["correlation"]] for seed in seeds])
        for arm, seeds in arms.items()
    }
    found = [f"SGD: {means['SGD'][:, 0].mean():+.4f} along outputs, {means['SGD'][:, 1].mean():+.4f} along inputs"]
    for arm in ("re-weighted", "Sobolev"):
        gaps = [paired_difference(means[arm][:, k].tolist(), means["SGD"][:, k].tolist(), 4) for k in (0, 1)]
        assert gaps[0].simultaneous_low > 0.01, gaps
        assert gaps[1].within(0.01), gaps
        shown = [f"{gap.mean:+.4f} [{gap.simultaneous_low:+.4f}, {gap.simultaneous_high:+.4f}]" for gap in gaps]
        found.append(f"{arm} less SGD: {shown[0]} along outputs, {shown[1]} along inputs")
    assert means["SGD"][:, 0].mean() < 0.01, found
    return "; ".join(found)


@evidence(
    Kind.MEASUREMENT,
    "one epoch of the re-weighted arm and of the gains of one seed before training, run now, against the record",
)
def the_record_of_averaging_is_what_runs(_: int) -> str:
    fresh = averaging_gains(0, 0)[0]
    # Gains are quotients of sums over 90 batches, which rounding moves by parts in a million.
    assert np.allclose(fresh, recorded()["gains"][0][0], rtol=1e-3, atol=0), fresh
    curves = run(digits_training("cdg-figure11", "re-weighted"), 0, 1)
    before = run(digits_training("cdg-figure11", "SGD"), 0, 1)
    assert np.array_equal(curves.output_correlation[0], before.output_correlation[0], equal_nan=True)
    moved = curves.over_layers("output_correlation") - before.over_layers("output_correlation")
    assert moved[1] > 0.005, moved
    return f"gains {', '.join(f'{v:.3f}' for v in fresh)}; after one epoch {moved[1]:+.3f} along outputs"


@evidence(
    Kind.PROPERTY,
    "kernels of 2 to 20 channels, one of them zero: the mean cosine over all pairs, and at each distance, pair by pair",
)
def correlations_by_definition(_: int) -> str:
    try:
        import torch

        from convla.experiments.training.observations import DISTANCES, channel_correlation
    except ImportError:
        raise UnavailableError("weights of networks need PyTorch: pip install 'convla[torch]'") from None
    rng = np.random.default_rng(0)
    for outputs, inputs in ((2, 3), (5, 4), (20, 2)):
        kernel = rng.standard_normal((outputs, inputs, 3))
        kernel[1] = 0.0
        for axis, count in enumerate((outputs, inputs)):
            slices = [np.take(kernel, i, axis=axis).ravel() for i in range(count)]
            unit = [s / np.linalg.norm(s) if s.any() else s for s in slices]
            cosines = {(i, j): float(unit[i] @ unit[j]) for i, j in itertools.combinations(range(count), 2)}
            wanted = [float(np.mean([*cosines.values()]))]
            for distance in range(1, DISTANCES + 1):
                near = [value for (i, j), value in cosines.items() if j - i == distance]
                wanted.append(float(np.mean(near)) if near else math.nan)
            found = channel_correlation(torch.from_numpy(kernel), axis)
            assert np.allclose(found, wanted, rtol=1e-12, atol=1e-14, equal_nan=True), (outputs, inputs, axis)
    return "6 sets of channels, 17 means of each"


STATEMENTS = (
    Statement(
        id="CDG-denoise",
        number="ours",
        title="whether averaging over output channels denoises gradients",
        claim=r"With shares $a_s$, $a_n$ of the energies of signal and noise in their means over output channels, the re-weighted gradient "
        r"multiplies the signal over the noise by $\frac{a_s + (1-a_s)/\lambda^2}{a_n + (1-a_n)/\lambda^2}$: above 1, for $\lambda > 1$, "
        r"exactly if $a_s > a_n$. On the digits it is equivalent to 1 in every layer, before and early in training, with a margin of a "
        r"factor of 1.22.",
        verdict=Verdict.STATISTICAL,
        evidence=(averaging_helps_where_the_signal_is_common, gains_on_digits, the_record_of_averaging_is_what_runs),
        functions=("convla.reweighted_gradient",),
        note=f"$\\lambda = {AVERAGED:g}$ in Eq. (8), that of the source's experiments. The margin is ours.",
    ),
    Statement(
        id="CDG-correlated",
        number="ours",
        title="correlation of weights along output and input channels",
        claim="On the digits both channel-directed gradients make filters correlate along output channels, and leave the correlation along "
        "input channels as it was, with a margin of 0.01. Plain SGD makes no correlation along output channels.",
        verdict=Verdict.STATISTICAL,
        evidence=(output_channels_come_to_correlate, the_record_of_averaging_is_what_runs, correlations_by_definition),
        functions=("convla.experiments.training.observations.channel_correlation",),
        note="The source's Figures 1 and 11 show some for SGD too, in ResNet-56 on CIFAR-10 and in networks trained on ImageNet: `convla train "
        "cdg-figure11`.",
    ),
)
