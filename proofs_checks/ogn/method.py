"""OGN Sections 2.2, 3.1.2, 4.1, 4.4: layers as components, steps of one length, memory, and QR."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

import convla
from convla.testing import gamma
from convla.typing import NumPyArray as Array
from proofs_checks.bases import unit_kernels
from proofs_checks.draws import for_all, matrices
from proofs_checks.ogn.polar import ACCURACY, CONDITION, singular_values
from proofs_checks.statement import Kind, Statement, UnavailableError, Verdict, evidence

__all__ = ["STATEMENTS"]


@evidence(Kind.PROOF, "all unit kernels and inputs, 3 filters of 2 channels, 2 taps; two layers one after the other")
def a_layer_is_its_components(_: int) -> str:
    count = 0
    inputs = unit_kernels(2, (4,))
    for kernel in unit_kernels(3 * 2, (2,)).reshape(-1, 3, 2, 2):
        whole = convla.cross_correlate(inputs, kernel, padding="same")
        parts = [convla.cross_correlate(inputs, kernel[i : i + 1], padding="same") for i in range(3)]
        assert np.array_equal(whole, np.concatenate(parts, axis=1)), kernel
        count += 1
    first, second = (np.arange(1, 13).reshape(3, 2, 2), np.arange(-6, 12).reshape(3, 3, 2))
    operators = [convla.ConvOperator(first, (4,)), convla.ConvOperator(second, (4,))]
    composed = operators[1].to_dense() @ operators[0].to_dense()
    for column, x in enumerate(inputs):
        assert np.array_equal(operators[1].apply(operators[0].apply(x)).ravel(), composed[:, column])
    layer = convla.ConvOperator(first.astype(np.float64), (4,))
    assert np.array_equal(layer.apply(inputs), layer.apply(inputs.astype(np.float64))), "integers are taken as floats"
    images = (np.ones((2, 5)), np.ones((3, 4)), np.ones(4), np.ones((0, 2, 5)), np.array([[1.0, np.nan, 0.0, 0.0]] * 2))
    for wrong in (*images, np.ones((2, 4), dtype=np.float32)):
        try:
            layer.apply(wrong)
        except (TypeError, ValueError):
            continue
        raise AssertionError(f"no image of this layer: {wrong}")
    return f"{count} layers of three components, and a composition"


@evidence(
    Kind.PROPERTY, "gradients of full rank, 1 to 5 components of 1 to 8 parameters: the norm of the step of each method"
)
def steps_have_one_length(examples: int) -> str:
    applied = 0

    def check(matrix: Array) -> None:
        nonlocal applied
        values = singular_values(matrix)
        if CONDITION * values[-1] <= values[0]:
            return
        for scale in (1.0, 1e-6):  # near a minimum the gradient is small, and the step is not
            step = convla.orthonormalize(scale * matrix[:, None])
            error = abs(float(np.linalg.norm(step)) - math.sqrt(min(matrix.shape)))
            assert error <= 10 * ACCURACY + gamma(400 * matrix.size, np.float64) * values[0] / values[-1], matrix
            assert abs(float(np.linalg.norm(convla.normalized_gradient(scale * matrix))) - 1) < 1e-12, matrix
        applied += 1

    for_all(examples, st.tuples(matrices(5, 8, wide=True)), check)
    assert applied or examples < 20, "every gradient was rank deficient"
    return f"{applied} gradients, and a millionth of each: the root of the number of components, and 1"


@evidence(Kind.COUNTEREXAMPLE, "x^2 / 2 from 0.35 with steps of 0.1: N-SGDM without momentum")
def fixed_steps_do_not_settle(_: int) -> str:
    x = np.array([[0.35]])
    path = []
    for _step in range(20):
        x = x - 0.1 * convla.normalized_gradient(x)
        path.append(float(x[0, 0]))
    ends = [round(abs(value), 10) for value in path[-6:]]
    assert ends == [0.05] * 6, ends
    assert all(a * b < 0 for a, b in itertools.pairwise(path[-6:])), "it oscillates"
    return "it ends going to and fro between 0.05 and -0.05"


@evidence(
    Kind.PROOF,
    "buffers of PyTorch's optimisers, and of the shipped transform around them, on a network of n parameters",
)
def memory_in_multiples_of_the_model(_: int) -> str:
    try:
        import torch

        from convla.frameworks.torch import GradientTransform
    except ImportError:
        raise UnavailableError("the optimisers need PyTorch: pip install 'convla[torch]'") from None

    def multiple(make: Any, transform: bool) -> int:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3, bias=False), torch.nn.Conv2d(3, 2, 3, bias=False))
        size = sum(p.numel() for p in network.parameters())
        optimizer: Any = make(network.parameters())
        if transform:
            GradientTransform(optimizer, "orthonormal")
        network(torch.rand(1, 1, 8, 8)).square().sum().backward()
        optimizer.step()
        state = optimizer.state
        buffers = sum(
            value.numel()
            for entry in state.values()
            for value in entry.values()
            if torch.is_tensor(value) and value.dim()
        )
        gradients = sum(p.grad.numel() for p in network.parameters() if p.grad is not None)
        return int((size + gradients + buffers) // size)

    makers = {
        "SGD": (lambda p: torch.optim.SGD(p, lr=0.1), 2),
        "SGDM": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 3),
        "RMSProp": (lambda p: torch.optim.RMSprop(p, lr=0.1), 3),
        "Adam": (lambda p: torch.optim.Adam(p, lr=0.1), 4),
    }
    for name, (make, wanted) in makers.items():
        for transform in (False, True):
            found = multiple(make, transform)
            assert found == wanted, f"{name}, orthonormalised {transform}: {found} n"
    return "2n without momentum, 3n with a buffer, 4n with two, orthonormalised or not; at rest: an SVD holds more for one layer"


def _factors(gradient: Array) -> dict[str, Array]:
    q, r = np.linalg.qr(gradient.T)
    return {
        "QR": (q * np.where(np.diagonal(r) < 0, -1.0, 1.0)).T,
        "SVD, completed": convla.orthonormalize(gradient[:, None], method="svd", rank_deficient="complete")[:, 0],
        "SVD, partial": convla.orthonormalize(gradient[:, None], method="svd", rtol=1e-8)[:, 0],
    }


@evidence(
    Kind.MEASUREMENT,
    "gradients of 4 components of 8 parameters, rank 3, perturbed by 1e-12: the greatest change of what each method returns, "
    "20 draws; and the distance to the gradient at full rank",
)
def qr_and_svd_where_the_rank_is_deficient(_: int) -> str:
    changes: dict[str, list[float]] = {}
    nearer = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        gradient = rng.standard_normal((4, 3)) @ rng.standard_normal((3, 8))
        moved = gradient + 1e-12 * rng.standard_normal(gradient.shape)
        before, after = _factors(gradient), _factors(moved)
        for name in before:
            changes.setdefault(name, []).append(float(np.linalg.norm(before[name] - after[name], 2)))
        full = rng.standard_normal((4, 8))
        factors = _factors(full)
        nearer += bool(np.linalg.norm(full - factors["SVD, completed"]) < np.linalg.norm(full - factors["QR"]))
    medians = {name: float(np.median(values)) for name, values in changes.items()}
    assert medians["SVD, partial"] < 1e-9, medians
    assert min(medians["QR"], medians["SVD, completed"]) > 0.05, medians
    assert nearer == 20, "the polar factor is the nearest"
    return (
        "; ".join(f"{name}: {value:.1e}" for name, value in medians.items())
        + f"; SVD nearer at full rank in {nearer} of 20"
    )


STATEMENTS = (
    Statement(
        id="OGN-1",
        number="Eqs. (1), (2)",
        title="layers and components",
        claim="A network is a composition of layers, and a layer's output is that of its components, one filter each, side by side.",
        verdict=Verdict.HOLDS,
        evidence=(a_layer_is_its_components,),
        functions=("convla.cross_correlate", "convla.ConvOperator.apply"),
    ),
    Statement(
        id="OGN-fixed",
        number="Section 4.1",
        title="steps whose length does not depend on the gradient",
        claim="With normalised gradients the step does not shorten towards a minimum, which hinders convergence to it.",
        verdict=Verdict.HOLDS,
        evidence=(steps_have_one_length, fixed_steps_do_not_settle),
        functions=("convla.orthonormalize", "convla.normalized_gradient"),
        note=r"Without momentum and at a fixed rate $\eta$: $\|\theta_{t+1}-\theta_t\| = \eta\sqrt N$ for $N$ orthonormal components, "
        "so that no run converges; a schedule of the rate does what the gradient no longer does.",
    ),
    Statement(
        id="OGN-memory",
        number="Section 3.1.2",
        title="memory of the optimisers",
        claim="First-order methods hold 2n numbers for a model of n, 3n with one buffer, 4n with two; Orthogonal-SGDM without momentum "
        "needs 2n.",
        verdict=Verdict.HOLDS,
        evidence=(memory_in_multiples_of_the_model,),
        note="Between steps; during one the decomposition of a layer needs a few copies of it.",
    ),
    Statement(
        id="OGN-qr",
        number="Section 4.4",
        title="QR against SVD for rank-deficient gradients",
        claim="QR is less stable than SVD as the gradients are rank deficient.",
        verdict=Verdict.CORRECTED,
        correction="It is not the nearest orthonormal matrix, which the SVD gives; but where the rank is deficient the SVD as the source "
        "uses it, all of $UV^T$, is as unstable: a perturbation of 1e-12 turns the missing direction by an amount of order one in "
        "both. What is stable leaves that direction out.",
        evidence=(qr_and_svd_where_the_rank_is_deficient,),
        functions=("convla.orthonormalize",),
        note='`convla.orthonormalize` leaves it out by default, and completes it with `rank_deficient="complete"`.',
    ),
)
