"""Studies of one's own: the published settings from their files, descents and draws against definitions, any cut."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import signal

import convla
from convla.cli import run
from convla.errors import EngineError
from convla.experiments import Study, read_outcomes, read_study
from convla.experiments.csm.published import published_tables
from convla.experiments.csm.settings import Readings, study_file, table_settings
from convla.experiments.descents import functions
from convla.experiments.descents.draws import CHUNK, DrawError, chunk_size, draw, stream_key
from convla.experiments.descents.filters import descend_filters
from convla.experiments.descents.outcome import recut, run_setting, setting_engine
from convla.experiments.descents.pairs import descend_pairs
from convla.experiments.descents.quantities import QUANTITIES
from convla.experiments.descents.settings import NAMED_LOSSES, Setting
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


def _setting(**changes: Any) -> Setting:
    return replace(Setting(N=3, M=8, loss="convolutional", learning_rate=0.02, iterations=5), **changes)


def _start(setting: Setting, repetitions: int = 3) -> tuple[Floats, Floats, Floats]:
    x, kernels = draw(setting, 0, 0, repetitions)
    gram = convla.feature_map_gram(x, setting.kernel_shape[1:], padding=setting.padding)
    return x, kernels, gram


def _pair_loss(a: Floats, b: Floats, loss: str) -> float:
    """The loss of two kernels (channels, *size), as the definition has it."""
    name, normalized = NAMED_LOSSES[loss]
    if name == "kernel":
        value = float(np.sum(a * b)) ** 2
    else:
        value = sum(float(np.sum(signal.correlate(u, v) ** 2)) for u, v in itertools.product(a, b))
    return value / float(np.sum(a**2) * np.sum(b**2)) if normalized else value


def _total_loss(kernels: Floats, loss: str) -> float:
    if loss == "shrinkage":
        return float(np.sum(kernels**2))
    return sum(_pair_loss(a, b, loss) for a, b in itertools.combinations(kernels, 2))


class TestPublishedStudies:
    @pytest.mark.parametrize(
        ("name", "tables", "rates"),
        [("tables12", (1, 2), "table9"), ("tables34", (3, 4), "table10"), ("tables56", (5, 6), "table11")],
    )
    def test_the_files_are_the_published_settings(self, name: str, tables: tuple[int, int], rates: str) -> None:
        study = read_study(study_file(name))
        rows = published_tables()[rates]["rows"]
        found = [(s.N, s.optimizer, s.learning_rate, s.iterations) for s in study.settings]
        assert found == [(row["N"], row["optimizer"], row["learning_rate"], row["iterations"]) for row in rows]
        assert study.settings == tuple(row.descent(Readings()) for row in table_settings([f"table{tables[0]}"]))
        assert {setting.stream for setting in study.settings} == {
            f"{name}-N{s.N}-{s.optimizer}" for s in study.settings
        }

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


class TestDraws:
    def test_the_published_draws_are_one_row_of_numbers_each(self) -> None:
        sequence = np.random.SeedSequence(5, spawn_key=(zlib.crc32(b"mine"), 1))
        rows = np.random.default_rng(sequence).random((4, 8 + 6))
        x, kernels = draw(_setting(stream="mine"), 5, 1, 4)
        np.testing.assert_array_equal(x[:, 0], rows[:, :8])
        np.testing.assert_array_equal(kernels[:, :, 0].reshape(4, 6), 2 * rows[:, 8:] - 1)

    def test_settings_that_draw_the_same_share_it(self) -> None:
        one, other = _setting(), _setting(loss="kernel", optimizer="SGD", padding="valid", learning_rate=0.5)
        assert all(np.array_equal(a, b) for a, b in zip(draw(one, 0, 0, 5), draw(other, 0, 0, 5), strict=True))
        assert not np.array_equal(draw(one, 0, 0, 5)[0], draw(_setting(kernels=3), 0, 0, 5)[0])

    @pytest.mark.parametrize("inputs", ["uniform", "normal", "correlated", "natural"])
    @pytest.mark.parametrize("weights", ["uniform", "natural"])
    def test_a_repetition_does_not_depend_on_how_many_there_are(self, inputs: str, weights: str) -> None:
        if "natural" in (inputs, weights):
            pytest.importorskip("sklearn", reason="scikit-learn is not installed")
        setting = _setting(inputs=inputs, weights=weights, dimensions=2, channels=3)
        few, many = draw(setting, 1, 0, 3), draw(setting, 1, 0, 7)
        assert all(np.array_equal(a, b[:3]) for a, b in zip(few, many, strict=True))

    def test_large_repetitions_are_drawn_fewer_at_a_time(self) -> None:
        assert chunk_size(_setting(M=4090, channels=2)) == CHUNK  # 8192 numbers with the kernels
        assert chunk_size(_setting(M=4096, channels=4096)) == 1  # twice what a chunk may hold
        setting = _setting(N=1, M=300, dimensions=2, loss="kernel", iterations=1, channels=2)
        assert chunk_size(setting) == 32
        whole, part = (run_setting(setting, repetitions=70 - n, start=n, seed=3) for n in (0, 60))
        np.testing.assert_array_equal(whole.similarity[60:], part.similarity)
        assert len(np.unique(whole.similarity[:, 0])) == 70

    def test_correlated_noise_falls_like_one_over_frequency(self) -> None:
        x, _ = draw(_setting(M=64, inputs="correlated"), 0, 0, CHUNK)
        power = np.mean(np.abs(np.fft.fft(x[:, 0])) ** 2, axis=0)
        assert power[0] == pytest.approx(0.0, abs=1e-20)
        # The mean of 1024 squared moduli is within 5 of its standard deviations of 1 / sqrt(1024) of itself.
        slope = power[1:33] * np.arange(1, 33) ** 2
        assert np.all(np.abs(slope / slope.mean() - 1.0) < 5.0 / 32.0 * np.sqrt(2.0))
        assert np.mean(x**2) == pytest.approx(1.0, abs=0.1)

    def test_natural_images_are_patches_of_the_photographs(self) -> None:
        datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
        photographs = [image / 255.0 for image in datasets.load_sample_images().images]
        x, kernels = draw(_setting(inputs="natural", weights="natural", dimensions=2, channels=3), 0, 0, 2)
        for patch in x:
            corner = patch[:, 0, 0]
            hits = [(p, *place) for p in photographs for place in np.argwhere(np.all(p == corner, axis=2))]
            windows = [p[i : i + 8, j : j + 8].transpose(2, 0, 1) for p, i, j in hits]
            assert any(window.shape == patch.shape and np.array_equal(window, patch) for window in windows)
        assert np.abs(kernels.mean(axis=(2, 3, 4))).max() < 32 * EPS

    def test_images_of_ones_own(self, tmp_path: Path) -> None:
        images = np.arange(2 * 3 * 10, dtype=np.int16).reshape(2, 3, 10)
        path = tmp_path / "mine.npy"
        np.save(path, images)
        x, _ = draw(_setting(inputs=str(path), channels=3), 0, 0, 50)
        windows = {images[i, :, j : j + 8].astype(float).tobytes() for i in range(2) for j in range(3)}
        assert {np.ascontiguousarray(row).tobytes() for row in x} == windows
        np.save(path, np.array([[1.0, np.nan]]))
        with pytest.raises(DrawError, match="must hold finite numbers, got 1 of 2 that are not"):
            _setting(inputs=str(path))


class TestStreams:
    def test_names_with_the_same_checksum_are_refused(self) -> None:
        # The two best known words whose CRC32 is the same.
        assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo")
        settings: dict[str, Any] = {"M": 8, "N": 3, "loss": "kernel", "learning_rate": 0.1, "iterations": 1}
        with pytest.raises(StudyError, match="streams 'plumless' and 'buckeroo' would draw the same numbers"):
            Study(together=[{"stream": "plumless"}, {"stream": "buckeroo"}], **settings)
        assert len(Study(stream="plumless", **settings | {"N": [3, 5]}).settings) == 2

    def test_what_is_drawn_goes_in_by_128_bits(self) -> None:
        settings = [_setting(M=m, N=n) for m in range(8, 208) for n in range(1, 9)]
        keys = {stream_key(setting) for setting in settings}
        assert len(keys) == len(settings)
        assert all(len(key) == 4 and all(0 <= word < 2**32 for word in key) for key in keys)
        words = hashlib.blake2b(_setting().draws.encode(), digest_size=16).digest()
        rows = np.random.default_rng(np.random.SeedSequence(5, spawn_key=(*np.frombuffer(words, "<u4").tolist(), 0)))
        x, _ = draw(_setting(), 5, 0, 1)
        np.testing.assert_array_equal(x[0, 0], rows.random((1, 14))[0, :8])


class TestDescents:
    @pytest.mark.parametrize("loss", ["kernel", "cosine", "convolutional", "scale-invariant", "shrinkage"])
    @pytest.mark.parametrize("padding", ["full", "valid", 1])
    def test_two_kernels_are_a_pair(self, loss: str, padding: Any) -> None:
        setting = _setting(loss=loss, padding=padding)
        _, kernels, gram = _start(setting)
        ours = descend_filters(kernels.reshape(3, 2, 3), gram, setting)
        name, normalized = setting.minimized
        pair = descend_pairs(
            kernels[:, 0, 0], kernels[:, 1, 0], gram, loss=name, normalized=normalized, toeplitz=padding == "full",
            optimizer="Adam", learning_rate=setting.learning_rate, iterations=5,
        )  # fmt: skip
        close = 64 * EPS * setting.iterations
        np.testing.assert_allclose(ours.loss, pair.loss, rtol=close)
        size = np.abs(kernels[:, 0, 0]).sum(axis=1) * np.abs(kernels[:, 1, 0]).sum(axis=1) * gram.max(axis=(1, 2))
        assert np.all(np.abs(ours.similarity - pair.similarity) <= close * size[:, None] ** 2)
        np.testing.assert_allclose(ours.kernels[:, 0], pair.k1, rtol=0, atol=close)

    @pytest.mark.parametrize("loss", ["kernel", "cosine", "convolutional", "scale-invariant", "shrinkage"])
    @pytest.mark.parametrize("layout", [{"dimensions": 2, "channels": 2, "kernels": 3}, {"channels": 3, "kernels": 2}])
    def test_a_step_is_along_the_gradient_of_the_definition(self, loss: str, layout: dict[str, Any]) -> None:
        setting = _setting(loss=loss, optimizer="SGD", iterations=1, learning_rate=1e-3, **layout)
        x, kernels, gram = _start(setting, 2)
        run = descend_filters(kernels.reshape(2, setting.kernels, -1), gram, setting)
        towards = np.random.default_rng(0).standard_normal(kernels.shape[1:])
        for repetition in range(2):
            start = kernels[repetition]
            value = _total_loss(start, loss)
            assert run.loss[repetition, 0] == pytest.approx(value, rel=64 * setting.taps * EPS)
            step = 1e-5
            slope = (_total_loss(start + step * towards, loss) - _total_loss(start - step * towards, loss)) / (2 * step)
            moved = (start.reshape(setting.kernels, -1) - run.kernels[repetition]) / setting.learning_rate
            # The quotient is off by step^2 times a third derivative, about 1e-10, and eps / step.
            assert np.sum(moved.reshape(start.shape) * towards) == pytest.approx(slope, rel=1e-6, abs=1e-6 * value)
            maps = [
                sum(signal.correlate(image, tap) for image, tap in zip(x[repetition], kernel, strict=True))
                for kernel in start
            ]
            seen = sum(float(np.sum(a * b)) ** 2 for a, b in itertools.combinations(maps, 2))
            scale = sum(float(np.sum(np.abs(a)) * np.sum(np.abs(b))) ** 2 for a, b in itertools.combinations(maps, 2))
            assert abs(run.similarity[repetition, 0] - seen) <= 64 * setting.taps * EPS * scale

    @pytest.mark.torch
    @pytest.mark.parametrize("optimizer", ["SGD", "momentum", "Nesterov", "AdaGrad", "RMSprop", "Adam"])
    def test_the_descent_is_pytorchs(self, optimizer: str) -> None:
        torch = pytest.importorskip("torch")
        setting = _setting(dimensions=2, channels=2, kernels=3, optimizer=optimizer, iterations=10, learning_rate=0.003)
        _, kernels, gram = _start(setting, 1)
        ours = descend_filters(kernels.reshape(1, 3, -1), gram, setting)
        k = torch.tensor(kernels[0], requires_grad=True)
        momentum = {"momentum": 0.9} if optimizer == "momentum" else {"momentum": 0.9, "nesterov": True}
        theirs = {"momentum": "SGD", "Nesterov": "SGD", "AdaGrad": "Adagrad"}.get(optimizer, optimizer)
        options = momentum if optimizer in ("momentum", "Nesterov") else {}
        stepper = getattr(torch.optim, theirs)([k], lr=setting.learning_rate, **options)
        for _ in range(setting.iterations):
            stepper.zero_grad()
            planes = k.reshape(6, 1, 3, 3)
            products = (
                torch.nn.functional.conv2d(planes, planes, padding=2).square().sum(dim=(2, 3)).reshape(3, 2, 3, 2)
            )
            sum(products[i, :, j].sum() for i, j in itertools.combinations(range(3), 2)).backward()
            stepper.step()
        np.testing.assert_allclose(
            ours.kernels[0].reshape(k.shape), k.detach().numpy(), rtol=0, atol=256 * EPS * setting.iterations
        )

    @pytest.mark.parametrize("padding", ["full", "valid", 1])
    @pytest.mark.parametrize("dimensions", [1, 2])
    def test_strided_feature_maps_are_every_other_entry(self, padding: Any, dimensions: int) -> None:
        setting = _setting(dimensions=dimensions, channels=2, M=7, stride=2, padding=padding, similarity="signed")
        x, kernels = draw(setting, 0, 0, 2)
        seen = run_setting(setting, repetitions=2, seed=0).similarity[:, 0]
        width = {"full": 2, "valid": 0}.get(padding, padding)
        for repetition in range(2):
            image = np.pad(x[repetition], [(0, 0), *[(width, width)] * dimensions])
            maps = [
                sum(signal.correlate(plane, tap, "valid") for plane, tap in zip(image, kernel, strict=True))
                for kernel in kernels[repetition]
            ]
            one, other = (plane[(slice(None, None, 2),) * dimensions] for plane in maps)
            size = float(np.sum(np.abs(one)) * np.sum(np.abs(other)))
            assert abs(seen[repetition] - np.sum(one * other)) <= 64 * setting.taps * EPS * size

    def test_a_stride_is_compiled_to_the_same_bits(self) -> None:
        runs = [run_setting(_setting(stride=3), repetitions=70, seed=2, engine=e) for e in ("reference", "numba")]
        assert all(np.array_equal(a, b) for a, b in zip(*(vars(run).values() for run in runs), strict=True))

    def test_one_trained_kernel_leaves_the_others(self) -> None:
        setting = _setting(kernels=3, train="first")
        _, kernels, gram = _start(setting)
        last = descend_filters(kernels.reshape(3, 3, 3), gram, setting).kernels
        np.testing.assert_array_equal(last[:, 1:], kernels.reshape(3, 3, 3)[:, 1:])
        assert not np.array_equal(last[:, 0], kernels.reshape(3, 3, 3)[:, 0])

    def test_the_engine_that_runs_is_told(self) -> None:
        assert setting_engine(_setting(), "auto") == "numba"
        assert setting_engine(_setting(loss="kernel", dimensions=2, channels=3), "auto") == "numba"
        for setting in (_setting(kernels=3), _setting(channels=2), _setting(dimensions=2)):
            assert setting_engine(setting, "auto") == "reference"
            with pytest.raises(
                EngineError, match=r"engine 'numba' does not run (3 kernels|correlations of several axes or channels)"
            ):
                setting_engine(setting, "numba")

    @pytest.mark.parametrize(
        "layout", [{"loss": "kernel", "dimensions": 2, "channels": 2}, {"N": 5, "padding": "same"}]
    )
    def test_engines_agree_to_the_last_bit(self, layout: dict[str, Any]) -> None:
        runs = [run_setting(_setting(**layout), repetitions=70, seed=2, engine=e) for e in ("reference", "numba")]
        assert all(np.array_equal(a, b) for a, b in zip(*(vars(run).values() for run in runs), strict=True))


class TestLossesOfOnesOwn:
    GOOD = """\
import numpy as np

def loss(kernels):
    product = np.sum(kernels[:, 0] * kernels[:, 1], axis=(1, 2))
    return product**2, 2.0 * product[:, None, None, None] * kernels[:, ::-1]
"""

    def test_it_is_minimised(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(self.GOOD)
        mine = run_setting(_setting(loss=f"{tmp_path}/mine.py:loss"), repetitions=40, seed=0)
        kernel = run_setting(_setting(loss="kernel"), repetitions=40, seed=0, engine="reference")
        close = 256 * EPS
        np.testing.assert_allclose(mine.loss, kernel.loss, rtol=0, atol=close * kernel.loss.max())
        np.testing.assert_allclose(mine.norms, kernel.norms, rtol=close)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (("2.0 * product", "product"), "the gradient is not that of the value"),
            (("product**2, ", "product[:1], "), r"must return losses of shape \(4,\)"),
            (("return product**2, 2.0", "return 2.0"), "must return the losses and the gradient, got ndarray"),
        ],
    )
    def test_what_is_no_gradient_is_refused(self, tmp_path: Path, change: tuple[str, str], message: str) -> None:
        (tmp_path / "bad.py").write_text(self.GOOD.replace(*change))
        with pytest.raises(functions.LossError, match=message):
            run_setting(_setting(loss=f"{tmp_path}/bad.py:loss"), repetitions=3, seed=0)

    @pytest.mark.parametrize("name", ["convolutonal", "none.py:loss", "no.such.module:loss", "math:losses"])
    def test_what_is_not_there_is_named(self, name: str) -> None:
        with pytest.raises(functions.LossError, match=name.partition(":")[0]):
            _setting(loss=name)


class TestOptimizersOfOnesOwn:
    GOOD = """\
class Half:
    def __init__(self, rate):
        self.rate, self.steps = rate, 0

    def step(self, parameter, gradient):
        self.steps += 1
        return parameter - self.rate * gradient / self.steps
"""

    def test_it_is_followed(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(self.GOOD)
        path = tmp_path / "mine.toml"
        path.write_text(EIGHT_LINES.replace('"SGD"', '"mine.py:Half"').replace("= 20", "= 1"))
        own = read_study(path).settings[0]
        assert setting_engine(own, "auto") == "reference"
        # Of one step it is gradient descent.
        runs = [
            run_setting(setting, repetitions=8, seed=0, engine="reference")
            for setting in (own, replace(own, optimizer="SGD"))
        ]
        np.testing.assert_allclose(runs[0].norms, runs[1].norms, rtol=64 * own.N * EPS)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (("return parameter", "return parameter.mean() + 0 * parameter"), "column 0 of 4 alone steps to elsewhere"),
            (("return parameter", "return parameter[0]"), "step must return float64 of shape (3, 4), got float64"),
            (("def step", "def stop"), "must return an object with a method step"),
        ],
    )
    def test_what_is_none_is_refused(self, tmp_path: Path, change: tuple[str, str], message: str) -> None:
        (tmp_path / "bad.py").write_text(self.GOOD.replace(*change).replace("gradient / self.steps", "gradient[0]"))
        with pytest.raises(functions.OptimizerError, match=re.escape(message)):
            run_setting(_setting(optimizer=f"{tmp_path}/bad.py:Half"), repetitions=3, seed=0)

    def test_a_module_that_was_edited_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "edited_optimizer.py").write_text(self.GOOD)
        monkeypatch.syspath_prepend(tmp_path)
        first = functions.source_digest("edited_optimizer:Half")
        assert functions.source_digest("edited_optimizer:Half") == first
        (tmp_path / "edited_optimizer.py").write_text(self.GOOD + "# another")
        with pytest.raises(functions.StaleModuleError, match="edited_optimizer was edited after it was imported"):
            functions.source_digest("edited_optimizer:Half")

    @pytest.mark.parametrize("name", ["none.py:Half", "no.such.module:Half", "math:Half"])
    def test_what_is_not_there_is_named(self, name: str) -> None:
        with pytest.raises(functions.OptimizerError, match=name.partition(":")[0]):
            _setting(optimizer=name)


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
        (tmp_path / "mine.py").write_text(TestOptimizersOfOnesOwn.GOOD)
        study = Study(N=3, loss="kernel", optimizer=f"{tmp_path}/mine.py:Half", **self.AXES)
        (unit,) = study.units()
        first = study.run(tmp_path / "out").rows
        (tmp_path / "mine.py").write_text(TestOptimizersOfOnesOwn.GOOD.replace("- self", "- 2 * self"))
        (edited,) = study.units()
        assert unit.name != edited.name
        with pytest.raises(StudyError, match=r"mine\.py:Half is not what the study began with"):
            _Work(10, 0, "auto", None)(Part(unit, 0, 10))
        # In the same process the new one is run, and what the old one left stays beside it.
        assert study.run(tmp_path / "out", resume=True).rows[0]["estimate"] != first[0]["estimate"]
        (tmp_path / "mine.py").write_text(TestOptimizersOfOnesOwn.GOOD)
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
            (
                ('"SGD"', '"sgd"'),
                "optimizer must be one of 'SGD', 'momentum', 'Nesterov', 'AdaGrad', 'RMSprop', 'Adam', got 'sgd'",
            ),
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
