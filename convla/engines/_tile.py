"""The inner loops of the compiled convolutions, as LLVM instructions inside numba code: `tile`, `copy` and `clear`.

The tile is one register block of a product with shifted windows: R rows by V vectors of sums
``sum_j weights[j, r] * source[start + offsets[j] + x]`` kept in registers over the whole loop on j. Left to itself, the
compiler would keep the sums in memory, since it vectorises innermost loops only; that costs a factor of two and more.
Copies are spelled out because numba's care for negative indices keeps the compiler from turning loops into block moves.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["VECTOR_BYTES", "WIDTHS", "clear", "copy", "tile"]

_WIDE = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))

VECTOR_BYTES = 64 if _WIDE else 32
"""The width of one register: 64 bytes where the CPU has AVX-512, else 32 (two registers on narrower machines)."""

WIDTHS = {8: 3, 4: 6, 3: 8, 2: 8, 1: 8} if _WIDE else {4: 3, 3: 4, 2: 4, 1: 6}
"""Vectors in a tile for each number of rows: enough sums to hide the latency of additions, few enough for registers."""


@intrinsic(prefer_literal=True)
def tile(
    typing_context: Any,  # noqa: ARG001
    rows: Any,
    vectors: Any,
    target: Any,
    target_start: Any,  # noqa: ARG001
    target_stride: Any,  # noqa: ARG001
    source: Any,
    source_start: Any,  # noqa: ARG001
    offsets: Any,
    weights: Any,
    weights_start: Any,  # noqa: ARG001
) -> Any:
    """Set ``target[start + r * stride + x]`` to the sums above, r = 0 .. rows - 1, x over `vectors` registers.

    `rows` and `vectors` are literal integers; `target`, `source` and `weights` are contiguous one-dimensional arrays of
    one dtype, `offsets` of int64. `weights` holds the `rows` factors of each term side by side. Nothing is checked.
    """
    if not isinstance(rows, types.IntegerLiteral) or not isinstance(vectors, types.IntegerLiteral):
        return None
    shape = rows.literal_value, vectors.literal_value
    signature = types.void(
        rows, vectors, target, types.int64, types.int64, source, types.int64, offsets, weights, types.int64
    )

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pointer(index: int) -> Any:
            return context.make_array(signature.args[index])(context, builder, args[index]).data

        element = context.get_value_type(signature.args[2].dtype)
        itemsize = context.get_abi_sizeof(element)
        _emit(
            builder,
            element,
            itemsize,
            shape,
            {
                "target": pointer(2),
                "target_start": args[3],
                "target_stride": args[4],
                "source": pointer(5),
                "source_start": args[6],
                "offsets": pointer(7),
                "count": context.make_array(signature.args[7])(context, builder, args[7]).nitems,
                "weights": pointer(8),
                "weights_start": args[9],
            },
        )
        return context.get_dummy_value()

    return signature, generate


def _emit(builder: Any, element: Any, itemsize: int, shape: tuple[int, int], at: dict[str, Any]) -> None:
    rows, vectors = shape
    lanes = VECTOR_BYTES // itemsize
    vector = ir.VectorType(element, lanes)
    index = ir.IntType(64)

    def constant(value: int) -> Any:
        return ir.Constant(index, value)

    def vector_at(base: Any, position: Any) -> Any:
        return builder.bitcast(builder.gep(base, [position]), vector.as_pointer())

    # Stack slots of vectors become registers once LLVM has inlined the function.
    sums = [[cgutils.alloca_once(builder, vector) for _ in range(vectors)] for _ in range(rows)]
    for row in sums:
        for slot in row:
            builder.store(ir.Constant(vector, [0.0] * lanes), slot)
    with cgutils.for_range(builder, at["count"]) as loop:
        offset = builder.load(builder.gep(at["offsets"], [loop.index]))
        start = builder.add(at["source_start"], offset)
        starts = [builder.add(start, constant(v * lanes)) for v in range(vectors)]
        window = [builder.load(vector_at(at["source"], place), align=itemsize) for place in starts]
        first = builder.add(at["weights_start"], builder.mul(loop.index, constant(rows)))
        for r, row in enumerate(sums):
            weight = builder.load(builder.gep(at["weights"], [builder.add(first, constant(r))]))
            lane = builder.insert_element(ir.Constant(vector, ir.Undefined), weight, ir.Constant(ir.IntType(32), 0))
            spread = builder.shuffle_vector(
                lane, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            )
            for slot, values in zip(row, window, strict=True):
                # "contract" alone lets the product and the sum be one instruction, rounded once.
                product = builder.fmul(spread, values, flags=("contract",))
                builder.store(builder.fadd(builder.load(slot), product, flags=("contract",)), slot)
    for r, row in enumerate(sums):
        start = builder.add(at["target_start"], builder.mul(at["target_stride"], constant(r)))
        for v, slot in enumerate(row):
            place = vector_at(at["target"], builder.add(start, constant(v * lanes)))
            builder.store(builder.load(slot), place, align=itemsize)


@intrinsic
def copy(
    typing_context: Any,  # noqa: ARG001
    target: Any,
    target_start: Any,  # noqa: ARG001
    source: Any,
    source_start: Any,  # noqa: ARG001
    count: Any,  # noqa: ARG001
) -> Any:
    """Set ``target[target_start + i] = source[source_start + i]``, 0 <= i < count; not checked, no overlap."""
    signature = types.void(target, types.int64, source, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, origin = (
            builder.gep(context.make_array(signature.args[i])(context, builder, args[i]).data, [args[i + 1]])
            for i in (0, 2)
        )
        cgutils.raw_memcpy(builder, to, origin, args[4], _itemsize(context, signature))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def clear(
    typing_context: Any,  # noqa: ARG001
    target: Any,
    start: Any,  # noqa: ARG001
    count: Any,  # noqa: ARG001
) -> Any:
    """Set ``target[start + i] = 0``, 0 <= i < count; not checked."""
    signature = types.void(target, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to = builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])
        size = builder.mul(args[2], ir.Constant(ir.IntType(64), _itemsize(context, signature)))
        cgutils.memset(builder, to, size, 0)
        return context.get_dummy_value()

    return signature, generate


def _itemsize(context: Any, signature: Any) -> int:
    return int(context.get_abi_sizeof(context.get_value_type(signature.args[0].dtype)))
