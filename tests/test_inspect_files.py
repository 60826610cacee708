"""Files and how they are inspected: several at once, densities, budgets, threads, programs, bounds at data."""

from __future__ import annotations

import json
import math
import pickle
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convla import ConvOperator, inspect, singular_value_bounds
from convla._threads import at_most, in_order
from convla.cli import run
from convla.cli.inspections import Targets, TimeLeft
from convla.errors import WeightsError
from convla.networks.effort import Effort, Pace, work_of
from convla.networks.graph import Network, Node
from convla.networks.inspection import Plan
from convla.networks.layers import Layer, convolution_layer, dense_layer, normalization_layer
from convla.networks.rows import Inspector, tasks_of
from convla.networks.settings import LayerSettings
from convla.networks.spectrum import Spectrum
from convla.networks.weights import write_weights


def arrays(*shapes: tuple[int, ...], dtype: str = "float64") -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {f"layer{i}.weight": rng.standard_normal(shape).astype(dtype) for i, shape in enumerate(shapes)}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "a.npz", tmp_path / "broken.npz", tmp_path / "b.npz"]
    write_weights(found[0], arrays((3, 2, 3)))
    found[1].write_bytes(b"PK and no more")
    write_weights(found[2], arrays((2, 2, 5), (4, 2, 1)))
    return found


class TestSeveralFiles:
    def test_one_that_cannot_be_read_does_not_keep_the_others(
        self, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "reports"
        options = ["--image", "8", "--json", str(folder), "--csv", str(folder), "--measures", "sigma_max"]
        assert run(["inspect", *map(str, files), *options]) == 2
        out, err = capsys.readouterr()
        assert err.count("\n") == 1
        assert "broken.npz: not a readable .npz file" in err
        assert [line for line in out.splitlines() if line.endswith(".npz")] == [str(files[0]), str(files[2])]
        assert sorted(path.name for path in folder.iterdir()) == ["a.npz.csv", "a.npz.json", "b.npz.csv", "b.npz.json"]
        alone = inspect(files[2], image=(8,), measures=["sigma_max"])
        layers = json.loads((folder / "b.npz.json").read_text())["layers"]
        assert [layer["quantities"] for layer in layers] == [layer.quantities for layer in alone]

    def test_reports_come_back_from_other_processes(self, files: list[Path]) -> None:
        report = inspect(files[2], image=(8,))
        again = pickle.loads(pickle.dumps(report))
        assert again.columns == report.columns
        assert again.to_json() == report.to_json()

    @pytest.mark.command
    def test_in_processes(self, files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
        options = ["--image", "8", "--executor", "loky", "--workers", "2", "--warn", "sigma_max>0"]
        assert run(["inspect", str(files[0]), str(files[2]), *options]) == 1
        out, err = capsys.readouterr()
        assert {str(files[0]), str(files[2])} <= set(out.splitlines())
        assert err.count("is above 0") == 3

    def test_where_the_reports_would_go(self, files: list[Path], tmp_path: Path) -> None:
        twice = [tmp_path / "x" / "a.npz", tmp_path / "y" / "a.npz"]
        with pytest.raises(ValueError, match=r"two files are called 'a\.npz'"):
            Targets(json=tmp_path / "r", many=True).check(twice)
        with pytest.raises(ValueError, match="--csv must be a folder for several files"):
            Targets(csv=files[0], many=True).check(files)
        assert run(["inspect", *map(str, files), "--executor", "nowhere"]) == 2


def test_densities_are_those_of_the_written_out_matrix() -> None:
    kernel = arrays((4, 2, 3, 3))
    report = inspect(kernel, image=(6, 5))
    (row,) = report
    matrix = ConvOperator(kernel["layer0.weight"], (6, 5), padding="same").to_dense()
    values = np.linalg.svd(matrix, compute_uv=False)
    assert row.density is not None
    assert str(row.density.status) == "exact"
    wanted = np.histogram(values, row.density.edges)[0] / values.size
    assert np.array_equal(row.density.shares, wanted)
    data = json.loads(report.to_json())["layers"][0]["density"]
    assert data["shares"] == wanted.tolist()
    assert (data["zeros"], data["status"], data["confidence"]) == (0, "exact", 1.0)
    assert inspect(kernel, image=(6, 5), measures=["sigma_max"])["layer0.weight"].density is None
    large = arrays((16, 16, 3, 3), dtype="float32")
    assert inspect(large, image=(64, 64), measures=["sigma_max", "stable_rank"])["layer0.weight"].density is None
    # Two copies of a pointwise layer's null space for each of 12 pixels.
    point = {"conv.weight": np.ones((3, 3, 1, 1))}
    density = inspect(point, image=(4, 3), measures=["density"])["conv.weight"].density
    assert density is not None
    assert density.zeros == 24


@pytest.mark.parametrize("boundary", ["zero", "circular", "reflect"])
@pytest.mark.parametrize("scale", [1.0, 1e-200])
def test_the_bound_by_the_entries_holds(boundary: Any, scale: float) -> None:
    rng = np.random.default_rng(0)
    operator = ConvOperator(scale * rng.standard_normal((3, 2, 3, 3)), (6, 5), padding="same", boundary=boundary)
    norm = np.linalg.norm(operator.to_dense() / scale, 2)
    for linear_map in (operator, operator.T, operator.T @ operator / scale):
        exact = norm**2 if linear_map.shape == (60, 60) else norm
        lower, upper, _, reason = singular_value_bounds(linear_map, method="entries")
        assert lower / scale <= exact * (1 + 1e-13)
        assert exact <= upper / scale <= 20 * exact**2
        assert "moduli" in reason


@pytest.mark.command
def test_a_budget_that_is_used_up_leaves_enclosures_that_hold() -> None:
    kernels = arrays((12, 12, 3, 3), (12, 12, 3, 3))
    report = inspect(kernels, image=(12, 12), budget=0.0)
    exact = [np.linalg.norm(ConvOperator(k, (12, 12), padding="same").to_dense(), 2) for k in kernels.values()]
    for row, norm in zip(report, exact, strict=True):
        assert row.quantities["at_least"] <= norm <= row.quantities["at_most"]
        assert any("estimated to save time" in note for note in row.notes)
        assert row.quantities["sigma_min"] is None
        assert row.density is None


@pytest.mark.parametrize("shape", [(4, 4, 3, 3), (6, 4, 3, 3), (4, 6, 3, 3)])
def test_a_smallest_value_too_dear_to_find_is_bounded_by_the_search_for_the_largest(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convla.networks.spectrum.factorisation_is_cheap", lambda _: False)
    operator = ConvOperator(np.random.default_rng(0).standard_normal(shape).astype(np.float32), (12, 9))
    # So little effort that not even these are decomposed; the search itself takes the usual way.
    spectrum = Spectrum(operator, effort=Effort(direct=0.0))
    monkeypatch.setattr("convla.spectra.methods.decomposition_is_cheap", lambda *_, **__: False)
    found = spectrum.smallest
    exact = np.linalg.svd(operator.to_dense().astype(float), compute_uv=False)
    assert found.status == "not converged"
    assert found.matvecs == 1  # beside those for the largest
    assert exact[-1] * (1 - 1e-6) <= found.value < 0.5 * exact[0]


def test_a_budget_goes_to_rows_of_little_work_first() -> None:
    # Ten products with the first layer would take longer than all of the budget.
    large = convolution_layer(np.ones((48, 48, 3, 3), np.float32), (320, 320), padding=1)
    small = dense_layer(np.diag([4.0, 2.0]))
    inspect(a_network(small=small))  # what is compiled, is so now
    began = time.monotonic()
    report = inspect(a_network(large=large, small=small), budget=3.0, certify=False)
    # Twice the budget is for machines that are taken; all of the work is half a minute on one that is not.
    assert time.monotonic() - began < 6.0
    first, second = report
    assert [first.name, second.name] == ["large", "small"]
    assert (second.quantities["condition"], second.status["sigma_min"], second.notes) == (2.0, "exact", ())
    assert first.quantities["at_least"] <= 48 * 9 <= first.quantities["at_most"]
    assert first.quantities["at_least"] == pytest.approx(math.sqrt(48 * 9), rel=1e-12)
    assert (first.status, first.quantities["similarity"]) == ({"sigma_max": "not converged"}, None)
    assert "estimated to save time" in first.notes[0]


def test_the_time_left_is_told_from_the_start_of_a_budget() -> None:
    told = []
    for budget in (None, 5.0):
        plan = Plan(arrays((2, 2, 3)), image=(8,), budget=budget)
        told.append(str(TimeLeft(plan).render(SimpleNamespace(completed=0))))  # type: ignore[arg-type]
    assert told == ["", "about 0:00 left"]


def test_an_interruption_of_work_in_a_budget_keeps_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"layer{place}.weight" for place in range(4)]
    looked, second = [], Inspector._second_look

    def interrupted(inspector: Inspector, number: int) -> Any:
        looked.append(number)
        if len(looked) == 3:
            raise KeyboardInterrupt
        return second(inspector, number)

    monkeypatch.setattr(Inspector, "_second_look", interrupted)
    with at_most(1):
        kernels = arrays((9, 9, 3, 3), (8, 8, 3, 3), (2, 2, 3, 3), (3, 3, 3, 3))
        report = inspect(kernels, image=(40, 40), measures=["sigma_max"], budget=1e3)
    assert ([row.name for row in report], report.complete, looked) == (names, False, [2, 3, 1])
    estimated = [any("estimated to save time" in note for note in row.notes) for row in report]
    assert estimated == [True, True, False, False]
    assert all(row.quantities["at_least"] <= row.quantities["at_most"] for row in report)


@pytest.mark.parametrize("boundary", ["circular", "reflect", "replicate"])
def test_a_norm_read_off_a_kernel_counts_how_often_the_image_is_repeated(boundary: Any) -> None:
    # More often than the kernel has taps: one tap reads an entry of the image and its repetitions.
    for image, taps, padding, stride, dilation in ((2, 1, 1, 1, 1), (5, 1, 4, 1, 1), (3, 2, 2, 1, 1), (4, 2, 3, 2, 3)):
        kernel = np.ones((2, 1, taps))
        layer = convolution_layer(
            kernel, (image,), padding=padding, stride=stride, dilation=dilation, boundary=boundary
        )
        norm = np.linalg.norm(layer.operator.to_dense(), 2)
        assert norm <= layer.moduli_bound
        report = inspect(a_network(layer=layer), budget=0.0)
        assert norm <= report.layers[0].quantities["at_most"] * (1.0 + 1e-15)
        assert norm <= report.certificate.upper


@pytest.mark.parametrize("boundary", ["zero", "circular", "reflect"])
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e160])
def test_norms_that_are_read_off_a_kernel_hold(boundary: Any, scale: float) -> None:
    rng = np.random.default_rng(1)
    for stride, padding, image, seen in ((1, 1, (6, 5), True), (2, 2, (7, 3), True), (1, 2, (2, 5), False)):
        kernel = rng.standard_normal((3, 2, 3, 3))
        layer = convolution_layer(scale * kernel, image, padding=padding, stride=stride, boundary=boundary)
        norm = np.linalg.norm(layer.operator.with_kernel(kernel).to_dense(), 2)
        assert layer.filter_norm / scale <= norm <= layer.moduli_bound / scale
        assert (layer.filter_norm > 0.0) == seen


@pytest.mark.command
def test_numbers_do_not_depend_on_threads_and_equal_layers_are_worked_on_once() -> None:
    kernels = arrays((8, 8, 3, 3), (4, 8, 3, 3), (8, 8, 3, 3))
    kernels["layer2.weight"] = kernels["layer0.weight"].copy()
    found = []
    for threads in (1, 2):
        with at_most(threads):
            found.append(inspect(kernels, image=(12, 12)))
    one, two = found
    assert [row.quantities for row in one] == [row.quantities for row in two]
    assert one.layers[0].quantities is one.layers[2].quantities
    assert one.layers[2].name == "layer2.weight"


class TestInOrder:
    def test_order_errors_and_threads(self) -> None:
        seen = set()

        def work(number: int) -> int:
            seen.add(threading.get_ident())
            if number == 5:
                raise ValueError("five")
            return number * number

        results = in_order(work, range(8))
        assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
        with pytest.raises(ValueError, match="five"):
            next(results)
        with at_most(1):
            assert list(in_order(work, range(3))) == [0, 1, 4]
        assert threading.get_ident() in seen

    def test_what_waits_is_given_up(self) -> None:
        done = []
        results = in_order(done.append, range(10_000))
        next(results)
        results.close()
        count = len(done)
        assert count < 10_000 or count == len(done)


def rows_of_work(rng: np.random.Generator, count: int) -> list[dict[str, float]]:
    """Rows whose parts take works of different sizes: small ones first, as in most networks, some without a part."""
    works = []
    for number in range(count):
        size = 10 ** rng.uniform(8, 8.5 + 2 * number / count)
        works.append({"largest": size, "bounds": size * rng.uniform(0.2, 5), "rest": 1e8})
        if number % 3 == 0:
            works[-1]["smallest"] = size * rng.uniform(0.1, 1)
    return works


@pytest.mark.parametrize("threads", [1, 2])
def test_the_time_left_is_right_after_a_tenth_of_the_rows(threads: int) -> None:
    # A machine on which each part takes another multiple of what is usual, by a clock that the test sets.
    rng, now = np.random.default_rng(0), 0.0
    rates = {"largest": 9e-10, "bounds": 3e-11, "smallest": 4e-10, "rest": 2e-10}
    works = rows_of_work(rng, 60)
    pace = Pace(works, threads, clock=lambda: now)
    seconds = [{part: amount * rates[part] for part, amount in work.items()} for work in works]
    total = sum(math.fsum(row.values()) for row in seconds) / threads
    for number, (work, spent) in enumerate(zip(works, seconds, strict=True)):
        now += math.fsum(spent.values()) / threads
        pace.note(work, spent)
        if number >= 5:
            left = total - now
            assert 0.6 * left - 1e-9 * total <= pace.seconds_left <= 1.6 * left + 1e-9 * total
        if number >= 30:
            assert abs(pace.seconds_left - left) <= 0.15 * left + 1e-9 * total
    assert pace.seconds_left == pytest.approx(0.0, abs=1e-9 * total)


def test_pace_between_rows_and_of_rows_that_are_known() -> None:
    now = 0.0
    works = [{"largest": 2e10}] * 4
    pace = Pace(works, threads=2, clock=lambda: now)
    usual = pace.seconds_left
    pace.note(works[0], {"largest": 6.0})
    after = pace.seconds_left
    assert after == pytest.approx(3 * pace.expected(works[0]) / 2)
    assert usual < after < 9.0
    now = 1.0  # no row has come since, and yet time passes
    assert pace.seconds_left == pytest.approx(after - 1.0)
    pace.note(works[1], None)  # an equal layer: less to do, and nothing learnt
    assert pace.seconds_left == pytest.approx(2 * after / 3)
    pace.learn({"largest": 1e10}, {"largest": 30.0})  # a look at a row that is still to come: slower than believed
    assert pace.seconds_left > 2 * after / 3
    pace.note({"largest": 4e10}, {"largest": 12.0})
    assert pace.seconds_left == 0.0


def test_only_needs_no_settings_of_other_layers() -> None:
    kernels = {"stem.weight": np.ones((2, 1, 7, 7)), "head.weight": np.ones((2, 3, 1, 1))}
    with pytest.raises(ValueError, match="kernel must fit"):
        inspect(kernels, image=(2, 2), default=LayerSettings(padding="valid"))
    report = inspect(kernels, image=(2, 2), default=LayerSettings(padding="valid"), only="head*")
    assert [row.name for row in report] == ["head.weight"]
    with pytest.raises(ValueError, match=r"matches no layer; the names are stem\.weight, head\.weight"):
        inspect(kernels, image=(8, 8), only="tail*")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.npz", b"", "empty.npz: an empty file"),
        ("empty.onnx", b"", "empty.onnx: an empty file"),
        ("text.pt", b"weights, as text", "text.pt: not a readable .pt file"),
        ("text.safetensors", b"weights, as text", "text.safetensors: not a readable .safetensors file"),
        ("program.jit", b"PK", "a TorchScript archive, which is a program"),
        ("model.pkl", b"PK", "the name must end in one of"),
    ],
)
def test_files_that_are_none(
    tmp_path: Path, name: str, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert run(["inspect", str(path), "--image", "8"]) == 2
    assert run(["inspect", str(tmp_path), "--image", "8"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert message in first
    assert "a folder; give a file" in second


def test_data_are_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, weights = tmp_path / "x.npy", tmp_path / "w.npz"
    np.save(path, np.zeros((1, 2, 8)))
    write_weights(weights, arrays((3, 2, 3)))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY and no more")
    for data, words in (
        ("x.npy", "data are of use for"),
        ("broken.npy", "not a readable .npy"),
        ("x.txt", ".npy and .npz"),
    ):
        assert run(["inspect", str(weights), "--image", "8", "--data", str(tmp_path / data)]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.command
@pytest.mark.torch
class TestJacobians:
    def test_of_an_onnx_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        onnx = pytest.importorskip("onnx")
        torch = pytest.importorskip("torch")
        from onnx import helper, numpy_helper
        from onnx.reference import ReferenceEvaluator

        from convla.frameworks.torch.onnx_modules import open_onnx

        rng = np.random.default_rng(0)
        weights = {
            "w": rng.standard_normal((3, 2, 3, 2)),
            **{name: rng.uniform(0.5, 2.0, 3) for name in ("scale", "bias", "mean", "var")},
            "g": rng.standard_normal((4, 36)),
        }
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 0, 2, 1], strides=[2, 1]),
            helper.make_node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], ["n"]),
            helper.make_node("LeakyRelu", ["n"], ["r"], alpha=0.2),
            helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2]),
            helper.make_node("Sigmoid", ["p"], ["s"]),
            helper.make_node("Mul", ["p", "s"], ["m"]),
            helper.make_node("Flatten", ["m"], ["f"]),
            helper.make_node("Gemm", ["f", "g"], ["y"], transB=1),
        ]
        graph = helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 2, 6, 5))],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, 4))],
            [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        path = tmp_path / "m.onnx"
        onnx.save(model, str(path))
        x = rng.standard_normal((1, 2, 6, 5)).astype(np.float32)
        np.save(tmp_path / "x.npy", x)
        certificate = inspect(path, data=x, measures=["sigma_max"]).certificate
        assert certificate is not None
        evaluator = ReferenceEvaluator(model)
        step, columns = 2.0**-7, []
        for place in range(x.size):  # by differences: the functions are all but linear over the step
            unit = np.zeros(x.size, np.float32)
            unit[place] = step
            sides = [evaluator.run(None, {"x": x + sign * unit.reshape(x.shape)})[0] for sign in (1, -1)]
            columns.append((sides[0] - sides[1]).reshape(-1) / (2 * step))
        exact = np.linalg.norm(np.array(columns, np.float64), 2)
        assert certificate.lower == pytest.approx(exact, rel=0.05)
        assert certificate.lower <= certificate.upper
        np.save(tmp_path / "wrong.npy", x[:, :1])
        assert run(["inspect", str(path), "--data", str(tmp_path / "wrong.npy")]) == 2
        assert "data must be what the network takes, with the batch, got 1x1x6x5" in capsys.readouterr().err
        module, _ = open_onnx(path)
        module._steps[2] = ("LeakyRelu", ["n"], ["r"], {"alpha": 0.3})  # another function than the file's
        with pytest.raises(NotImplementedError, match="not those of ONNX's evaluator"):
            module.check_values(torch.from_numpy(x))

    def test_of_a_program_in_a_file(self, tmp_path: Path) -> None:
        import warnings

        torch = pytest.importorskip("torch")
        from torch import nn

        class Network(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.forward_ = nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")
                self.norm = nn.BatchNorm2d(4)
                self.last = nn.Linear(8, 3)

            def forward(self, x: Any) -> Any:
                y = torch.relu(self.norm(self.forward_(x)))
                left, right = nn.functional.max_pool2d(y, 2).split(2, 1)
                return self.last(torch.cat([right, left], 1).mean(2).flatten(1))

        class Unread(nn.Module):
            def forward(self, x: Any) -> Any:
                return torch.cumsum(torch.relu(x), 1)

        torch.manual_seed(0)
        module, example = Network().eval(), torch.randn(2, 2, 4, 4)
        path, other = tmp_path / "m.pt2", tmp_path / "u.pt2"
        with warnings.catch_warnings(action="ignore"):  # of PyTorch, about itself
            sizes = {"x": {0: torch.export.Dim("batch", min=1, max=8)}}
            torch.export.save(torch.export.export(module, (example,), dynamic_shapes=sizes), str(path))
            torch.export.save(torch.export.export(Unread(), (example,)), str(other))
            data = example[:1].numpy()
            found, wanted = inspect(path, data=data), inspect(module, example[:1])
        assert [(row.name, row.quantities) for row in found] == [(row.name, row.quantities) for row in wanted]
        assert found["forward_"].geometry["boundary"] == "circular"
        assert found.certificate is not None
        assert wanted.certificate is not None
        assert found.certificate.upper == wanted.certificate.upper
        assert found.certificate.lower == wanted.certificate.lower > 0.0
        unread = inspect(other).certificate
        assert unread is not None
        assert unread.upper == math.inf
        assert "cumsum" in unread.reasons[0]
        self._damaged(path, tmp_path)

    @staticmethod
    def _damaged(path: Path, folder: Path) -> None:
        """What a file says that is not so is an error in a sentence."""

        def changed(name: str, change: Any) -> Path:
            target = folder / "changed.pt2"
            with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
                for member in source.infolist():
                    content = source.read(member)
                    archive.writestr(member.filename, change(content) if member.filename.endswith(name) else content)
            return target

        def pickled(content: bytes) -> bytes:
            return content.replace(b'"use_pickle": false', b'"use_pickle": true')

        cases = (
            ("model.json", lambda content: content[:100], "not a readable .pt2 file"),
            ("weights_config.json", pickled, "a pickled object, which is never loaded"),
            ("weight_0", lambda content: content[:8], "not a readable .pt2 file"),
            ("byteorder", lambda _: b"big", "byte order"),
            ("model.json", lambda content: content.replace(b"torch.ops.aten.relu.", b"torch.ops.os.system."), None),
        )
        for name, change, words in cases:
            target = changed(name, change)
            if words is None:  # an operator that is not PyTorch's own is never called
                certificate = inspect(target, measures=["sigma_max"]).certificate
                assert certificate is not None
                assert certificate.upper == math.inf
                continue
            with pytest.raises(WeightsError, match=words):
                inspect(target)


def a_network(**layers: Layer) -> Network:
    nodes = [Node("x", "input"), *(Node(name, "layer", ("x",), "Conv", layer=layer) for name, layer in layers.items())]
    return Network({node.name: node for node in nodes}, tuple(layers))


def test_every_row_has_a_cost() -> None:
    network = a_network(
        a=convolution_layer(np.ones((64, 64, 3, 3)), (56, 56), padding=1), b=dense_layer(np.ones((3, 4)))
    )
    works = [work_of(task.layers) for task in tasks_of(network)]
    assert all(amount > 0.0 for work in works for amount in work.values())
    assert works[0]["largest"] > 100 * works[1]["largest"]
    # A kernel of one tap has one frequency, and a stride as many channels more as it picks phases.
    point = convolution_layer(np.ones((64, 32, 1, 1)), (56, 56), padding=0, stride=2)
    assert work_of([point])["bounds"] < 0.02 * works[0]["bounds"]


def test_weights_that_are_not_finite_have_no_row() -> None:
    kernel = np.ones((2, 2, 3, 3), np.float32)
    kernel[1, 0, 2, 2] = np.nan
    report = inspect(a_network(good=dense_layer(np.eye(2)), bad=convolution_layer(kernel, (8, 8), padding=1)))
    assert [row.name for row in report] == ["good"]
    assert report.others == {"bad": "Conv: NaN or infinity in its weight"}
    assert report.certificate is not None
    assert report.certificate.reasons == ("bad: Conv: NaN or infinity in its weight",)
    assert report.layers[0].quantities == inspect(a_network(good=dense_layer(np.eye(2)))).layers[0].quantities
    negative = normalization_layer(np.array([1.0, -1.0]), None, 0.0)  # without a warning
    assert list(inspect(a_network(negative=negative)).others) == ["negative"]


def test_a_normalisation_whose_factors_leave_the_range_of_the_kernel_is_folded_in_float64() -> None:
    kernel = np.random.default_rng(0).standard_normal((2, 2, 3)).astype(np.float32)
    layers = [
        convolution_layer(np.float32(1e30) * kernel, (6,), padding=1),
        normalization_layer(np.full(2, 1e-40), None, 0.0),
    ]
    nodes = [Node("x", "input")]
    for name, layer in zip(("conv", "norm"), layers, strict=True):
        nodes.append(Node(name, "layer", (nodes[-1].name,), name, layer=layer, shape=(1, 2, 6)))
    report = inspect(Network({node.name: node for node in nodes}, ("norm",)))
    exact = np.linalg.norm(layers[0].operator.astype(np.float64).to_dense(), 2) * 1e20
    run = report["conv + norm"].quantities
    assert run["sigma_max"] == pytest.approx(exact, rel=1e-6)
    assert run["at_least"] <= exact * (1 + 1e-9)
    assert exact * (1 - 1e-9) <= run["at_most"] <= exact * 1.01
    assert report.certificate is not None
    assert report.certificate.upper == pytest.approx(run["at_most"], rel=1e-6)
