"""The inner loops of the compiled similarity of 3x3 kernels, as LLVM instructions: `add_lags` and `correlate_patches`.

Each lane of a register has a channel of its own. The nine taps of as many channels are read as they lie in memory and
transposed in registers, four at a time, so that every product that the lags need is one lane of one instruction, and
none is wasted: 45 for a channel's autocorrelation, 81 for its correlation with the lags. As products of small matrices
they would fill the lanes to a half and to three quarters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from convla.engines._product import LANES

__all__ = ["LAGS", "TAPS", "add_lags", "correlate_patches"]

TAPS, LAGS = 9, 25
"""Of a 3x3 kernel; no other kernel of nine taps has as many lags, but for axes of one tap beside the two."""

_INDEX = ir.IntType(64)
_DOUBLES = ir.VectorType(ir.DoubleType(), LANES)
_OFFSETS = [5 * r + s for r in range(3) for s in range(3)]  # those of `convla.autocorrelation.lag_offsets`
_HALVES = {4: ([0, 4, 1, 5], [2, 6, 3, 7]), 8: ([0, 4, 2, 6], [1, 5, 3, 7])}  # by the bytes of a number: cheap shuffles


@intrinsic
def add_lags(
    typing_context: Any,  # noqa: ARG001
    kernels: Any,
    start: Any,  # noqa: ARG001
    blocks: Any,  # noqa: ARG001
    lags: Any,
    lags_start: Any,  # noqa: ARG001
) -> Any:
    """Add to ``lags[lags_start + 12 + t]``, t = 0 .. 12, the summed autocorrelation of ``blocks * LANES`` channels.

    `kernels` are the channels from `start` on, nine numbers each, of float32 or float64; `lags` is of float64. Both are
    contiguous and one-dimensional. Nothing is checked.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = _Code(context, builder, signature.args[0])
        source, lags = (code.place(signature.args[i], args[i], args[i + 1]) for i in (0, 3))
        sums = [cgutils.alloca_once(builder, _DOUBLES) for _ in range(LAGS // 2 + 1)]
        for slot in sums:
            builder.store(ir.Constant(_DOUBLES, [0.0] * LANES), slot)
        with cgutils.for_range(builder, args[2]) as loop:
            taps = code.read(source, loop.index)
            for lag, slot in enumerate(sums):
                pairs = [(taps[p], taps[q]) for p in range(TAPS) for q in range(TAPS) if _lag(p, q) == lag]
                builder.store(builder.fadd(builder.load(slot), code.dot(pairs)), slot)
        for lag, slot in enumerate(sums):
            place = builder.gep(lags, [_constant(LAGS // 2 + lag)])
            builder.store(builder.fadd(builder.load(place), code.total(builder.load(slot))), place)
        return context.get_dummy_value()

    return types.void(kernels, types.int64, types.int64, lags, types.int64), generate


@intrinsic
def correlate_patches(
    typing_context: Any,  # noqa: ARG001
    kernels: Any,
    start: Any,  # noqa: ARG001
    blocks: Any,  # noqa: ARG001
    lags: Any,
    lags_start: Any,  # noqa: ARG001
    out: Any,
    out_start: Any,  # noqa: ARG001
) -> Any:
    """Set `out` to what `convla.autocorrelation.correlate_lags` makes of ``blocks * LANES`` channels of one filter.

    `kernels` are the channels from `start` on, nine numbers each, of float32 or float64; `out` is written likewise, and
    may be the same; `lags` holds the filter's 25, of float64. All are contiguous and one-dimensional. Nothing is
    checked.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = _Code(context, builder, signature.args[0])
        source, lags, target = (code.place(signature.args[i], args[i], args[i + 1]) for i in (0, 3, 5))
        weights = [
            code.spread(builder.load(builder.gep(lags, [_constant(LAGS // 2 + t)]))) for t in range(LAGS // 2 + 1)
        ]
        with cgutils.for_range(builder, args[2]) as loop:
            taps = code.read(source, loop.index)
            sums = [code.dot([(taps[p], weights[abs(_lag(p, q))]) for p in range(TAPS)]) for q in range(TAPS)]
            code.write(sums, target, loop.index)
        return context.get_dummy_value()

    return types.void(kernels, types.int64, types.int64, lags, types.int64, out, types.int64), generate


def _lag(p: int, q: int) -> int:
    """Return the flat index of lag q - p, from that of lag 0."""
    return _OFFSETS[q] - _OFFSETS[p]


def _constant(value: int) -> Any:
    return ir.Constant(_INDEX, value)


class _Code:
    """Emits what both loops need, for numbers of one dtype in memory and float64 in registers."""

    def __init__(self, context: Any, builder: Any, kernels: Any) -> None:
        self.context, self.builder = context, builder
        self.element = context.get_value_type(kernels.dtype)
        self.itemsize = context.get_abi_sizeof(self.element)

    def place(self, kind: Any, array: Any, first: Any) -> Any:
        return self.builder.gep(self.context.make_array(kind)(self.context, self.builder, array).data, [first])

    def read(self, start: Any, block: Any) -> list[Any]:
        """Return the taps of a block of channels, a vector of float64 each."""
        groups = []
        for channels in self._groups(start, block):
            taps = [tap for first in (0, 4) for tap in self._transposed([self._load(c, first, 4) for c in channels])]
            groups.append([*taps, self._gathered([self._load(c, 8, 1) for c in channels])])
        return [self._widened(self._joined(parts)) for parts in zip(*groups, strict=True)]

    def write(self, taps: Sequence[Any], start: Any, block: Any) -> None:
        """Put the taps of a block of channels, as `read` returns them, where they lie in memory."""
        narrowed = [self._narrowed(tap) for tap in taps]
        for group, channels in enumerate(self._groups(start, block)):
            parts = [self._part(tap, group) for tap in narrowed]
            for first in (0, 4):
                for channel, row in zip(channels, self._transposed(parts[first : first + 4]), strict=True):
                    self.builder.store(row, self._place(channel, first, 4), align=self.itemsize)
            for lane, channel in enumerate(channels):
                number = self.builder.extract_element(parts[8], ir.Constant(ir.IntType(32), lane))
                self.builder.store(number, self._place(channel, 8, 1), align=self.itemsize)

    def dot(self, pairs: Sequence[tuple[Any, Any]]) -> Any:
        """Return the sum of products, each but the first rounded once with the sum."""
        total = self.builder.fmul(*pairs[0])
        for a, b in pairs[1:]:
            total = self.builder.fadd(self.builder.fmul(a, b, flags=("contract",)), total, flags=("contract",))
        return total

    def total(self, vector: Any) -> Any:
        """Return the sum over the lanes, halves first."""
        lanes = LANES
        while lanes > 1:
            lanes //= 2
            low, high = (self._shuffled(vector, vector, range(first, first + lanes)) for first in (0, lanes))
            vector = self.builder.fadd(low, high)
        return self.builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    def spread(self, number: Any) -> Any:
        vector = self.builder.insert_element(
            ir.Constant(_DOUBLES, ir.Undefined), number, ir.Constant(ir.IntType(32), 0)
        )
        return self._shuffled(vector, vector, [0] * LANES)

    def _groups(self, start: Any, block: Any) -> list[list[Any]]:
        """Return where the channels of a block begin, in groups of the four that are transposed together."""
        first = self.builder.mul(block, _constant(LANES * TAPS))
        places = [self.builder.gep(start, [self.builder.add(first, _constant(c * TAPS))]) for c in range(LANES)]
        return [places[i : i + 4] for i in range(0, LANES, 4)]

    def _place(self, channel: Any, first: int, count: int) -> Any:
        place = self.builder.gep(channel, [_constant(first)])
        return place if count == 1 else self.builder.bitcast(place, ir.VectorType(self.element, count).as_pointer())

    def _load(self, channel: Any, first: int, count: int) -> Any:
        return self.builder.load(self._place(channel, first, count), align=self.itemsize)

    def _transposed(self, rows: Sequence[Any]) -> list[Any]:
        """Return the columns of a matrix of four rows of four numbers."""
        low, high = _HALVES[self.itemsize]
        halves = [[self._shuffled(a, b, mask) for a, b in (rows[:2], rows[2:])] for mask in (low, high)]
        firsts, seconds = ([self._shuffled(a, b, mask) for a, b in halves] for mask in ([0, 1, 4, 5], [2, 3, 6, 7]))
        return [firsts[0], seconds[0], firsts[1], seconds[1]] if self.itemsize == 4 else [*firsts, *seconds]

    def _gathered(self, numbers: Sequence[Any]) -> Any:
        vector = ir.Constant(ir.VectorType(self.element, len(numbers)), ir.Undefined)
        for lane, number in enumerate(numbers):
            vector = self.builder.insert_element(vector, number, ir.Constant(ir.IntType(32), lane))
        return vector

    def _joined(self, parts: Sequence[Any]) -> Any:
        return parts[0] if len(parts) == 1 else self._shuffled(parts[0], parts[1], range(LANES))

    def _part(self, vector: Any, group: int) -> Any:
        return vector if LANES == 4 else self._shuffled(vector, vector, range(4 * group, 4 * group + 4))

    def _widened(self, vector: Any) -> Any:
        return self._converted(self.builder.fpext, vector, _DOUBLES)

    def _narrowed(self, vector: Any) -> Any:
        return self._converted(self.builder.fptrunc, vector, ir.VectorType(self.element, LANES))

    def _converted(self, convert: Callable[[Any, Any], Any], vector: Any, kind: Any) -> Any:
        return vector if vector.type == kind else convert(vector, kind)

    def _shuffled(self, a: Any, b: Any, lanes: Sequence[int]) -> Any:
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes)))
