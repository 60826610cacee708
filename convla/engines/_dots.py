"""The inner loop of the compiled kernel adjoint, as LLVM instructions inside numba code: `dots`.

The dot products of a few rows with a few shifted windows, each kept in one register of partial sums while both are read
once. What is left in the lanes is added up by folding registers into each other, which is half the work of folding each
alone, and matters where the rows are short.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from convla.engines._tile import VECTOR_BYTES

__all__ = ["WINDOWS", "dots"]

WINDOWS = (0, 8, 8, 8, 6) if VECTOR_BYTES == 64 else (0, 8, 5, 4)
"""The most windows that are taken with 1, 2, ... rows at once: all sums, rows and one window fit the registers."""


@intrinsic
def dots(
    typing_context: Any,  # noqa: ARG001
    rows: Any,  # noqa: ARG001
    windows: Any,  # noqa: ARG001
    target: Any,
    target_start: Any,  # noqa: ARG001
    target_stride: Any,  # noqa: ARG001
    add: Any,  # noqa: ARG001
    features: Any,
    features_start: Any,  # noqa: ARG001
    features_stride: Any,  # noqa: ARG001
    source: Any,
    offsets: Any,
    offsets_start: Any,  # noqa: ARG001
    count: Any,  # noqa: ARG001
) -> Any:
    """Set ``target[start + r * stride + j]``, or add to it, the dot products of row r and window j.

    These are ``sum_x features[features_start + r * features_stride + x] * source[offsets[offsets_start + j] + x]`` over
    `count` whole vectors, for ``1 <= rows < len(WINDOWS)`` and ``1 <= windows <= WINDOWS[rows]``. `target`, `features`
    and `source` are contiguous one-dimensional arrays of one dtype, `offsets` of int64. Nothing is checked.
    """
    integer = types.int64
    signature = types.void(
        integer,
        integer,
        target,
        integer,
        integer,
        types.boolean,
        features,
        integer,
        integer,
        source,
        offsets,
        integer,
        integer,
    )

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pointer(index: int) -> Any:
            return context.make_array(signature.args[index])(context, builder, args[index]).data

        element = context.get_value_type(signature.args[2].dtype)
        code = _Dots(builder, element, context.get_abi_sizeof(element))
        places = {
            "target": builder.gep(pointer(2), [args[3]]),
            "target_stride": args[4],
            "add": args[5],
            "features": builder.gep(pointer(6), [args[7]]),
            "features_stride": args[8],
            "source": pointer(9),
            "offsets": builder.gep(pointer(10), [args[11]]),
            "count": args[12],
        }
        shapes = [(r, w) for r, most in enumerate(WINDOWS) for w in range(1, most + 1)]
        shape = builder.add(builder.mul(args[0], _integer(max(WINDOWS) + 1)), args[1])
        end = builder.append_basic_block("dots.end")
        switch = builder.switch(shape, end)
        for r, w in shapes:
            case = builder.append_basic_block(f"dots.{r}.{w}")
            switch.add_case(_integer(r * (max(WINDOWS) + 1) + w), case)
            builder.position_at_end(case)
            code.emit(r, w, places)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return signature, generate


def _integer(value: int) -> Any:
    return ir.Constant(ir.IntType(64), value)


class _Dots:
    """Emits the code of one shape after another."""

    def __init__(self, builder: Any, element: Any, itemsize: int) -> None:
        self.builder = builder
        self.element = element
        self.itemsize = itemsize
        self.lanes = VECTOR_BYTES // itemsize
        self.vector = ir.VectorType(element, self.lanes)

    def emit(self, rows: int, windows: int, at: dict[str, Any]) -> None:
        builder = self.builder
        # Stack slots of vectors become registers once LLVM has inlined the function.
        slots = [[cgutils.alloca_once(builder, self.vector) for _ in range(windows)] for _ in range(rows)]
        for slot in (slot for row in slots for slot in row):
            builder.store(ir.Constant(self.vector, [0.0] * self.lanes), slot)
        lines = [builder.gep(at["features"], [builder.mul(at["features_stride"], _integer(r))]) for r in range(rows)]
        starts = [
            builder.gep(at["source"], [builder.load(builder.gep(at["offsets"], [_integer(w)]))]) for w in range(windows)
        ]
        with cgutils.for_range(builder, at["count"]) as loop:
            x = builder.mul(loop.index, _integer(self.lanes))
            factors = [self._load(builder.gep(line, [x])) for line in lines]
            for w, start in enumerate(starts):
                values = self._load(builder.gep(start, [x]))
                for factor, row in zip(factors, slots, strict=True):
                    # "contract" alone lets the product and the sum be one instruction, rounded once.
                    product = builder.fmul(factor, values, flags=("contract",))
                    builder.store(builder.fadd(builder.load(row[w]), product, flags=("contract",)), row[w])
        for r, row in enumerate(slots):
            self._update(r, [builder.load(slot) for slot in row], at)

    def _load(self, place: Any, vector: Any = None) -> Any:
        pointer = (vector or self.vector).as_pointer()
        return self.builder.load(self.builder.bitcast(place, pointer), align=self.itemsize)

    def _totals(self, sums: list[Any]) -> Any:
        """Return the vector of the totals of at most `lanes` vectors of partial sums."""
        # Each entry is a vector with, for each lane, which of the sums that lane is a part of.
        level = [(vector, [index] * self.lanes) for index, vector in enumerate(sums)]
        granule = self.lanes // 2
        while granule:
            # An odd one out is folded into itself.
            pairs = [(level[i], level[min(i + 1, len(level) - 1)]) for i in range(0, len(level), 2)]
            level = [self._fold(a, b, granule) for a, b in pairs]
            granule //= 2
        ((vector, owners),) = level
        return self._shuffle(vector, vector, [owners.index(index) for index in range(len(sums))])

    def _fold(self, a: tuple[Any, list[int]], b: tuple[Any, list[int]], granule: int) -> tuple[Any, list[int]]:
        """Add neighbouring granules of two vectors into one vector: a's sums, then b's.

        Granules of less than 16 bytes stay within their 16 bytes, where shuffles are cheapest.
        """
        granule, span = self._pattern(granule)
        even: list[int] = []
        odd: list[int] = []
        for block in range(0, self.lanes, span):
            for origin in (0, self.lanes):
                for place in range(block, block + span, 2 * granule):
                    even += range(origin + place, origin + place + granule)
                    odd += range(origin + place + granule, origin + place + 2 * granule)
        owners = [(a[1] + b[1])[lane] for lane in even]
        return self.builder.fadd(*(self._shuffle(a[0], b[0], lanes) for lanes in (even, odd))), owners

    def _pattern(self, granule: int) -> tuple[int, int]:
        """Return the granule of a level and the span that its shuffles stay within."""
        lane = 16 // self.itemsize
        return (lane, self.lanes) if granule >= lane else (granule, lane)

    def _shuffle(self, a: Any, b: Any, lanes: list[int]) -> Any:
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
        return self.builder.shuffle_vector(a, b, mask)

    def _update(self, r: int, sums: list[Any], at: dict[str, Any]) -> None:
        """Store the totals of one row, or add them to what is there."""
        builder = self.builder
        line = builder.gep(at["target"], [builder.mul(at["target_stride"], _integer(r))])
        for first in range(0, len(sums), self.lanes):
            totals = self._totals(sums[first : first + self.lanes])
            place = builder.gep(line, [_integer(first)])
            before = cgutils.alloca_once(builder, totals.type)
            builder.store(ir.Constant(totals.type, [0.0] * totals.type.count), before)
            with builder.if_then(at["add"]):
                builder.store(self._load(place, totals.type), before)
            there = builder.bitcast(place, totals.type.as_pointer())
            builder.store(builder.fadd(totals, builder.load(before)), there, align=self.itemsize)
