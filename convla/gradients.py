"""Gradients of a layer's weights in metrics other than the Euclidean one: channel-directed, smoothed, normalised.

Each function takes the Euclidean gradient f of a loss and returns P f for a symmetric positive definite P: the gradient
of the same loss in the metric <k, l> = k . P^-1 l, so a step against it descends, <f, P f> > 0.
"""

from __future__ import annotations

import math
from fractions import Fraction
from numbers import Rational
from typing import Any, Literal, get_args

import numpy as np

from convla._array import accumulation_dtype, all_finite, device_of, is_exact, is_on_gpu, namespace, on_device_of
from convla._dispatch import accelerated
from convla._validate import check_array, check_choice, check_floating, check_integer, check_real
from convla.errors import ShapeError
from convla.typing import AnyArray, Array, ArrayLike, Engine, Namespace

__all__ = ["laplacian_smoothing", "normalized_gradient", "reweighted_gradient", "sobolev_gradient"]

Discretization = Literal["circulant", "riemann"]
SmoothingMethod = Literal["auto", "sweeps", "fft"]

FEW_LINES, LONG_LINE = 512, 4096
"""Fewer lines than this, each longer than that, are few and long for a GPU; not measured."""


def reweighted_gradient(
    gradient: ArrayLike, lam: float | Rational, *, axis: int | None = 0, engine: Engine = "auto"
) -> AnyArray:
    """Return the gradient in the re-weighted H0 metric: the mean over one axis whole, deviations from it over lambda.

    Parameters
    ----------
    gradient : array of shape (c_out, c_in, *kernel), or any other
        The Euclidean gradient f: float32, float64, integers (taken as float64), or an object array of Fractions.
    lam : float
        lambda > 0. At 1 the result is f; beyond it the mean counts for more.
    axis : int or None, default 0
        The direction: 0 for output channels, 1 for input channels, None for all entries in row-major order.
    engine : Engine
        Which kernel runs: see `convla.typing.Engine`.

    Returns
    -------
    array of the shape and dtype of `gradient`
        ``mean + (f - mean) / lam``, the mean of f along `axis`.

    Raises
    ------
    TypeError
        If the gradient is no array of real numbers, or one of half precision.
    ShapeError, ValueError
        If it has an empty axis or no such axis, holds NaN or infinity, or `lam` is not a positive finite number.
    EngineError
        If the engine does not take this array.
    OverflowError
        If the entries are finite and their sums or the result are not.

    Notes
    -----
    It is the gradient in the metric ``<k, l> = O (sum k_mean l_mean) + lam (sum (k - k_mean) (l - l_mean))``, O the
    length of the axis: CDG's Eq. (4) times O, because Eq. (4) divides by O and the Euclidean Eq. (3) does not.
    CDG's Figure 3 computes ``f + mu mean``, which is this gradient with lambda = 1 + mu, times 1 + mu.

    It commutes with every permutation of the channels.

    References
    ----------
    Channel-Directed Gradients for Optimization of Convolutional Neural Networks (CDG), Eqs. (4), (8), Figure 3.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import reweighted_gradient
    >>> reweighted_gradient(np.array([[1.0], [3.0], [8.0]]), 2.0)
    array([[2.5],
           [3.5],
           [6. ]])
    """
    xp = namespace(gradient)
    gradient, blocks = _check_gradient(gradient, axis, xp, exact=True)
    weight = _check_lam(lam, gradient)
    with np.errstate(over="ignore", invalid="ignore"):
        result = _reweight(blocks, weight, engine=engine)
    return _finite(result, gradient, xp)


def sobolev_gradient(
    gradient: ArrayLike,
    lam: float | Rational,
    *,
    axis: int | None = 0,
    blend: float | Rational = 0,
    discretization: Discretization = "circulant",
    engine: Engine = "auto",
) -> AnyArray:
    """Return the gradient in the channel-directed Sobolev metric, smooth and periodic along one axis.

    Parameters
    ----------
    gradient : array of shape (c_out, c_in, *kernel), or any other
        The Euclidean gradient f: float32, float64, integers (taken as float64), or an object array of Fractions.
    lam : float
        lambda > 0, the weight of the derivative along the axis; CDG uses 1.
    axis : int or None, default 0
        The direction: 0 for output channels, 1 for input channels, None for all entries in row-major order.
    blend : float, default 0
        At least 0; ``blend * f`` is added. CDG's Section 3 blends, to avoid over-smoothing, and does not print its
        weight.
    discretization : {"circulant", "riemann"}
        "circulant" solves the difference equation exactly; "riemann" takes the left Riemann sums of Eqs. (10)-(12) as
        printed.
    engine : Engine
        Which kernel runs "circulant"; "riemann" has the reference only.

    Returns
    -------
    array of the shape and dtype of `gradient`

    Raises
    ------
    TypeError
        If the gradient is no array of real numbers, or one of half precision.
    ShapeError, ValueError
        If it has an empty axis or no such axis, holds NaN or infinity, a weight is out of its range, or the
        discretization is unknown.
    EngineError
        If the engine does not take this array.
    OverflowError
        If the entries are finite and their sums or the result are not.

    Notes
    -----
    With O the length of the axis and D the periodic difference g[j + 1] - g[j], the "circulant" result is the gradient
    in the metric ``<k, l> = O (sum k_mean l_mean) + lam O^2 (sum Dk Dl)``, which is CDG's Eq. (6) times O at spacing
    1. It solves ``f = g_mean + lam O^2 D^T D g``: two prefix sums, at a cost linear in O. Its Green's function is CDG's
    K(j / O) of Eq. (9) less ``1 / (12 lam O^2)``. Both forms therefore differ by a constant along the axis:
    "riemann" = "circulant" + ``mean / (12 lam O^2)``, exactly.

    It does not commute with permutations of the channels: it gives them an order.

    References
    ----------
    CDG, Eqs. (6), (9)-(12), Section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import sobolev_gradient
    >>> f = np.array([[0.0], [0.0], [4.0], [0.0]])
    >>> sobolev_gradient(f, 0.125).ravel()
    array([0.625, 0.875, 1.625, 0.875])
    >>> float(np.mean(sobolev_gradient(f, 0.125)))
    1.0
    """
    xp = namespace(gradient)
    gradient, blocks = _check_gradient(gradient, axis, xp, exact=True)
    weight = _check_lam(lam, gradient)
    check_choice("discretization", discretization, get_args(Discretization))
    share = blend if _keeps(blend, gradient) else check_real("blend", blend)
    if share < 0:
        raise ValueError(f"blend must be at least 0, got {blend}")
    solve = _sobolev if discretization == "circulant" else _sobolev_riemann
    with np.errstate(over="ignore", invalid="ignore"):
        result = solve(blocks, weight, share, engine=engine)
    return _finite(result, gradient, xp)


def laplacian_smoothing(
    gradient: ArrayLike,
    sigma: float,
    *,
    axis: int | None = None,
    method: SmoothingMethod = "auto",
    engine: Engine = "auto",
) -> AnyArray:
    """Return ``(I - sigma L)^-1`` of a gradient, L the periodic second difference along one axis.

    Parameters
    ----------
    gradient : array of any shape
        The Euclidean gradient f: float32, float64, or integers (taken as float64).
    sigma : float
        At least 0; 0 returns f.
    axis : int or None, default None
        None smooths all entries in row-major order, as Osher et al. do; 0 along output channels.
    method : {"auto", "sweeps", "fft"}
        "sweeps" factors the circulant matrix into a forward and a backward recursion, at a linear cost; "fft" divides
        by its eigenvalues. "auto" sweeps where a compiled kernel takes the array; not a few long lines on a GPU.
    engine : Engine
        Which kernel sweeps; the reference is a loop over the axis.

    Returns
    -------
    array of the shape and dtype of `gradient`

    Raises
    ------
    TypeError
        If the gradient is no array of real numbers, or one of half precision.
    ShapeError, ValueError
        If it has an empty axis or no such axis, holds NaN or infinity, `sigma` is negative, or the method unknown.
    EngineError
        If the engine does not take this array.
    OverflowError
        If the entries are finite and their sums or the result are not.

    Notes
    -----
    It is the gradient in the metric ``<k, l> = sum k l + sigma (sum Dk Dl)``, D the periodic difference: a Sobolev
    metric with the whole tensor, not its mean, in the first term. With ``a = (s - 1) / (s + 1)``,
    ``s = sqrt(1 + 4 sigma)`` and S the periodic shift, ``I - sigma L = (1 - a S) (1 - a S^-1) / (1 - a)^2``.

    References
    ----------
    S. Osher et al., Laplacian Smoothing Gradient Descent, arXiv:1806.06317, Section 2; CDG, Section 1.1.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import laplacian_smoothing
    >>> np.round(laplacian_smoothing(np.array([0.0, 1.0, 8.0, 1.0]), 0.5), 12)
    array([1., 2., 5., 2.])
    """
    xp = namespace(gradient)
    gradient, blocks = _check_gradient(gradient, axis, xp, exact=False)
    check_array("gradient", gradient, xp)  # at sigma = 0 no entry shows in another
    sigma = check_real("sigma", sigma, minimum=0.0)
    check_choice("method", method, get_args(SmoothingMethod))
    if method == "auto":
        compiled = _smooth.resolve(blocks, sigma, engine=engine) is not _smooth.reference
        method = "sweeps" if engine == "reference" or (compiled and not _few_long_lines(blocks)) else "fft"
    with np.errstate(over="ignore", invalid="ignore"):
        smoothed = _smooth(blocks, sigma, engine=engine) if method == "sweeps" else _smooth_by_fft(blocks, sigma, xp)
    return _finite(smoothed, gradient, xp)


def normalized_gradient(gradient: ArrayLike, *, per_filter: bool = False) -> AnyArray:
    """Return a gradient divided by its Euclidean norm, or each of its filters by its own.

    Parameters
    ----------
    gradient : array of shape (c_out, ...)
        Of one layer: float32, float64, or integers (taken as float64).
    per_filter : bool, default False
        Divide ``gradient[o]`` by its own norm for every o (CN-SGDM) instead of the layer by one (N-SGDM).

    Returns
    -------
    array of the shape and dtype of `gradient`
        What is zero stays zero.

    Raises
    ------
    TypeError, ShapeError, ValueError
        If the gradient is no array of finite real numbers with at least one axis, or one of half precision.

    References
    ----------
    Orthonormalising gradients improves neural network optimisation (OGN), Section 4.1.

    Examples
    --------
    >>> import numpy as np
    >>> from convla import normalized_gradient
    >>> normalized_gradient(np.array([[3.0, 4.0], [0.0, 0.0]]), per_filter=True)
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    xp = namespace(gradient)
    gradient = check_floating("gradient", gradient, xp, min_ndim=1, axes="(c_out, ...)")
    rows = xp.reshape(gradient, (int(gradient.shape[0]), -1) if per_filter else (1, -1))
    wide = xp.astype(rows, accumulation_dtype(rows, xp))
    # Scaled by the largest entry, so that no square overflows or vanishes.
    largest = xp.max(xp.abs(wide), axis=1, keepdims=True)
    scaled = wide / xp.where(largest > 0, largest, xp.ones_like(largest))
    length = xp.sqrt(xp.sum(scaled * scaled, axis=1, keepdims=True))
    unit = scaled / xp.where(largest > 0, length, xp.ones_like(length))
    return xp.reshape(xp.astype(unit, gradient.dtype), tuple(gradient.shape))


def _few_long_lines(blocks: Array) -> bool:
    """Tell whether the processors of a GPU outnumber the lines: its library shares one line among many of them."""
    outer, n, inner = blocks.shape
    return is_on_gpu(blocks) and outer * inner < FEW_LINES and n > LONG_LINE


def _for_lines(blocks: Array, *_: Any) -> str:
    return "reference" if _few_long_lines(blocks) else ""


@accelerated("reweighted_gradient", prefer=_for_lines)
def _reweight(blocks: Array, lam: Any) -> Array:
    xp = namespace(blocks)
    wide = _widened(blocks, xp)
    mean = _mean(wide, xp)
    return _narrowed(mean + (wide - mean) / lam, blocks, xp)


@accelerated("sobolev_gradient", prefer=_for_lines)
def _sobolev(blocks: Array, lam: Any, blend: Any) -> Array:
    xp = namespace(blocks)
    n = blocks.shape[1]
    wide = _widened(blocks, xp)
    mean = _mean(wide, xp)
    # CDG Eq. (8): the second difference of g is -(f - mean) / (lam n^2). Its first prefix sum gives the slopes of g,
    # which add up to 0 around the axis, the second its values, whose mean is that of f.
    bends = xp.cumulative_sum(wide - mean, axis=1)
    slopes = _mean(bends, xp) - bends
    values = xp.cumulative_sum(slopes, axis=1) - slopes
    smooth = mean + (values - _mean(values, xp)) / (lam * n * n)
    return _narrowed(smooth + blend * wide, blocks, xp)


def _sobolev_riemann(blocks: Array, lam: Any, blend: Any, *, engine: Engine) -> Array:
    """Return CDG's Eqs. (10)-(12), each integral over [0, 1] a left Riemann sum with O steps."""
    if engine not in ("auto", "reference"):
        raise ValueError(f"engine must be 'auto' or 'reference' for discretization 'riemann', got {engine!r}")
    xp = namespace(blocks)
    n = int(blocks.shape[1])
    wide = _widened(blocks, xp)
    exact = wide.dtype == object
    places = [Fraction(j, n) if exact else j / n for j in range(n)]
    o = xp.reshape(on_device_of(places, wide, xp, dtype=wide.dtype), (1, n, 1))
    sixth = Fraction(1, 6) if exact else 1 / 6
    rest = wide - _mean(wide, xp)
    start = _mean((1 + (o * o - o + sixth) / (2 * lam)) * wide, xp)
    slope = -_mean(o * rest, xp) / lam
    bend = (o * xp.cumulative_sum(rest, axis=1) - xp.cumulative_sum(o * rest, axis=1)) / (lam * n)
    return _narrowed(start + o * slope - bend + blend * wide, blocks, xp)


@accelerated("laplacian_smoothing")
def _smooth(blocks: Array, sigma: float) -> Array:
    xp = namespace(blocks)
    n = int(blocks.shape[1])
    root = 2 * math.sqrt(0.25 + sigma)
    decay, complement = (root - 1) / (root + 1), 2 / (root + 1)
    wide = _widened(blocks, xp)
    forward = _recur([wide[:, j, :] for j in range(n)], decay, complement)
    backward = _recur(forward[::-1], decay, complement)[::-1]
    return _narrowed(xp.stack(backward, axis=1) * complement**2, blocks, xp)


def _recur(rows: list[Array], decay: float, complement: float) -> list[Array]:
    """Return y with y[j] = rows[j] + decay y[j - 1], periodic: the state it ends with is the one it begins with."""
    if decay == 0:
        return rows
    state = rows[0] * 0
    for row in rows:
        state = row + decay * state
    # 1 - decay^n, accurate where decay is all but 1.
    state = state / -math.expm1(len(rows) * math.log1p(-complement))
    states = []
    for row in rows:
        state = row + decay * state
        states.append(state)
    return states


def _smooth_by_fft(blocks: Array, sigma: float, xp: Namespace) -> Array:
    n = int(blocks.shape[1])
    # Where the array is: a list of millions of eigenvalues takes longer to make than all the rest.
    frequencies = xp.arange(n // 2 + 1, dtype=accumulation_dtype(blocks, xp), device=device_of(blocks))
    eigenvalues = 1 + 4 * sigma * xp.sin(frequencies * (math.pi / n)) ** 2
    divisor = xp.reshape(xp.astype(eigenvalues, blocks.dtype), (1, -1, 1))
    return xp.fft.irfft(xp.fft.rfft(blocks, axis=1) / divisor, n=n, axis=1)


def _check_gradient(value: ArrayLike, axis: int | None, xp: Namespace, *, exact: bool) -> tuple[Array, Array]:
    """Return the gradient, and its view (outer, n, inner) whose middle axis is `axis`, or holds all entries.

    Its entries may be NaN or infinite.
    """
    gradient = check_array("gradient", value, xp, min_ndim=1, axes="(c_out, c_in, *kernel)", finite=False)
    if not (exact and gradient.dtype == object):
        gradient = check_floating("gradient", gradient, xp, finite=False)
    shape = tuple(gradient.shape)
    if axis is None:
        return gradient, xp.reshape(gradient, (1, -1, 1))
    axis = check_integer("axis", axis)
    if not -len(shape) <= axis < len(shape):
        raise ShapeError(f"axis must be between {-len(shape)} and {len(shape) - 1} for shape {shape}, got {axis}")
    axis %= len(shape)
    return gradient, xp.reshape(gradient, (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])))


def _finite(result: Array, gradient: Array, xp: Namespace) -> Array:
    """Return a result (outer, n, inner) in the gradient's shape, unless the gradient holds NaN or infinity.

    This saves a pass over the data: the sum of a line is in each of its entries, so one NaN or infinity in a line
    makes its first entry one, and so does a sum that overflows.
    """
    if not all_finite(result[:, 0, :]):
        check_array("gradient", gradient, xp)
        raise OverflowError(f"gradient is finite, and its transform beyond {result.dtype}: scale the gradient down")
    return xp.reshape(result, tuple(gradient.shape))


def _keeps(weight: object, gradient: Array) -> bool:
    return is_exact(gradient) and isinstance(weight, Rational) and not isinstance(weight, bool)


def _check_lam(lam: Any, gradient: Array) -> Any:
    if not _keeps(lam, gradient):
        return check_real("lam", lam, positive=True)
    if lam <= 0:
        raise ValueError(f"lam must be positive, got {lam}")
    return Fraction(lam)


def _widened(blocks: Array, xp: Namespace) -> Array:
    return xp.astype(blocks, accumulation_dtype(blocks, xp), copy=False)


def _narrowed(wide: Array, like: Array, xp: Namespace) -> Array:
    return xp.astype(wide, like.dtype, copy=False)


def _mean(blocks: Array, xp: Namespace) -> Array:
    return xp.sum(blocks, axis=1, keepdims=True) / blocks.shape[1]
