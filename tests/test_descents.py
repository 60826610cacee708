"""Descents of studies: draws, streams, losses and optimisers, against definitions and PyTorch."""

from __future__ import annotations

import hashlib
import itertools
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import signal

import convla
from convla.errors import EngineError
from convla.experiments import Study
from convla.experiments.descents import functions
from convla.experiments.descents.draws import CHUNK, DrawError, chunk_size, draw, stream_key
from convla.experiments.descents.filters import descend_filters
from convla.experiments.descents.outcome import run_setting, setting_engine
from convla.experiments.descents.pairs import descend_pairs
from convla.experiments.descents.settings import NAMED_LOSSES, Setting
from convla.experiments.descents.study import StudyError

Floats = np.ndarray[Any, np.dtype[np.float64]]
EPS = np.finfo(np.float64).eps


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
        "square", ["np.sum(kernels**2, axis=(1, 2, 3))", "np.einsum('rscn,rscn->r', kernels, kernels)"]
    )
    def test_its_sums_do_not_depend_on_how_many_repetitions_there_are(self, tmp_path: Path, square: str) -> None:
        (tmp_path / "mine.py").write_text(
            f"import numpy as np\n\ndef loss(kernels):\n    n = {square}\n"
            "    return n**2, 4.0 * n[:, None, None, None] * kernels\n"
        )
        setting = _setting(loss=f"{tmp_path}/mine.py:loss", N=11, kernels=3)
        whole = run_setting(setting, repetitions=24, seed=0)
        for start, count in ((0, 1), (3, 2), (5, 7)):
            part = run_setting(setting, repetitions=count, start=start, seed=0)
            for name, values in vars(part).items():
                np.testing.assert_array_equal(values, getattr(whole, name)[start : start + count])

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

    @pytest.mark.parametrize("name", ["none.py:loss", "no.such.module:loss", "math:losses"])
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
        own = _setting(optimizer=f"{tmp_path}/mine.py:Half", iterations=1)
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
