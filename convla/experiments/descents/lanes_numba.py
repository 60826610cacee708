"""The inner loop of the compiled descents, as LLVM instructions inside numba code: `add_products`.

A matrix has a row for each tap and `LANES` columns, one for each repetition of a block. Every sum over taps is one of
products of two rows, for all repetitions of a group at once, and is kept in registers. Left to itself, the compiler
would keep it in memory, since it vectorises innermost loops only.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["GROUP", "LANES", "add_products"]

LANES = 64
"""Repetitions of a block: the loops over them that the compiler vectorises pay once for their overlap checks, and a
block of the largest kernels (N = 16) stays in the second-level cache."""

GROUP = 32
"""Repetitions whose sums are in registers at once: eight of them, or four where the CPU has AVX-512, which hides the
latency of additions. What a group needs of the largest kernels stays in the first-level cache."""

_VECTOR = ir.VectorType(ir.DoubleType(), GROUP)


@intrinsic
def add_products(
    typing_context: Any,  # noqa: ARG001
    lane: Any,  # noqa: ARG001
    total: Any,
    row: Any,  # noqa: ARG001
    a: Any,
    a_row: Any,  # noqa: ARG001
    a_step: Any,  # noqa: ARG001
    b: Any,
    b_row: Any,  # noqa: ARG001
    b_step: Any,  # noqa: ARG001
    count: Any,  # noqa: ARG001
) -> Any:
    """Add ``a[a_row + i * a_step] * b[b_row + i * b_step]``, 0 <= i < count, to ``total[row]`` in this order.

    In the columns from `lane` to before ``lane + GROUP``. `total`, `a` and `b` are contiguous arrays of float64, with
    rows of `LANES`. A product is rounded before it is added. Nothing is checked.
    """
    number = types.int64
    signature = types.void(number, total, number, a, number, number, b, number, number, number)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def place(index: int, row: Any) -> Any:
            data = context.make_array(signature.args[index])(context, builder, args[index]).data
            start = builder.add(builder.mul(row, ir.Constant(ir.IntType(64), LANES)), args[0])
            return builder.bitcast(builder.gep(data, [start]), _VECTOR.as_pointer())

        def stepped(row: Any, step: Any, index: Any) -> Any:
            return builder.add(row, builder.mul(step, index))

        # A stack slot of a vector becomes registers once LLVM has inlined the function.
        slot = cgutils.alloca_once(builder, _VECTOR)
        builder.store(builder.load(place(1, args[2]), align=8), slot)
        with cgutils.for_range(builder, args[9]) as loop:
            left = builder.load(place(3, stepped(args[4], args[5], loop.index)), align=8)
            right = builder.load(place(6, stepped(args[7], args[8], loop.index)), align=8)
            builder.store(builder.fadd(builder.load(slot), builder.fmul(left, right)), slot)
        builder.store(builder.load(slot), place(1, args[2]), align=8)
        return context.get_dummy_value()

    return signature, generate
