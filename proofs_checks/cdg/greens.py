"""CDG Section 2.3 and Appendix D: the Green's function, the three integrals, and their Riemann sums."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np

import convla
from convla import identities
from convla.typing import Array
from proofs_checks.cdg.metrics import GRADIENTS, METRICS, WEIGHTS, fractions
from proofs_checks.statement import Kind, Mutation, Statement, Verdict, evidence

__all__ = ["STATEMENTS"]

Polynomial = list[Fraction]
"""Coefficients, the constant first."""


def _value(p: Polynomial, o: Fraction) -> Fraction:
    return sum((c * o**i for i, c in enumerate(p)), Fraction(0))


def _product(p: Polynomial, q: Polynomial) -> Polynomial:
    result = [Fraction(0)] * (len(p) + len(q) - 1)
    for i, a in enumerate(p):
        for j, b in enumerate(q):
            result[i + j] += a * b
    return result


def _sum(*terms: Polynomial) -> Polynomial:
    length = max(map(len, terms))
    return [sum((p[i] for p in terms if i < len(p)), Fraction(0)) for i in range(length)]


def _primitive(p: Polynomial) -> Polynomial:
    return [Fraction(0)] + [c / (i + 1) for i, c in enumerate(p)]


def _slope(p: Polynomial) -> Polynomial:
    return [i * c for i, c in enumerate(p)][1:] or [Fraction(0)]


def _integral(p: Polynomial) -> Fraction:
    return _value(_primitive(p), Fraction(1))


def _scaled(p: Polynomial, factor: Fraction) -> Polynomial:
    return [factor * c for c in p]


def _green(lam: Fraction) -> Polynomial:
    """Return the shipped K as a polynomial: the quadratic through three of its values, which a fourth confirms."""
    at0, half, at1 = (identities.sobolev_greens_function(Fraction(i, 2), lam) for i in range(3))
    square = 2 * (at0 - 2 * half + at1)
    p = [at0, at1 - at0 - square, square]
    assert _value(p, Fraction(1, 3)) == identities.sobolev_greens_function(Fraction(1, 3), lam), "not a quadratic"
    return p


@evidence(Kind.PROOF, "exact fractions, three lambdas (linear in 1 / lambda): mean, equation, periodicity, unit jump")
def green_function_solves_the_equation(_: int) -> str:
    for lam in WEIGHTS:
        k = _green(lam)
        slope = _slope(k)
        assert _integral(k) == 1, "mean 1: the mean of g is that of f"
        assert _sum([_integral(k)], _scaled(_slope(slope), -lam)) == [0], "mean(K) - lambda K'' = 0 away from 0"
        assert _value(k, Fraction(0)) == _value(k, Fraction(1)), "periodic"
        assert -lam * (_value(slope, Fraction(0)) - _value(slope, Fraction(1))) == 1, "a unit source at 0"
    return "three weights"


@evidence(Kind.PROOF, "exact fractions: the sign of the least value, at 1/2, about lambda = 1/24")
def green_function_is_positive_from_one_24th(_: int) -> str:
    half, weight = Fraction(1, 2), Fraction(1, 24)
    assert identities.sobolev_greens_function(half, weight) == 0
    assert identities.sobolev_greens_function(half, weight * Fraction(99, 100)) < 0
    for lam in (weight, *WEIGHTS):
        assert all(identities.sobolev_greens_function(Fraction(i, 64), lam) >= 0 for i in range(65)), lam
    return "K >= 0 exactly for lambda >= 1/24"


def _three_integrals(f: Polynomial, lam: Fraction) -> Polynomial:
    """Evaluate Eqs. (10) to (12) on a polynomial f of the place in [0, 1]."""
    rest = _sum(f, [-_integral(f)])
    start = _integral(_product(_green(lam), f))
    slope = -_integral(_product([Fraction(0), Fraction(1)], rest)) / lam
    # int_0^o (o - s) rest(s) ds = o int_0^o rest - int_0^o s rest.
    weighted = _primitive(_product([Fraction(0), Fraction(1)], rest))
    bend = _sum(_product([Fraction(0), Fraction(1)], _primitive(rest)), _scaled(weighted, Fraction(-1)))
    return _sum([start], [Fraction(0), slope], _scaled(bend, -1 / lam))


@evidence(Kind.PROOF, "f = o^n, n <= 12, three lambdas: exact polynomials")
def three_integrals_solve_the_equation(_: int) -> str:
    for n in range(13):
        f = [Fraction(0)] * n + [Fraction(1)]
        for lam in WEIGHTS:
            g = _three_integrals(f, lam)
            left = _sum([_integral(g)], _scaled(_slope(_slope(g)), -lam), _scaled(f, Fraction(-1)))
            assert not any(left), f"mean(g) - lambda g'' = f: n = {n}, lambda = {lam}"
            assert _value(g, Fraction(0)) == _value(g, Fraction(1)), f"periodic: n = {n}"
            assert _value(_slope(g), Fraction(0)) == _value(_slope(g), Fraction(1)), f"smooth: n = {n}"
    return "13 monomials, and so every polynomial to degree 12"


@evidence(Kind.COUNTEREXAMPLE, "f = o: Eq. (10) with f(o) inside the integral over s, as printed")
def printed_integrand_fails(_: int) -> str:
    lam, o = Fraction(1), Fraction(1)
    f = [Fraction(0), Fraction(1)]
    right = _value(_three_integrals(f, lam), o)
    bend = (_value(f, o) - _integral(f)) * o**2 / 2  # f(o) - mean is constant in s
    start = _integral(_product(_green(lam), f))
    slope = -_integral(_product([Fraction(0), Fraction(1)], _sum(f, [-_integral(f)]))) / lam
    printed = start + o * slope - bend / lam
    assert right == start, "periodic"
    assert printed != right, "the misprint makes no difference"
    return f"g(1) = {printed} where g(0) = {right}"


@evidence(Kind.COUNTEREXAMPLE, "f = 1, lambda = 1: the lines of Eq. (29) in Appendix D")
def printed_lines_of_the_appendix_fail(_: int) -> str:
    one, third = Fraction(1), Fraction(1, 6)  # the double integral of o - s over 0 < s < o < 1 is 1/6
    g0 = _value(_three_integrals([one], one), Fraction(0))
    assert g0 == 1, "a constant is its own Sobolev gradient"
    first = -g0  # "-mean(f) + ...": the other terms hold f - mean(f) = 0
    second = (
        one + Fraction(1, 2) * Fraction(1, 2) - Fraction(1, 4) + third + third
    )  # "+ mean(f)" times the double integral
    corrected = one + Fraction(1, 4) - Fraction(1, 4) + third - third
    assert [first, second, corrected] == [Fraction(-1), Fraction(4, 3), g0]
    return "the lines give -1 and 4/3 for g(0) = 1; with both signs reversed, 1"


def _unit(outputs: int) -> Array:
    return fractions(np.eye(outputs, dtype=int)[0])[:, None]


@evidence(Kind.PROOF, "unit f, O <= 16, three lambdas: exact fractions")
def riemann_sums_are_off_by_a_constant(_: int) -> str:
    for outputs in range(1, 17):
        for lam in WEIGHTS:
            f = _unit(outputs)
            difference = convla.sobolev_gradient(f, lam, discretization="riemann") - convla.sobolev_gradient(f, lam)
            wanted = Fraction(1, outputs) / (12 * lam * outputs**2)
            assert (difference == wanted).all(), f"O = {outputs}, lambda = {lam}: {difference.ravel()}"
    return "the Riemann sums exceed the circulant solution by mean(f) / (12 lambda O^2)"


@evidence(Kind.MEASUREMENT, "f = cos^2 (2 pi o) + o (1 - o), O = 8, 32, 128 against O = 4096")
def discretisations_converge(_: int) -> str:
    def solved(outputs: int, form: str) -> Array:
        o = np.arange(outputs) / outputs
        f = np.cos(2 * np.pi * o) ** 2 + o * (1 - o)
        return convla.sobolev_gradient(f[:, None], 0.1, discretization=form)[:, 0]

    fine, sizes = solved(4096, "circulant"), (8, 32, 128)
    errors = {
        form: [float(np.abs(solved(n, form) - fine[:: 4096 // n]).max()) for n in sizes]
        for form in ("riemann", "circulant")
    }
    for values in errors.values():
        assert all(8 < a / b < 40 for a, b in itertools.pairwise(values)), errors
    return "; ".join(
        f"{form}: {', '.join(f'{e:.1e}' for e in values)} at O = 8, 32, 128" for form, values in errors.items()
    )


STATEMENTS = (
    Statement(
        id="CDG-9",
        number="Eq. (9)",
        title="the Sobolev gradient as a convolution",
        claim=r"$K(o) = 1 + \frac{o^2-o+1/6}{2\lambda}$ is the periodic Green's function of $g \mapsto \bar g - \lambda "
        r"g''$ on $[0, 1]$.",
        verdict=Verdict.HOLDS,
        evidence=(green_function_solves_the_equation,),
        mutations=(
            Mutation(f"{METRICS}:sobolev_greens_function", "(2 * lam)", "lam"),
            Mutation(f"{METRICS}:sobolev_greens_function", "+ sixth", "- sixth"),
        ),
    ),
    Statement(
        id="CDG-average",
        number="Section 2.3, Figure 2",
        title="the Sobolev gradient as a local average",
        claim=r"The Sobolev gradient is a local average of $f$, for every $\lambda > 0$.",
        verdict=Verdict.CORRECTED,
        correction="Its weights add up to 1, but they are non-negative only for lambda >= 1/24; below, channels half a "
        "period away are subtracted.",
        evidence=(green_function_is_positive_from_one_24th,),
        mutations=(Mutation(f"{METRICS}:sobolev_greens_function", "(2 * lam)", "(3 * lam)"),),
    ),
    Statement(
        id="CDG-10",
        number="Eqs. (10) to (12)",
        title="three integrals in place of the convolution",
        claim=r"$g(o) = g(0) + o\,g'(0) - \frac1\lambda\int_0^o (o-s)(f(s)-\bar f)\,ds$ with $g'(0) = -\frac1\lambda\int_0^1 "
        r"s(f(s)-\bar f)\,ds$ and $g(0) = \int_0^1 K f$ is the convolution (9).",
        verdict=Verdict.CORRECTED,
        correction="Eq. (10) prints f(o) inside the integral over s; it must read f(s).",
        evidence=(three_integrals_solve_the_equation, printed_integrand_fails),
        mutations=(
            Mutation(f"{METRICS}:sobolev_greens_function", "+ sixth", "- sixth"),
            Mutation("proofs_checks.cdg.greens:_three_integrals", "slope = -_integral", "slope = _integral"),
        ),
    ),
    Statement(
        id="CDG-29",
        number="Appendix D, Eq. (29)",
        title="the derivation of the Green's function",
        claim=r"The lines of Eq. (29) lead from the double integration to $g(0) = \int_0^1 K f$.",
        verdict=Verdict.CORRECTED,
        correction="One line begins with minus the mean of f where plus is meant, and one adds the mean of f times the double "
        "integral where it must be subtracted; the last lines are right.",
        evidence=(printed_lines_of_the_appendix_fail,),
        mutations=(Mutation(f"{METRICS}:sobolev_greens_function", "return 1 +", "return 2 +"),),
        note="As the text of the source reads.",
    ),
    Statement(
        id="CDG-riemann",
        number="Section 3",
        title="the Riemann sums of the integrals",
        claim="Replacing the integrals (10) to (12) by Riemann sums computes the Sobolev gradient, at a linear cost.",
        verdict=Verdict.CORRECTED,
        correction="It computes the exact discrete solution, of the periodic second difference, plus mean(f) / (12 lambda "
        "O^2) in every channel. Both converge to the integrals like 1 / O^2.",
        evidence=(riemann_sums_are_off_by_a_constant, discretisations_converge),
        mutations=(
            Mutation(f"{GRADIENTS}:_sobolev_riemann", "slope = -_mean", "slope = _mean"),
            Mutation(f"{GRADIENTS}:_sobolev_riemann", "/ (lam * n)", "/ lam"),
        ),
        note="convla.sobolev_gradient solves the discrete equation by two prefix sums, at the same cost.",
    ),
)
