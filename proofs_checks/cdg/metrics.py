"""CDG Section 2: the metrics, their gradients, the printed code, descent, and permutations of channels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

import convla
from convla import identities
from convla.testing import gamma
from convla.typing import AnyArray
from convla.typing import NumPyArray as Array
from proofs_checks.draws import for_all, integers, layers
from proofs_checks.statement import Kind, Statement, Verdict, evidence

__all__ = ["STATEMENTS", "WEIGHTS", "fractions"]


WEIGHTS = (Fraction(1, 7), Fraction(1), Fraction(5, 2))
"""Both sides are a + b lambda + c / lambda in the weight: three values of it decide."""


def fractions(values: object) -> Array:
    """Return integers as an object array of Fractions."""
    array = np.asarray(values)
    result = np.empty(array.shape, dtype=object)
    result.ravel()[:] = [Fraction(int(v)) for v in array.ravel()]
    return result


@evidence(Kind.PROOF, "all unit f and k, O <= 8 output and 1 or 2 other channels, three lambdas: exact fractions")
def reweighted_gradient_on_the_bases(_: int) -> str:
    return _gradients_on_the_bases(convla.reweighted_gradient, identities.reweighted_inner_product)


@evidence(Kind.PROOF, "all unit f and k, O <= 8 output and 1 or 2 other channels, three lambdas: exact fractions")
def sobolev_gradient_on_the_bases(_: int) -> str:
    return _gradients_on_the_bases(convla.sobolev_gradient, identities.sobolev_inner_product)


def _gradients_on_the_bases(transform, metric) -> str:  # type: ignore[no-untyped-def]
    """Assert <O transform(f), k> in the metric = sum of f k, for all unit f and k."""
    count = 0
    for outputs, others, lam in itertools.product(range(1, 9), (1, 2), WEIGHTS):
        basis = fractions(np.eye(outputs * others, dtype=int)).reshape(-1, outputs, others)
        for f in basis:
            gradient = outputs * transform(f, lam)
            for k in basis:
                value = metric(gradient, k, lam)
                assert isinstance(value, Fraction), "not exact"
                assert value == (f * k).sum(), f"O = {outputs}, lambda = {lam}, f = {f.tolist()}, k = {k.tolist()}"
                count += 1
    return f"{count} equalities of fractions"


@evidence(
    Kind.PROPERTY,
    "integer gradients of layers, 1 to 9 output channels, every engine in float64 and float32, along both channel axes and all "
    "entries, blended too: against the exact fractions, within rounding",
)
def engines_compute_the_exact_gradients(examples: int) -> str:
    def check(f: Array, weight: int) -> None:
        lam, share = Fraction(weight, 4), Fraction(1, 2)
        for axis in (0, 1, None):
            transforms: dict[str, Callable[..., Array]] = {
                "reweighted": lambda g, axis=axis, **kw: convla.reweighted_gradient(g, axis=axis, **kw),
                "sobolev": lambda g, axis=axis, **kw: convla.sobolev_gradient(g, axis=axis, **kw),
                "blended": lambda g, axis=axis, **kw: convla.sobolev_gradient(
                    g, axis=axis, blend=share if g.dtype == object else 0.5, **kw
                ),
            }
            exact = {name: transform(fractions(f), lam=lam) for name, transform in transforms.items()}
            assert (exact["blended"] == exact["sobolev"] + share * fractions(f)).all(), (f, lam)
            for (name, transform), kind, engine in itertools.product(
                transforms.items(), (np.float64, np.float32), ("reference", "numba")
            ):
                result = transform(f.astype(kind), lam=float(lam), engine=engine)
                wanted = exact[name].astype(np.float64)
                size = float(np.abs(f).sum()) * (1 + 1 / float(lam)) * (1 + f.size)
                # In float32 the weights are rounded to it too.
                slack = gamma(100 + 20 * f.size, np.float64 if kind is np.float64 else np.float32) * size
                assert result.dtype == kind
                assert (np.abs(result - wanted) <= slack).all(), (name, axis, kind, engine, f, lam)

    shapes = st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 2))
    return for_all(examples, st.tuples(shapes.flatmap(integers), st.integers(1, 40)), check)


@evidence(
    Kind.PROPERTY,
    "130 single lines along the second axis, and 7 channels of 9000 and of 11 columns: compiled against the reference",
)
def engines_agree_on_many_lines_and_columns(_: int) -> str:
    transforms: list[Callable[..., Array]] = [
        lambda f, **options: convla.reweighted_gradient(f, 2.5, **options),
        lambda f, **options: convla.sobolev_gradient(f, 0.75, blend=0.5, **options),
        lambda f, **options: convla.laplacian_smoothing(f, 1.25, **options),
    ]
    rng = np.random.default_rng(0)
    for shape, axis in (((130, 5, 1), 1), ((7, 9000, 1), 0), ((7, 11, 1), 0)):
        gradient = rng.standard_normal(shape)
        # Sums along the axis, of terms that grow to its length times the largest entry.
        bound = gamma(20 * shape[axis] ** 2, np.float64) * np.abs(gradient).max()
        for number, transform in enumerate(transforms):
            compiled, literal = (transform(gradient, axis=axis, engine=engine) for engine in ("numba", "reference"))
            assert np.abs(compiled - literal).max() <= bound, (number, shape)
    return "nine transforms"


@evidence(Kind.COUNTEREXAMPLE, "O = 2, f = k = (1, 1), any lambda")
def equation_8_lacks_the_factor(_: int) -> str:
    f = fractions([[1], [1]])
    value = identities.reweighted_inner_product(convla.reweighted_gradient(f, Fraction(3)), f, Fraction(3))
    assert (value, (f * f).sum()) == (1, 2)
    return f"in metric (4) the inner product with Eq. (8) is {value}, the directional derivative 2"


def _figure_3(gradient: Array, lam: Fraction) -> AnyArray:
    """Return what the printed line computes: the gradient plus lambda times its mean over output channels."""
    return gradient + lam * (gradient.sum(axis=0, keepdims=True) / gradient.shape[0])


@evidence(Kind.PROOF, "all unit f, O <= 8, three lambdas: exact fractions")
def printed_code_is_a_reparametrisation(_: int) -> str:
    for outputs, lam in itertools.product(range(1, 9), WEIGHTS):
        for f in fractions(np.eye(outputs, dtype=int))[:, :, None]:
            assert (_figure_3(f, lam) == (1 + lam) * convla.reweighted_gradient(f, 1 + lam)).all(), (outputs, lam)
    return "24 pairs (O, lambda)"


@evidence(Kind.COUNTEREXAMPLE, "O = 2, f = (1, 0), lambda = 1")
def printed_code_at_the_same_weight(_: int) -> str:
    f = fractions([[1], [0]])
    code, equation = _figure_3(f, Fraction(1)).ravel(), convla.reweighted_gradient(f, Fraction(1)).ravel()
    assert equation.tolist() == [1, 0]
    assert code.tolist() == [Fraction(3, 2), Fraction(1, 2)]
    assert code[0] * equation[1] != code[1] * equation[0], "not even proportional"
    return "the code gives (3/2, 1/2), Eq. (8) gives f itself"


PAIRS = (
    (convla.reweighted_gradient, identities.reweighted_inner_product),
    (convla.sobolev_gradient, identities.sobolev_inner_product),
)
"""Gradients with the metrics they belong to."""


@evidence(Kind.PROPERTY, "integer gradients of layers, exact fractions: the derivative along minus the gradient")
def gradients_descend(examples: int) -> str:
    def check(f: Array) -> None:
        f = fractions(f)
        for (transform, metric), lam in itertools.product(PAIRS, WEIGHTS):
            gradient = f.shape[0] * transform(f, lam)
            change = -(f * gradient).sum()
            assert change == -metric(gradient, gradient, lam), (f.tolist(), lam)
            assert change < 0 or not f.any(), (f.tolist(), lam)

    return for_all(examples, layers(integers, axes=2), check)


@evidence(Kind.PROPERTY, "integer gradients and directions, exact fractions: the ratio of Eq. (2), squared")
def gradients_are_the_steepest_directions(examples: int) -> str:
    def check(f: Array) -> None:
        f = fractions(f)
        direction = f[::-1] * 2 - f[:1]
        for (transform, metric), lam in itertools.product(PAIRS, WEIGHTS):
            gradient = f.shape[0] * transform(f, lam)
            best = metric(gradient, gradient, lam)
            assert (f * gradient).sum() == best, "the ratio along the gradient is its norm"
            for k in (direction, direction - gradient, f):
                assert (f * k).sum() ** 2 <= best * metric(k, k, lam), (f.tolist(), k.tolist(), lam)

    return for_all(examples, layers(integers, axes=2), check)


@evidence(Kind.PROPERTY, "integer kernels, exact fractions: every output channel repeated 1 to 4 times")
def repeated_channels_keep_the_metric(examples: int) -> str:
    def check(k: Array) -> None:
        k = fractions(k)
        for lam, times in itertools.product(WEIGHTS, range(1, 5)):
            repeated = np.repeat(k, times, axis=0)
            one, other = (identities.reweighted_inner_product(v, v, lam) for v in (k, repeated))
            assert one == other, (k.tolist(), lam, times)

    return for_all(examples, layers(integers, axes=2), check)


@evidence(Kind.MEASUREMENT, "k = cos(2 pi o / O) sampled at O = 8, 32, 128 channels, lambda = 1: the Sobolev metric")
def sampled_kernels_keep_the_sobolev_metric(_: int) -> str:
    values = []
    for outputs in (8, 32, 128):
        k = np.cos(2 * np.pi * np.arange(outputs) / outputs)[:, None]
        values.append(float(identities.sobolev_inner_product(k, k, 1.0)))
    errors = [2 * np.pi**2 - value for value in values]
    assert all(14 < a / b < 18 for a, b in itertools.pairwise(errors)), errors
    return f"{', '.join(f'{value:.3f}' for value in values)}, towards 2 pi^2 = {2 * np.pi**2:.3f} like 1 / O^2"


@evidence(
    Kind.PROPERTY,
    "unit f, O <= 12, lambda 1e-3 to 1e3, both methods, within rounding: Eq. (19) with periodic differences",
)
def smoothing_is_the_full_sobolev_gradient(examples: int) -> str:
    def check(outputs: int, power: float) -> None:
        lam = 10.0**power
        f = np.eye(outputs)
        for options in (
            {"method": "sweeps", "engine": "reference"},
            {"method": "sweeps", "engine": "numba"},
            {"method": "fft"},
            {},
        ):
            g = outputs * convla.laplacian_smoothing(f, lam * outputs**2, axis=0, **options)  # type: ignore[arg-type]
            bends = 2 * g - np.roll(g, 1, axis=0) - np.roll(g, -1, axis=0)
            error = np.abs(g / outputs + lam * outputs * bends - f).max()
            # A relative error in g is amplified by the norm of the operator that is applied to it.
            bound = gamma(400 * outputs, np.float64) * (1 + 4 * lam * outputs**2) * np.abs(g).max() / outputs
            assert error <= bound, f"O = {outputs}, lambda = {lam}, {options}: {error} beyond {bound}"

    return for_all(examples, st.tuples(st.integers(1, 12), st.floats(-3, 3)), check)


@evidence(
    Kind.PROPERTY, "integer layers with the layer after them, exactly: its inputs permuted with the outputs before"
)
def permuted_channels_give_the_same_network(examples: int) -> str:
    def check(first: Array, seed: int) -> None:
        generator = np.random.default_rng(seed)
        order = generator.permutation(first.shape[0])
        second = generator.integers(-5, 6, (2, first.shape[0], *first.shape[2:]))
        x = generator.integers(-5, 6, (first.shape[1], *(4 for _ in first.shape[2:])))

        def network(one: Array, two: Array) -> AnyArray:
            hidden = np.maximum(convla.cross_correlate(x, one, padding="same"), 0)
            return convla.cross_correlate(hidden, two, padding="same")

        assert np.array_equal(network(first, second), network(first[order], second[:, order])), (first, order)

    return for_all(examples, st.tuples(layers(integers, axes=2).map(lambda drawn: drawn[0]), st.integers(0, 99)), check)


@evidence(Kind.PROOF, "all permutations of O <= 5 channels, a generic f: exact fractions")
def reweighting_commutes_with_permutations(_: int) -> str:
    count = 0
    for outputs in range(1, 6):
        f = fractions([[3**i, (-2) ** i] for i in range(outputs)])
        for order in itertools.permutations(range(outputs)):
            permuted = convla.reweighted_gradient(f[list(order)], Fraction(3))
            assert (permuted == convla.reweighted_gradient(f, Fraction(3))[list(order)]).all(), order
            count += 1
    return f"{count} permutations"


@evidence(Kind.COUNTEREXAMPLE, "O = 4, f = (1, 0, 0, 0), the last two channels of three exchanged")
def sobolev_depends_on_the_order(_: int) -> str:
    f, order = fractions([[1], [0], [0], [0]]), [0, 2, 1, 3]
    first = convla.sobolev_gradient(f[order], Fraction(1, 16)).ravel().tolist()
    second = convla.sobolev_gradient(f, Fraction(1, 16))[order].ravel().tolist()
    assert first != second, "it commutes with this permutation"
    for shift in range(4):
        rolled = convla.sobolev_gradient(np.roll(f, shift, axis=0), Fraction(1, 16))
        assert (rolled == np.roll(convla.sobolev_gradient(f, Fraction(1, 16)), shift, axis=0)).all(), "cyclic shifts"
    return f"{[str(v) for v in first]} is not {[str(v) for v in second]}; cyclic shifts commute"


STATEMENTS = (
    Statement(
        id="CDG-4",
        number="Eqs. (3), (4), (7), (8), (17)",
        title="the gradient in the re-weighted metric",
        claim=r"The gradient for $\langle k_1, k_2\rangle = \langle \bar k_1, \bar k_2\rangle + \frac{\lambda}{O}\langle "
        r"k_1-\bar k_1, k_2-\bar k_2\rangle$ is $\bar f + \frac1\lambda(f-\bar f)$.",
        verdict=Verdict.CORRECTED,
        correction="It is O times that, O the number of output channels: Eq. (4) divides by O, the Euclidean Eq. (3) does "
        "not, and Eq. (17) loses it: the means of f and g differ by it. The learning rate absorbs it, but it differs between "
        "layers.",
        evidence=(
            reweighted_gradient_on_the_bases,
            engines_compute_the_exact_gradients,
            engines_agree_on_many_lines_and_columns,
            equation_8_lacks_the_factor,
        ),
        functions=(
            "convla.identities.reweighted_inner_product",
            "convla.reweighted_gradient",
        ),
    ),
    Statement(
        id="CDG-6",
        number="Eqs. (6), (7), (8), (22)",
        title="the gradient in the Sobolev metric",
        claim=r"The gradient $g$ for $\langle \bar k_1, \bar k_2\rangle + \lambda O\langle \partial_o k_1, \partial_o "
        r"k_2\rangle$ solves $f = \bar g - \lambda O^2 \partial_o^2 g$, periodic.",
        verdict=Verdict.CORRECTED,
        correction="Up to the same factor O. Shown for the difference of neighbouring channels in place of the derivative.",
        evidence=(
            sobolev_gradient_on_the_bases,
            engines_compute_the_exact_gradients,
            engines_agree_on_many_lines_and_columns,
        ),
        functions=(
            "convla.identities.sobolev_inner_product",
            "convla.sobolev_gradient",
        ),
    ),
    Statement(
        id="CDG-21",
        number="Appendix D, Eqs. (18) to (21)",
        title="the gradient in the usual Sobolev metric",
        claim=r"The gradient $g$ for $\frac1O\langle k_1, k_2\rangle + \lambda O\langle \partial_o k_1, \partial_o k_2\rangle$ "
        r"solves $f = g - \lambda O^2\partial_o^2 g$, periodic.",
        verdict=Verdict.CORRECTED,
        correction="Up to the same factor O, which is lost between Eqs. (19) and (20).",
        evidence=(smoothing_is_the_full_sobolev_gradient, engines_agree_on_many_lines_and_columns),
        functions=("convla.laplacian_smoothing",),
        note="It is O times Laplacian smoothing along the output channels, `convla.laplacian_smoothing` with sigma = lambda "
        "O^2. Shown for differences of neighbouring channels.",
    ),
    Statement(
        id="CDG-O",
        number="Section 2.2",
        title="metrics and the number of output channels",
        claim=r"The factors of $O$ in Eqs. (4) and (6) make the metrics invariant under a change of the number of output "
        r"channels.",
        verdict=Verdict.HOLDS,
        evidence=(repeated_channels_keep_the_metric, sampled_kernels_keep_the_sobolev_metric),
        functions=(
            "convla.identities.reweighted_inner_product",
            "convla.identities.sobolev_inner_product",
        ),
        note="Exactly for Eq. (4), in the limit of smooth kernels for Eq. (6). The factor O of CDG-4 is what the Euclidean "
        "metric lacks for the same.",
    ),
    Statement(
        id="CDG-fig3",
        number="Figure 3",
        title="the printed code for the re-weighted gradient",
        claim=r"$f + \lambda\bar f$, the printed code, is Eq. (8).",
        verdict=Verdict.CORRECTED,
        correction=r"It is $1+\lambda$ times Eq. (8) with $1+\lambda$ for $\lambda$. So $\lambda=0$ is plain gradient descent in the "
        r"code and in Figure 6, and $\lambda=1$ in Eq. (8).",
        evidence=(printed_code_is_a_reparametrisation, printed_code_at_the_same_weight),
        functions=("convla.reweighted_gradient",),
    ),
    Statement(
        id="CDG-descent",
        number="Section 2.1",
        title="every gradient is a direction of descent",
        claim=r"$df\cdot(-\nabla f) = -\|\nabla f\|^2 < 0$ in the metric of the gradient.",
        verdict=Verdict.HOLDS,
        evidence=(gradients_descend,),
        functions=(
            "convla.reweighted_gradient",
            "convla.sobolev_gradient",
            "convla.identities.reweighted_inner_product",
            "convla.identities.sobolev_inner_product",
        ),
        note="With the factor O of CDG-4; without it the change is the squared norm divided by O.",
    ),
    Statement(
        id="CDG-2",
        number="Eq. (2)",
        title="the gradient is the steepest direction",
        claim=r"The gradient of a metric maximises $|df\cdot k| / \|k\|$ over all directions $k \ne 0$.",
        verdict=Verdict.HOLDS,
        evidence=(gradients_are_the_steepest_directions,),
        functions=(
            "convla.reweighted_gradient",
            "convla.sobolev_gradient",
        ),
    ),
    Statement(
        id="CDG-order",
        number="Section 2.3",
        title="the order of kernels is arbitrary",
        claim="Permuting a layer's output channels, together with the input channels of the next, gives the same network.",
        verdict=Verdict.HOLDS,
        evidence=(permuted_channels_give_the_same_network,),
        functions=("convla.cross_correlate",),
    ),
    Statement(
        id="CDG-perm",
        number="ours",
        title="the order of the channels",
        claim=r"The re-weighted gradient commutes with every permutation of output channels, the Sobolev gradient does not.",
        verdict=Verdict.HOLDS,
        evidence=(reweighting_commutes_with_permutations, sobolev_depends_on_the_order),
        functions=(
            "convla.reweighted_gradient",
            "convla.sobolev_gradient",
        ),
        note="The order of channels is arbitrary, as the source says; the Sobolev gradient imposes one, up to cyclic shifts.",
    ),
)
