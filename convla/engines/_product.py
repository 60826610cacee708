"""The inner loop of the compiled autocorrelations, as LLVM instructions inside numba code: `product`.

One register block of a product of two small matrices, its sums kept in registers over the whole of the inner index.
Left to itself, the compiler would keep them in memory, since it vectorises innermost loops only.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from convla.engines._tile import VECTOR_BYTES

__all__ = ["LANES", "MOST_ROWS", "MOST_VECTORS", "product"]

LANES = VECTOR_BYTES // 8
"""How many numbers a register holds."""

MOST_ROWS, MOST_VECTORS = 4, 3
"""Of a block: the most sums that 16 registers hold beside their factors."""

_SHAPES = [(rows, vectors) for rows in range(1, MOST_ROWS + 1) for vectors in range(1, MOST_VECTORS + 1)]
_INDEX = ir.IntType(64)
_VECTOR = ir.VectorType(ir.DoubleType(), LANES)


@intrinsic
def product(
    typing_context: Any,  # noqa: ARG001
    rows: Any,  # noqa: ARG001
    vectors: Any,  # noqa: ARG001
    target: Any,
    target_start: Any,  # noqa: ARG001
    target_stride: Any,  # noqa: ARG001
    left: Any,
    left_start: Any,  # noqa: ARG001
    left_step: Any,  # noqa: ARG001
    left_stride: Any,  # noqa: ARG001
    right: Any,
    right_start: Any,  # noqa: ARG001
    right_step: Any,  # noqa: ARG001
    count: Any,  # noqa: ARG001
) -> Any:
    """Set ``target[target_start + r * target_stride + x]`` for each row r, x over `vectors` registers.

    They become ``sum_j left[left_start + j * left_step + r * left_stride] * right[right_start + j * right_step + x]``,
    j over `count`. The arrays are contiguous, one-dimensional, of float64. There are 1 to 4 rows of 1 to 3 registers.
    Rows are stored in ascending order; nothing is checked.
    """
    number = types.int64
    signature = types.void(
        number, number, target, number, number, left, number, number, number, right, number, number, number
    )

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pointer(index: int) -> Any:
            return context.make_array(signature.args[index])(context, builder, args[index]).data

        target, left, right = (builder.gep(pointer(i), [args[i + 1]]) for i in (2, 5, 9))
        end = builder.append_basic_block("product.end")
        shape = builder.add(builder.mul(args[0], _constant(MOST_VECTORS + 1)), args[1])
        switch = builder.switch(shape, end)
        for rows, vectors in _SHAPES:
            case = builder.append_basic_block(f"product.{rows}.{vectors}")
            switch.add_case(_constant(rows * (MOST_VECTORS + 1) + vectors), case)
            builder.position_at_end(case)
            sums = _sum(builder, (rows, vectors), (left, args[7], args[8]), (right, args[11]), args[12])
            for r, row in enumerate(sums):
                line = builder.gep(target, [builder.mul(args[4], _constant(r))])
                for v, slot in enumerate(row):
                    builder.store(builder.load(slot), _vector_at(builder, line, v), align=8)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return signature, generate


def _sum(
    builder: Any, shape: tuple[int, int], left: tuple[Any, Any, Any], right: tuple[Any, Any], count: Any
) -> list[list[Any]]:
    """Return the slots of the sums of one block."""
    rows, vectors = shape
    # Stack slots of vectors become registers once LLVM has inlined the function.
    sums = [[cgutils.alloca_once(builder, _VECTOR) for _ in range(vectors)] for _ in range(rows)]
    for slot in (slot for row in sums for slot in row):
        builder.store(ir.Constant(_VECTOR, [0.0] * LANES), slot)
    start, step, stride = left
    lines = [builder.gep(start, [builder.mul(stride, _constant(r))]) for r in range(rows)]
    with cgutils.for_range(builder, count) as loop:
        there = builder.gep(right[0], [builder.mul(loop.index, right[1])])
        values = [builder.load(_vector_at(builder, there, v), align=8) for v in range(vectors)]
        place = builder.mul(loop.index, step)
        for line, row in zip(lines, sums, strict=True):
            factor = _spread(builder, builder.load(builder.gep(line, [place])))
            for slot, value in zip(row, values, strict=True):
                # "contract" alone lets the product and the sum be one instruction, rounded once.
                term = builder.fmul(factor, value, flags=("contract",))
                builder.store(builder.fadd(builder.load(slot), term, flags=("contract",)), slot)
    return sums


def _constant(value: int) -> Any:
    return ir.Constant(_INDEX, value)


def _vector_at(builder: Any, base: Any, number: int) -> Any:
    return builder.bitcast(builder.gep(base, [_constant(number * LANES)]), _VECTOR.as_pointer())


def _spread(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))
