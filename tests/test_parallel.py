"""The compiled kernels after a fork and under several Python threads, each in a process that may die of it."""

import os
import subprocess
import sys

import pytest

SETUP = """
import os, threading
import numpy as np
from convla import ConvOperator
from convla.autocorrelation import correlate_lags, summed_autocorrelations
from convla.gradients import _smooth

rng = np.random.default_rng(1)
operator = ConvOperator(rng.standard_normal((16, 16, 3, 3)), (64, 64), engine="numba")
image = rng.standard_normal(operator.domain_shape)
filters, lines = rng.standard_normal((64, 64, 7, 7)), rng.standard_normal((2, 9, 20_000))

def work():
    return (
        operator.apply(image),
        operator.adjoint(image),
        operator.kernel_adjoint(image, image),
        summed_autocorrelations(filters, engine="numba"),
        correlate_lags(filters, np.ones((64, 169)), engine="numba"),
        _smooth(lines, 5.0, engine="numba"),
    )

def same(got, wanted):
    return all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))

wanted = work()
"""

FORK = """
from convla import _threads
helpers = _threads._pool.threads
child = os.fork()
if child == 0:
    # Threads of its own: the parent's have not come along.
    os._exit(0 if same(work(), wanted) and _threads._pool.threads == helpers else 3)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert status == 0, status
assert same(work(), wanted)
"""

THREADS = """
failed = []

def repeat():
    for _ in range(20):
        if not same(work(), wanted):
            failed.append(1)

threads = [threading.Thread(target=repeat) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failed
"""


def run(code):
    """Run code in a process whose environment sets no limit."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.command
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes_on():
    run(SETUP + FORK)


def test_several_threads_may_call_at_once():
    run(SETUP + THREADS)
