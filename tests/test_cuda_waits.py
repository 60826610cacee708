"""How often the host waits for a GPU in an iteration, and what is done where steps were taken on trust."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from convla import ConvOperator
from convla.linear_map import LinearMap
from convla.spectra import block_iteration, density, lanczos
from convla.spectra.block_iteration import iterate, orthonormal
from convla.spectra.carrier import Carrier
from convla.spectra.lanczos import block_lanczos
from convla.spectra.tracking import BlockTracker
from tests.cuda.stand_in import COUNTS


@pytest.mark.parametrize("block", [1, 2])
def test_lanczos_waits_once_for_several_steps(block: int, cupy: ModuleType) -> None:
    rng = np.random.default_rng(13)
    matrix = rng.standard_normal((90, 60))
    gram, start = matrix.T @ matrix, rng.standard_normal((1, block, 60))
    options: dict[str, Any] = {"rtol": 1e-10, "basis_size": 24, "max_products": 60 * block}
    steps: list[int] = []

    def multiply(rows: Any) -> Any:
        steps.append(COUNTS["waits"])
        return rows @ device

    device, given = cupy.asarray(gram), cupy.asarray(start)
    COUNTS.clear()
    found = block_lanczos(multiply, given, 1, rng=np.random.default_rng(1), **options)
    assert found.values[0] == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-9)
    looks = len(set(steps))
    assert len(steps) >= 8
    assert looks <= len(steps) / 2
    assert COUNTS["waits"] <= 4 * looks + 4  # a restart and the start look at their rows as well


@pytest.mark.parametrize(("at", "block"), [(1, 1), (2, 1), (3, 1), (6, 1), (4, 2), (3, 2)])
def test_lanczos_takes_steps_anew_that_should_not_have_been_trusted(at: int, block: int, cupy: ModuleType) -> None:
    # The Krylov space of the start ends after `at` vectors, in the middle of what is read together.
    rng = np.random.default_rng(14)
    values = np.linspace(1.0, 4.0, 30)
    vectors = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    gram = (vectors * values) @ vectors.T
    start = rng.standard_normal((1, block, at)) @ vectors[:, :at].T
    processes = []
    for library in (np, cupy):
        given = library.asarray(gram)
        process = lanczos._Process(
            lambda rows, given=given: rows @ given, library.asarray(start), 1, 24, "largest", np.random.default_rng(2)
        )
        for _ in range(16 // block):
            process.step()
        process.settle()
        processes.append(process)
    host, device = processes
    basis = device._V.get()[0, :16, :]
    np.testing.assert_allclose(basis @ basis.T, np.eye(16), atol=1e-12)
    np.testing.assert_allclose(device._H[0, :16, :16], basis @ gram @ basis.T, atol=1e-12)
    np.testing.assert_allclose(device._H, host._H, atol=1e-12)
    np.testing.assert_allclose(device._V.get(), host._V, atol=1e-9)


def test_a_density_waits_once_for_a_probe(cupy: ModuleType) -> None:
    kernel = np.random.default_rng(15).standard_normal((2, 2, 3))
    device, host = (ConvOperator(array, (20,)) for array in (cupy.asarray(kernel), kernel))
    coefficients = np.eye(9)[:3]
    COUNTS.clear()
    got = density._probe(device, 9.0, coefficients, 12, np.random.default_rng(0))
    assert COUNTS["waits"] == 1
    np.testing.assert_allclose(got, density._probe(host, 9.0, coefficients, 12, np.random.default_rng(0)), atol=1e-12)
    ends = ConvOperator(np.eye(2)[:, :, None], (20,))  # its Krylov spaces have one dimension
    np.testing.assert_allclose(
        density._probe(ends, 1.0, coefficients, 12, np.random.default_rng(0)), [1.0, 1.0, 1.0], atol=1e-12
    )


MAPS = {
    "generic": np.random.default_rng(20).standard_normal((3, 2, 3)),
    "smaller than the space": np.random.default_rng(21).standard_normal((1, 1, 2)),
    "of two ranks": np.concatenate([np.zeros((1, 1, 3)), np.random.default_rng(22).standard_normal((1, 1, 3))]),
    "identity": np.eye(2)[:, :, None] * np.ones(1),
}


def pair(name: str, cupy: ModuleType, side: int) -> tuple[LinearMap, LinearMap]:
    """Return a map on the host and on the device; in groups where its kernels are apart."""
    groups = 2 if name == "of two ranks" else 1
    host, device = MAPS[name], cupy.asarray(MAPS[name])
    return tuple(ConvOperator(kernel, (side,), padding="same", groups=groups) for kernel in (host, device))


@pytest.mark.parametrize("probes", [0, 1])
@pytest.mark.parametrize("end", ["largest", "smallest"])
@pytest.mark.parametrize("name", MAPS)
def test_the_block_iteration_waits_once_for_a_step(
    name: str, end: Any, probes: int, cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[int] = []
    add = block_iteration.SearchSpace.add
    monkeypatch.setattr(block_iteration.SearchSpace, "add", lambda *args: added.append(1) or add(*args))
    found, waits, steps = [], [], []
    for operator, library in zip(pair(name, cupy, 9), (np, cupy), strict=True):
        carrier = Carrier(operator)
        batch = carrier.batch(0, list(range(carrier.groups)))
        count = min(3, batch.order)
        start = np.random.default_rng(23).standard_normal((carrier.groups, count, batch.order))
        basis = library.asarray(orthonormal(start, np))
        added.clear()
        COUNTS.clear()
        options = {"settled": (count + 1) // 2, "end": end, "rtol": 1e-10, "steps": 40}
        found.append(iterate(batch, basis, count=count, probes=probes, probe_steps=2, **options))
        waits.append(COUNTS["waits"])
        steps.append(len(added))
    assert waits[0] == 0
    assert waits[1] <= steps[1] + 1 + probes  # for the tolerance at the end, and where there is nothing to probe
    assert steps[0] <= steps[1] <= steps[0] + 2  # the host knows at once that nothing is left to search
    (host, done, _), (device, done_there, tolerance) = found
    assert done
    assert done_there
    scale = max(float(host.squares.max()), 1.0)
    np.testing.assert_allclose(device.squares.get(), host.squares, rtol=0, atol=1e-12 * scale)
    outermost = np.argsort(device.squares.get(), axis=None)[:: -1 if end == "largest" else 1][: options["settled"]]
    assert np.all(device.residuals.get().reshape(-1)[outermost] <= tolerance)


def test_vectors_are_carried_on_a_device_as_on_the_host(cupy: ModuleType) -> None:
    tracker = BlockTracker(block=2, steps=3, rtol=1e-8)
    values = []
    for operator in pair("generic", cupy, 40):
        state, row = tracker.initial(operator), []
        for step in range(3):
            moved = operator.with_kernel(operator.kernel * (1 + 0.01 * step))
            result, state = tracker.step(moved, state)
            row.append(float(result.values[0]))
        values.append(row)
    host, device = values
    assert device == pytest.approx(host, rel=1e-9)
