"""`convla reproduce` as a user meets it: files, resuming, workers, interruption, bad input."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convla.cli import run
from convla.errors import EngineError
from convla.experiments.csm import further, source
from convla.experiments.csm.agreement import VERDICTS, Verdict
from convla.experiments.csm.published import published_cells
from convla.experiments.csm.report import TABLE_HEADER
from convla.experiments.csm.settings import Readings, Setting, control_settings, table_settings
from convla.experiments.descents.draws import CHUNK
from convla.experiments.descents.outcome import Outcome, run_setting
from convla.experiments.folder import ResultsError, ResultsFolder
from convla.experiments.reproduction import Request, reproduce
from convla.experiments.session import Watcher
from convla.experiments.statistics import Estimate

SMALL = ["--repetitions", "60"]


def _numbers(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw none: each takes a second, and `test_everything_that_the_command_promises` has them all."""
    monkeypatch.setattr(source.Tables, "draw", lambda *_: [])


def _same(a: Outcome, b: Outcome) -> bool:
    return all(np.array_equal(u, v, equal_nan=True) for u, v in zip(vars(a).values(), vars(b).values(), strict=True))


@pytest.mark.command
def test_everything_that_the_command_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, report = tmp_path / "out", tmp_path / "report.json"
    assert run(["reproduce", *SMALL, "--seed", "3", "--output", str(output), "--json", str(report)]) == 0
    printed = capsys.readouterr()
    names = {path.name for path in output.iterdir()}
    assert names >= {*(f"table{n}.csv" for n in range(1, 7)), "controls.csv", "conclusions.csv", "manifest.json"}
    assert names >= {"tables12.png", "tables34.png", "tables56.png", "controls.png"}
    rows = list(csv.DictReader((output / "table2.csv").read_text().splitlines()))
    assert tuple(rows[0]) == TABLE_HEADER
    assert len(rows) == 30
    assert {row["optimizer"] for row in rows} == {"Adam", "SGD"}
    assert {row["verdict"] for row in rows} <= set(VERDICTS)
    assert all(f"CSM Table {n}" in printed.out for n in range(1, 7))
    assert printed.err == ""  # no bar where there is no terminal
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["identity"]["seed"] == 3
    assert len(manifest["settings"]) == 42
    data = json.loads(report.read_text())
    assert data["tables"]["table2"]["cells"][3]["flag"].startswith("glued mean and std")
    assert len(data["controls"]) == 42


@pytest.mark.command
@pytest.mark.usefixtures("no_pictures")
def test_a_single_table_needs_its_six_settings_only(tmp_path: Path) -> None:
    assert run(["reproduce", "table3", *SMALL, "--output", str(tmp_path)]) == 0
    assert len(list((tmp_path / "runs").glob("*.records"))) == 6
    assert [path.name for path in tmp_path.glob("table*.csv")] == ["table3.csv"]


@pytest.mark.command
@pytest.mark.usefixtures("no_pictures")
def test_an_interrupted_run_resumes_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(["reproduce", "table3", *SMALL, "--output", str(whole)]) == 0

    def interrupted(setting: Any, **kwargs: Any) -> Outcome:
        if setting.draws == "tables34-N9-Adam":
            raise KeyboardInterrupt
        return run_setting(setting, **kwargs)

    monkeypatch.setattr(source, "run_setting", interrupted)
    capsys.readouterr()
    assert run(["reproduce", "table3", *SMALL, "--output", str(broken)]) == 130
    message = capsys.readouterr().err
    assert "2 of 6 parts are saved" in message
    assert "--resume" in message
    assert message.count("\n") == 1
    assert not json.loads((broken / "manifest.json").read_text())["complete"]
    ran = []
    monkeypatch.setattr(source, "run_setting", lambda s, **k: ran.append(s.draws) or run_setting(s, **k))
    assert run(["reproduce", "table3", *SMALL, "--output", str(broken), "--resume"]) == 0
    assert len(ran) == 4
    assert _numbers(broken) == _numbers(whole)
    assert json.loads((broken / "manifest.json").read_text())["resumed_parts"] == 2


@pytest.mark.command
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_killed_run_keeps_whole_files(tmp_path: Path) -> None:
    arguments = ["reproduce", "tables", "--repetitions", "20000", "--output", str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-c", f"from convla.cli import run; run({arguments!r})"])
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "runs").glob("*.records"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    request = Request(targets=("tables",), repetitions=20_000, output=tmp_path)
    folder = ResultsFolder(tmp_path, request.identity)
    tables = source.Tables(("tables",), 20_000, 0, Readings(), "auto")
    files = [folder.records(unit.name, tables.describe(unit)) for unit in table_settings()]
    assert sum(file.count(20_000) for file in files) >= 2
    for file in files:
        stop = file.missing(20_000)[0][0] if file.missing(20_000) else 20_000
        assert all(len(arrays) == len(fields(Outcome)) for _, arrays in file.rows(0, stop))


@pytest.mark.command
def test_neither_workers_nor_engine_nor_executor_change_a_number(tmp_path: Path) -> None:
    settings = dict.fromkeys(("local-1", "local-2", "reference", "loky"))
    requests = {
        "local-1": {"workers": 1},
        "local-2": {"workers": 2},
        "reference": {"engine": "reference"},
        "loky": {"executor": "loky", "workers": 2},
    }
    for name in settings:
        if name == "loky":
            pytest.importorskip("loky")
        reproduce(Request(targets=("table1",), repetitions=70, output=tmp_path / name, **requests[name]))
    numbers = [_numbers(tmp_path / name) for name in settings]
    assert all(other == numbers[0] for other in numbers[1:])


@pytest.mark.parametrize(
    "setting", dict.fromkeys([*table_settings(), *control_settings()]), ids=lambda setting: setting.name
)
def test_the_engines_of_the_cpu_save_the_same_bits(setting: Setting) -> None:
    descent = setting.descent(Readings())
    descent = replace(descent, iterations=min(descent.iterations, 100))
    outcomes = [run_setting(descent, repetitions=70, seed=3, engine=e) for e in ("reference", "numba")]
    for field in fields(Outcome):
        first, second = (getattr(outcome, field.name) for outcome in outcomes)
        np.testing.assert_array_equal(first, second, err_msg=field.name)


def test_a_setting_is_the_sum_of_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(targets=("table3",), repetitions=70, output=tmp_path / "whole")
    whole = reproduce(request)
    monkeypatch.setattr(source.Tables, "cut", lambda *_: 32)
    cut = reproduce(replace(request, output=tmp_path / "cut"))
    assert all(_same(cut.found[setting].kept, summary.kept) for setting, summary in whole.found.items())
    (setting, *_) = table_settings(["table3"])
    file = ResultsFolder(tmp_path / "cut", request.identity).records(setting.name, setting.describe())
    assert len(file) == 3
    assert _numbers(tmp_path / "cut") == _numbers(tmp_path / "whole")


def test_more_repetitions_keep_the_first_ones() -> None:
    setting = table_settings()[3]
    few, many = (run_setting(setting.descent(Readings()), repetitions=r, seed=1) for r in (CHUNK + 5, CHUNK + 40))
    assert np.array_equal(few.similarity, many.similarity[: CHUNK + 5])


def test_seeds_and_settings_draw_apart() -> None:
    setting, other = table_settings()[0], table_settings()[1]
    runs = [
        run_setting(setting.descent(Readings()), repetitions=20, seed=0),
        run_setting(setting.descent(Readings()), repetitions=20, seed=1),
        run_setting(other.descent(Readings()), repetitions=20, seed=0),
    ]
    assert len({run.similarity[0, 0] for run in runs}) == 3
    assert _same(runs[0], run_setting(setting.descent(Readings()), repetitions=20, seed=0))


def test_controls_get_the_draws_of_their_row() -> None:
    trio = [s for s in control_settings() if (s.tables, s.n, s.optimizer) == ((3, 4), 9, "SGD")]
    assert [s.control for s in trio] == ["loss", "shrinkage", "scale-invariant"]
    starts = [run_setting(s.descent(Readings()), repetitions=10, seed=0).similarity[:, 0] for s in trio]
    assert all(np.array_equal(starts[0], other) for other in starts[1:])


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, int]]:
    """How many cells of columns A-C get each verdict under a reading."""

    def count(readings: Readings, *targets: str) -> dict[str, int]:
        output = tmp_path_factory.mktemp("readings")
        return reproduce(Request(targets=targets, readings=readings, output=output)).reports[0].counts("ABC")

    return count


@pytest.mark.command
def test_the_default_reading_reproduces_columns_a_to_c(verdicts: Callable[..., dict[str, int]]) -> None:
    # What is contradicted at all is, if all agrees, with a probability of 5 %, by the correction for 90 cells.
    counts = verdicts(Readings(), "tables")
    assert sum(counts.values()) == 90
    assert counts["not reproduced"] == 0


@pytest.mark.command
@pytest.mark.parametrize(
    "readings",
    [
        Readings(similarity="absolute"),
        Readings(similarity="signed"),
        Readings(similarity="cosine"),
        Readings(train="first"),
        Readings(kernel_loss="cosine"),
    ],
    ids=lambda readings: "-".join(map(str, vars(readings).values())),
)
def test_the_other_readings_fail(readings: Readings, verdicts: Callable[..., dict[str, int]]) -> None:
    counts = verdicts(readings, "table1", "table2")
    assert counts["not reproduced"] >= sum(counts.values()) // 5


@pytest.mark.command
@pytest.mark.parametrize("name", ["verdicts_page", "studies_page", "scaling_page"])
def test_the_pages_say_what_their_numbers_say(name: str) -> None:
    page = Path(__file__).parents[1] / "docs" / f"{name}.py"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    assert subprocess.run([sys.executable, str(page), "--check"], env=environment, check=False).returncode == 0


@pytest.mark.command
@pytest.mark.usefixtures("no_pictures")
def test_coverage_cuts_the_run_into_runs_of_the_published_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("agreement", "coverage", "source"):
        monkeypatch.setattr(f"convla.experiments.csm.{module}.PUBLISHED_REPETITIONS", 50)
    monkeypatch.setattr("convla.experiments.csm.coverage.SEEDS", 2)
    assert run(["reproduce", "coverage", "--repetitions", "220", "--output", str(tmp_path)]) == 0
    rows = list(csv.DictReader((tmp_path / "coverage.csv").read_text().splitlines()))
    assert len(rows) == 90
    assert {row["runs"] for row in rows} == {"4"}
    assert "CSM Table 6: runs of 50 against the truth" in capsys.readouterr().out


@pytest.mark.command
@pytest.mark.usefixtures("no_pictures")
def test_further_runs_decide_what_is_undecided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("agreement", "summary", "source", "report"):
        monkeypatch.setattr(f"convla.experiments.csm.{module}.PUBLISHED_REPETITIONS", 20)
    arguments = ["reproduce", "table6", "--repetitions", "40", "--output", str(tmp_path)]
    assert run(arguments) == 0
    before = list(csv.DictReader((tmp_path / "table6.csv").read_text().splitlines()))
    assert {row["runs"] for row in before} == {"0"}
    capsys.readouterr()
    assert run([*arguments, "--resume", "--rounds", "2"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    after = list(csv.DictReader((tmp_path / "table6.csv").read_text().splitlines()))
    for old, new in zip(before, after, strict=True):
        wanted = old["verdict"] == "undecided"
        assert new["runs"] == (new["runs"] if new["runs"] in ("25", "50") and wanted else "0")
        assert wanted or {**old, "holm": ""} == {**new, "holm": ""}, "what was decided stays"
        # At the end every run has been made of what is still undecided.
        assert new["verdict"] != "undecided" or new["runs"] == "50"
    assert "at most 50 for each" in printed
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    further = manifest["further_repetitions"]
    assert set(further.values()) <= {500, 1000}
    assert sum(further.values()) == 20 * sum(
        max(int(row["runs"]) for row in after if (row["N"], row["optimizer"]) == place)
        for place in {(row["N"], row["optimizer"]) for row in after}
    )
    assert manifest["resumed_parts"] == 6


def test_a_printed_value_is_one_more_run() -> None:
    """The probabilities are those that they say, of whatever law: here a shortfall in one repetition of 2000."""
    cell = next(c for c in published_cells(4) if (c.n, c.optimizer, c.quantity) == (3, "Adam", "C_decrease_mean_pct"))
    rng = np.random.default_rng(0)
    counts = {"reproduced": 0, "undecided": 0}
    probabilities = []
    for _ in range(400):
        values = -rng.exponential(size=201) * (rng.random(201) < 0.4)
        drawn = replace(cell, value=float(values[0]), half_unit=0.0)
        printed = Verdict(drawn, Estimate(0.0, 0.0, 0), z=np.nan, p=np.nan, holm=np.nan, verdict="undecided")
        found = further._by_runs(printed, values[1:])
        counts[found.verdict] += 1
        probabilities.append(found.p)
    # Undecided is what lies beyond all but 4 of 200 runs, a value in twenty if no two are equal: here on one side only.
    assert counts["undecided"] <= 400 * 0.025 + 3 * np.sqrt(400 * 0.025)
    for level in (0.02, 0.05, 0.2, 0.5):
        assert np.mean(np.array(probabilities) <= level) <= level + 3 * np.sqrt(level / 400)
    far = replace(printed, cell=replace(printed.cell, value=-1e3))
    assert further._by_runs(far, values[1:]).verdict == "undecided"
    assert further._by_runs(far, values[1:]).p == pytest.approx(2 / 201)


@pytest.mark.command
def test_divergence_is_counted_and_dropped() -> None:
    """SGD with Table 10 at N = 9 diverges about once in 1000 repetitions."""
    setting = next(s for s in table_settings() if s.name == "tables34-N9-SGD")
    outcome = run_setting(setting.descent(Readings()), repetitions=6000, seed=0)
    # Poisson with mean about 5.4: a count of 0, or above 20, has a probability below 1 %.
    assert 0 < outcome.diverged <= 20
    assert np.isfinite(outcome.loss[outcome.converged]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table7"], "target must be one of 'tables', 'table1'"),
        (["--repetitions", "-1"], "repetitions must be between 2 and 100000000, got -1"),
        (["--repetitions", "many"], "Invalid value for '--repetitions'"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--rounds", "11"], "rounds must be between 0 and 10, got 11"),
        (["--workers", "0"], "workers must be at least 1, got 0"),
        (["--engine", "gpu"], "engine must be one of 'auto', 'direct', 'reference', 'numba', 'cuda', 'fft', got 'gpu'"),
        (
            ["--executor", "cloud"],
            "executor must be 'local', 'loky', 'dask-local:N', 'dask://HOST:PORT', 'mpi' or an Executor, got 'cloud'",
        ),
        (["--similarity", "cubed"], "similarity must be one of"),
        (["--kernel-loss", "outer"], "kernel_loss must be one of"),
        (["--train", "none"], "train must be one of"),
        (["--json", "/no/such/folder/report.json"], "--json /no/such/folder/report.json cannot be written"),
        (["--json", "/"], "--json / cannot be written: Is a directory"),
        (["--repetitions", "1000000000000"], "repetitions must be between"),
        (["--output", "/proc/nowhere"], "the results folder /proc/nowhere cannot be written"),
        (["--frobnicate"], "No such option: --frobnicate"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["reproduce", "--output", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.command
@pytest.mark.usefixtures("no_pictures")
def test_a_folder_of_another_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--output", str(tmp_path)]
    assert run(["reproduce", "table1", *SMALL, *folder]) == 0
    before = _numbers(tmp_path)
    capsys.readouterr()
    for resume in ([], ["--resume"]):
        assert run(["reproduce", "table1", *SMALL, "--seed", "1", *folder, *resume]) == 2
        assert "was made with seed = 0, not seed = 1" in capsys.readouterr().err
    assert _numbers(tmp_path) == before


class _Told(Watcher):
    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def damaged(self, file: str, places: int) -> None:
        self.told.append((file, places))


def test_what_is_damaged_is_told_and_run_again(tmp_path: Path) -> None:
    request = Request(targets=("table1",), repetitions=60, output=tmp_path)
    reproduce(request)
    resumed = Request(targets=("table1",), repetitions=60, output=tmp_path, resume=True)
    victim, numbers = tmp_path / "runs" / "tables12-N3-Adam.records", _numbers(tmp_path)
    whole = victim.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damage in (flipped, whole[:100], whole[:-1], b"garbage" * 20, b"", bytes(len(whole))):
        victim.write_bytes(damage)
        watcher = _Told()
        assert _numbers(reproduce(resumed, watcher).folder) == numbers
        assert watcher.told == ([(str(victim), 1)] if damage else [])
        assert json.loads((tmp_path / "manifest.json").read_text())["damaged_records"] == len(watcher.told)
    assert reproduce(resumed, watcher := _Told()).folder
    assert not watcher.told  # what was run again has taken the place of what was damaged
    for text, complaint in (
        ("{", "cannot be read"),
        ("[1]", "not a manifest"),
        ('{"identity": "x"}', "not a manifest"),
    ):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ResultsError, match=rf"manifest\.json.*{complaint}"):
            reproduce(request)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ResultsError, match="cannot be written"):
        reproduce(Request(targets=("table1",), repetitions=60, output=tmp_path))


def test_a_gpu_is_asked_for_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convla._dispatch.cuda_is_available", lambda: False)
    with pytest.raises(EngineError, match="needs CuPy"):
        run_setting(table_settings()[0].descent(Readings()), repetitions=2, seed=0, engine="cuda")


@pytest.mark.gpu
def test_the_gpu_gives_the_same_numbers_to_rounding() -> None:
    setting = table_settings(["table3"])[0]
    host, device = (
        run_setting(setting.descent(Readings()), repetitions=50, seed=0, engine=e) for e in ("numba", "cuda")
    )
    np.testing.assert_allclose(device.similarity[:, 0], host.similarity[:, 0], rtol=1e-12)
    np.testing.assert_allclose(device.correlation, host.correlation, atol=1e-6)


def test_the_version_and_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert run(["reproduce", "--help"]) == 0
    assert run([]) in (0, 2)
    assert capsys.readouterr().err == ""


def test_an_engine_that_is_not_there_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    monkeypatch.setattr("convla._dispatch.cuda_is_available", lambda: False)
    assert run(["reproduce", "table1", "--engine", "cuda", "--output", str(output)]) == 2
    monkeypatch.setenv("CONVLA_ENGINE", "nonsense")
    assert run(["reproduce", "table1", "--output", str(output)]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    assert not output.exists()


@pytest.mark.command
def test_the_manifest_names_the_engine_that_ran_and_the_pictures(tmp_path: Path) -> None:
    assert run(["reproduce", "table1", *SMALL, "--output", str(tmp_path)]) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["engine"] == "numba"
    assert "tables12.png" in manifest["files"]


def test_the_threads_of_the_caller_are_left_as_they_were(tmp_path: Path) -> None:
    numba = pytest.importorskip("numba")
    before = numba.get_num_threads()
    reproduce(Request(targets=("table1",), repetitions=60, workers=1, output=tmp_path))
    assert numba.get_num_threads() == before


def test_a_request_takes_numpys_integers_and_refuses_other_readings(tmp_path: Path) -> None:
    request = Request(targets=("table1",), repetitions=np.int64(40), seed=np.uint8(1), output=tmp_path)  # type: ignore[arg-type]
    assert json.dumps(request.identity)
    with pytest.raises(TypeError, match="readings must be Readings, got None"):
        Request(readings=None)  # type: ignore[arg-type]
