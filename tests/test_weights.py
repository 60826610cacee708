"""Files of weights: what goes in comes out, and whatever is wrong with a file is one line, with no code run."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convla.errors import WeightsError
from convla.networks.weights import WEIGHT_FORMATS, read_model, read_weights, write_weights

FORMATS = [
    ".npz",
    ".safetensors",
    pytest.param(".pt", marks=pytest.mark.torch),
    pytest.param(".pth", marks=pytest.mark.torch),
]


class Malice:
    """An object whose unpickling leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "conv.weight": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "layer/1.weight": rng.standard_normal((2, 4, 1)),
        "steps": np.array(7),
        "strided": rng.standard_normal((6, 4))[::2].T,
    }


def refused(path: Path, message: str) -> str:
    with pytest.raises(WeightsError, match=message) as caught:
        read_weights(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.mark.parametrize("suffix", FORMATS)
class TestEveryFormat:
    def test_round_trip(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"model{suffix}"
        path.write_bytes(b"what was there")
        write_weights(path, arrays())
        back = read_weights(path)
        assert set(back) == set(arrays())
        for name, array in arrays().items():
            assert back[name].dtype == array.dtype
            assert np.array_equal(back[name], array)
        assert [file.name for file in tmp_path.iterdir()] == [path.name]

    def test_every_truncation_is_refused(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"model{suffix}"
        write_weights(path, arrays())
        whole = path.read_bytes()
        for length in [0, 1, 7, 8, 9, 50, len(whole) // 2, len(whole) - 1]:
            path.write_bytes(whole[:length])
            refused(path, "model")

    def test_noise_is_refused(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"model{suffix}"
        for seed in range(20):
            path.write_bytes(np.random.default_rng(seed).bytes(400))
            refused(path, f"not a readable {suffix} file|in it")

    def test_a_pickle_is_refused_and_not_run(self, suffix: str, tmp_path: Path) -> None:
        path, trace = tmp_path / f"model{suffix}", tmp_path / "trace"
        path.write_bytes(pickle.dumps({"conv.weight": Malice(trace)}))
        refused(path, "model")
        assert not trace.exists()

    def test_a_missing_file_is_an_os_error(self, suffix: str, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            read_weights(tmp_path / f"none{suffix}")

    def test_a_failed_write_leaves_the_old_file(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"model{suffix}"
        write_weights(path, arrays())
        before = path.read_bytes()
        with pytest.raises(TypeError, match=r"arrays\['objects'\] must hold numbers, got dtype object"):
            write_weights(path, {"objects": np.array([object()])})
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_unknown_format(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    path.touch()
    refused(path, f"must end in one of {', '.join(WEIGHT_FORMATS)}")
    with pytest.raises(WeightsError, match="must end in one of"):
        write_weights(path, arrays())


def npz(path: Path, members: dict[str, bytes], **options: Any) -> None:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **options)
    return stream.getvalue()


class TestHostileNpz:
    def test_objects(self, tmp_path: Path) -> None:
        path, trace = tmp_path / "model.npz", tmp_path / "trace"
        npz(path, {"a.npy": npy(np.array([Malice(trace)], dtype=object), allow_pickle=True)})
        refused(path, "holds pickled objects, which are never loaded")
        assert not trace.exists()

    def test_a_header_that_promises_more_than_is_there(self, tmp_path: Path) -> None:
        path = tmp_path / "model.npz"
        npz(path, {"a.npy": npy(np.zeros((4, 4))).replace(b"(4, 4)", b"(9**9)".ljust(6))})
        refused(path, "not a readable .npz file")
        npz(path, {"a.npy": npy(np.zeros((4, 4))).replace(b"(4, 4), }          ", b"(99999999, 99999), }")})
        refused(path, "should hold 79999199200008 bytes of data, but holds")

    def test_a_compressed_bomb(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "model.npz"
        npz(path, {"a.npy": npy(np.zeros(10**6))}, compression=zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 50_000
        monkeypatch.setattr("convla.networks.archives.available_memory", lambda _: 10**6)
        refused(path, "holds 8000128 bytes of arrays, more than the 1000000 bytes of free memory")

    def test_other_members(self, tmp_path: Path) -> None:
        path = tmp_path / "model.npz"
        npz(path, {"../evil.txt": b"text"})
        refused(path, "'../evil.txt' in it is not an array")

    def test_a_flipped_bit(self, tmp_path: Path) -> None:
        path = tmp_path / "model.npz"
        write_weights(path, arrays())
        content = bytearray(path.read_bytes())
        content[300] ^= 1
        path.write_bytes(bytes(content))
        refused(path, "Bad CRC-32")

    def test_other_byte_orders_and_half_precision(self, tmp_path: Path) -> None:
        path = tmp_path / "model.npz"
        npz(path, {"a.npy": npy(np.arange(3, dtype=">f4")), "b.npy": npy(np.arange(3, dtype=np.float16))})
        back = read_weights(path)
        assert back["a"].dtype.isnative
        assert back["b"].dtype == np.float32
        assert back["a"].tolist() == back["b"].tolist() == [0, 1, 2]


def safetensors(path: Path, header: Any, data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


class TestHostileSafetensors:
    def test_half_precision(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        entry = {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}
        # The upper halves of the float32 numbers 1.0 and -2.5.
        safetensors(path, {"a": entry}, (0x3F80).to_bytes(2, "little") + (0xC020).to_bytes(2, "little"))
        assert read_weights(path)["a"].tolist() == [1.0, -2.5]
        assert read_weights(path)["a"].dtype == np.float32

    @pytest.mark.parametrize(
        "entry",
        [
            {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
            {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]},
            {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
            {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 4]},
            "text",
        ],
    )
    def test_headers_that_lie(self, entry: Any, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        safetensors(path, {"a": entry}, bytes(4))
        refused(path, "not a readable .safetensors file")

    def test_a_header_of_any_length(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes((2**63 - 1).to_bytes(8, "little") + b"{}")
        refused(path, "not a readable .safetensors file")

    def test_a_dtype_that_is_not_read_leaves_the_other_arrays(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        entries = {
            "a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        }
        safetensors(path, entries, bytes(8))
        assert read_model(path).unread == {"a": "dtype F8_E4M3, which is not read"}
        assert list(read_model(path).arrays) == ["b"]


@pytest.mark.torch
class TestTorchFiles:
    def test_nested_mappings_and_what_is_not_a_tensor(self, tmp_path: Path) -> None:
        import torch

        path = tmp_path / "model.pt"
        half = torch.ones(2, dtype=torch.bfloat16)
        torch.save({"epoch": 3, "state_dict": {"conv.weight": torch.ones(2, 1, 3), "half": half}}, path)
        back = read_weights(path)
        assert set(back) == {"state_dict.conv.weight", "state_dict.half"}
        assert back["state_dict.half"].dtype == np.float32

    def test_parameters_that_require_gradients(self, tmp_path: Path) -> None:
        import torch

        path = tmp_path / "model.pth"
        torch.save(torch.nn.Conv2d(2, 3, 3).state_dict(), path)
        assert {name: array.shape for name, array in read_weights(path).items()} == {
            "weight": (3, 2, 3, 3),
            "bias": (3,),
        }

    def test_objects(self, tmp_path: Path) -> None:
        import torch

        path, trace = tmp_path / "model.pt", tmp_path / "trace"
        torch.save({"conv.weight": Malice(trace)}, path)
        refused(path, "not a readable .pt file")
        assert not trace.exists()

    def test_a_whole_model_is_an_object(self, tmp_path: Path) -> None:
        import torch

        path = tmp_path / "model.pt"
        torch.save(torch.nn.Conv2d(2, 3, 3), path)
        refused(path, "not a readable .pt file")

    def test_a_tensor_alone_has_no_name(self, tmp_path: Path) -> None:
        import torch

        path = tmp_path / "model.pt"
        torch.save(torch.ones(2), path)
        refused(path, "holds a Tensor, not tensors by name")

    def test_a_tensor_larger_than_its_storage(self, tmp_path: Path) -> None:
        import torch

        path = tmp_path / "model.pt"
        torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, path)
        refused(path, r"'a' in it claims shape \(1000000, 1000000\), more than is stored")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("convla.networks.weights.importlib.import_module", absent)
    path = tmp_path / "model.safetensors"
    path.touch()
    refused(path, r"\.safetensors files need the extra safetensors: .*install.*\[safetensors\]")
    with pytest.raises(WeightsError, match=r"\.pt files need the extra torch: .*install.*\[torch\]"):
        write_weights(tmp_path / "model.pt", arrays())
