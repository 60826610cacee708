"""Compiled functions that several threads run at once, each taking jobs until none are left.

Such a function has a counter for its first argument and loops over ``job = take_job(counter)`` while ``job < jobs``. It
is compiled once, without the GIL: one call does all jobs, and two calls at the same time with one counter share them.
Every job writes entries of its own, so that the numbers do not depend on who does it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from convla._threads import share
from convla.compiling import compile_for

__all__ = ["run_jobs", "take_job"]


def run_jobs(compiled: Any, *arguments: Any, shared: bool) -> None:
    """Run a compiled function of jobs on this thread; where `shared`, on all threads that the caller allows."""
    counter = np.zeros(1, np.int64)
    if shared:
        if not compiled.overloads:  # asked for the types, each call would pay
            compile_for(compiled, counter, *arguments)
        share(lambda: compiled(counter, *arguments))
    else:
        compiled(counter, *arguments)


@intrinsic
def take_job(typing_context: Any, counter: Any) -> Any:  # noqa: ARG001
    """Return ``counter[0]`` and add 1 to it, in one step that no other thread can divide."""
    signature = types.int64(counter)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return signature, generate
