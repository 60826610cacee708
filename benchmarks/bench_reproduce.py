"""CSM Tables 1-6: `convla reproduce` against the loop a user of PyTorch would write, in one run.

The loop is timed on single repetitions of every setting, the least of a few scaled to 1000; ours runs all 1000, in
turns with it. Prints a Markdown table and the ratio. Run with ``python benchmarks/bench_reproduce.py [repetitions]``.
"""

from __future__ import annotations

import math
import os
import platform
import sys
import time

import numpy as np
import torch

from convla.experiments.csm.settings import Readings, Setting, table_settings
from convla.experiments.descents.outcome import run_setting

PUBLISHED = 1000


def pytorch_loop(setting: Setting, repetitions: int) -> float:
    """Time the experiment as its text describes it: form both feature maps, correlate, step."""
    row = setting.row
    n = row.N
    padding = n - 1 if row.padding == "full" else 0
    began = time.perf_counter()
    for _ in range(repetitions):
        x = torch.rand(1, 1, row.M)
        k1, k2 = (torch.rand(1, 1, n).mul_(2).sub_(1).requires_grad_() for _ in range(2))
        optimizer = getattr(torch.optim, row.optimizer)([k1, k2], lr=row.learning_rate)
        losses, similarities = [], []
        for _ in range(row.iterations):
            optimizer.zero_grad()
            if row.loss == "kernel":
                loss = (k1 * k2).sum() ** 2
            else:
                loss = (torch.nn.functional.conv1d(k2, k1, padding=n - 1) ** 2).sum()
            with torch.no_grad():
                maps = [torch.nn.functional.conv1d(x, k, padding=padding) for k in (k1, k2)]
                similarities.append(((maps[0] * maps[1]).sum() ** 2).item())
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
        with np.errstate(invalid="ignore", over="ignore"):
            np.corrcoef(losses, similarities)
    return time.perf_counter() - began


def ours(setting: Setting) -> float:
    """Time all published repetitions, draws included."""
    began = time.perf_counter()
    run_setting(setting.descent(Readings()), repetitions=PUBLISHED, seed=0)
    return time.perf_counter() - began


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    torch.set_num_threads(1)  # its tensors are far too small to share
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__} on 1 thread, "
        f"numpy {np.__version__}\n"
    )
    print("| setting | PyTorch loop, 1000 repetitions, s | convla, s | ratio |\n|---|---|---|---|")
    first_call = ours(table_settings()[0])
    totals = np.zeros(2)
    for setting in table_settings():
        pytorch_loop(setting, 1)  # warm up
        theirs = mine = math.inf
        for _ in range(repetitions):  # in turns, and the least of both
            theirs = min(theirs, pytorch_loop(setting, 1) * PUBLISHED)
            mine = min(mine, ours(setting))
        totals += theirs, mine
        print(f"| {setting.name} | {theirs:.0f} | {mine:.3f} | {theirs / mine:,.0f} |")
    print(f"| all of Tables 1-6 | {totals[0]:.0f} | {totals[1]:.3f} | {totals[0] / totals[1]:,.0f} |")
    print(f"\nFirst call, compilation or its cache included: {first_call:.2f} s.")


if __name__ == "__main__":
    main()
