"""Write docs/who-is-right.md: published estimates of a layer's norm beside the truth, on the same kernels.

Published formulas are written out here; published packages are run, those that are installed (`published_packages`),
and the page says which were not. The truth is LAPACK's largest singular value of the dense matrix in float64. Run with
``python benchmarks/who_is_right.py``.
"""
# ruff: noqa: E501 - the lines of the page

from __future__ import annotations

import math
import pathlib
import platform
from collections.abc import Callable

import numpy as np
import published_packages as packages
import scipy
import torch

import convla
from convla import ConvOperator, largest_singular_value, singular_value_bounds, smallest_singular_value

Estimate = Callable[[np.ndarray, int], float]

KERNELS: dict[str, tuple[Callable[[np.random.Generator], np.ndarray], int]] = {
    "normal 4x4x3x3, n = 16": (lambda rng: rng.standard_normal((4, 4, 3, 3)), 16),
    "normal 8x8x3x3, n = 10": (lambda rng: rng.standard_normal((8, 8, 3, 3)), 10),
    "uniform 4x4x3x3, n = 16": (lambda rng: rng.random((4, 4, 3, 3)), 16),
    "normal 6x3x5x1, n = 12": (lambda rng: rng.standard_normal((6, 3, 5, 1)), 12),
    "normal 4x4x2x2, n = 9": (lambda rng: rng.standard_normal((4, 4, 2, 2)), 9),
    "difference 1x1x1x3, n = 6": (lambda _: np.array([[[[1.0, 0.0, -1.0]]]]), 6),
    "orthogonal shift 4x4x3x3, n = 16": (
        lambda rng: np.linalg.qr(rng.standard_normal((4, 4)))[0][:, :, None, None] * (np.arange(9) == 2).reshape(3, 3),
        16,
    ),
}


def flattened(kernel: np.ndarray, _: int) -> float:
    return float(np.linalg.norm(kernel.reshape(len(kernel), -1), 2))


def torch_spectral_norm(kernel: np.ndarray, _: int) -> float:
    """Return the norm that `torch.nn.utils.parametrizations.spectral_norm` divides by, after 100 of its power steps."""
    torch.manual_seed(0)
    weight = torch.from_numpy(kernel).float()
    module = torch.nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2:], bias=False)
    with torch.no_grad():
        module.weight.copy_(weight)
    torch.nn.utils.parametrizations.spectral_norm(module, n_power_iterations=100)
    return float(weight.norm() / module.weight.detach().norm())


def taps_times_flattened(kernel: np.ndarray, n: int) -> float:
    return math.sqrt(math.prod(kernel.shape[2:])) * flattened(kernel, n)


def fantastic_four(kernel: np.ndarray, _: int) -> float:
    out, inner, high, wide = kernel.shape
    unfoldings = [
        kernel.reshape(out, -1),
        kernel.transpose(1, 0, 2, 3).reshape(inner, -1),
        kernel.transpose(0, 2, 1, 3).reshape(out * high, -1),
        kernel.transpose(0, 3, 1, 2).reshape(out * wide, -1),
    ]
    return math.sqrt(high * wide) * min(float(np.linalg.norm(u, 2)) for u in unfoldings)


def _grid(kernel: np.ndarray, size: int) -> np.ndarray:
    return np.fft.fft2(kernel, (size, size)).transpose(2, 3, 0, 1)


def circular(kernel: np.ndarray, n: int) -> float:
    return float(np.linalg.norm(_grid(kernel, n), 2, axis=(-2, -1)).max())


def gram_circular(kernel: np.ndarray, n: int, steps: int = 5) -> float:
    gram, log = _grid(kernel, n), 0.0
    for step in range(steps):
        scale = np.linalg.norm(gram, axis=(-2, -1)).max()
        log += math.log(scale) / 2**step
        gram = gram / scale
        gram = gram.conj().swapaxes(-1, -2) @ gram
    return math.exp(log + math.log(np.linalg.norm(gram, axis=(-2, -1)).max()) / 2**steps)


def gram_zero(kernel: np.ndarray, _: int, steps: int = 3) -> float:
    """Form the Gram kernels K^T * K by full correlation; the sum of the taps' norms bounds the last one's norm."""
    gram = kernel
    for _step in range(steps):
        sizes = tuple(2 * k - 1 for k in gram.shape[2:])
        transform = np.fft.fft2(gram, sizes)
        gram = np.fft.ifft2(np.einsum("oiab,ojab->ijab", transform.conj(), transform)).real
    taps = gram.transpose(2, 3, 0, 1).reshape(-1, *gram.shape[:2])
    return float(np.linalg.norm(taps, 2, axis=(-2, -1)).sum()) ** (0.5**steps)


def grid_with_factor(kernel: np.ndarray, _: int, size: int = 16) -> float:
    degree = max(k // 2 for k in kernel.shape[2:])
    return circular(kernel, size) / (1 - 2 * degree / size)


def power(kernel: np.ndarray, n: int, steps: int = 10) -> float:
    operator = ConvOperator(kernel, (n, n))
    image = np.random.default_rng(0).standard_normal(operator.domain_shape)
    for _ in range(steps):
        image = operator.adjoint(operator.apply(image))
        image /= np.linalg.norm(image)
    return float(np.linalg.norm(operator.apply(image)))


ESTIMATES: list[tuple[str, str, Estimate]] = [
    ("norm of the flattened kernel", "Miyato et al. 2018", flattened),
    ("PyTorch `spectral_norm`", "run", torch_spectral_norm),
    ("flattened, times sqrt(taps)", "Tsuzuku et al. 2018", taps_times_flattened),
    ("four unfoldings", "Singla and Feizi 2021", fantastic_four),
    ("circular, own size", "Sedghi et al. 2019", circular),
    ("Gram iteration, circular, t = 5", "Delattre et al. 2023", gram_circular),
    ("Gram iteration, zero padding, t = 3", "Delattre et al. 2024", gram_zero),
    ("grid of 16 with its factor", "Pfister and Bresler 2018", grid_with_factor),
    ("10 power steps", "Ryu et al. 2019", power),
    ("**convla**, lower", "", lambda k, n: singular_value_bounds(ConvOperator(k, (n, n)), method="symbol").lower),
    ("**convla**, value", "", lambda k, n: largest_singular_value(ConvOperator(k, (n, n)), method="lanczos").value),
    ("**convla**, upper", "", lambda k, n: singular_value_bounds(ConvOperator(k, (n, n)), method="symbol").upper),
]


def truth(kernel: np.ndarray, n: int) -> np.ndarray:
    return np.linalg.svd(ConvOperator(kernel, (n, n)).to_dense(), compute_uv=False)


def difference(relative: float) -> str:
    """Write a relative error in per cent, or as a power of ten where it is small."""
    return f"{relative:+.1%}" if abs(relative) >= 5e-4 else f"{relative:+.0e}"


def main() -> None:
    kernels = {name: (make(np.random.default_rng(0)), n) for name, (make, n) in KERNELS.items()}
    values = {name: truth(*case) for name, case in kernels.items()}
    names = list(kernels)
    reasons = {
        package: "not installed" if packages.version(package) is None else packages.importable(estimate)
        for package, _, estimate in packages.PACKAGES
    }
    runnable = [
        (f"{package}'s {label}", f"run: {packages.version(package)}", estimate)
        for package, label, estimate in packages.PACKAGES
        if reasons[package] is None
    ]
    lines = [
        "# Who is right?",
        "",
        "Published estimates of the norm of a layer, beside the truth: stride 1, zero padding of the same size. Published",
        "formulas are written out; published packages are run, with the version in brackets. The truth is LAPACK's largest",
        "singular value of the dense matrix. Entries are errors relative to it; an estimate that is meant as an upper bound",
        "should be positive. What `convla` claims of its own three is tested: lower below, upper above, value within 1e-10",
        "by its own estimate.",
        "",
        f"NumPy {np.__version__}, SciPy {scipy.__version__}, PyTorch {torch.__version__}, convla {convla.__version__}, "
        f"Python {platform.python_version()}; kernels from `numpy.random.default_rng(0)`. Written by "
        "`python benchmarks/who_is_right.py`.",
        "",
        "| | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
        "| truth | " + " | ".join(f"{values[name][0]:.6f}" for name in names) + " |",
    ]
    # Ours come last, after the packages.
    ours = [row for row in ESTIMATES if "convla" in row[0]]
    for label, source, estimate in [row for row in ESTIMATES if row not in ours] + runnable + ours:
        if source.startswith("run: "):
            found = [packages.attempt(estimate, *kernels[name]) for name in names]
            cells = [
                value if isinstance(value, str) else difference(value / values[name][0] - 1)
                for name, value in zip(names, found, strict=True)
            ]
            lines.append(f"| {label} ({source}) | " + " | ".join(cells) + " |")
            continue
        cells = [f"{estimate(*kernels[name]) / values[name][0] - 1:+.1%}" for name in names]
        if source == "" and "value" in label:
            cells = [f"{estimate(*kernels[name]) / values[name][0] - 1:+.0e}" for name in names]
        lines.append(f"| {label}{f' ({source})' if source else ''} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "What to see",
        "",
        "- The norm of the flattened kernel, which spectral normalisation divides by, is no bound: the normalised layer's",
        "  true norm is above 1 by the (negative) entry's amount.",
        "- The circular norm at the image's own size lies below the truth for the difference kernel, and so does every",
        "  method that bounds it tightly. For random kernels it usually lies above, which is why this goes unnoticed.",
        "- Bounds that hold for every size are loose; the enclosure, which knows the size, is the closest of those that",
        "  hold, but for the difference kernel.",
        "- SciPy's `svds` is right with ARPACK; LOBPCG ends early and PROPACK fails with their defaults. Power methods",
        "  end when they stop changing, below the truth.",
        "- The enclosure's upper side is its weak one on small images: about 1 % at n = 16, and 8 % for that kernel at",
        "  n = 6. Its error is of the order 1/n^2.",
        "",
        "## The smallest singular value",
        "",
        "| | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
        "| truth | " + " | ".join(f"{values[name][-1]:.3e}" for name in names) + " |",
    ]
    failures: list[str] = []
    if reasons["orthogonium"] is None:
        failures = [
            "## Other settings",
            "",
            "orthogonium's `get_conv_sv` multiplies the norms of groups, where the layer's norm is their maximum, and pads",
            "both axes of a Gram kernel by the last one's size. Images of 10x10, kernels from `default_rng(0)`:",
            "",
            "| layer | truth | `get_conv_sv` |",
            "|---|---|---|",
        ]
        for setting, truth_, answer in packages.known_failures():
            shown = answer if isinstance(answer, str) else f"{answer:.6f}"
            failures.append(f"| {setting} | {truth_:.6f} | {shown} |")
        failures.append("")
    low = [float(np.linalg.svd(_grid(*kernels[name]), compute_uv=False).min()) for name in names]
    ours = [smallest_singular_value(ConvOperator(kernels[n][0], (kernels[n][1],) * 2)) for n in names]
    lines += [
        "| circular, own size (Sedghi et al. 2019) | " + " | ".join(f"{v:.3e}" for v in low) + " |",
        "| **convla** | " + " | ".join(f"{r.value:.3e} ({r.status})" for r in ours) + " |",
        "",
        "With zeros around the image the circular value is off by orders of magnitude: it says nothing about sigma_min.",
        "",
        *failures,
        "## Not run",
        "",
        *(f"- {package}: {reason}" for package, reason in {**reasons, **packages.ABSENT}.items() if reason),
        "",
        "## References",
        "",
        "- T. Miyato, T. Kataoka, M. Koyama, Y. Yoshida, Spectral normalization for generative adversarial networks, 2018.",
        "- Y. Tsuzuku, I. Sato, M. Sugiyama, Lipschitz-margin training, 2018.",
        "- H. Sedghi, V. Gupta, P. M. Long, The singular values of convolutional layers, 2019.",
        "- E. K. Ryu et al., Plug-and-play methods provably converge with properly trained denoisers, 2019.",
        "- S. Singla, S. Feizi, Fantastic four: differentiable bounds on singular values of convolution layers, 2021.",
        "- B. Delattre, Q. Barthelemy, A. Araujo, A. Allauzen, Efficient bound of Lipschitz constant for convolutional",
        "  layers by Gram iteration, 2023; and its 2024 successor for zero padding.",
        "- L. Pfister, Y. Bresler, Bounding multivariate trigonometric polynomials, 2018.",
        "",
    ]
    page = pathlib.Path(__file__).parents[1] / "docs" / "who-is-right.md"
    page.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
