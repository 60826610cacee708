"""The maps themselves, similarities and orthonormal factors, against their definitions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from tests.fuzz import oracles
from tests.fuzz.case import Case, check
from tests.fuzz.draw import Layer, any_layer, as_library
from tests.geometries import Seeded, any_setting


@check(weight=2)
def maps(case: Case) -> None:
    """Forward, adjoint and kernel adjoint, entry by entry, and the dense matrix."""
    layer = case.use(any_layer(case.rng, case.one_of(("tiny", "tiny", "mid"))))
    batch = int(case.rng.integers(1, 4))
    image = (batch, layer.kernel.shape[1] * layer.groups, *layer.setting.image_shape)
    features = (batch, len(layer.kernel), *oracles.outputs_of(layer))
    x, y = (_signal(case, shape, layer.kernel.dtype) for shape in (image, features))
    forward, backward = ("adjoint", "apply") if layer.transposed else ("apply", "adjoint")
    base = "op.T" if layer.transposed else "op"
    for name, given, shape in (("x", x, image), ("y", y, features)):
        case.give(name, given.reshape(shape))
        case.names[name] = as_library(given, layer.library)
    _compare(case, f"op.{forward}(x)", layer, oracles.apply, layer.kernel, x)
    _compare(case, f"op.{backward}(y)", layer, oracles.adjoint, layer.kernel, y)
    _compare(case, f"{base}.kernel_adjoint(y, x)", layer, oracles.kernel_adjoint, y, x)
    if layer.order == "C" and not layer.transposed and math.prod(oracles.matrix_shape(layer)) < 2**18:
        found = np.asarray(case.evaluate("op.to_dense()"))
        exact = layer.kernel.astype(np.longdouble)
        axes = oracles.axes_of(layer)
        expected, moduli = (_block_diagonal(oracles.matrices(k, axes, layer.groups)) for k in (exact, np.abs(exact)))
        meeting = oracles.scale(layer).meeting
        allowed = meeting * (_eps(layer.kernel.dtype) * moduli + _underflow(layer))
        case.expect(np.all(np.abs(found - expected) <= allowed), "an entry of the dense matrix is wrong")


def _signal(case: Case, shape: tuple[int, ...], dtype: Any) -> Any:
    if dtype.kind == "f":
        return case.rng.standard_normal(shape).astype(dtype)
    return case.rng.integers(-9, 10, shape).astype(dtype)


def _eps(dtype: Any) -> float:
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0


def _underflow(layer: Layer) -> float:
    """The most that a result may lose by being small: JAX takes subnormal numbers for zeros."""
    kind = layer.kernel.dtype
    if kind.kind != "f":
        return 0.0
    return float(np.finfo(kind).tiny if layer.library == "jax" else np.finfo(kind).smallest_subnormal)


def _block_diagonal(blocks: Any) -> Any:
    groups, rows, columns = blocks.shape
    matrix = np.zeros((groups, rows, groups, columns), blocks.dtype)
    matrix[np.arange(groups), :, np.arange(groups)] = blocks
    return matrix.reshape(groups * rows, groups * columns)


def _compare(case: Case, call: str, layer: Layer, oracle: Any, *arguments: Any) -> None:
    """Compare a bilinear map with an oracle, each entry to the rounding of its own products (Higham, Eq. 3.5)."""
    found = np.asarray(case.evaluate(call))
    exact = [a.astype(np.longdouble if a.dtype.kind == "f" else np.int64) for a in arguments]
    expected, moduli = oracle(layer, *exact), oracle(layer, *map(np.abs, exact))
    ones = oracle(layer, *(np.ones(a.shape, np.int64) for a in arguments))
    case.expect(found.shape == expected.shape, f"{call} has shape {found.shape}, expected {expected.shape}")
    kind = layer.kernel.dtype
    terms = int(ones.max(initial=0)) + 2
    tiny = _underflow(layer) * terms
    if layer.library == "jax":  # which loses factors too
        tiny *= 1 + max(float(np.max(np.abs(a), initial=0)) for a in arguments)
    off = np.abs(found.astype(expected.dtype) - expected)
    case.expect(np.all(off <= terms * _eps(kind) * moduli + tiny), f"{call} is off by up to {off.max()}")


@check(weight=1)
def similarity(case: Case) -> None:
    """Convolutional similarity of a layer and its gradient, by the definition over pairs of filters and of channels."""
    choose = Seeded(case.rng)
    shape = any_setting(choose, outs=(1, 2, 3, 4), inner=(1, 2, 3), groups=(1,), taps=(6, 3, 2)).kernel_shape
    kernels = case.give("kernels", _filters(case, shape))
    normalized = case.chance(0.4)
    if normalized and not np.all(np.any(kernels.reshape(len(kernels), -1) != 0, axis=1)):
        kernels = case.give("kernels", kernels + 1)
    options = f"method={case.one_of(('auto', 'autocorrelation', 'pairwise', 'spectral'))!r}, normalized={normalized}"
    value = float(case.evaluate(f"convolutional_similarity(kernels, {options})"))
    gradient = np.asarray(case.evaluate(f"convolutional_similarity_gradient(kernels, {options})", "gradient"), float)
    exact = kernels.astype(float)
    units = exact
    if normalized:
        norms = np.linalg.norm(exact.reshape(len(exact), -1), axis=1)
        units = exact / norms.reshape(-1, *(1,) * (exact.ndim - 1))
    true = _similarity(units)
    eps = float(np.finfo(kernels.dtype).eps)
    energies = (units**2).reshape(len(units), -1).sum(axis=1)
    size = float(energies.sum() ** 2) * shape[1]  # bounds the sum of all pairs, with Young's inequality
    places = 8 * math.prod(shape[1:])
    case.expect(abs(value - true) <= places * eps * size, f"the similarity is {value!r}, right is {true!r}")
    if normalized or not math.isfinite(size):
        return
    # Along a line the similarity is a polynomial of degree four, for which this difference is exact.
    direction = case.rng.standard_normal(shape) * math.sqrt(float(np.mean(exact**2)))
    f = [_similarity(exact + t * direction) for t in (-2, -1, 1, 2)]
    slope = (8 * (f[2] - f[1]) - (f[3] - f[0])) / 12
    got = float(np.sum(gradient * direction))
    rounding = 64 * places * (eps * size + float(np.finfo(float).eps) * max(f))
    case.expect(abs(got - slope) <= rounding, f"the gradient's slope is {got!r}, right is {slope!r}")


def _filters(case: Case, shape: tuple[int, ...]) -> Any:
    kernels = case.rng.standard_normal(shape)
    kind = case.one_of(("normal", "positive", "duplicates", "sparse"))
    if kind == "positive":
        kernels = np.abs(kernels)
    elif kind == "duplicates":
        kernels = kernels[:1] + case.one_of((0.0, 1e-3, 1e-9)) * kernels
    elif kind == "sparse":
        kernels = kernels * (case.rng.random(shape) < 0.4)
    return (kernels * 10.0 ** case.one_of((0, 0, -6, 6))).astype(case.one_of((np.float64, np.float64, np.float32)))


def _similarity(kernels: Any) -> float:
    """The sum over unordered pairs of filters, and all pairs of channels, of squared full cross-correlations."""
    filters, channels, *size = kernels.shape
    lags = np.zeros((filters, filters, channels, channels, *(2 * n - 1 for n in size)))
    for p in itertools.product(*map(range, size)):
        for q in itertools.product(*map(range, size)):
            lag = tuple(b - a + n - 1 for a, b, n in zip(p, q, size, strict=True))
            lags[(..., *lag)] += np.einsum("ac,bd->abcd", kernels[(..., *p)], kernels[(..., *q)])
    sums = (lags**2).reshape(filters, filters, -1).sum(axis=-1)
    return float(np.triu(sums, 1).sum())


@check(weight=0.7)
def feature_maps(case: Case) -> None:
    """Inner products of feature maps, and the matrix that gives them from kernels alone."""
    setting = any_setting(
        Seeded(case.rng), outs=(1,), inner=(1, 2, 3), groups=(1,), strides=(1,), dilations=(1,), boundaries=("zero",)
    )
    shape = setting.kernel_shape[1:]
    dtype = case.one_of((np.float64, np.float32))
    k1, k2 = (case.give(name, case.rng.standard_normal(shape).astype(dtype)) for name in ("k1", "k2"))
    x = case.give("x", case.rng.standard_normal((shape[0], *setting.image_shape)).astype(dtype))
    padding = setting.options["padding"]
    value = float(case.evaluate(f"feature_map_similarity(k1, k2, x, padding={padding!r}, channels=True)"))
    layers = [Layer(k[None].astype(float), setting) for k in (k1, k2)]
    maps_of = [oracles.apply(layer, layer.kernel, x[None].astype(float)) for layer in layers]
    moduli = [oracles.apply(layer, np.abs(layer.kernel), np.abs(x)[None].astype(float)) for layer in layers]
    true, size = float((maps_of[0] * maps_of[1]).sum()), float((moduli[0] * moduli[1]).sum())
    terms = 2 * math.prod(shape) + maps_of[0].size + 4
    allowed = terms * float(np.finfo(dtype).eps) * size
    case.expect(abs(value - true) <= allowed, f"<F1, F2> is {value!r}, right is {true!r}")


@check(weight=0.7)
def orthonormal(case: Case) -> None:
    """The polar factor of a gradient with given singular values, to what the documentation states."""
    shape = any_setting(Seeded(case.rng), outs=(1, 2, 5, 12), inner=(1, 2, 5), groups=(1,)).kernel_shape
    rows, columns = shape[0], math.prod(shape[1:])
    side = min(rows, columns)
    worst = 10.0 ** case.rng.uniform(0, 6)
    u = np.linalg.qr(case.rng.standard_normal((rows, side)))[0]
    v = np.linalg.qr(case.rng.standard_normal((columns, side)))[0]
    s = worst ** -np.append(case.rng.random(side - 1), 1.0) if side > 1 else np.ones(1)
    s = s / s.max() if side > 1 else s
    dtype = case.one_of((np.float64, np.float64, np.float32))
    scale = 10.0 ** case.one_of((0, 0, -12, 12))
    gradient = case.give("gradient", (scale * (u * s) @ v.T).reshape(shape).astype(dtype))
    method = case.one_of(("exact", "exact", "svd"))
    found = np.asarray(case.evaluate(f"orthonormalize(gradient, method={method!r})"), float).reshape(rows, columns)
    expected, condition = _polar(gradient.reshape(rows, columns).astype(np.longdouble))
    if condition * max(4 * float(np.finfo(dtype).eps), max(rows, columns) * oracles.EPS) > 0.5:
        case.counts["rank in doubt"] += 1
        return
    off = float(np.linalg.norm(found - expected.astype(float)) / math.sqrt(side))
    if dtype is np.float32:
        stated = 1e-6
    elif method == "exact" and condition < 1e3:
        stated = 1e-11
    else:
        stated = 2e-15 + 10 * condition * oracles.EPS / 2
    case.expect(off <= stated, f"off by {off:.2e} at condition number {condition:.3g}; stated is {stated:.1e}")


def _polar(matrix: Any) -> tuple[Any, float]:
    """The polar factor by Newton and Schulz's iteration in long double, and the condition number."""
    s = np.linalg.svd(matrix.astype(float), compute_uv=False)
    x = matrix / s[0]
    x = x if x.shape[0] <= x.shape[1] else x.T
    eye = np.eye(len(x), dtype=np.longdouble)
    for _ in range(200):
        gram = x @ x.T
        if np.abs(gram - eye).max() <= 4 * len(x) * np.finfo(np.longdouble).eps:
            break
        x = (1.5 * eye - 0.5 * gram) @ x
    return (x if x.shape == matrix.shape else x.T), float(s[0] / s[-1]) if s[-1] else math.inf
