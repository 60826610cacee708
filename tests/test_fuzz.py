"""The search itself: its oracles against others, a few cases of every check, and wrong answers that it must find."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl

import convla
from convla.geometry import BOUNDARIES, PADDINGS
from convla.spectra.krylov import KrylovSpace
from tests.fuzz import draw, oracles
from tests.fuzz.__main__ import main
from tests.fuzz.case import Case, load_checks
from tests.fuzz.checks.files import Reader
from tests.fuzz.reader import READERS, read
from tests.fuzz.search import Finding, Report, cases, run_case, search, seed_of
from tests.geometries import Seeded, Setting
from tests.naive import NaiveMaps, dense_matrix
from tests.spectra_oracles import dense_values


def findings(name: str, cases: int = 30, seed: int = 0) -> Iterator[Finding]:
    """What is found in so many cases; who asks for one finding runs no more cases than that takes."""
    found = (run_case(name, seed_of(seed, index))[1] for index in range(cases))
    return (finding for finding in found if finding is not None)


@pytest.mark.parametrize("name", sorted(load_checks()))
def test_every_check_runs(name: str) -> None:
    assert [f"{found.name}: {found.message}" for found in findings(name, 6)] == []


class TestOracles:
    @pytest.fixture(params=range(40))
    def layer(self, request: pytest.FixtureRequest) -> draw.Layer:
        return draw.any_layer(np.random.default_rng(request.param), "tiny", library=False)

    def test_the_matrix_is_that_of_the_definition(self, layer: draw.Layer) -> None:
        kernel = layer.kernel.astype(np.longdouble)
        blocks = oracles.matrices(kernel, oracles.axes_of(layer), layer.groups)
        dense = dense_matrix(kernel, layer.setting.geometry)
        assert oracles.matrix_shape(layer) == dense.shape
        split = dense.reshape(layer.groups, blocks.shape[1], layer.groups, blocks.shape[2])
        for i in range(layer.groups):
            for j in range(layer.groups):
                np.testing.assert_array_equal(split[i, :, j], blocks[i] if i == j else np.zeros_like(blocks[i]))

    def test_the_maps_are_those_of_the_definition(self, layer: draw.Layer) -> None:
        rng, geometry = np.random.default_rng(0), layer.setting.geometry
        shapes = ((2, *geometry.domain_shape), (2, *geometry.range_shape), geometry.kernel_shape)
        x, y, k = (rng.integers(-9, 10, shape) for shape in shapes)
        naive = NaiveMaps(geometry)
        np.testing.assert_array_equal(oracles.apply(layer, k, x), naive.apply(x, k))
        np.testing.assert_array_equal(oracles.adjoint(layer, k, y), naive.image_adjoint(y, k))
        np.testing.assert_array_equal(oracles.kernel_adjoint(layer, y, x), naive.kernel_adjoint(y, x))

    def test_long_double_agrees_with_lapack(self, layer: draw.Layer) -> None:
        truth = oracles.singular_values(layer)
        values, exponent = oracles.precise_singular_values(layer)
        assert exponent == truth.exponent
        assert np.abs(values - truth.values).max() <= truth.floor

    def test_long_double_is_more_precise_than_lapack(self) -> None:
        # The second difference on n points: 2 - 2 cos(pi j / (n + 1)); the half-angle form loses no digits.
        n = 24
        setting = Setting((1, 1, 3), (n,), {"padding": "same", "stride": (1,), "dilation": (1,)})
        setting.options.update(groups=1, boundary="zero")
        layer = draw.Layer(np.array([[[-1.0, 2.0, -1.0]]]), setting)
        values, exponent = oracles.precise_singular_values(layer)
        pi = np.longdouble("3.14159265358979323846264338327950288")
        right = 4 * np.sin(pi * np.arange(n, 0, -1) / (2 * (n + 1))) ** 2
        assert np.abs(np.ldexp(values, exponent) / right - 1).max() <= 100 * np.finfo(np.longdouble).eps * 2 * n

    @pytest.mark.command
    @pytest.mark.parametrize("family", [draw.kronecker, draw.one_by_one, draw.circular])
    def test_closed_forms_agree_with_lapack(self, family: Callable[[Any], draw.Layer]) -> None:
        compared = 0
        for seed in range(100):
            layer = family(np.random.default_rng(seed))
            if np.prod(oracles.matrix_shape(layer)) > 250_000:
                continue
            compared += 1
            truth = oracles.singular_values(layer)
            values = dense_values(layer.operator)
            assert len(values) == len(truth.values)
            unscaled = np.ldexp(values, -truth.exponent)
            assert np.abs(unscaled - truth.values).max() <= 2 * truth.floor
        assert compared >= 3

    def test_the_rank_is_exact(self) -> None:
        choose = Seeded(np.random.default_rng(0))
        for _ in range(40):
            rows, columns, rank = (choose.integer(1, 9) for _ in range(3))
            rank = min(rank, rows, columns)
            left = np.tril(choose.rng.integers(-9, 10, (rows, rank)), -1) + np.eye(rows, rank, dtype=int)
            right = np.triu(choose.rng.integers(-9, 10, (rank, columns)), 1) + np.eye(rank, columns, dtype=int)
            assert oracles._rank(left @ right % oracles.PRIME) == rank

    def test_tiny_differences_count_for_the_rank(self) -> None:
        setting = Setting((2, 2, 1), (1,), {"padding": "valid", "stride": (1,), "dilation": (1,)})
        setting.options.update(groups=1, boundary="zero")
        layer = draw.Layer(np.array([[1.0, 1.0], [1.0, 1.0]])[:, :, None], setting)
        assert oracles.is_rank_deficient(layer)
        nearly = layer.kernel * [[[1.0], [1.0 + 2.0**-52]], [[1.0], [1.0]]]
        assert not oracles.is_rank_deficient(replace(layer, kernel=nearly))


class TestItFindsWhatIsWrong:
    def wrong(self, monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Any], Any]) -> None:
        right = getattr(convla, name)
        monkeypatch.setattr(convla, name, lambda *arguments, **options: change(right(*arguments, **options)))

    @pytest.mark.command
    @pytest.mark.parametrize("status", ["exact", "confirmed"])
    @pytest.mark.parametrize(("check", "name"), [("largest", "largest"), ("smallest", "smallest")])
    def test_a_value_slightly_off(self, check: str, name: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def change(result: Any) -> Any:
            return replace(result, values=result.values * 1.002, status=status)

        self.wrong(monkeypatch, f"{name}_singular_value", change)
        assert any("off by 2.00e-03" in found.message for found in findings(check))

    @pytest.mark.command
    @pytest.mark.parametrize("change", [{"lower": 1 + 1e-9}, {"upper": 1 - 1e-6}])
    def test_an_enclosure_too_narrow(self, change: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
        def shrink(bounds: Any) -> Any:
            return bounds._replace(**{end: getattr(bounds, end) * factor for end, factor in change.items()})

        self.wrong(monkeypatch, "singular_value_bounds", shrink)
        assert any("leaves out" in found.message for found in findings("bounds", 60))

    def test_vectors_of_another_value(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wrong(monkeypatch, "largest_singular_value", lambda result: replace(result, right=result.right[..., ::-1]))
        assert any("norm(M v - s u)" in found.message for found in findings("largest"))

    def test_a_vector_that_is_shrunk_otherwise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def change(result: Any) -> Any:
            return replace(result, least=None if result.least is None else 1.001 * result.least)

        self.wrong(monkeypatch, "largest_singular_value", change)
        assert any("the norm of least" in found.message for found in findings("least"))

    @pytest.mark.parametrize("name", ["gram", "coupling"])
    def test_a_krylov_space_slightly_off(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        right = getattr(KrylovSpace, name).fget
        monkeypatch.setattr(KrylovSpace, name, property(lambda space: 1.0001 * right(space)))
        assert next(findings("krylov", 8), None)

    def test_a_false_rank_deficiency(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wrong(monkeypatch, "smallest_singular_value", lambda result: replace(result, status="rank deficient"))
        assert any("'rank deficient' is not true" in found.message for found in findings("smallest"))

    @pytest.mark.command
    def test_a_rank_deficiency_not_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wrong(monkeypatch, "smallest_singular_value", lambda result: replace(result, status="confirmed"))
        assert any("has not full rank" in found.message for found in findings("smallest", 60))

    @pytest.mark.command
    @pytest.mark.parametrize(
        ("check", "name", "change"),
        [
            ("condition", "condition_number", lambda found: 1.01 * found.value if np.isfinite(found.value) else 1e17),
            ("penalty", "penalty", lambda value: value * 1.0001),
            ("one_tap", "penalty", lambda value: value * 1.0001),
            ("penalty", "penalty_gradient", lambda gradient: gradient * 1.01),
            ("similarity", "convolutional_similarity", lambda value: value * 1.0001 + 1e-3),
            ("similarity", "convolutional_similarity_gradient", lambda gradient: gradient * 1.01),
            ("feature_maps", "feature_map_similarity", lambda value: value * 1.0001),
            ("orthonormal", "orthonormalize", lambda factor: factor * (1 + 1e-5)),
        ],
    )
    def test_numbers_slightly_off(
        self, check: str, name: str, change: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.wrong(monkeypatch, name, change)
        assert next(findings(check, 40), None)

    def test_a_descent_that_reports_too_little(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def understate(descent: Any) -> Any:
            descent._rows = [(0.9 * row[0], *row[1:]) for row in descent._rows]
            return descent

        self.wrong(monkeypatch, "minimize_penalty", understate)
        assert any("is reported as" in found.message for found in findings("descent", 10))

    @pytest.mark.parametrize("method", ["apply", "adjoint", "kernel_adjoint", "to_dense"])
    def test_a_map_slightly_off(self, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
        right = getattr(convla.ConvOperator, method)
        monkeypatch.setattr(convla.ConvOperator, method, lambda *arguments: 1.00001 * right(*arguments))
        assert next(findings("maps"), None)

    def test_a_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wrong(monkeypatch, "feature_map_similarity", lambda value: value / 0)
        messages = [found.message for found in findings("feature_maps", 3)]
        assert len(messages) == 3
        assert all(message.startswith("RuntimeWarning: divide by zero") for message in messages)

    def test_threads_left_changed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def change(value: Any) -> Any:
            threadpoolctl.threadpool_limits(limits=2)
            return value

        with threadpoolctl.threadpool_limits(limits=1):
            run_case("feature_maps", 0)
            self.wrong(monkeypatch, "feature_map_similarity", change)
            assert "thread limits changed" in next(findings("feature_maps", 1)).message

    def test_a_file_that_ends_the_process(self) -> None:
        reader = Reader()
        try:
            assert reader.read(b"", ".bin") == "refused"
            os.kill(reader.process.pid, signal.SIGSEGV)
            reader.process.wait()
            assert "the process ended with -11" in reader.read(b"", ".bin")
            assert reader.read(b"", ".bin") == "refused"
        finally:
            reader.close()

    def test_a_reader_that_raises_what_is_not_its_own(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        path = tmp_path / "file.bin"
        path.write_bytes(b"")
        assert read(path) == "refused"
        monkeypatch.setitem(READERS, ".bin", ("builtins", "int"))
        assert read(path).startswith("TypeError")


class TestTheProgram:
    @pytest.mark.command
    def test_the_exit_code(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["--minutes", "0.02", "--seed", "5", "--workers", "1", "--only", "feature_maps"]
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        assert "seed 5" in printed
        assert "0 failed" in printed
        right = convla.feature_map_similarity
        monkeypatch.setattr(convla, "feature_map_similarity", lambda *a, **k: 2 * right(*a, **k))
        assert main(arguments) == 1
        printed = capsys.readouterr().out
        name = printed.partition("FAILED ")[2].split()[0]
        assert main(["--replay", name]) == 1
        assert "is" in capsys.readouterr().out

    def test_a_sequence_is_the_same_again_and_split_among_processes(self) -> None:
        whole = list(islice(cases(3, (), 0, 1), 40))
        assert whole == list(islice(cases(3, (), 0, 1), 40))
        assert whole[1::2] == list(islice(cases(3, (), 1, 2), 20))

    @pytest.mark.parametrize("name", ["largest", "smallest", "bounds", "maps", "similarity", "orthonormal", "penalty"])
    def test_a_reproducer_makes_the_same_calls(self, name: str) -> None:
        for index in range(4):
            case, _ = run_case(name, seed_of(1, index))
            scope: dict[str, Any] = {}
            with contextlib.redirect_stdout(io.StringIO()):
                exec(case.reproducer, scope)
            for key in {"result", "value", "gradient"} & set(case.names):
                again, first = scope[key], case.names[key]
                for one, other in zip(_numbers(first), _numbers(again), strict=True):
                    np.testing.assert_array_equal(one, other)

    @pytest.mark.command
    def test_reports_add_up(self) -> None:
        total = Report()
        for report in search(1, 1.0, ["feature_maps"]):
            total.add(report)
        assert total.cases["feature_maps"] > 0
        assert "feature_maps" in str(total)

    @pytest.mark.command
    def test_the_command_on_two_processes(self) -> None:
        line = [sys.executable, "-m", "tests.fuzz", "--minutes", "0.02", "--workers", "2", "--only", "feature_maps"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 processes" in done.stdout


def _numbers(result: Any) -> list[Any]:
    if hasattr(result, "lower"):
        return [result.lower, result.upper]
    return [np.asarray(result.values) if hasattr(result, "values") else np.asarray(result)]


def test_draws_cover_every_boundary_and_padding() -> None:
    rng = np.random.default_rng(0)
    layers = [draw.any_layer(rng, "tiny") for _ in range(600)]
    assert {layer.setting.options["boundary"] for layer in layers} == set(BOUNDARIES)
    assert {p for layer in layers if isinstance(p := layer.setting.options["padding"], str)} == set(PADDINGS)
    assert {len(layer.setting.image_shape) for layer in layers} == {1, 2, 3}
    assert {layer.kernel.dtype for layer in layers} == {np.dtype(t) for t in ("f4", "f8", "i8")}
    assert any(layer.transposed for layer in layers)
    assert Case(0).layer("tiny").kernel.size
