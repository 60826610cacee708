"""What the iterations keep beside their values, and the layers that take a way of their own, against the definition.

The rules:

- A Krylov space is orthonormal, its images are those of its vectors, and it projects the Gram matrix, to rounding.
- What it calls known holds but for a small chance: how often it does not is counted.
- `SingularValues.least` is a unit vector of the smaller side: its image is not shorter than the smallest singular
  value, as that of no unit vector is, and not longer than the largest.
- Layers of one tap in use are drawn for the checks of singular values and of the penalty.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from convla.spectra.batch import Batch
from convla.spectra.krylov import KrylovSpace, extended
from tests.fuzz import draw, oracles
from tests.fuzz.case import Case, check
from tests.fuzz.checks import penalties, spectra
from tests.fuzz.draw import Layer

IMPORTS = "from convla.spectra.batch import Batch\nfrom convla.spectra.krylov import KrylovSpace, extended"


def shapes_of(layer: Layer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of features and of images."""
    channels = len(layer.kernel), layer.kernel.shape[1] * layer.groups
    return (channels[0], *oracles.outputs_of(layer)), (channels[1], *layer.setting.image_shape)


def rounding_of(layer: Layer) -> float:
    """A few units for each row that another is made orthogonal to, and for each sum that a product is."""
    return 10 * (math.sqrt(max(oracles.matrix_shape(layer))) + 20) * float(np.finfo(spectra.dtype_of(layer)).eps)


@check(weight=1)
def krylov(case: Case) -> None:
    case.family = draw.any_layer_that(lambda layer: layer.groups == 1)
    layer = penalties.moderate_layer(case)
    case.add_lines(IMPORTS)
    case.names |= {"Batch": Batch, "KrylovSpace": KrylovSpace, "extended": extended}
    turned = case.chance(0.5)
    sides = oracles.matrix_shape(layer)
    size = sides[0] if turned else sides[1]
    start = case.rng.standard_normal((1, 1, size))
    case.give("start", (start / np.linalg.norm(start)).astype(layer.kernel.dtype))
    space = case.evaluate(f"KrylovSpace(Batch({'op.T' if turned else 'op'}, 1), start)", "space")

    kernel, prepared = layer.kernel.astype(float), oracles.scale(layer)

    def images(vectors: Any, *, back: bool = False) -> Any:
        product, side = (oracles.adjoint, 0) if turned != back else (oracles.apply, 1)
        return product(layer, kernel, vectors.reshape(-1, *shapes_of(layer)[side])).reshape(len(vectors), -1)

    norm = float(np.ldexp(prepared.moduli, prepared.exponent))
    blur = rounding_of(layer)
    # A coupling is the length of what a Gram matrix gives, whose squares have no digits below the dtype's range.
    of_squares = blur * norm**2 + math.sqrt(float(np.finfo(layer.kernel.dtype).tiny))

    end = case.one_of(("largest", "smallest"))
    truth = np.ldexp(oracles.singular_values(layer).values, prepared.exponent)
    ends = float(truth[0]) ** 2, 0.0 if size > len(truth) else float(truth[-1]) ** 2
    bar = 0.0 if end == "smallest" else float(ends[0] * case.one_of((0.0, 0.5, 1.0, 1.5, 4.0)))
    rtol = case.one_of((1e-3, 1e-2))
    found = case.evaluate(f"extended(space, end={end!r}, count={case.one_of((1, 2, 5))}, rtol={rtol}, bar={bar!r})")
    block, known, tolerance, above = found

    basis = space.block(np.eye(space.rows))
    vectors, images_of_vectors = (np.asarray(part[0], float) for part in (basis.vectors, basis.images))
    defect = np.abs(vectors @ vectors.T - np.eye(len(vectors))).max()
    case.expect(defect <= blur, f"the rows are {defect:.1e} from orthonormal")
    true_images = images(vectors)
    defect = np.linalg.norm(images_of_vectors - true_images, axis=1).max()
    case.expect(defect <= blur * norm, f"an image is off by {defect:.1e}, of {norm:.1e}")
    defect = np.abs(true_images @ true_images.T - space.gram).max()
    case.expect(defect <= of_squares, f"the projected Gram matrix is off by {defect:.1e}, of {norm**2:.1e}")

    vectors = np.asarray(block.vectors[0], float)
    beside = images(images(vectors), back=True) - np.asarray(block.squares[0], float)[:, None] * vectors
    defect = np.abs(np.linalg.norm(beside, axis=1) - np.asarray(block.residuals[0], float)).max()
    case.expect(defect <= of_squares, f"a residual is off by {defect:.1e}, of {norm**2:.1e}")
    first = float(block.squares[0, 0])
    wrong = f"the outermost square is {first!r}, the squares are from {ends[1]!r} to {ends[0]!r}"
    case.expect(ends[1] - of_squares <= first <= ends[0] + of_squares, wrong)
    case.counts[f"{end} known" if known else "unknown"] += 1
    if known:
        room = max(tolerance, 0.25 * (bar - first)) if end == "largest" else tolerance
        missed = ends[0] - first if end == "largest" else first - ends[1]
        case.counts[f"{end} known, but off"] += bool(missed > room + of_squares)
    if math.isfinite(above):
        case.counts["ceilings"] += 1
        case.counts["ceilings exceeded"] += bool(ends[0] > above + of_squares)


@check(weight=1)
def least(case: Case) -> None:
    layer = case.layer()
    truth = oracles.singular_values(layer)
    result = spectra.evaluate(case, "largest_singular_value(op, method='lanczos')", layer, truth)
    if result is None or result.least is None:
        return
    case.counts["vectors"] += 1
    prepared, sides = oracles.scale(layer), oracles.matrix_shape(layer)
    wide = sides[0] < sides[1]
    vector = np.asarray(result.least, float)
    shape = shapes_of(layer)[0 if wide else 1]
    case.expect(vector.shape == shape, f"least has shape {vector.shape}, the smaller side {shape}")
    rounding = rounding_of(layer)
    length = float(np.linalg.norm(vector))
    case.expect(abs(length - 1) <= rounding, f"the norm of least is {length!r}")
    shrunk = (oracles.adjoint if wide else oracles.apply)(layer, prepared.kernel, vector[None])
    left = float(np.linalg.norm(shrunk)) / length
    # The result is a float64, which below that range is a multiple of its least number.
    slack = truth.floor + rounding * prepared.moduli + truth.unscaled(np.finfo(float).smallest_subnormal)
    wrong = f"least is shrunk to {left!r}; the values are from {truth.smallest!r} to {truth.largest!r}"
    case.expect(truth.smallest - slack <= left <= truth.unscaled(result.value) + slack, wrong)


@check(weight=2)
def one_tap(case: Case) -> None:
    case.family = draw.any_layer_that(lambda layer: np.count_nonzero(np.any(layer.kernel != 0, axis=(0, 1))) == 1)
    checks = (spectra.largest, spectra.smallest, spectra.several, spectra.bounds, spectra.condition, penalties.penalty)
    case.one_of((*checks, penalties.descent))(case)
