"""CDG Section 1, Appendices C and F, Figures 1, 13, 14: how the weights of trained networks go together, and why."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import scipy.stats

import convla
from convla.typing import NumPyArray
from proofs_checks.cdg.denoising import correlations_by_definition
from proofs_checks.statement import Kind, Statement, UnavailableError, Verdict, evidence
from proofs_checks.training import SEEDS, recorded
from proofs_checks.weights import IMAGENET, Correlations, correlations, of_digits, of_packages

__all__ = ["STATEMENTS"]


def _shipped() -> Any:
    try:
        from convla.experiments.training import observations
    except ImportError:
        raise UnavailableError("weights of networks need PyTorch: pip install 'convla[torch]'") from None
    return observations


def _cosines(kernel: NumPyArray, axis: int) -> NumPyArray:
    import torch

    return np.asarray(_shipped().channel_cosines(torch.from_numpy(kernel.astype(np.float64)), axis))


def _moments(kernel: NumPyArray) -> tuple[NumPyArray, NumPyArray]:
    import torch

    mean, deviation = _shipped().channel_moments(torch.from_numpy(kernel.astype(np.float64)))
    return np.asarray(mean), np.asarray(deviation)


@evidence(
    Kind.PROPERTY,
    "kernels of 2 to 12 channels, one filter zero: all cosines and moments, place by place; filters scaled by powers of 2, the cosines "
    "the same to the last bit; and what is recorded of a layer, from the definition",
)
def cosines_and_moments_by_definition(_: int) -> str:
    _shipped()
    rng = np.random.default_rng(0)
    for shape in ((2, 3, 2), (5, 4, 3, 1), (12, 2, 2, 2)):
        kernel = rng.standard_normal(shape)
        kernel[1] = 0.0
        for axis in (0, 1):
            slices = [np.take(kernel, i, axis=axis).ravel() for i in range(shape[axis])]
            norms = [np.linalg.norm(s) or 1.0 for s in slices]
            found = _cosines(kernel, axis)
            for (i, a), (j, b) in itertools.product(enumerate(slices), repeat=2):
                assert math.isclose(found[i, j], float(a @ b) / float(norms[i] * norms[j]), abs_tol=1e-14), (
                    shape,
                    axis,
                )
        scaled = kernel * (2.0 ** rng.integers(-5, 6, shape[0])).reshape(-1, *(1,) * (len(shape) - 1))
        assert np.array_equal(_cosines(scaled, 0), _cosines(kernel, 0)), shape
        mean, deviation = _moments(kernel)
        for place in np.ndindex(shape[1:]):
            weights = [float(filter_[place]) for filter_ in kernel]
            centre = math.fsum(weights) / len(weights)
            assert math.isclose(mean[place], centre, abs_tol=1e-15), shape
            spread = math.sqrt(math.fsum((w - centre) ** 2 for w in weights) / len(weights))
            assert math.isclose(deviation[place], spread, rel_tol=1e-13), shape
        _check_correlations(kernel)
    return "3 kernels"


def _check_correlations(kernel: NumPyArray) -> None:
    """Compare what is recorded of a layer with sums over pairs and places."""
    found = correlations(kernel)
    for axis, along in ((0, found.along_outputs), (1, found.along_inputs)):
        slices = np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
        kept = slices[:, slices.any(axis=0)]
        products = [a * b for a, b in itertools.combinations(kept, 2)]
        wanted = np.mean(2 * np.sum(products, axis=0) / (kept**2).sum(axis=0)) / (len(kept) - 1)
        assert math.isclose(along, wanted, rel_tol=1e-9, abs_tol=1e-12), (axis, along, wanted)
    upper = _cosines(kernel, 0)[np.triu_indices(len(kernel), 1)]
    assert np.allclose(
        [found.outputs, found.outputs_spread, found.outputs_positive],
        [upper.mean(), upper.std(), (upper > 0).mean()],
    )


@evidence(
    Kind.COUNTEREXAMPLE,
    "filters (1, 1) and (1, -1) of two input channels, the first multiplied by 2 and its map divided by 2: the same outputs, exactly",
)
def scaled_inputs_make_filters_correlate(_: int) -> str:
    _shipped()
    kernel, image = np.array([[[1], [1]], [[1], [-1]]]), np.array([[4, -2, 6], [1, 5, 3]])
    factors = np.array([2, 1])
    outputs = [
        convla.ConvOperator(k, (3,)).apply(x)
        for k, x in ((kernel, image), (kernel * factors[:, None], image // factors[:, None]))
    ]
    assert np.array_equal(*outputs)
    before, after = (float(_cosines(k, 0)[0, 1]) for k in (kernel, kernel * factors[:, None]))
    assert abs(before) < 1e-15, before
    assert math.isclose(after, 3 / 5), after
    return "the cosine of the filters was 0 and is 3/5"


@evidence(
    Kind.COUNTEREXAMPLE,
    "two output channels, weights c (2, 0) at six places, c = 1, 2, 3, -1, -2, -3: one pattern, scaled",
)
def scaled_places_whose_means_do_not_correlate(_: int) -> str:
    _shipped()
    scales = np.array([1, 2, 3, -1, -2, -3])
    mean, deviation = (m.ravel() for m in _moments(np.stack((2 * scales, 0 * scales))[:, :, None]))
    signed, modulus = (float(np.corrcoef(m, deviation)[0, 1]) for m in (mean, np.abs(mean)))
    assert abs(signed) < 1e-15, signed
    assert math.isclose(modulus, 1.0), modulus
    return "mean and deviation: correlation 0; modulus of the mean and deviation: 1"


def _halves(name: str) -> tuple[list[Correlations], list[Correlations]]:
    layers = [*of_packages()[name].values()]
    return layers, layers[len(layers) // 2 :]


def _mean(layers: list[Correlations], key: str) -> float:
    return float(np.nanmean([getattr(layer, key) for layer in layers]))


@evidence(
    Kind.MEASUREMENT,
    "132 layers of four networks trained on ImageNet whose weights packages ship, recorded: mean cosines along output and input channels, of "
    "all layers and of the deeper half, and by the second reading, in which each place of a filter is divided by its own norm",
)
def deeper_layers_correlate_along_outputs(_: int) -> str:
    found, first = [], 0
    for name in IMAGENET:
        layers, deeper = _halves(name)
        for outputs, inputs in (("outputs", "inputs"), ("along_outputs", "along_inputs")):
            assert _mean(deeper, outputs) > _mean(deeper, inputs), (name, outputs)
        # The layer that sees the image: its channels are colours.
        assert layers[0].inputs > 0.2 > layers[0].outputs, name
        first += _mean(layers, "inputs") > _mean(layers, "outputs")
        found.append(
            f"{name}: {_mean(deeper, 'outputs'):.4f} and {_mean(deeper, 'inputs'):.4f}, by the second reading "
            f"{_mean(deeper, 'along_outputs'):.4f} and {_mean(deeper, 'along_inputs'):.4f}; of all layers "
            f"{_mean(layers, 'outputs'):.4f} and {_mean(layers, 'inputs'):.4f}"
        )
    assert sum(len(of_packages()[name]) for name in IMAGENET) == 132
    assert first >= 3, first
    return "; ".join(found)


@evidence(
    Kind.MEASUREMENT,
    "the last layer of VGG-16 and the expanding layer of EfficientNet-Lite0 that is last, recorded: mean, standard deviation and positive share "
    "of the cosines of all pairs",
)
def cosines_of_representative_layers(_: int) -> str:
    found = []
    for name, part in (("VGG-16", ""), ("EfficientNet-Lite0", "expand")):
        label, layer = [(label, row) for label, row in of_packages()[name].items() if part in label][-1]
        assert layer.outputs_positive > 0.6 > layer.inputs_positive > 0.4, (name, layer)
        found.append(
            f"{name} {label}: outputs {layer.outputs:.3f} ± {layer.outputs_spread:.3f}, {layer.outputs_positive:.0%} positive, inputs "
            f"{layer.inputs:.4f} ± {layer.inputs_spread:.3f}, {layer.inputs_positive:.0%} positive"
        )
    return "; ".join(found)


@evidence(
    Kind.MEASUREMENT,
    "the same networks: over the places of each layer's filters, correlation of the deviation over output channels with the mean over them, and with "
    "its modulus",
)
def moduli_of_means_go_with_deviations(_: int) -> str:
    found = []
    for name in IMAGENET:
        layers, _deeper = _halves(name)
        signed, modulus = (np.array([getattr(layer, key) for layer in layers]) for key in ("signed", "modulus"))
        assert float(np.median(signed)) < 0.05, (name, signed)
        # A sign test: positive in more than half of the layers.
        share = scipy.stats.binomtest(int((modulus > 0).sum()), len(modulus), alternative="greater").pvalue
        assert share < 0.02, (name, share)
        found.append(
            f"{name}: medians {np.median(signed):+.2f} with the mean, {np.median(modulus):+.2f} with its modulus, which is positive in "
            f"{int((modulus > 0).sum())} of {len(modulus)} layers"
        )
    return "; ".join(found)


def _of_kind(name: str, part: str) -> list[Correlations]:
    return [layer for label, layer in of_packages()[name].items() if part in label]


@evidence(
    Kind.MEASUREMENT,
    "the 55 expanding layers of three EfficientNet-Lites, which an activation follows, and the 58 projecting ones, which none follows and one precedes, "
    "recorded: layers whose filters correlate more than their input channels",
)
def correlation_goes_with_the_activation_behind(_: int) -> str:
    found, counts = [], np.zeros((2, 4), int)
    for name in IMAGENET[1:]:
        rows = []
        for k, part in enumerate(("_expand_", "_project_")):
            layers = _of_kind(name, part)
            more = sum(layer.outputs > layer.inputs for layer in layers)
            by_place = sum(layer.along_outputs > layer.along_inputs for layer in layers)
            counts[k] += (len(layers), more, by_place, sum(layer.inputs > 0 for layer in layers))
            rows.append(
                f"{more} of {len(layers)}, means {_mean(layers, 'outputs'):.4f} and {_mean(layers, 'inputs'):.4f}"
            )
        found.append(f"{name}: expanding {rows[0]}, projecting {rows[1]}")
    for column in (1, 2, 3):
        table = np.stack((counts[:, column], counts[:, 0] - counts[:, column]))
        assert scipy.stats.fisher_exact(table).pvalue < 1e-9, counts
    assert counts[:, 0].tolist() == [55, 58], counts
    shares = counts[:, 1:] / counts[:, :1]
    assert shares[0, 0] > 0.9 > 0.1 > shares[1, 0], counts
    assert shares[1, 2] > 0.9, counts
    found.append(
        f"mean cosine of input channels above 0 in {counts[0, 3]} expanding and {counts[1, 3]} projecting layers"
    )
    return "; ".join(found)


@evidence(
    Kind.MEASUREMENT,
    "the final weights of the runs of `cdg-figure11` on the digits, 16 seeds, recorded: share of positive cosines of filters, and correlation "
    "of the deviation with the mean and with its modulus, layer by layer; the mean cosines are those recorded during training",
)
def final_weights_on_digits(_: int) -> str:
    found = []
    for arm, seeds in of_digits().items():
        assert len(seeds) == SEEDS, arm
        for layers, run in zip(seeds, recorded()["cdg-figure11"][arm], strict=True):
            for key, curve in zip(("outputs", "inputs"), run["correlation"], strict=True):
                seen = [getattr(layer, key) for layer in layers]
                wanted = [math.nan if value is None else value for value in curve]
                # Two sessions: rounding grows over 12 epochs.
                assert np.allclose(seen, wanted, rtol=0, atol=0.02, equal_nan=True), (arm, seen, wanted)
        rows = []
        for number in (1, 2):  # layers of more than one input channel
            own = [layers[number] for layers in seeds]
            rows.append(
                f"layer {number + 1} {_mean(own, 'outputs_positive'):.1%} positive, {_mean(own, 'signed'):+.2f} and {_mean(own, 'modulus'):+.2f}"
            )
        found.append(f"{arm}: {', '.join(rows)}")
    return "; ".join(found)


STATEMENTS = (
    Statement(
        id="CDG-trained",
        number="Section 1, Appendix F, Figures 1, 13",
        title="correlation of the weights of trained networks",
        claim="Weights of networks trained on ImageNet correlate along output channels, frequently in deeper layers, more than along input "
        "channels, whose correlation is distributed like noise.",
        verdict=Verdict.STATISTICAL,
        evidence=(
            deeper_layers_correlate_along_outputs,
            cosines_of_representative_layers,
            final_weights_on_digits,
            cosines_and_moments_by_definition,
            correlations_by_definition,
        ),
        functions=(
            "convla.experiments.training.observations.channel_cosines",
            "convla.experiments.training.observations.channel_correlation",
        ),
        note="The source's AlexNet, DenseNet and ResNet-50 are not here, and its correlation is not defined; the mean cosine of two filters is taken, and a "
        "second reading beside it. In the deeper half of each of four other networks it holds by both. In the mean over all layers, which the source "
        "tabulates, input channels correlate more in three of the four by the cosines: the first layer's are colours.",
    ),
    Statement(
        id="CDG-scaling",
        number="Appendix F, Figure 14",
        title="whether scalings make the correlation",
        claim="The correlation is invariant to re-scalings; and mean and standard deviation of output channels do not correlate positively, which they would if "
        "scalings made it, as a scaling amplifies both.",
        verdict=Verdict.CORRECTED,
        correction="The cosine of two filters is invariant to scalings of output channels alone; those that a normalisation before the layer makes, of its input "
        "channels, change it. And a scaling amplifies the modulus of a mean: means of both signs need not correlate with deviations however much "
        "is scaled, and their moduli do, in most layers of the networks that are here. What does not notice a scaling is the correlation at each place of a "
        "filter, divided by its norm; by that one the deeper layers still correlate along output channels (CDG-trained).",
        evidence=(
            scaled_inputs_make_filters_correlate,
            scaled_places_whose_means_do_not_correlate,
            moduli_of_means_go_with_deviations,
            cosines_and_moments_by_definition,
        ),
        functions=(
            "convla.experiments.training.observations.channel_cosines",
            "convla.experiments.training.observations.channel_moments",
        ),
    ),
    Statement(
        id="CDG-activation",
        number="ours",
        title="where weights correlate along output channels",
        claim="In networks of inverted bottlenecks trained on ImageNet, filters correlate more than input channels do where an activation follows the layer, and "
        "less where none does.",
        verdict=Verdict.STATISTICAL,
        evidence=(correlation_goes_with_the_activation_behind, cosines_and_moments_by_definition),
        functions=("convla.experiments.training.observations.channel_cosines",),
        note="The source's Appendix F leaves the reason of the correlation open. Both kinds of layers are 1x1, alternate in one network and share its training, so that "
        "data, optimiser and depth are the same; where the activation stands differs, and with it which side is the wider.",
    ),
)
