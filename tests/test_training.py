"""`convla train`: pairs from the same seed, exact resumption, reports against independent sums, mistakes named."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from convla.errors import install_line
from convla.experiments.folder import ResultsError
from convla.experiments.training.datasets import Dataset
from convla.experiments.training.execution import Request, train_experiments
from convla.experiments.training.schema import ExperimentError, read_experiment, shipped_experiments
from convla.experiments.training.settings import Run

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from convla.cli import run as convla  # noqa: E402
from convla.experiments.training import execution  # noqa: E402
from convla.experiments.training.networks import NETWORKS, build_network  # noqa: E402
from convla.experiments.training.trainer import check_training  # noqa: E402
from convla.networks.weights import read_weights  # noqa: E402
from tests.test_training_runs import small_dataset  # noqa: E402

pytestmark = pytest.mark.torch

SMALL = """
title = "Small"
source = "this test"
measures = ["final-test-accuracy", "final-test-loss"]
seeds = 3

[settings]
dataset = "mnist"
network = "basic-cnn"
learning_rate = 0.1
momentum = 0.9
batch_size = 16
epochs = 2

[[arms]]
name = "baseline"

[[arms]]
name = "orthonormalised"
transform = { kind = "orthonormal" }

[[arms]]
name = "penalised"
penalty = { kind = "singular-values", weight = 0.01, gram = "smaller" }

[[arms]]
name = "initialised"
initialization = { kind = "convolutional-similarity", iterations = 3 }
"""


@pytest.fixture
def small_digits(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    dataset = small_dataset()
    monkeypatch.setattr(execution, "load_once", lambda *_: dataset)
    return dataset


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def _numbers(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


def test_everything_that_the_command_promises(
    tmp_path: Path, small: Path, small_digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    output, report = tmp_path / "out", tmp_path / "report.json"
    assert convla(["train", str(small), "--weights", "--output", str(output), "--json", str(report)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "small: test accuracy after the last epoch, %" in printed.out
    names = {path.name for path in output.iterdir()}
    assert names >= {
        "summary.csv",
        "spread.csv",
        "runs.csv",
        "curves.csv",
        "small.png",
        "small-curves.png",
        "manifest.json",
    }
    rows = list(csv.DictReader((output / "runs.csv").read_text().splitlines()))
    assert len(rows) == 4 * 3
    assert not list((output / "checkpoints").iterdir())

    def values(arm: str, measure: str) -> np.ndarray[Any, Any]:
        return np.array([float(row[measure]) for row in rows if row["arm"] == arm])

    for row in csv.DictReader((output / "summary.csv").read_text().splitlines()):
        own = values(row["arm"], row["measure"])
        assert float(row["mean"]) == pytest.approx(own.mean())
        assert float(row["stderr"]) == pytest.approx(stats.sem(own))
        if row["against"]:
            gaps = own - values(row["against"], row["measure"])
            low, high = stats.t.interval(0.95, 2, gaps.mean(), stats.sem(gaps))
            wide = stats.t.interval(1 - 0.05 / 3, 2, gaps.mean(), stats.sem(gaps))
            assert float(row["difference"]) == pytest.approx(gaps.mean(), abs=1e-12)
            if row["measure"] == "final-test-loss":
                assert (float(row["low"]), float(row["high"])) == pytest.approx((low, high))
                assert (float(row["simultaneous_low"]), float(row["simultaneous_high"])) == pytest.approx(wide)
            expected = "no difference seen" if wide[0] <= 0 <= wide[1] else None
            assert expected in (row["verdict"], None) or row["measure"] == "final-test-accuracy"
    for row in csv.DictReader((output / "spread.csv").read_text().splitlines()):
        spreads = [values(row[name], row["measure"]).std(ddof=1) for name in ("arm", "against")]
        assert row["ratio"] == "" if 0.0 in spreads else float(row["ratio"]) == pytest.approx(spreads[0] / spreads[1])
    assert {path.stem for path in (output / "weights").iterdir()} == {row["run"] for row in rows}
    for row in rows[::4]:
        network = build_network("basic-cnn", in_channels=1, image_size=8, classes=10).eval()
        kept = read_weights(output / "weights" / f"{row['run']}.npz")
        network.load_state_dict({name: torch.from_numpy(array) for name, array in kept.items()})
        guesses = network(torch.from_numpy(small_digits.test.astype(np.float32) / small_digits.white)).argmax(dim=1)
        hits = int((guesses.numpy() == small_digits.test_labels).sum())
        assert 100.0 * hits / len(guesses) == pytest.approx(float(row["final-test-accuracy"]))
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["data"] == {"digits": small_digits.digest}
    assert len(json.loads(report.read_text())["summary"]) == 8


def test_an_interrupted_session_resumes_to_the_same_numbers(
    tmp_path: Path,
    small: Path,
    small_digits: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert small_digits.name == "digits"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert convla(["train", str(small), "--output", str(whole)]) == 0
    done = []

    def interrupted(job: Any, run: Run, advance: Any) -> Any:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(run)
        return call(job, run, advance)

    call = execution.TrainingJob.__call__
    monkeypatch.setattr(execution.TrainingJob, "__call__", interrupted)
    capsys.readouterr()
    assert convla(["train", str(small), "--output", str(broken)]) == 130
    message = capsys.readouterr().err
    assert "interrupted: 5 of 12 runs are saved" in message
    assert "--resume" in message
    assert message.count("\n") == 1
    monkeypatch.setattr(
        execution.TrainingJob, "__call__", lambda job, run, advance: done.append(run) or call(job, run, advance)
    )
    assert convla(["train", str(small), "--output", str(broken), "--resume"]) == 0
    assert len(done) == 12
    assert _numbers(broken) == _numbers(whole)
    assert json.loads((broken / "manifest.json").read_text())["resumed_runs"] == 5


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_killed_session_goes_on_from_its_checkpoint(tmp_path: Path, small: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    text = SMALL[: SMALL.index("[[arms]]")].replace("epochs = 2", "epochs = 400")
    small.write_text(text + '[[arms]]\nname = "baseline"\n')
    script = (
        "import convla.experiments.training.trainer as t; t.train.__kwdefaults__['save_every'] = 0.0; "
        f"from convla.cli import run; run(['train', {str(small)!r}, '--output', {str(tmp_path / 'out')!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    checkpoints = tmp_path / "out" / "checkpoints"
    while not (checkpoints.exists() and list(checkpoints.glob("*.pt"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (path,) = checkpoints.glob("digits-*.pt")
    state = torch.load(path, weights_only=True)
    assert 1 <= state["epoch"] < 400
    assert int(torch.isfinite(state["curves"]["test_loss"]).sum()) == state["epoch"] + 1


def test_other_processes_change_no_number(tmp_path: Path, small: Path) -> None:
    # One, as each imports PyTorch; tests of pools have several.
    pytest.importorskip("loky", reason="loky is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    experiment = read_experiment(str(small))
    arms = experiment.arms[:1]
    for executor in ("local", "loky"):
        request = Request(
            (replace(experiment, arms=arms),), seeds=2, epochs=1, executor=executor, output=tmp_path / executor
        )
        train_experiments(request)
    assert _numbers(tmp_path / "local") == _numbers(tmp_path / "loky")


def test_learning_rates_are_chosen_on_held_out_images_alike_for_all(
    tmp_path: Path, small: Path, small_digits: Dataset
) -> None:
    assert small_digits.name == "digits"
    small.write_text(SMALL + "\n[digits]\nselect = { learning_rate = [1e-6, 0.1, 1e30], seeds = 1 }\n")
    session = train_experiments(Request((read_experiment(str(small)),), seeds=2, output=tmp_path / "out"))
    assert len(session.report.choices) == 4
    for choice in session.report.choices:
        assert set(choice.accuracies) == {1e-6, 0.1, 1e30}
        assert choice.cell.training.learning_rate == max(choice.accuracies, key=lambda rate: choice.accuracies[rate])
        assert choice.cell.training.held_out == 0.0  # the run that is reported has all training images
    assert {row.learning_rate for row in session.report.rows} == {
        c.cell.training.learning_rate for c in session.report.choices
    }
    baseline = session.report.choices[0]
    assert baseline.accuracies[1e30] == -math.inf
    assert baseline.cell.training.learning_rate == 0.1
    # No seed of a reported run takes part in the choice, and the images decide, not the test set.
    selected = [path.name for path in (tmp_path / "out" / "runs").glob("*seed1000.records")]
    assert len(selected) == 4 * 3


def test_experiments_that_share_runs_do_them_once(tmp_path: Path, small: Path, small_digits: Dataset) -> None:
    assert small_digits.name == "digits"
    other = tmp_path / "other.toml"
    other.write_text(SMALL.replace('"final-test-accuracy", "final-test-loss"', '"mean-train-loss"'))
    request = Request(tuple(read_experiment(str(path)) for path in (small, other)), seeds=2, output=tmp_path / "out")
    session = train_experiments(request)
    assert len(list((tmp_path / "out" / "runs").glob("*.records"))) == 8
    assert {row.experiment for row in session.report.rows} == {"small", "other"}


def test_a_folder_of_other_settings_is_refused(tmp_path: Path, small: Path, small_digits: Dataset) -> None:
    assert small_digits.name == "digits"
    request = Request((read_experiment(str(small)),), seeds=2, output=tmp_path / "out")
    train_experiments(request)
    with pytest.raises(ResultsError, match="made with threads = 1, not threads = 2"):
        train_experiments(replace(request, threads=2))
    (path, *_) = (tmp_path / "out" / "runs").glob("*.records")
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    train_experiments(replace(request, resume=True))
    assert path.stat().st_size == len(whole)


@pytest.mark.parametrize("name", shipped_experiments())
def test_every_shipped_experiment_can_be_run(name: str) -> None:
    experiment = read_experiment(name)
    assert experiment.notes == "" or experiment.notes.endswith(".")
    shapes = {"digits": (1, 8), "cifar10": (3, 32), "mnist": (1, 28), "fashion-mnist": (1, 28)}
    for plan in (experiment.full, experiment.digits):
        for block in plan.blocks():
            for arm in experiment.arms:
                training = experiment.training(plan, arm, block)
                assert training.network in NETWORKS
                assert max(training.milestones, default=0) < training.epochs
                assert arm.against or not arm.changes.get("transform")
    plan = experiment.digits
    networks = {experiment.training(plan, arm, block).network for arm in experiment.arms for block in plan.blocks()}
    for network in networks:
        channels, size = shapes["digits"]
        built = build_network(network, in_channels=channels, image_size=size, classes=10)
        assert built(torch.zeros(2, channels, size, size)).shape == (2, 10)


def test_the_experiment_of_the_documentation_can_be_read(tmp_path: Path) -> None:
    page = Path(__file__).parent.parent / "docs" / "training.md"
    (text,) = re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    experiment = read_experiment(str(path))
    assert [arm.name for arm in experiment.arms] == ["SGD", "orthonormalised", "penalised", "orthogonal start"]
    check_training(experiment.training(experiment.digits, experiment.arms[1], {"batch_size": 16}), small_dataset())


def test_published_values_are_those_of_the_sources_settings(tmp_path: Path, small: Path) -> None:
    small.write_text(SMALL.replace('"mnist"', '"digits"') + '\n[[published]]\narm = "baseline"\nvalue = 12.5\n')
    experiment = read_experiment(str(small))
    dataset = small_dataset()
    for changes, printed in (({}, 12.5), ({"epochs": 1}, math.nan)):
        request = Request((experiment,), seeds=2, output=tmp_path / f"{printed}", **changes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(execution, "load_once", lambda *_: dataset)
            patch.setattr("convla.experiments.training.execution.load_once", lambda *_: dataset)
            rows = train_experiments(request).report.rows
        assert rows[0].printed == pytest.approx(printed, nan_ok=True)
        assert math.isnan(rows[1].printed)  # the same arm's loss was not printed


MISTAKES = {
    "unknown key 'epoch'": ("epochs = 2", "epoch = 2"),
    "unknown key 'foo'": ('source = "this test"', "source = 'x'\nfoo = 1"),
    "epochs must be an integer, got 2.5": ("epochs = 2", "epochs = 2.5"),
    "epochs must be at least 1, got 0": ("epochs = 2", "epochs = 0"),
    "learning_rate must be a number, got 'fast'": ("learning_rate = 0.1", 'learning_rate = "fast"'),
    "lacks the key 'seeds'": ("seeds = 3", ""),
    "seeds must be at least 2": ("seeds = 3", "seeds = 1"),
    "seeds must be at most 1000, got 999999999999": ("seeds = 3", "seeds = 999999999999"),
    "epochs must be at most 1000000": ("epochs = 2", "epochs = 999999999999"),
    "[grid] must have at most 10000 combinations, got 1000000": (
        "seeds = 3",
        f"seeds = 3\ngrid = {{ batch_size = {list(range(2, 1002))}, epochs = {list(range(1, 1001))} }}",
    ),
    "measures must be one of": ('"final-test-loss"', '"final-loss"'),
    "kind must be one of": ('"orthonormal"', '"orthogonal"'),
    "lam is not an option of the transform 'orthonormal'": ('"orthonormal"', '"orthonormal", lam = 1.0'),
    "arm 'orthonormalised': transform: method must be one of": ('"orthonormal" }', '"orthonormal", method = "best" }'),
    "rank_deficient must be 'partial' for method 'newton-schulz'": (
        '"orthonormal" }',
        '"orthonormal", method = "newton-schulz", rank_deficient = "complete" }',
    ),
    "lam must be positive": ('"orthonormal" }', '"reweighted", lam = -1 }'),
    "missing 1 required positional argument: 'lam'": ('"orthonormal" }', '"sobolev" }'),
    "sigma must be at least 0.0": ('"orthonormal" }', '"laplacian", sigma = -1 }'),
    "not a TOML file: maximum recursion depth exceeded": ("seeds = 3", f"seeds = {50_000 * '['}"),
    "arm 'penalised' is there twice": ('name = "initialised"', 'name = "penalised"'),
    "against must be an arm above it": ('name = "orthonormalised"', 'name = "x"\nagainst = "initialised"'),
    "weight must be at least 0.0": ("weight = 0.01", "weight = -1"),
    "lacks the key 'weight'": ("weight = 0.01,", ""),
    "not a TOML file": ("[settings]", "[settings"),
    "momentum must be below 1": ("momentum = 0.9", "momentum = 1.0"),
    "must be a table, got 'orthonormal'": ('{ kind = "orthonormal" }', '"orthonormal"'),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_in_a_file_are_named(small: Path, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = MISTAKES[message]
    assert old in SMALL
    small.write_text(SMALL.replace(old, new, 1))
    with pytest.raises(ExperimentError) as caught:
        read_experiment(str(small))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{small}: ")
    assert convla(["train", str(small)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "there is no experiment 'nosuch'"),
        (["nosuch.toml"], "nosuch.toml: cannot be read"),
        (["csm-table8", "--dataset", "imagenet"], "dataset must be one of"),
        (["csm-table8", "--dataset", "source", "--data", "nowhere"], "CIFAR-10 is not in nowhere"),
        (["csm-table8", "--seeds", "1"], "seeds must be between 2 and"),
        (["csm-table8", "--epochs", "0"], "epochs must be at least 1"),
        (["csm-table8", "--device", "tpu"], "device must be one of"),
        (["csm-table8", "--workers", "0"], "workers must be at least 1"),
    ],
)
def test_wrong_uses_are_one_line(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convla(["train", *arguments, "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_network_that_does_not_fit_is_refused_before_any_run(
    tmp_path: Path, small: Path, small_digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small_digits.name == "digits"
    for name, message in (("vgg16", "image_size must be at least 32"), ("nonet", "network must be one of")):
        small.write_text(SMALL.replace("basic-cnn", name))
        assert convla(["train", str(small), "--output", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_an_experiment_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--list"], ["csm-table8", "--list"]):
        assert convla(["train", *arguments]) == 0
        printed = capsys.readouterr().out
        assert all(name in printed for name in shipped_experiments())


def test_without_pytorch_it_says_what_to_install(tmp_path: Path) -> None:
    script = (
        "import sys, importlib.util; find = importlib.util.find_spec; "
        "importlib.util.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a); "
        f"from convla.cli import run; code = run(['train', 'csm-table8', '--output', {str(tmp_path)!r}]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr == "convla: training needs PyTorch: " + install_line("train") + "\n"


def test_the_page_is_what_its_numbers_say() -> None:
    page = Path(__file__).parents[1] / "docs" / "training_page.py"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    assert subprocess.run([sys.executable, str(page), "--check"], env=environment, check=False).returncode == 0
