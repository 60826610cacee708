"""A run of training: the same bits wherever it was cut off, batches and steps against the definition, checkpoints."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convla.experiments.folder import ResultsError
from convla.experiments.training.datasets import Dataset
from convla.experiments.training.method_settings import PENALTIES, Initialization, Penalty, Transform
from convla.experiments.training.settings import Run, Training
from convla.transforms import TRANSFORMS

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from convla.experiments.training.networks import build_network  # noqa: E402
from convla.experiments.training.trainer import _State, train  # noqa: E402

pytestmark = pytest.mark.torch

METHODS = {
    "baseline": {},
    "adam": {"optimizer": "adam", "learning_rate": 0.01},
    "milestones": {"milestones": (1, 2), "decay": 0.5},
    "augmented": {"augment": True, "standardize": True},
    "similarity": {"penalty": Penalty("convolutional-similarity", 0.01)},
    "ocnn": {"penalty": Penalty("ocnn", 0.01)},
    "orthogonality": {"penalty": Penalty("kernel-orthogonality", 0.01)},
    "spectral": {"penalty": Penalty("singular-values", 0.01, gram="smaller")},
    "reweighted": {"transform": Transform("reweighted", lam=3.0, scale=3.0)},
    "sobolev": {"transform": Transform("sobolev", lam=1.0, blend=1.0, axis="rasterised", linear=True)},
    "orthonormal": {"transform": Transform("orthonormal", linear=True)},
    "laplacian": {"transform": Transform("laplacian", sigma=1.0)},
    "normalized": {"transform": Transform("normalized", per_filter=True)},
    "initialised": {"initialization": Initialization("convolutional-similarity", iterations=5)},
    "orthogonal": {"initialization": Initialization("orthogonal")},
    "delta": {"initialization": Initialization("delta-orthogonal")},
}


def small_dataset(train_images: int = 40, test_images: int = 20) -> Dataset:
    """Return bright and dark squares at a place that tells the class, with noise."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        labels = rng.permutation(np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(100, size=(count, 1, 8, 8), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[0, 4 * (label % 2) : 4 * (label % 2) + 4, label // 2 : label // 2 + 3] += 150
        return images, labels

    return Dataset("digits", *draw(train_images), *draw(test_images), white=255)


def _training(**changes: Any) -> Training:
    return replace(Training("digits", "basic-cnn", 0.1, 16, 3, momentum=0.9), **changes)


def _same(a: Any, b: Any) -> bool:
    return all(np.array_equal(u, v, equal_nan=True) for u, v in zip(vars(a).values(), vars(b).values(), strict=True))


def test_every_penalty_and_transform_is_among_the_methods_that_are_tried() -> None:
    for setting, known in {"penalty": PENALTIES, "transform": TRANSFORMS}.items():
        assert {method[setting].kind for method in METHODS.values() if setting in method} == set(known)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(tmp_path: Path, method: str) -> None:
    dataset, run = small_dataset(), Run(_training(**METHODS[method]), seed=4)
    whole = train(run, dataset)
    assert not whole.diverged

    def cut(epochs: int) -> None:
        cut.done += epochs
        if cut.done == 2:
            raise KeyboardInterrupt

    cut.done = 0
    checkpoint = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        train(run, dataset, checkpoint=checkpoint, save_every=0.0, advance=cut)
    told: list[int] = []
    resumed = train(run, dataset, checkpoint=checkpoint, save_every=0.0, advance=told.append)
    assert told[0] == 1  # the epoch after the last saving is done again
    assert sum(told) == 3
    assert _same(whole, resumed)


def test_arms_of_a_seed_share_weights_and_batches() -> None:
    dataset = small_dataset()
    states = [_State(Run(_training(**METHODS[name]), seed=1), dataset, "cpu") for name in METHODS]
    first = states[0]
    for name, state in zip(METHODS, states, strict=True):
        ours = dict(first.network.named_parameters())
        for key, weight in state.network.named_parameters():
            same = torch.equal(ours[key], weight)
            assert same or ("initialization" in METHODS[name] and weight.ndim == 4), (name, key)
        if "augment" not in METHODS[name]:
            pairs = zip(first._batches(), state._batches(), strict=True)
            assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)
    other = _State(Run(_training(), seed=2), dataset, "cpu")
    assert not torch.equal(next(first.network.parameters()), next(other.network.parameters()))
    assert not torch.equal(next(first._batches())[1], next(other._batches())[1])
    before = next(first._batches())[1]
    first.run_epoch()
    assert not torch.equal(before, next(first._batches())[1])  # every epoch in another order


def test_an_epoch_is_sgd_on_the_batches() -> None:
    dataset, training = small_dataset(), _training(epochs=1)
    state = _State(Run(training, seed=0), dataset, "cpu")
    torch.manual_seed(0)
    network = build_network("basic-cnn", in_channels=1, image_size=8, classes=10)
    network.load_state_dict(state.network.state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    seen: list[int] = []
    for images, labels in state._batches():
        optimizer.zero_grad()
        (torch.nn.functional.cross_entropy(network(images), labels)).backward()
        optimizer.step()
        seen += labels.tolist()
        assert images.dtype == torch.float32
        assert float(images.max()) <= 1.0
    assert sorted(seen) == sorted(dataset.train_labels.tolist())
    state.run_epoch()
    ours, theirs = state.network.state_dict(), network.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    network.eval()
    outputs = network(torch.from_numpy(dataset.test).float() / 255)
    hits = (outputs.argmax(dim=1).numpy() == dataset.test_labels).mean()
    assert state.curves.test_accuracy[1] == pytest.approx(hits, abs=1e-12)


def test_a_penalty_and_a_transform_change_the_step_by_what_they_are() -> None:
    plain, penalised = (
        _State(Run(_training(epochs=1, momentum=0.0, batch_size=40, penalty=penalty), seed=0), small_dataset(), "cpu")
        for penalty in (None, Penalty("kernel-orthogonality", 0.25))
    )
    weight = next(plain.network.parameters()).detach().clone().double()
    plain.run_epoch()
    penalised.run_epoch()
    rows = weight.flatten(1)
    # d/dW |W W^T - I|^2 = 4 (W W^T - I) W, times the weight and the learning rate.
    shift = -0.1 * 0.25 * 4.0 * (rows @ rows.T - torch.eye(len(rows))) @ rows
    found = (next(penalised.network.parameters()) - next(plain.network.parameters())).detach().flatten(1)
    assert torch.allclose(found.double(), shift, rtol=1e-4, atol=1e-6)


def test_a_run_that_diverges_is_kept_as_such() -> None:
    curves = train(Run(_training(learning_rate=1e30), seed=0), small_dataset())
    assert curves.diverged
    assert math.isnan(curves.measure("final-test-accuracy"))
    assert not math.isnan(curves.test_loss[0])


def test_training_on_the_test_images_swaps_the_parts() -> None:
    state = _State(Run(_training(swap=True), seed=0), small_dataset(), "cpu")
    assert (len(state.train), len(state.test)) == (20, 40)
    held = _State(Run(_training(held_out=0.25), seed=0), small_dataset(), "cpu")
    assert (len(held.train), len(held.test)) == (30, 10)


def test_augmented_images_are_shifted_or_flipped_ones() -> None:
    state = _State(Run(_training(augment=True), seed=0), small_dataset(), "cpu")
    plain = np.pad(small_dataset().train.astype(np.float32) / 255, ((0, 0), (0, 0), (4, 4), (4, 4)))
    windows = np.lib.stride_tricks.sliding_window_view(plain, (8, 8), axis=(2, 3)).reshape(-1, 8, 8)
    known = {window.tobytes() for window in windows} | {window[:, ::-1].tobytes() for window in windows}
    images = torch.cat([batch for batch, _ in state._batches()]).numpy()
    assert all(np.ascontiguousarray(image[0]).tobytes() in known for image in images)
    assert len({image.tobytes() for image in images}) > 30


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    dataset, path = small_dataset(), tmp_path / "state.pt"
    train(Run(_training(), 0), dataset, checkpoint=path, save_every=0.0)
    with pytest.raises(ResultsError, match="checkpoint of another run"):
        train(Run(_training(), 1), dataset, checkpoint=path)
    with pytest.raises(ResultsError, match="checkpoint of another run"):
        train(Run(_training(), 0), small_dataset(train_images=50), checkpoint=path)
    for data in (path.read_bytes()[:1000], b"", b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R."):
        path.write_bytes(data)
        with pytest.raises(ResultsError, match="is damaged: delete it"):
            train(Run(_training(), 0), dataset, checkpoint=path)
