"""PyTorch's files without PyTorch: the numbers that PyTorch reads, and what is hostile is refused in words."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convla.errors import WeightsError
from convla.networks.weights import read_model, read_weights, rewrite_weights, write_weights

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytestmark = pytest.mark.torch

LEGACY = {"_use_new_zipfile_serialization": False}


def numbers(tensor: Any) -> Any:
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return (tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).numpy()


def every_kind() -> dict[str, Any]:
    torch.manual_seed(0)
    base = torch.randn(6, 4, 5)
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.uint8, torch.bool]
    kinds += [torch.int16, torch.int32, torch.complex64, torch.complex128, torch.uint16, torch.uint32, torch.uint64]
    return {
        "plain": base,
        "transposed": base.permute(2, 0, 1),
        "strided": base[1::2, :, ::3],
        "parameter": torch.nn.Parameter(base[2]),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(2, 0, 3),
        "ü.名前": torch.arange(3),
        **{str(kind): (8 * torch.rand(3, 2)).to(kind) for kind in kinds},
    }


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_dtype_and_layout_is_read_as_pytorch_reads_it(options: Any, protocol: int, tmp_path: Path) -> None:
    path, tensors = tmp_path / "model.pt", every_kind()
    torch.save(tensors, path, pickle_protocol=protocol, **options)
    found = read_model(path)
    assert found.unread == {}
    assert list(found.arrays) == list(tensors)
    for name, tensor in tensors.items():
        assert np.array_equal(found.arrays[name], numbers(tensor)), name
        assert found.arrays[name].dtype == numbers(tensor).dtype
        assert found.dtypes[name] == str(tensor.dtype).removeprefix("torch.")


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "before 1.6"])
def test_a_checkpoint_with_its_optimizer_and_other_values(options: Any, tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    path = tmp_path / "model.pth"
    checkpoint = {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "losses": [0.5] * 1000,
        "best": np.float64(0.5),
        "names": ("a", None, {"b"}),
        "several": [network.state_dict(), {"x": torch.ones(2)}],
        "size": torch.ones(2, 3).size(),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
    }
    torch.save(checkpoint, path, **options)
    found = read_model(path)
    assert found.unread == {}
    for name, tensor in network.state_dict().items():
        for prefix in ("model", "several.0"):
            assert np.array_equal(found.arrays[f"{prefix}.{name}"], tensor.numpy())
    assert np.array_equal(found.arrays["optimizer.state.0.exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert found.arrays["several.1.x"].tolist() == [1.0, 1.0]


def test_tensors_that_are_no_arrays_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with warnings.catch_warnings(action="ignore"):  # of what PyTorch gives up, and is not sure of
        quantised, rows = torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8), torch.eye(3).to_sparse_csr()
    kinds = {
        "quantised": quantised,
        "sparse": torch.eye(3).to_sparse(),
        "rows": rows,
        "eight": torch.zeros(4, dtype=torch.float8_e4m3fn),
        "meta": torch.zeros(4, device="meta"),
        "conjugate": torch.zeros(4, dtype=torch.complex64).conj(),
        "numpy": np.zeros(3),
        "kernel": torch.ones(2, 1, 3),
    }
    torch.save(kinds, path)
    found = read_model(path)
    assert list(found.arrays) == ["kernel"]
    assert set(found.unread) == set(kinds) - {"kernel"}
    for name, words in (("quantised", "quantised"), ("sparse", "sparse"), ("eight", "float8_e4m3fn"), ("meta", "meta")):
        assert words in found.unread[name]


def test_views_of_one_storage_share_memory_here_too(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        path = tmp_path / "model.pt"
        base = torch.randn(2**20).to(dtype)
        torch.save({f"v{i}": base[i:] for i in range(100)}, path)
        stored = path.stat().st_size
        tracemalloc.start()
        found = read_weights(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert np.array_equal(found["v7"], base[7:].float().numpy())
        assert peak < 7 * stored  # two bytes, four as single precision, and what the conversion takes meanwhile


def records(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_records(path: Path, members: dict[str, bytes], **options: Any) -> None:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def refused(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    assert len(text) < 400 + len(str(path))
    return text


class TestHostile:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "model.pt"
        torch.save({"a": torch.arange(12.0).reshape(3, 4)}, path)
        return path

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b"K\x03K\x04\x86", b"K\x04K\x04\x86"),  # four rows of three
            (b"K\x04K\x01\x86", b"K\x09K\x01\x86"),  # rows that are further apart
            (b"K\x04K\x01\x86", b"J\xf0\xff\xff\xffK\x01\x86"),  # a negative stride: before the storage
            (b"QK\x00", b"QK\x04"),  # an offset
            (b"QK\x00", b"QJ\xff\xff\xff\xff"),
            (b"QK\x00", b"Q\x8a\x08" + (2**62).to_bytes(8, "little")),
            (b"K\x03K\x04\x86", b"\x8a\x08" + (2**62 - 1).to_bytes(8, "little") + b"K\x04\x86"),
            (b"K\x03K\x04\x86", b"(" + b"K\x01" * 70 + b"t"),
            (b"K\x03K\x04\x86", b"G" + b"@\x08\0\0\0\0\0\0" + b"K\x04\x86"),
            (b"X\x01\x00\x00\x000", b"X\x02\x00\x00\x00../"[:5] + b"./"),
            (b"FloatStorage", b"DoubleStorage"),
        ],
    )
    def test_views_that_reach_beyond_their_storage(self, path: Path, old: bytes, new: bytes) -> None:
        members = records(path)
        assert members["model/data.pkl"].count(old) == 1
        members["model/data.pkl"] = members["model/data.pkl"].replace(old, new)
        write_records(path, members)
        assert re.search("claims shape|damaged|missing", refused(path))

    def test_a_storage_shorter_than_the_pickle_says(self, path: Path) -> None:
        members = records(path)
        members["model/data/0"] = members["model/data/0"][:40]
        write_records(path, members)
        assert "more than is stored" in refused(path)

    @pytest.mark.command
    def test_bombs(self, path: Path) -> None:
        members = records(path)
        members["model/data/0"] = bytes(10**7)
        for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
            write_records(path, members, compression=method)
            assert "compressed by the method" in refused(path)
        members["model/data.pkl"] = b"N0" * 10**7 + b"."
        write_records(path, members, compression=zipfile.ZIP_DEFLATED)
        assert "more than 2000000 instructions" in refused(path)

    def test_torchscript_is_named(self, path: Path) -> None:
        with warnings.catch_warnings(action="ignore"):  # of an interface that PyTorch gives up
            torch.jit.save(torch.jit.trace(torch.nn.Conv2d(1, 2, 3), torch.ones(1, 1, 5, 5)), path)
        assert "a TorchScript archive, which is a program; save its weights as" in refused(path)

    def test_a_whole_module_is_an_object(self, path: Path) -> None:
        for options in ({}, LEGACY):
            torch.save(torch.nn.Conv2d(2, 3, 3), path, **options)
            assert "it names 'torch.nn.modules.conv.Conv2d'" in refused(path)

    @pytest.mark.parametrize("content", [[torch.ones(2)], 3, "text", (), np.float64(1.0)], ids=repr)
    def test_what_is_no_mapping(self, path: Path, content: Any) -> None:
        torch.save(content, path)
        assert "not tensors by name" in refused(path)

    def test_another_archive(self, path: Path) -> None:
        write_records(path, {"word/document.xml": b"<x/>"})
        assert "not an archive of torch.save" in refused(path)

    def test_damaged_files_of_before_1_6(self, path: Path) -> None:
        torch.save({"a": torch.arange(12.0), "b": torch.ones(2, 3)}, path, **LEGACY)
        whole, rng = path.read_bytes(), np.random.default_rng(0)
        for length in (*range(0, len(whole), 7), len(whole) - 1):
            path.write_bytes(whole[:length])
            refused(path)
        for _ in range(300):
            content = bytearray(whole)
            for _ in range(int(rng.integers(1, 5))):
                content[int(rng.integers(len(content)))] = int(rng.integers(256))
            path.write_bytes(bytes(content))
            try:
                found = read_weights(path)
            except WeightsError:
                continue
            assert sum(array.nbytes for array in found.values()) <= len(whole)
        path.write_bytes(pickle.dumps({"a": 1}))
        assert "not written by torch.save" in refused(path)


class TestRewriting:
    @pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "before 1.6"])
    def test_everything_else_stays_bit_for_bit(self, options: Any, tmp_path: Path) -> None:
        source, target = tmp_path / "in.pt", tmp_path / "out.pt"
        # PyTorch writes dtypes without a storage type of their own to the older files, and cannot read them.
        model = {name: tensor for name, tensor in every_kind().items() if "uint16" not in name and "uint32" not in name}
        model.pop("torch.uint64")
        torch.save({"model": model, "epoch": 3, "list": [1, {"lr": 0.1}]}, source, **options)
        before = torch.load(source)
        changed = {"model.torch.bfloat16": np.full((3, 2), 1.3), "model.torch.float16": np.full((3, 2), 1.3)}
        rewrite_weights(source, target, changed)
        after = torch.load(target)
        assert list(after) == list(before)
        assert after["epoch"] == 3
        assert after["list"] == before["list"]
        for name, tensor in before["model"].items():
            assert after["model"][name].dtype == tensor.dtype
            assert after["model"][name].stride() == tensor.stride()
            assert isinstance(after["model"][name], type(tensor))
            if f"model.{name}" in changed:
                # PyTorch's own rounding, to nearest with ties to even.
                assert torch.equal(after["model"][name], torch.full((3, 2), 1.3).to(tensor.dtype))
            else:
                assert torch.equal(after["model"][name], tensor)

    def test_the_pickle_and_the_alignment_stay(self, tmp_path: Path) -> None:
        source, target = tmp_path / "in.pt", tmp_path / "out.pt"
        torch.save({"conv": torch.ones(3, 2, 5), "rest": torch.zeros(1001)}, source)
        rewrite_weights(source, target, {"conv": np.full((3, 2, 5), 2.0)})
        old, new = records(source), records(target)
        assert list(old) == list(new)
        assert [name for name in old if old[name] != new[name]] == ["in/data/0"]
        with zipfile.ZipFile(target) as archive:
            for member in archive.infolist():
                with target.open("rb") as file:
                    file.seek(member.header_offset + 26)
                    name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
                assert (member.header_offset + 30 + name + extra) % 64 == 0
        mapped = torch.load(target, mmap=True)
        assert float(mapped["conv"].sum()) == 60.0

    def test_shared_memory(self, tmp_path: Path) -> None:
        path = tmp_path / "in.pt"
        base = torch.randn(4, 3, 5)
        torch.save({"tied": base, "again": base, "apart": torch.ones(2)}, path)
        new = np.arange(60.0).reshape(4, 3, 5)
        rewrite_weights(path, path, {"tied": new, "again": new})
        assert np.array_equal(read_weights(path)["again"], new)
        with pytest.raises(WeightsError, match="'tied' shares its memory with 'again', which would change with it"):
            rewrite_weights(path, path, {"tied": new})
        torch.save({"kernel": base[:2], "other": base[1:]}, path)
        with pytest.raises(WeightsError, match="'kernel' shares its memory with 'other'"):
            rewrite_weights(path, path, {"kernel": new[:2]})
        with pytest.raises(WeightsError, match="'other' shares its memory with 'kernel'"):
            rewrite_weights(path, path, {"other": new[1:]})
        torch.save({"kernel": base[:2], "other": base[2:]}, path)
        rewrite_weights(path, path, {"kernel": new[:2]})
        assert np.array_equal(read_weights(path)["kernel"], new[:2])
        assert np.array_equal(read_weights(path)["other"], base[2:].numpy())

    def test_numbers_beyond_half_precision(self, tmp_path: Path) -> None:
        path = tmp_path / "in.pt"
        torch.save({"a": torch.ones(2, dtype=torch.float16)}, path)
        with pytest.raises(WeightsError, match="'a' in it would leave the range of float16"):
            rewrite_weights(path, path, {"a": np.array([1e5, 0.0])})
        assert read_weights(path)["a"].tolist() == [1.0, 1.0]
        assert [file.name for file in tmp_path.iterdir()] == ["in.pt"]


def test_rounding_to_bfloat16_is_pytorchs() -> None:
    from convla.networks.weights import _rounded

    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    values[:4] = torch.tensor([1.00390625, 1.01171875, -0.0, 2e-40])  # ties, a zero and a subnormal
    found = _rounded(Path("x"), "a", values.numpy(), "bfloat16")
    assert np.array_equal(found.view(np.int16), values.to(torch.bfloat16).view(torch.int16).numpy())


def test_pytorch_is_not_imported_to_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    write_weights(path, {"a": np.ones(2)})
    script = (
        "import sys; from convla.networks.weights import read_weights\n"
        f"read_weights({str(path)!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
