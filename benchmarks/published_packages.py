"""Estimates of a layer's norm by published packages, run as their documentation says; None where one is not installed.

Each takes a kernel (c_out, c_in, k, l) and the side n of the image, for stride 1 and zero padding of the same size. The
packages are optional: ``pip install --no-deps orthogonium deel-torchlip cola-ml plum-dispatch tqdm`` next to PyTorch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, svds

from convla import ConvOperator, largest_singular_value

Estimate = Callable[[np.ndarray, int], float]


def conv2d(kernel: np.ndarray, *, groups: int = 1, padding_mode: str = "zeros") -> torch.nn.Conv2d:
    out, inner, *sizes = kernel.shape
    layer = torch.nn.Conv2d(
        inner * groups, out, tuple(sizes), padding="same", groups=groups, padding_mode=padding_mode, bias=False
    ).double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(kernel))
    return layer


def orthogonium(kernel: np.ndarray, n: int) -> float:
    """Run ``get_conv_sv`` with 4 Gram iterations, the default of its inner functions: announced as an upper bound."""
    get_conv_sv = importlib.import_module("orthogonium.layers.conv.singular_values").get_conv_sv
    return float(get_conv_sv(conv2d(kernel), n_iter=4, return_stab_rank=False, imsize=n))


def torchlip(kernel: np.ndarray, n: int) -> float:
    """Return `SpectralConv2d`'s divisor, announced as a bound: the flattened norm over `compute_lconv_coef`."""
    normalizers = importlib.import_module("deel.torchlip.normalizers")
    lconv = importlib.import_module("deel.torchlip.utils.lconv_norm")
    torch.manual_seed(0)
    weight = torch.from_numpy(kernel).float()
    _, _, sigma = normalizers.spectral_normalization(weight.reshape(len(kernel), -1), None, eps=1e-9, maxiter=1000)
    return float(sigma) / float(lconv.compute_lconv_coef(kernel.shape[2:], (kernel.shape[1], n, n)))


def cola(kernel: np.ndarray, n: int) -> float:
    """Run the power method with its defaults, on ``M^T M``: an estimate from below."""
    library = importlib.import_module("cola")
    power = importlib.import_module("cola.linalg.eig.power_iteration").power_iteration
    matrix = torch.from_numpy(ConvOperator(kernel, (n, n)).to_dense())
    _, value, _ = power(library.ops.Dense(matrix.T @ matrix))
    return math.sqrt(float(value))


def deepinv(kernel: np.ndarray, n: int) -> float:
    """Run ``compute_norm`` with its defaults: the power method until it changes by 1e-3, an estimate from below."""
    physics = importlib.import_module("deepinv.physics")
    layer = conv2d(kernel)
    operator = physics.LinearPhysics(A=layer, img_size=(kernel.shape[1], n, n))
    torch.manual_seed(0)
    start = torch.randn(1, kernel.shape[1], n, n, dtype=torch.float64)
    return float(operator.compute_norm(start, squared=False, verbose=False))


def scipy_svds(solver: str) -> Estimate:
    def estimate(kernel: np.ndarray, n: int) -> float:
        operator = ConvOperator(kernel, (n, n)).as_linear_operator()
        return float(svds(operator, k=1, solver=solver, return_singular_vectors=False, rng=0)[0])

    return estimate


PACKAGES: list[tuple[str, str, Estimate]] = [
    ("orthogonium", "`get_conv_sv`, 4 iterations", orthogonium),
    ("deel-torchlip", "`SpectralConv2d`'s divisor", torchlip),
    ("cola-ml", "`power_iteration`", cola),
    ("deepinv", "`compute_norm`", deepinv),
    ("scipy", "`svds`, ARPACK", scipy_svds("arpack")),
    ("scipy", "`svds`, LOBPCG", scipy_svds("lobpcg")),
    ("scipy", "`svds`, PROPACK", scipy_svds("propack")),
]
ABSENT = {
    "lip4conv": "not on PyPI",
    "conv-sv": "not on PyPI",
    "Grishina et al. 2024": "no package; its bound is a local optimum of a non-convex search",
}


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def attempt(estimate: Estimate, kernel: np.ndarray, n: int) -> float | str:
    """Return an estimate, or the type of the error that the package raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return estimate(kernel, n)
        except (ArithmeticError, RuntimeError, TypeError, ValueError, AttributeError, ArpackError) as error:
            return type(error).__name__
        except np.linalg.LinAlgError as error:
            return type(error).__name__


def importable(estimate: Estimate) -> str | None:
    """Return why a package cannot be run at all, or None."""
    try:
        estimate(np.ones((1, 1, 3, 3)), 4)
    except (ImportError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"it does not import: {error}" if "does not exist" in str(error) else None
    return None


def known_failures() -> list[tuple[str, float, float | str]]:
    """Return settings in which orthogonium's bound is below the norm: (setting, truth, its answer)."""
    get_conv_sv = importlib.import_module("orthogonium.layers.conv.singular_values").get_conv_sv
    rows = []
    for setting, shape, groups, mode in (
        ("4x2x3x3, 2 groups, scale 0.1, zeros", (4, 2, 3, 3), 2, "zeros"),
        ("4x2x3x3, 2 groups, zeros", (4, 2, 3, 3), 2, "zeros"),
        ("4x4x5x1, zeros", (4, 4, 5, 1), 1, "zeros"),
        ("4x4x2x2, circular", (4, 4, 2, 2), 1, "circular"),
    ):
        kernel = np.random.default_rng(0).standard_normal(shape) * (0.1 if "0.1" in setting else 1.0)
        boundary = "zero" if mode == "zeros" else "circular"
        operator = ConvOperator(kernel, (10, 10), groups=groups, boundary=boundary)
        layer = conv2d(kernel, groups=groups, padding_mode=mode)
        found = attempt(
            lambda _k, n, layer=layer: float(get_conv_sv(layer, n_iter=4, return_stab_rank=False, imsize=n)), kernel, 10
        )
        rows.append((setting, largest_singular_value(operator).value, found))
    return rows
