"""Ctrl-C at any moment: as a signal's handler that raises at one of the places where Python looks for signals.

These are where a function starts, after a call and at a jump back.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Collection
from types import ModuleType
from typing import Any

__all__ = ["interrupted"]


def interrupted(moment: int, call: Callable[[], object], *modules: ModuleType, functions: Collection[str] = ()) -> bool:
    """Call, and raise `KeyboardInterrupt` at such a place of these modules, the first being 1; tell whether it came.

    Where `functions` are named, places in others are not counted.
    """
    files = {module.__file__ for module in modules}
    last: dict[Any, str] = {}
    waited, before = moment, sys.gettrace()

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal waited
        if frame.f_code.co_filename in files and (not functions or frame.f_code.co_name in functions):
            frame.f_trace_opcodes = True
            looks = event == "call"
            if event == "opcode":
                looks = last.get(frame, "").startswith(("CALL", "JUMP_BACKWARD"))
                last[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            waited -= looks
            if looks and waited == 0:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
        last.clear()
    return waited <= 0
