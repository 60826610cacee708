"""Which matrices of a stack are proved to have small norms, compiled for the CPU: parallel over the matrices.

A matrix is read once, where it lies: its trace and its Frobenius norm, then the lower triangle that LAPACK factorises,
written into one buffer for each thread that stays in the cache. LAPACK is SciPy's, called without Python.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import get_cython_function_address, intrinsic

from convla._threads import blas_on_one_thread
from convla.compiling import compiled
from convla.engines._parallel import run_jobs, take_job
from convla.typing import NumPyArray

__all__ = ["shown_below"]

_ROWS = 8  # of a tile: what a line of the cache holds of a column's neighbours
_PARALLEL_PRODUCTS = 2**20  # fewer take less than some tenths of a millisecond

_FACTORISE_COMPLEX, _FACTORISE_REAL = (
    get_cython_function_address("scipy.linalg.cython_lapack", name) for name in ("zpotrf", "dpotrf")
)


def shown_below(
    coefficients: NumPyArray,
    weights: NumPyArray,
    square: float,
    error: float,
    shift: float,
    rounding: float,
    *,
    numbers: NumPyArray,
) -> NumPyArray:
    """Run the operation; see `convla.spectra.certificate.shown_below`."""
    order, count = coefficients.shape[-1], len(numbers)
    shown = np.zeros(count, np.bool_)
    flat = np.ascontiguousarray(coefficients).reshape(*coefficients.shape[:3], -1)
    limits = np.array([square, error, shift, rounding])
    addresses = np.array([_FACTORISE_COMPLEX, _FACTORISE_REAL])
    shared = count > 1 and count * order**3 >= _PARALLEL_PRODUCTS
    with blas_on_one_thread():
        run_jobs(_show, flat, weights, np.ascontiguousarray(numbers), order, limits, addresses, shown, shared=shared)
    return shown


@intrinsic
def _lapack_potrf(
    typing_context: Any,  # noqa: ARG001
    address: Any,
    triangle: Any,
    order: Any,
    matrix: Any,
    info: Any,
) -> Any:
    """Call ``potrf`` at an address; letters, sizes and results are in arrays, of bytes and of 32-bit integers."""
    signature = types.void(address, triangle, order, matrix, info)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        triangle, order, matrix, info = (
            builder.bitcast(context.make_array(kind)(context, builder, array).data, byte)
            for kind, array in zip(signature.args[1:], args[1:], strict=True)
        )
        function = ir.FunctionType(ir.VoidType(), [byte] * 5).as_pointer()
        builder.call(builder.inttoptr(args[0], function), [triangle, order, matrix, order, info])
        return context.get_dummy_value()

    return signature, generate


@compiled()
def _trace(gram: NumPyArray) -> float:
    total = 0.0
    for i in range(gram.shape[0]):
        total += gram[i, i]
    return total


@compiled(fastmath={"reassoc", "contract"})
def _squares(numbers: NumPyArray) -> float:
    total = 0.0
    for i in range(numbers.size):
        total += numbers[i] * numbers[i]
    return total


@compiled()
def _is_symmetric(gram: NumPyArray) -> bool:
    for i in range(gram.shape[0]):
        for j in range(i):
            if gram[i, j] != gram[j, i]:
                return False
    return True


@compiled()
def _place_real(gram: NumPyArray, shift: float, out: NumPyArray) -> None:
    """Write the lower triangle of ``shift I - gram``."""
    for i in range(gram.shape[0]):
        for j in range(i):
            out[i, j] = -gram[i, j]
        out[i, i] = shift - gram[i, i]


@compiled()
def _place_complex(gram: NumPyArray, shift: float, out: NumPyArray) -> None:
    """Write the lower triangle of ``shift I - (S + i A)``, in pairs of real numbers; the gram is S + A."""
    order = gram.shape[0]
    for first in range(0, order, _ROWS):
        last = min(first + _ROWS, order)
        for j in range(last):
            for i in range(max(first, j + 1), last):
                below, above = gram[i, j], gram[j, i]
                out[i, j, 0] = -0.5 * (below + above)
                out[i, j, 1] = -0.5 * (below - above)
        for i in range(first, last):
            out[i, i, 0] = shift - gram[i, i]
            out[i, i, 1] = 0.0


@compiled(fastmath={"reassoc", "contract"})
def _combine(weights: NumPyArray, coefficients: NumPyArray, group: int, out: NumPyArray) -> None:
    """Write a combination of the matrices of a group, as rows: four at a time, from the cache."""
    for k in range(0, weights.size, 4):
        some = min(4, weights.size - k)
        a, x = weights[k], coefficients[k, group]
        b, y = (weights[k + 1], coefficients[k + 1, group]) if some > 1 else (0.0, x)
        c, z = (weights[k + 2], coefficients[k + 2, group]) if some > 2 else (0.0, x)
        d, w = (weights[k + 3], coefficients[k + 3, group]) if some > 3 else (0.0, x)
        if k == 0:
            for i in range(out.size):
                out[i] = a * x[i] + b * y[i] + c * z[i] + d * w[i]
        else:
            for i in range(out.size):
                out[i] += a * x[i] + b * y[i] + c * z[i] + d * w[i]


@compiled(nogil=True)
def _show(
    counter: NumPyArray,
    coefficients: NumPyArray,
    weights: NumPyArray,
    numbers: NumPyArray,
    order: int,
    limits: NumPyArray,
    addresses: NumPyArray,
    shown: NumPyArray,
) -> None:
    square, error, shift, rounding = limits[0], limits[1], limits[2], limits[3]
    groups, places = coefficients.shape[2], weights.shape[0]
    numbers_of_gram = np.empty(order * order)
    gram = numbers_of_gram.reshape(order, order)
    matrix = np.empty((order, order, 2))
    real = matrix.reshape(-1)[: order * order].reshape(order, order)
    # Rows in C order are columns in Fortran's: the lower triangle is the upper one of the conjugate.
    triangle, size, info = np.array([85], np.uint8), np.array([order], np.int32), np.zeros(1, np.int32)
    unit = 1 + 2.0**-51
    job = take_job(counter)
    while job < numbers.size:
        line, place = divmod(numbers[job], places)
        _combine(weights[place], coefficients[line // groups], line % groups, numbers_of_gram)
        bound = _trace(gram) * rounding
        if bound > square and bound * bound <= square * square * order:
            # A Frobenius norm is at least the trace over the root of the order: beyond it, it need not be summed.
            bound = min(bound, np.sqrt(_squares(numbers_of_gram)) * rounding)
        if (bound + error) * unit <= square:
            shown[job] = True
        elif shift > 0:
            if _is_symmetric(gram):
                _place_real(gram, shift, real)
                _lapack_potrf(addresses[1], triangle, size, real, info)
                total = _trace(real)
            else:
                _place_complex(gram, shift, matrix)
                _lapack_potrf(addresses[0], triangle, size, matrix, info)
                total = _trace(matrix[:, :, 0])
            # OpenBLAS goes on where a pivot is NaN, which stays on the diagonal of the factor.
            shown[job] = info[0] == 0 and np.isfinite(total)
        job = take_job(counter)
