"""Convolutional similarity of a layer's kernels: its value, gradient and Hessian-vector products, without any pairs.

For each filter i let A_i be the sum of its channels' autocorrelations. The sum over channels c1, c2 of the squared norm
of K_i[c1] (x) K_j[c2] is the inner product <A_i, A_j>, so that what is defined over pairs of filters and pairs of
channels costs one pass over the kernels: see "Convolutional similarity" in the documentation for the proof. A vector
that stands for a filter so is called its signature here; its power spectrum is another.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from convla._array import all_finite, is_exact, namespace
from convla._dispatch import accelerated
from convla._validate import check_array, check_choice, check_same_shape
from convla.errors import ShapeError
from convla.similarity.definition import similarity_by_definition
from convla.similarity.scaling import times_powers
from convla.similarity.signatures import (
    Form,
    energies_are_safe,
    normalized_pairs,
    scale_filters,
    scaled_pairs,
    signature_form,
    sums_of_others,
)
from convla.typing import AnyArray, Array, ArrayLike, Engine, Namespace

__all__ = [
    "Method",
    "Pairs",
    "convolutional_similarity",
    "convolutional_similarity_and_gradient",
    "convolutional_similarity_gradient",
    "convolutional_similarity_hessian_product",
    "is_quickest_by_lags",
    "layer_similarities",
]

Method = Literal["auto", "autocorrelation", "pairwise", "spectral"]
Pairs = Literal["unordered", "ordered"]

# Above this many taps, by the number of kernel axes, a transform costs less than a product for every pair of taps: see
# "Convolutional similarity at network scale" in the documentation for the measurement.
SPECTRAL_TAPS = {1: 200, 2: 1000, 3: 1000}


def convolutional_similarity(
    kernels: ArrayLike,
    *,
    method: Method = "auto",
    pairs: Pairs = "unordered",
    normalized: bool = False,
    engine: Engine = "auto",
) -> AnyArray:
    """Return the convolutional similarity of a layer's kernels.

    The sum over pairs of kernels i < j, and over all pairs of their channels c1, c2, of the squared norm of the full
    cross-correlation of K_i[c1] with K_j[c2]. It is the same for convolution.

    Parameters
    ----------
    kernels : array of shape (c_out, c_in, *kernel)
        One to three kernel axes; float32, float64, integers, or a NumPy object array of exact numbers or polynomials.
    method : {"auto", "autocorrelation", "spectral", "pairwise"}
        "autocorrelation" and "spectral" cost one pass over the kernels: c_out c_in taps^2 operations in the first, a
        short Fourier transform of each channel in the second, which takes no exact numbers. "pairwise" is the
        definition, of cost c_out^2 c_in^2 taps^2. "auto" takes the faster of the first two for the kernels' size.
    pairs : {"unordered", "ordered"}
        Whether a pair of kernels counts once (CSM Eq. 19) or twice, as (i, j) and (j, i) (CSM Eq. 17).
    normalized : bool, default False
        Divide the term of each pair by norm(K_i)^2 norm(K_j)^2: the similarity of the kernels scaled to norm 1. Without
        it the value is homogeneous of degree 4, and a descent on it shrinks the kernels. Integers become float64.
    engine : Engine
        What runs the method "autocorrelation": see `convla.typing.Engine`.

    Returns
    -------
    array of shape ()
        Of the kernels' dtype; int64 for integers.

    Raises
    ------
    TypeError
        If `kernels` is no array of float32, float64 or exact numbers, or the method does not take exact ones.
    ShapeError
        If `kernels` has another number of axes or an empty one.
    ValueError
        If `kernels` holds NaN or infinity, an option is unknown, or a kernel to be normalised is 0.
    OverflowError
        If integers could leave the range of int64.
    EngineError
        If the engine does not take these kernels.

    Notes
    -----
    Sums are kept in float64 at least. With u its rounding unit, m a small multiple of c_in taps + c_out, E_i =
    norm(K_i)^2 and L(abs K) the similarity of the absolute values, the error before the last rounding is at most, to
    first order in u,

    - m u L(abs K) by "autocorrelation",
    - m u sqrt(L(K) L(abs K)) by "pairwise",
    - m u times the sum over pairs of sqrt(E_i E_j n L_ij), n the number of frequencies, by "spectral",

    and the last two also bound what first order leaves out by m^2 u^2 L(abs K) and m^2 u^2 n E_i E_j. They are the
    smaller for kernels with nearly disjoint spectra. Powers of two are split off where squares would leave the range of
    float64; a value beyond the dtype's range is returned as infinity, one below it as 0.

    References
    ----------
    CSM, Eqs. (16), (17), (19), (20).

    Examples
    --------
    >>> import numpy as np
    >>> from convla import convolutional_similarity
    >>> kernels = np.array([[[1, 2]], [[3, -1]]])
    >>> int(convolutional_similarity(kernels)), int(convolutional_similarity(kernels, pairs="ordered"))
    (38, 76)
    >>> float(convolutional_similarity(kernels, normalized=True))  # 38 / (5 * 10)
    0.76
    """
    return _evaluate(kernels, method, pairs, normalized, engine, gradient=False)[0]


def convolutional_similarity_gradient(
    kernels: ArrayLike,
    *,
    method: Method = "auto",
    pairs: Pairs = "unordered",
    normalized: bool = False,
    engine: Engine = "auto",
) -> AnyArray:
    """Return the gradient of `convolutional_similarity`, of the kernels' shape and dtype (int64 for integers).

    Parameters, errors and references are those of `convolutional_similarity`.

    Notes
    -----
    dL/dK_i[c][q] is 2 times the sum over lags t of (T - A_i)[t] K_i[c][q + t], with T the sum of the A_i: a cost linear
    in the number of kernels. Its error by "autocorrelation" is at most m u times the gradient of the absolute values,
    entry by entry.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import convolutional_similarity_gradient
    >>> convolutional_similarity_gradient(np.array([[[1, 2]], [[3, -1]]]))
    array([[[ 8, 34]],
    <BLANKLINE>
           [[26,  2]]])
    """
    return _evaluate(kernels, method, pairs, normalized, engine, gradient=True)[1]


def convolutional_similarity_and_gradient(
    kernels: ArrayLike,
    *,
    method: Method = "auto",
    pairs: Pairs = "unordered",
    normalized: bool = False,
    engine: Engine = "auto",
) -> tuple[AnyArray, AnyArray]:
    """Return the value and the gradient of `convolutional_similarity` at the cost of the gradient.

    Parameters, errors and references are those of `convolutional_similarity`.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import convolutional_similarity_and_gradient
    >>> value, gradient = convolutional_similarity_and_gradient(np.array([[[1, 2]], [[3, -1]]]))
    >>> int(value), gradient.shape
    (38, (2, 1, 2))
    """
    return _evaluate(kernels, method, pairs, normalized, engine, gradient=True)


def convolutional_similarity_hessian_product(
    kernels: ArrayLike, direction: ArrayLike, *, pairs: Pairs = "unordered", engine: Engine = "auto"
) -> AnyArray:
    """Return the Hessian of `convolutional_similarity` applied to a direction, in time linear in the kernels.

    Parameters
    ----------
    kernels, direction : array of shape (c_out, c_in, *kernel)
        Of one shape and dtype.
    pairs, engine
        As in `convolutional_similarity`.

    Returns
    -------
    array of shape (c_out, c_in, *kernel)
        The derivative of the gradient along `direction`.

    Raises
    ------
    TypeError, ShapeError, ValueError
        As `convolutional_similarity`, for either argument; if their shapes or dtypes differ.
    OverflowError
        If a number on the way could leave the range of int64, or does leave that of float64.

    Notes
    -----
    Half of it is the sum over lags t of (T - A_i)[t] V_i[c][q + t] + (T' - A'_i)[t] K_i[c][q + t] for a direction V,
    where A' and T' are the derivatives of A and T along V.

    Examples
    --------
    The gradient is homogeneous of degree 3, so the Hessian takes the kernels to 3 times the gradient:

    >>> import numpy as np
    >>> from convla import convolutional_similarity_gradient, convolutional_similarity_hessian_product
    >>> kernels = np.array([[[1, 2]], [[3, -1]]])
    >>> product = convolutional_similarity_hessian_product(kernels, kernels)
    >>> bool(np.all(product == 3 * convolutional_similarity_gradient(kernels)))
    True
    """
    xp = namespace(kernels, direction)
    factor = _factor(pairs)
    kernels = _check_kernels("kernels", kernels, xp)
    direction = _check_kernels("direction", direction, xp)
    check_same_shape("kernels", kernels, "direction", direction)
    if kernels.dtype != direction.dtype:
        raise TypeError(f"kernels and direction must have one dtype, got {kernels.dtype} and {direction.dtype}")
    form = signature_form("autocorrelation", kernels)
    with np.errstate(over="ignore", invalid="ignore"):
        others = sums_of_others(form.signatures(kernels, engine), xp)[1]
        moved = sums_of_others(form.derivative(kernels, direction), xp)[1]
        if is_exact(kernels):
            for weights, array in ((others, direction), (moved, kernels)):
                _check_int64(2 * factor * _row_bound(weights, array, xp), array)
        product = factor * (form.pull_back(direction, others, engine) + form.pull_back(kernels, moved, engine))
    if not all_finite(product):
        for name, array in (("kernels", kernels), ("direction", direction)):
            check_array(name, array, xp)
        raise OverflowError(f"the Hessian product leaves the range of {product.dtype}: scale kernels or direction down")
    return product


def _evaluate(
    kernels: ArrayLike, method: Method, pairs: Pairs, normalized: bool, engine: Engine, *, gradient: bool
) -> tuple[Array, Array]:
    """Return the value and, where asked for, the gradient (else a dummy)."""
    xp = namespace(kernels)
    check_choice("method", method, ("auto", "autocorrelation", "spectral", "pairwise"))
    factor = _factor(pairs)
    kernels = _check_kernels("kernels", kernels, xp)
    if normalized and is_exact(kernels):
        if kernels.dtype == object:
            raise TypeError("normalized similarity needs floating-point kernels, got an object array")
        kernels = xp.astype(kernels, xp.float64)
    if method == "auto":
        method = "autocorrelation" if is_exact(kernels) or is_quickest_by_lags(kernels) else "spectral"
    if method == "spectral" and is_exact(kernels):
        raise TypeError(f"method 'spectral' needs floating-point kernels, got dtype {kernels.dtype}")
    # Overflow in the first attempt is what the second, scaled one is for; in the result it is infinity.
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        if method == "pairwise":
            value, slope = similarity_by_definition(kernels, normalized, gradient, xp)
        elif is_exact(kernels):
            value, slope = _exact(kernels, signature_form(method, kernels), factor, gradient, engine, xp)
        else:
            value, slope = _floating(kernels, signature_form(method, kernels), normalized, gradient, engine, xp)
        if factor != 1:
            value, slope = factor * value, factor * slope
        return (value if is_exact(kernels) else xp.astype(value, kernels.dtype)), slope


def _exact(
    kernels: Array, form: Form, factor: int, gradient: bool, engine: Engine, xp: Namespace
) -> tuple[Array, Array]:
    signatures = form.signatures(kernels, engine)
    before, others = sums_of_others(signatures, xp)
    if kernels.dtype != object:
        # Every partial sum of the value is at most the sum of the moduli, in float64 to 1e-12 or so.
        moduli = [xp.abs(xp.astype(array, xp.float64)) for array in (signatures, before)]
        _check_int64(factor * float(xp.sum(moduli[0] * moduli[1])), kernels)
        if gradient:
            _check_int64(2 * factor * _row_bound(others, kernels, xp), kernels)
    value = xp.sum(signatures * before)
    return value, form.pull_back(kernels, others, engine) if gradient else value


def _floating(
    kernels: Array, form: Form, normalized: bool, gradient: bool, engine: Engine, xp: Namespace
) -> tuple[Array, Array]:
    signatures = form.signatures(kernels, engine)
    energies = signatures @ form.unit
    exponents = None
    if not energies_are_safe(energies, xp):
        check_array("kernels", kernels, xp)
        # The signatures of float32 kernels cannot leave float64; those of float64 kernels are taken again, scaled.
        if kernels.dtype == xp.float64:
            kernels, exponents = scale_filters(kernels, xp)
            signatures = form.signatures(kernels, engine)
            energies = signatures @ form.unit
    if normalized:
        value, weights = normalized_pairs(signatures, energies, form.unit, xp)
    elif exponents is None:
        before, weights = sums_of_others(signatures, xp)
        value = xp.sum(signatures * before)
    else:
        value, weights, powers = scaled_pairs(signatures, exponents, xp)
    if not gradient:
        return value, value
    slope = form.pull_back(kernels, weights, engine)
    if exponents is not None:
        powers = -exponents if normalized else powers
        slope = times_powers(slope, xp.reshape(powers, (-1, *(1,) * (slope.ndim - 1))), xp)
    return value, slope


@accelerated("layer_similarities")
def layer_similarities(
    *layers: Array,
    pairs: Pairs,
    normalized: bool,
    safe: tuple[float, float],  # noqa: ARG001 - for kernels, which take no second attempt
) -> tuple[Array, ...]:
    """Return the values (layers,) of a network's layers in float64, and the gradient of each, by "autocorrelation".

    The layers are of one floating-point dtype, and checked but for their values. A kernel may give NaN for the value of
    a layer whose filters do not all have squared norms within `safe`, or which it cannot take: that layer has to be
    run by itself, and its gradient stands for nothing. The kernels spare what a layer costs by itself: a launch on a
    GPU, calls and waiting for threads on a CPU.
    """
    xp = namespace(*layers)
    found = [
        convolutional_similarity_and_gradient(layer, method="autocorrelation", pairs=pairs, normalized=normalized)
        for layer in layers
    ]
    return xp.stack([xp.astype(value, xp.float64) for value, _ in found]), *(gradient for _, gradient in found)


def is_quickest_by_lags(kernels: Array) -> bool:
    """Tell whether kernels of 1 to 3 axes have few enough taps for the method "autocorrelation"."""
    return bool(kernels.ndim <= 5 and math.prod(kernels.shape[2:]) <= SPECTRAL_TAPS[kernels.ndim - 2])


def _check_kernels(name: str, kernels: ArrayLike, xp: Namespace) -> Array:
    """Return kernels as float32, float64, int64 or object array; NaN and infinity are found later, in the energies."""
    array = check_array(name, kernels, xp, min_ndim=3, axes="(c_out, c_in, *kernel)", finite=False)
    if array.ndim > 5:
        raise ShapeError(f"{name} must have 1 to 3 axes after its channels, got shape {tuple(array.shape)}")
    if not is_exact(array):
        if array.dtype not in (xp.float32, xp.float64):
            raise TypeError(f"{name} must be float32, float64 or exact, got dtype {array.dtype}")
        return array
    if array.dtype == object:
        return array
    # The smallest modulus of an int64 has none of the same dtype.
    largest = max(int(xp.max(array)), -int(xp.min(array)))
    _check_int64(float(largest), array)
    wide = xp.astype(array, xp.int64)
    moduli = xp.astype(wide, xp.float64)
    _check_int64(float(xp.max(xp.sum(xp.reshape(moduli * moduli, (array.shape[0], -1)), axis=1))), array)
    return wide


def _check_int64(bound: float, array: Array) -> None:
    """Raise `OverflowError` if a number of about `bound` on the way, known to 1e-6, could leave int64."""
    if bound * (1 + 1e-6) >= 2.0**63:
        raise OverflowError(
            f"sums can reach {bound:.3g}, beyond the largest int64, for integers of shape {tuple(array.shape)}: "
            "pass floating-point kernels, or an object array of Python integers"
        )


def _row_bound(weights: Array, array: Array, xp: Namespace) -> float:
    """Bound the sums that the adjoint makes of integer weights (c_out, lags) and an array (c_out, c_in, *kernel)."""
    if array.dtype == object:
        return 0.0
    moduli = xp.sum(xp.abs(xp.astype(weights, xp.float64)), axis=1)
    largest = xp.max(xp.reshape(xp.abs(xp.astype(array, xp.float64)), (array.shape[0], -1)), axis=1)
    return float(xp.max(moduli * largest))


def _factor(pairs: Pairs) -> int:
    return 2 if check_choice("pairs", pairs, ("unordered", "ordered")) == "ordered" else 1
