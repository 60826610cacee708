"""Kernels compiled by numba, kept on disk so that several processes may compile them at the same time.

numba numbers the files of a function's compiled versions, and keeps an index of them. Two processes that compile two
versions at once, as the workers of a pool do in a fresh installation, may both take the same number: the index then
names the code of one type for the arguments of another, and every later process computes wrong numbers without a word.
Here a file's name is that of what it holds, and there is no index.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

__all__ = ["compile_for", "compiled"]


class _NamedByContent(IndexDataCacheFile):  # type: ignore[misc]
    """The files of a function's compiled versions, each named by its source, types, machine and numba's version."""

    def save(self, key: Any, data: Any) -> None:
        self._save_data(self._name(key), (key, data))  # replaced as a whole

    def load(self, key: Any) -> Any:
        try:
            stored, data = self._load_data(self._name(key))
        except OSError:
            return None
        return data if stored == key else None

    def _name(self, key: Any) -> str:
        text = repr((self._version, self._source_stamp, key))
        return str(self._data_name(int.from_bytes(hashlib.sha256(text.encode()).digest()[:12])))


class _Cache(FunctionCache):  # type: ignore[misc]
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file: IndexDataCacheFile = _NamedByContent(self._cache_path, self._impl.filename_base, stamp)


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function by `numba.njit` and keeps what it has compiled on disk.

    Parameters
    ----------
    **options
        Of `numba.njit`, but for ``cache``.

    Examples
    --------
    >>> from convla.compiling import compiled
    >>> @compiled(nogil=True)
    ... def double(x):
    ...     return 2 * x
    >>> double(2.5)
    5.0
    """

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(**options)(function)
        with contextlib.suppress(RuntimeError):  # no folder that one may write to: compiled anew in every process
            dispatcher._cache = _Cache(function)
        return dispatcher

    return decorate


def compile_for(function: Any, *arguments: Any) -> None:
    """Compile a function of `compiled` for arguments of these types now, unless it has been.

    Called before threads share its work, lest one of them compiles while the others wait: a program that is interrupted
    would wait, too, until that ends.

    Examples
    --------
    >>> from convla.compiling import compile_for, compiled
    >>> @compiled(nogil=True)
    ... def half(x):
    ...     return x / 2
    >>> compile_for(half, 3.0)
    >>> half.signatures
    [(float64,)]
    """
    function.compile(tuple(map(numba.typeof, arguments)))
