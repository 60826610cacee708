"""RCK Figures 3.1-3.2 through the same command: targets, files, resuming, seeds, and the verdicts they must give."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convla import ConvOperator, kernel_from_hwio
from convla.cli import run
from convla.experiments.folder import ResultsError
from convla.experiments.rck import settings as rck_settings
from convla.experiments.rck.conclusions import draw_figure_conclusions
from convla.experiments.rck.settings import FigureSetting, Traces, figure_settings, run_figure
from convla.experiments.rck.source import Figures
from convla.experiments.reproduction import Request, reproduce
from convla.experiments.source import Conclusion

FAST = ((3, 1), (1, 3), (1, 2), (2, 1))  # the two large kernels cost most of the time


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rck_settings, "IMAGE", (8, 8))
    for module in ("settings", "conclusions", "plots"):
        monkeypatch.setattr(f"convla.experiments.rck.{module}.SHAPES", FAST)


def test_the_settings_are_those_of_the_two_examples_each_once() -> None:
    settings = figure_settings()
    assert len(set(settings)) == len(settings)
    printed = {(s.kernel, s.alpha) for s in settings if s.variant == "printed"}
    assert printed == {("3x3x3x1", a) for a in (0.1, 1.0, 5.0, 10.0)} | {
        (kernel, 1.0) for kernel in ("3x3x1x3", "3x3x3x6", "3x3x6x3")
    }


@pytest.mark.command
def test_kernels_are_uniform_and_shared_between_the_panels_of_one_size() -> None:
    one, ten = (run_figure(FigureSetting(3, 1, alpha), kernels=1, start=2, seed=0) for alpha in (1.0, 10.0))
    np.testing.assert_array_equal(one.sigma_max[:, 0], ten.sigma_max[:, 0])
    sequence = np.random.SeedSequence(0, spawn_key=(rck_settings.zlib.crc32(b"3x3x3x1"), 2))
    kernel = kernel_from_hwio(np.random.default_rng(sequence).random((3, 3, 3, 1)))
    largest = np.linalg.svd(ConvOperator(kernel, (15, 15)).to_dense(), compute_uv=False)[0]
    assert one.sigma_max[0, 0] == pytest.approx(largest, rel=1e-13)
    assert one.steps.tolist() == [40.0]


@pytest.mark.command
@pytest.mark.usefixtures("small")
def test_the_command_writes_tables_plots_and_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    arguments = ["reproduce", "figures", "--kernels", "3", "--seed", "1", "--output", str(tmp_path / "out")]
    assert run([*arguments, "--json", str(report)]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"traces.csv", "conclusions.csv", "figure31.png", "figure32.png", "barrier.png", "manifest.json"} <= names
    assert "does not hold: Section 3, Example 2. For alpha = 5 and 10" in capsys.readouterr().out.replace("\n", " ")
    verdicts = {c["statement"]: c["verdict"] for c in json.loads(report.read_text())["conclusions"]}

    def verdict(words: str) -> str:
        return next(verdict for statement, verdict in verdicts.items() if words in statement)

    # What is a theorem does not depend on the draws; three kernels that agree show nothing else of most kernels.
    assert verdict("itself reaches a value below alpha") == "does not hold"
    assert verdict("There is a barrier") == "holds"
    assert verdict("the reported value increases back") == "undecided"
    assert verdict("leaves a larger sigma_min") == "undecided"
    with open(tmp_path / "out" / "traces.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ten = [row for row in rows if (row["alpha"], row["variant"]) == ("10.0", "printed")]
    for kernel in "012":
        reported, true = ([float(row[name]) for row in ten if row["kernel"] == kernel] for name in ("reported", "true"))
        assert len(true) == 41
        assert min(reported) < 9.0
        assert min(true) >= 10.0

    before = (tmp_path / "out" / "traces.csv").read_bytes()
    assert run([*arguments, "--resume"]) == 0
    assert (tmp_path / "out" / "traces.csv").read_bytes() == before
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["complete"] is True
    assert manifest["identity"]["kernels"] == 3
    assert manifest["resumed_parts"] == 2 * len(manifest["settings"])  # of two kernels, and of one


def _panel(setting: FigureSetting, kernels: int = 8, **changes: float) -> Traces:
    """Return what a descent from every kernel would leave if it ran straight from one value to the other."""
    values = {"reported": 1.0, "true": 1.0, "sigma_max": 1.0, "sigma_min": 1.0, "condition": 1.0} | changes
    columns = {name: np.full((kernels, 41), setting.alpha * value) for name, value in values.items()}
    for name in ("true", "condition"):
        columns[name] = columns[name] * np.linspace(4.0, 1.0, 41)
    return Traces(**columns, steps=np.full(kernels, 40.0))


def _verdict_on(words: str, panels: dict[FigureSetting, Traces]) -> str:
    return next(c.verdict for c in draw_figure_conclusions(panels, 8) if words in c.statement)


def test_a_sentence_is_decided_by_counts_at_a_stated_error() -> None:
    panels = {setting: _panel(setting) for setting in figure_settings()}
    assert _verdict_on("There is a barrier", panels) == "holds"
    # Eight of eight kernels in each of four panels: 2^-8 < 0.05 / 8. Seven of eight are not enough, none refutes.
    assert _verdict_on("kappa(M) and sigma_max(M^T M - I) decrease", panels) == "holds"
    first = FigureSetting(1, 3, 1.0)
    rising = panels[first].condition[:1, ::-1]
    panels[first] = replace(panels[first], condition=np.concatenate([rising, panels[first].condition[1:]]))
    assert _verdict_on("kappa(M) and sigma_max(M^T M - I) decrease", panels) == "undecided"
    panels[first] = replace(panels[first], condition=np.repeat(rising, 8, axis=0))
    assert _verdict_on("kappa(M) and sigma_max(M^T M - I) decrease", panels) == "does not hold"


def _counted(true: int, size: int, first: int, rounds: int) -> Conclusion:
    """Return what is said of a sentence that is true of so many kernels, the last ones, and of all of other panels."""
    panels = {setting: _panel(setting, size) for setting in figure_settings()}
    one = FigureSetting(1, 3, 1.0)
    condition = panels[one].condition
    panels[one] = replace(panels[one], condition=np.concatenate([condition[true:, ::-1], condition[:true]]))
    conclusions = draw_figure_conclusions(panels, first, rounds)
    return next(c for c in conclusions if "kappa(M) and sigma_max(M^T M - I) decrease" in c.statement)


def test_more_kernels_decide_at_the_error_of_all_looks() -> None:
    # 2^-8 is at most 0.05 / (2 * 4), and not a third of it: with looks to come eight kernels decide nothing.
    assert _counted(8, 8, first=8, rounds=0).verdict == "holds"
    assert _counted(8, 8, first=8, rounds=2).verdict == "undecided"
    looks = _counted(16, 16, first=8, rounds=2)
    assert looks.verdict == "holds"
    assert "true of 16 of 16" in looks.evidence
    # A look that has decided is not looked at again.
    assert _counted(0, 16, first=16, rounds=1).verdict == "does not hold"
    kept = _counted(16, 32, first=16, rounds=1)
    assert kept.verdict == "does not hold"
    assert "0 of 16 (3x3x1x3)" in kept.evidence


def test_undecided_figures_ask_for_as_many_kernels_again() -> None:
    settings = figure_settings()
    undecided = {setting: _panel(setting, 4) for setting in settings}
    source = Figures(("figures",), 4, 0, rounds=2)
    sizes = []
    while (more := source.further(undecided)) is not None:
        source, wanted = more
        assert wanted == list(settings)
        sizes.append(source.size(settings[0]))
    assert sizes == [8, 16], "two rounds"
    assert Figures(("figures",), 4, 0).further(undecided) is None
    assert Figures((), 4, 0, rounds=2).further({}) is None


def test_one_kernel_below_alpha_overturns_a_theorem() -> None:
    panels = {setting: _panel(setting) for setting in figure_settings()}
    ten = FigureSetting(3, 1, 10.0)
    panels[ten].true[3, 20] = 9.0
    assert _verdict_on("itself reaches a value below alpha", panels) == "holds"
    assert _verdict_on("There is a barrier", panels) == "does not hold"


def test_the_depth_of_the_dip_is_told() -> None:
    panels = {setting: _panel(setting) for setting in figure_settings()}
    panels[FigureSetting(3, 1, 5.0)].reported[:, 6] = 5.0 * np.linspace(0.33, 0.64, 8)
    evidence = next(c.evidence for c in draw_figure_conclusions(panels, 8) if "is least at the 6th" in c.statement)
    assert "33 to 64 % (alpha = 5), 100 to 100 % (alpha = 10)" in evidence


@pytest.mark.command
def test_another_number_of_kernels_is_another_run(tmp_path: Path) -> None:
    reproduce(Request(targets=("table1",), repetitions=2, kernels=2, output=tmp_path))
    with pytest.raises(ResultsError, match="was made with kernels = 2, not kernels = 3"):
        reproduce(Request(targets=("table1",), repetitions=2, kernels=3, output=tmp_path))


def test_a_number_of_kernels_out_of_range_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reproduce", "figures", "--kernels", "1"]) == 2
    assert "kernels must be between 2 and 10000, got 1" in capsys.readouterr().err
