"""`python -m tests`: the fast lane, every module with few drawn examples, on all cores; arguments go to pytest."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

MARKS = "not (command or slow or (jax and not quick))"

if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent)
    sys.exit(pytest.main(["-q", "-n", "auto", "--few", "-m", MARKS, "tests", *sys.argv[1:]]))
