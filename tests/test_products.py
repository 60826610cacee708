"""Products by blocks: those of the library, of matrices and of stacks, and the same on any number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convla import _products, _threads
from convla._products import product

# Of a (count, rows, inner) and b (count, inner, columns).
SHAPES = [(1, 5, 3, 4), (1, 700, 40, 20), (1, 20, 40, 700), (3, 300, 8, 300), (40, 20, 30, 10), (7, 1, 64, 1)]


@pytest.fixture(params=[1, 3])
def always_by_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product by many blocks, on so many threads."""
    monkeypatch.setattr(_products, "SHARED_FROM", 1)
    monkeypatch.setattr(_threads, "thread_limit", lambda: request.param)


def tolerance(a: Any, b: Any) -> Any:
    """Two sums of so many terms, in any order, differ by less than this."""
    terms = a.shape[-1]
    return 2 * terms * np.finfo(a.dtype).eps * (np.abs(a) @ np.abs(b)).real


@pytest.mark.usefixtures("always_by_blocks")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_it_is_the_product(shape: tuple[int, ...], dtype: Any) -> None:
    count, rows, inner, columns = shape
    rng = np.random.default_rng(0)
    a = rng.standard_normal((count, rows, inner)).astype(dtype)
    b = rng.standard_normal((count, inner, columns)).astype(dtype)
    for left, right in ((a, b), (a[0], b[0]), (np.swapaxes(b, 1, 2), np.swapaxes(a, 1, 2)), (a[::-1], b[::-1])):
        found = product(left, right)
        assert found.shape == (left @ right).shape
        assert found.dtype == dtype
        assert np.all(np.abs(found - left @ right) <= tolerance(left, right))
    four = product(a.reshape(count, 1, rows, inner), b.reshape(count, 1, inner, columns))
    np.testing.assert_array_equal(four[:, 0], product(a, b))
    assert product(a, b.astype(np.result_type(dtype, np.float64))).dtype == np.result_type(dtype, np.float64)


@pytest.mark.usefixtures("always_by_blocks")
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("rows", [20, 256, 257, 1000])
def test_of_a_matrix_and_its_transpose_half_is_computed(count: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a = np.random.default_rng(0).standard_normal((count, rows, 12))
    computed = 0
    matmul = np.matmul

    def counting(first: Any, second: Any, out: Any) -> Any:
        nonlocal computed
        computed += out.size
        return matmul(first, second, out=out)

    monkeypatch.setattr(np, "matmul", counting)
    gram = product(a, np.swapaxes(a, 1, 2))
    np.testing.assert_array_equal(gram, np.swapaxes(gram, 1, 2))
    assert np.all(np.abs(gram - matmul(a, np.swapaxes(a, 1, 2))) <= tolerance(a, np.swapaxes(a, 1, 2)))
    cuts = _products._cuts(rows)
    assert computed == count * (rows * rows + sum((cut.stop - cut.start) ** 2 for cut in cuts)) / 2
    beside, turned = a[:, :, :6], np.swapaxes(a[:, :, 6:], 1, 2)  # one memory, but no matrix and its transpose
    assert np.all(np.abs(product(beside, turned) - matmul(beside, turned)) <= tolerance(beside, turned))


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((600, 800)), rng.standard_normal((800, 700))
    assert 2 * a.size * b.shape[1] > _products.SHARED_FROM
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(_threads, "thread_limit", lambda threads=threads: threads)
        found.append((product(a, b), product(a, a.T)))
    for one, half in found[1:]:
        np.testing.assert_array_equal(one, found[0][0])
        np.testing.assert_array_equal(half, found[0][1])
