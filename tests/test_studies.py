"""Studies of one's own: the published settings from their files, estimates, any cut, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convla.cli import run
from convla.experiments import Study, read_outcomes, read_study
from convla.experiments.csm import settings as csm_settings
from convla.experiments.csm.published import published_tables
from convla.experiments.csm.settings import STUDIES, Readings, study_file, table_settings
from convla.experiments.descents.draws import CHUNK
from convla.experiments.descents.outcome import recut, run_setting
from convla.experiments.descents.quantities import QUANTITIES
from convla.experiments.descents.settings import Setting
from convla.experiments.descents.study import StudyError, _Work, read_rows
from convla.experiments.folder import ResultsError
from convla.experiments.session import Part
from convla.experiments.statistics import Moments

Floats = np.ndarray[Any, np.dtype[np.float64]]
EPS = np.finfo(np.float64).eps

EIGHT_LINES = """\
title = "Longer kernels, normal inputs"
N = 25
M = 64
inputs = "normal"
loss = "convolutional"
optimizer = "SGD"
learning_rate = 0.001
iterations = 20
"""

HALF = """\
class Half:
    def __init__(self, rate):
        self.rate = rate

    def step(self, parameter, gradient):
        return parameter - self.rate * gradient / 2
"""


def _setting(**changes: Any) -> Setting:
    return replace(Setting(N=3, M=8, loss="convolutional", learning_rate=0.02, iterations=5), **changes)


PRINTED = {(1, 2): ("kernel", "full"), (3, 4): ("convolutional", "full"), (5, 6): ("convolutional", "valid")}
"""What the source says of a pair of tables: which loss, and which padding."""


class TestPublishedStudies:
    @pytest.mark.parametrize(("tables", "name"), STUDIES.items(), ids=str)
    def test_the_files_are_the_published_settings(self, tables: tuple[int, int], name: str) -> None:
        (rates,) = {published_tables()[f"table{table}"]["hyperparameters"] for table in tables}
        loss, padding = PRINTED[tables]
        settings = tuple(
            Setting(
                N=row["N"],
                M=64,
                loss=loss,
                learning_rate=row["learning_rate"],
                iterations=row["iterations"],
                optimizer=row["optimizer"],
                padding=padding,
                stream=f"{name}-N{row['N']}-{row['optimizer']}",
            )
            for row in published_tables()[rates]["rows"]
        )
        assert read_study(study_file(name)).settings == settings
        assert tuple(row.descent(Readings()) for row in table_settings([f"table{tables[0]}"])) == settings

    def test_nothing_that_a_study_says_is_left_out(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        path = tmp_path / "own.toml"
        path.write_text(
            'N = 3\nM = 20\nchannels = 2\nstride = 2\npadding = 1\nloss = "kernel"\nlearning_rate = 0.1\n'
            'iterations = 7\ninputs = "normal"\nstream = "own"\n'
        )
        monkeypatch.setattr(csm_settings, "STUDIES", {(7, 8): "own"})
        monkeypatch.setattr(csm_settings, "study_file", lambda _: path)
        (setting,) = table_settings()
        (row,) = read_study(path).settings
        assert setting.descent(Readings()) == row
        changed = setting.descent(Readings(similarity="cosine", kernel_loss="cosine", train="first"))
        assert changed == replace(row, loss="cosine", similarity="cosine", train="first")
        assert replace(setting, control="shrinkage").descent(Readings()) == replace(row, loss="shrinkage")

    def test_the_example_is_table_3_and_gives_its_bits(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["study", "--example"]) == 0
        path = tmp_path / "example.toml"
        path.write_text(capsys.readouterr().out)
        assert run(["study", str(path), "--repetitions", "70", "--part", "32", "--output", str(tmp_path / "out")]) == 0
        row = table_settings(["table3"])[2]
        whole = run_setting(row.descent(Readings()), repetitions=70, seed=0, engine="reference")
        parts = [outcome for setting, outcome in read_outcomes(tmp_path / "out") if setting["stream"] == row.draws]
        assert [part.repetitions for part in parts] == [32, 32, 6]
        for name, values in vars(whole).items():
            np.testing.assert_array_equal(values, np.concatenate([getattr(part, name) for part in parts]))


class TestMoments:
    def test_they_are_those_of_all_values_together(self) -> None:
        rng = np.random.default_rng(0)
        values = 1e6 + rng.gamma(2.0, size=5000)
        moments = Moments()
        for block in np.split(values, [1, 700, 701, 4000]):
            moments.add(block)
        moments.add(np.array([np.nan, np.inf]))
        mean, deviation = moments.mean(), moments.deviation()
        assert (mean.count, deviation.count) == (5000, 5000)
        # Entries are rounded by eps times 1e6 themselves; the sums of 5000 add a few of that.
        assert mean.value == pytest.approx(values.mean(), abs=64 * EPS * 1e6)
        assert deviation.value == pytest.approx(values.std(ddof=1), abs=64 * EPS * 1e6)
        assert mean.stderr == pytest.approx(values.std(ddof=1) / np.sqrt(5000), rel=1e-8)
        centred = values - values.mean()
        spread = np.sqrt((np.mean(centred**4) - np.mean(centred**2) ** 2) / 5000) / (2 * values.std(ddof=1))
        assert deviation.stderr == pytest.approx(spread, rel=1e-7)

    def test_too_few_have_no_error(self) -> None:
        moments = Moments()
        assert np.isnan(moments.mean().value)
        moments.add(np.array([2.0]))
        assert (moments.mean().value, moments.mean().count) == (2.0, 1)
        assert np.isnan([moments.mean().stderr, moments.deviation().value]).all()


class TestStudies:
    AXES: dict[str, Any] = {"M": 10, "learning_rate": 0.02, "iterations": 4, "repetitions": 1100}  # noqa: RUF012

    def test_every_combination_is_a_setting(self) -> None:
        together = [{"N": 3, "optimizer": "SGD"}, {"N": 5, "optimizer": "Adam"}]
        study = Study(
            M={"from": 8, "to": 12, "step": 2}, loss=["kernel", "shrinkage"], learning_rate=0.1, iterations=2,
            padding=["full", 1], together=together,
        )  # fmt: skip
        found = {(s.N, s.optimizer, s.M, s.loss, s.padding) for s in study.settings}
        pairs = ((3, "SGD"), (5, "Adam"))
        assert found == {
            (*pair, m, loss, padding)
            for pair in pairs
            for m in (8, 10, 12)
            for loss in ("kernel", "shrinkage")
            for padding in ("full", 1)
        }

    @pytest.mark.parametrize(
        "layout",
        [
            {"N": [3, 4], "loss": ["convolutional", "scale-invariant"]},
            {"N": 2, "loss": "convolutional", "dimensions": 2, "channels": 2, "kernels": 3, "inputs": "normal"},
        ],
    )
    def test_the_cut_changes_no_bit(self, tmp_path: Path, layout: dict[str, Any]) -> None:
        study = Study(**self.AXES, **layout)
        tables = []
        for part in (None, 100, 1024):
            study.run(tmp_path / str(part), part=part)
            tables.append((tmp_path / str(part) / "results.csv").read_bytes())
        assert tables[0] == tables[1] == tables[2]

    def test_the_rows_are_the_statistics_of_the_repetitions(self, tmp_path: Path) -> None:
        result = Study(N=3, loss="convolutional", **self.AXES).run(tmp_path, part=300)
        assert result.engines == {"numba": 1}
        rows = {row["quantity"]: row for row in result.rows}
        assert set(rows) == set(QUANTITIES)
        whole = run_setting(Setting(3, 10, "convolutional", 0.02, 4), repetitions=1100, seed=0, engine="reference")
        down = whole.similarity[:, 1] < whole.similarity[:, 0]
        expected = {
            "correlation": whole.correlation.mean(),
            "correlation_std": whole.correlation.std(ddof=1),
            "decreased_pct": 100 * down.mean(),
            "failed_pct": 100 * (1 - down.mean()),
            "decrease_pct": 100 * np.mean(1 - whole.similarity[down, 1] / whole.similarity[down, 0]),
            "cosine_after": whole.cosine[:, 1].mean(),
            "kept_shortest": (whole.norms[:, 1] / whole.norms[:, 0]).min(axis=1).mean(),
            "diverged_pct": 0.0,
        }
        for quantity, value in expected.items():
            assert rows[quantity]["estimate"] == pytest.approx(value, rel=1e-12, abs=1e-12), quantity
        assert rows["decrease_pct"]["number"] == down.sum()
        assert rows["correlation"]["stderr"] == pytest.approx(whole.correlation.std(ddof=1) / np.sqrt(1100))
        again = read_rows(tmp_path)
        assert [row["estimate"] for row in again] == [row["estimate"] for row in result.rows]

    def test_more_repetitions_keep_the_parts_that_are_there(self, tmp_path: Path) -> None:
        few = Study(N=3, loss="kernel", **self.AXES | {"repetitions": 200})
        few.run(tmp_path / "a", part=100)
        few.repeated(300).run(tmp_path / "a", part=100, resume=True)
        few.repeated(300).run(tmp_path / "b", part=100)
        manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
        assert (manifest["resumed_parts"], manifest["damaged_records"], manifest["complete"]) == (2, 0, True)
        assert (tmp_path / "a" / "results.csv").read_bytes() == (tmp_path / "b" / "results.csv").read_bytes()

    def test_the_folder_of_another_study_is_not_overwritten(self, tmp_path: Path) -> None:
        one, other = (Study(N=3, loss=loss, **self.AXES).repeated(5) for loss in ("kernel", "shrinkage"))
        one.run(tmp_path)
        kept = (tmp_path / "results.csv").read_bytes()
        with pytest.raises(ResultsError, match="holds a study of other settings: choose another --output"):
            other.run(tmp_path)
        one.run(tmp_path)
        assert (tmp_path / "results.csv").read_bytes() == kept
        assert other.run(tmp_path, resume=True).rows[0]["loss"] == "shrinkage"

    def test_an_optimizer_that_was_edited_is_another(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(HALF)
        study = Study(N=3, loss="kernel", optimizer=f"{tmp_path}/mine.py:Half", **self.AXES)
        (tmp_path / "mine.toml").write_text(EIGHT_LINES.replace('"SGD"', '"mine.py:Half"'))  # found from its own folder
        assert read_study(tmp_path / "mine.toml").settings[0].optimizer == study.settings[0].optimizer
        (unit,) = study.units()
        first = study.run(tmp_path / "out").rows
        (tmp_path / "mine.py").write_text(HALF.replace("- self", "- 2 * self"))
        (edited,) = study.units()
        assert unit.name != edited.name
        with pytest.raises(StudyError, match=r"mine\.py:Half is not what the study began with"):
            _Work(10, 0, "auto", None)(Part(unit, 0, 10))
        # In the same process the new one is run, and what the old one left stays beside it.
        assert study.run(tmp_path / "out", resume=True).rows[0]["estimate"] != first[0]["estimate"]
        (tmp_path / "mine.py").write_text(HALF)
        assert study.run(tmp_path / "out", resume=True).rows == first

    def test_blocks_are_counted_from_the_first_repetition(self) -> None:
        whole = run_setting(_setting(iterations=1), repetitions=2100, seed=0)
        for cut in (1, 700, 1024, 1025, 2048, 2100):
            parts = [
                type(whole)(*(column[start : start + cut] for column in vars(whole).values()))
                for start in range(0, 2100, cut)
            ]
            blocks = list(recut(parts, CHUNK))
            assert [block.repetitions for block in blocks] == [1024, 1024, 52]
            np.testing.assert_array_equal(np.concatenate([block.loss for block in blocks]), whole.loss)

    def test_parts_take_about_a_second(self) -> None:
        assert all(setting.part in (1 << power for power in range(18)) for setting in (_setting(), _setting(N=8)))
        assert _setting(iterations=10**7).part < _setting(iterations=10).part


class TestCommand:
    def test_eight_lines_are_a_study(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path, output = tmp_path / "mine.toml", tmp_path / "out"
        path.write_text(EIGHT_LINES)
        report = tmp_path / "rows.json"
        assert len(EIGHT_LINES.splitlines()) == 8
        assert run(["study", str(path), "--repetitions", "60", "--output", str(output), "--json", str(report)]) == 0
        printed = capsys.readouterr()
        assert "engine numba: 1 setting\n" in printed.out
        assert printed.err == ""
        rows = json.loads(report.read_text())
        assert {(row["N"], row["inputs"], row["repetitions"]) for row in rows} == {(25, "normal", 60)}
        assert run(["study", "plot", str(output), "--quantity", "cosine_after", "--axis", "inputs"]) == 0
        assert (output / "cosine_after-inputs.png").read_bytes().startswith(b"\x89PNG")
        assert run(["study", "plot", str(output), "--quantity", "joy"]) == 2
        assert run(["study", "plot", str(tmp_path)]) == 2

    def test_words_are_not_joined_by_lines(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plots = pytest.importorskip("convla.experiments.descents.plots", reason="matplotlib is not installed")
        loss, padding = ["kernel", "shrinkage"], ["full", 1]
        study = Study(N=[3, 5], loss=loss, M=8, learning_rate=0.01, iterations=2, repetitions=20, padding=padding)
        rows = study.run(tmp_path).rows
        figures: list[Any] = []
        monkeypatch.setattr(plots, "save_figure", lambda figure, _: figures.append(figure))
        for axis in ("N", "loss", "padding"):
            plots.plot_rows(rows, "correlation", axis, tmp_path / "unused.png")
        numbers, *words = ({bar[0].get_linestyle() for bar in figure.axes[0].containers} for figure in figures)
        assert numbers == {"-"}
        assert words == [{"None"}] * 2
        for figure in figures:
            (legend,) = figure.legends  # beside the axes, so that it hides no interval
            figure.draw_without_rendering()
            assert legend.get_window_extent().y1 < figure.axes[0].get_window_extent().y0

    def test_an_interrupted_study_resumes_to_the_same_numbers(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(EIGHT_LINES.replace("N = 25", "N = [3, 5]"))
        line = ["study", str(path), "--repetitions", "60", "--part", "20", "--output"]
        assert run([*line, str(tmp_path / "whole")]) == 0
        calls: list[Any] = []

        def interrupted(*arguments: Any, **options: Any) -> Any:
            if len(calls) == 4:
                raise KeyboardInterrupt
            calls.append(arguments)
            return run_setting(*arguments, **options)

        monkeypatch.setattr("convla.experiments.descents.study.run_setting", interrupted)
        capsys.readouterr()
        assert run([*line, str(tmp_path / "broken")]) == 130
        assert "interrupted: 4 of 6 parts are saved" in capsys.readouterr().err
        monkeypatch.undo()
        assert run([*line, str(tmp_path / "broken"), "--resume"]) == 0
        whole, broken = ((tmp_path / name / "results.csv").read_bytes() for name in ("whole", "broken"))
        assert whole == broken

    def test_parquet_holds_the_same_rows(self, tmp_path: Path) -> None:
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        study = Study(N=3, M=8, loss="kernel", learning_rate=0.1, iterations=2, padding=["full", 1], repetitions=40)
        rows = study.run(tmp_path, parquet=True).rows
        table = parquet.read_table(tmp_path / "results.parquet").to_pylist()
        assert [row["estimate"] for row in table] == [row["estimate"] for row in rows]
        assert {row["padding"] for row in table} == {"full", "1"}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (("N = 25", "n = 25"), "unknown key 'n'; known are title"),
            (("N = 25\n", ""), "lacks the key 'N'"),
            (("N = 25", "N = []"), "N must have at least one value"),
            (("N = 25", "N = { from = 3 }"), "N must be a range like"),
            (("N = 25", "N = { from = 9, to = 3 }"), "N: a range goes up"),
            (("N = 25", "N = 0"), "N must be between 1 and 4096, got 0"),
            (("N = 25", 'N = 65\npadding = "valid"'), "N must be at most 64, the padded input, got 65"),
            (
                ('"normal"', '"gaussian"'),
                "inputs must be one of 'uniform', 'normal', 'correlated', 'natural', or a .npy",
            ),
            (('"normal"', '"none.npy"'), "none.npy cannot be read"),
            (('"normal"', '"natural"\nchannels = 2'), "channels must be 1 or 3 for natural images, got 2"),
            (('"SGD"', '"sgd"'), "optimizer without a 'file.py:' must be one of 'SGD', 'momentum', 'Nesterov', 'Ada"),
            (('"convolutional"', '"convolutonal"'), "loss without a 'file.py:' must be one of 'kernel', 'conv"),
            (("= 20", "= 20\nstride = 0"), "stride must be between 1 and 4096, got 0"),
            (("0.001", "-1"), "learning_rate must be positive"),
            (("= 20", "= 20\nstream = '{x}'"), "stream names 'x', which is no setting"),
            (("= 20", "= 20\ntogether = 3"), "together must be a list of tables"),
            (("= 20", "= 20\n[[together]]\nN = 3"), "entry 1 of together: N is given outside it, too"),
            (("= 20", "= 20\nweights = 3"), "weights must be a text, got 3"),
            (
                ('M = 64\ninputs = "normal"', 'M = 700\ninputs = "natural"'),
                "have no patches of 1 channels and size (700,)",
            ),
            (("= 20", "= 20\nkernels = 1"), "kernels must be between 2 and 4096, got 1"),
            (("N = 25", "N = "), "not a TOML file"),
            (("= 20", "= 20\npadding = -1"), "padding must be at least 0"),
            (("= 20", "= 20\npadding = 1.5"), "or a number of positions, got 1.5"),
            (("= 20", "= 20\nstream = '{'"), "stream must be a text with settings in braces, got '{'"),
        ],
    )
    def test_a_mistake_is_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], message: str
    ) -> None:
        if "natural" in change[1]:
            pytest.importorskip("sklearn", reason="scikit-learn is not installed")
        path = tmp_path / "mine.toml"
        path.write_text(EIGHT_LINES.replace(*change))
        assert run(["study", str(path), "--output", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()

    def test_too_many_settings_are_refused(self) -> None:
        many: Callable[..., Study] = Study
        with pytest.raises(StudyError, match="at most 10000 settings"):
            many(N=range(1, 200), M=range(200, 400), loss="kernel", learning_rate=0.1, iterations=1)
