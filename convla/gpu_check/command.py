"""The command: its steps, and the two files that say what came of them."""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import convla
from convla.extending import atomic_write, cuda_trouble
from convla.gpu_check.cases import Case, cases
from convla.gpu_check.timing import REPEATS, WARM_UP, Floors, device_time, measure_floors, torch_time

__all__ = ["Report", "device_facts", "main", "markdown", "run_sanitizer", "run_tests"]

CHECKOUT = Path(convla.__file__).parents[1]
COLUMNS = {
    "median_ms": "ms",
    "least_ms": "least",
    "most_ms": "most",
    "floor_ms": "floor",
    "fraction_of_floor": "floor / ms",
    "torch_ms": "PyTorch, ms",
    "torch_ratio": "PyTorch / this",
    "target_ms": "aim, ms",
    "least_ratio": "aim, PyTorch / this",
}
"""What is printed of a row, and the head of its column."""

SANITIZED = ("tests/test_kernels.py", "tests/test_similarity_engines.py")


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code: 0, 1 where a step failed, 2 where there is no device."""
    options = _parse(arguments)
    trouble = cuda_trouble()
    if trouble:
        print(f"convla.gpu_check: no GPU to check: {trouble}", file=sys.stderr)
        return 2
    report = Report(options.output)
    report.add(device=device_facts(), command=f"python -m convla.gpu_check {' '.join(arguments)}".rstrip())
    end = time.monotonic() + 60 * options.minutes
    try:
        if not options.no_tests:
            report.add(tests=run_tests(["-m", "gpu"], seconds=30 * options.minutes))
        _benchmark(report, options.shrink)
        if not options.no_tests:
            report.add(sanitizer=run_sanitizer(max(10.0, end - time.monotonic())))
    except KeyboardInterrupt:
        print(f"convla.gpu_check: interrupted; what was done is in {options.output}", file=sys.stderr)
        return 130
    print(markdown(report.data))
    steps = (report.data.get("tests", {}), report.data.get("sanitizer", {}))
    rows = report.data.get("rows", [])
    return int(any(step.get("exit_code", 0) for step in steps) or any("error" in row for row in rows))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m convla.gpu_check",
        description="Run the tests that need a GPU, compute-sanitizer where it is there, and the benchmark.",
    )
    parser.add_argument("--output", type=Path, default=Path("gpu-check"), help="the folder of the two files")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="what it may take: half for the tests, the rest for the sanitizer"
    )
    parser.add_argument("--no-tests", action="store_true", help="the benchmark only")
    parser.add_argument(
        "--shrink", type=int, default=1, metavar="N", help="divide all sizes by N: to try the command, not to measure"
    )
    options = parser.parse_args(arguments)
    if options.shrink < 1:
        parser.error(f"--shrink must be at least 1, got {options.shrink}")
    if not options.minutes > 0:
        parser.error(f"--minutes must be above 0, got {options.minutes}")
    return options


class Report:
    """What is known so far; written whenever something is added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, **parts: Any) -> None:
        """Add parts and write both files."""
        self.data |= parts
        for name, text in (
            ("gpu-check.json", json.dumps(self.data, indent=1) + "\n"),
            ("gpu-check.md", markdown(self.data)),
        ):
            with atomic_write(self.folder / name) as file:
                file.write(text.encode())


def device_facts() -> dict[str, Any]:
    """Return what the figures depend on: the card, the driver, the versions, the day."""
    cupy = importlib.import_module("cupy")
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(cupy.cuda.Device().id)
    torch = _torch()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "card": properties["name"].decode(),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "memory_bytes": int(properties["totalGlobalMem"]),
        "driver": int(runtime.driverGetVersion()),
        "runtime": int(runtime.runtimeGetVersion()),
        "python": platform.python_version(),
        "convla": convla.__version__,
        "cupy": cupy.__version__,
        "numpy": importlib.metadata.version("numpy"),
        "torch": torch.__version__ if torch else None,
    }


def _torch() -> Any:
    """Return PyTorch where it finds a CUDA device, else None."""
    if importlib.util.find_spec("torch") is None:
        return None
    torch = importlib.import_module("torch")
    return torch if torch.cuda.is_available() else None


def run_tests(arguments: Sequence[str], prefix: Sequence[str] = (), *, seconds: float = 240.0) -> dict[str, Any]:
    """Run pytest on the checkout in a process of its own, where a skip for want of a GPU is a failure."""
    if not (CHECKOUT / "tests").is_dir() or importlib.util.find_spec("pytest") is None:
        return {"skipped": "the tests need a checkout, and pip install -e '.[test]'"}
    command = [*prefix, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=CHECKOUT,
            env=os.environ | {"CONVLA_REQUIRE_GPU": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as stopped:
        output = stopped.output or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        return {"stopped": f"after {seconds:.0f} s: --minutes gives it more", "last_lines": _last_lines(text)}
    except OSError as error:
        return {"exit_code": 1, "last_lines": [f"{type(error).__name__}: {error}"]}
    return {"exit_code": done.returncode, "last_lines": _last_lines(done.stdout)}


def _last_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()][-20:]


def run_sanitizer(seconds: float = 240.0) -> dict[str, Any]:
    """Run the kernels' tests under each tool of compute-sanitizer, where it is there."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        return {"skipped": "compute-sanitizer is not on the PATH"}
    tools: dict[str, Any] = {}
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        prefix = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
        tools[tool] = run_tests(["-m", "gpu", *SANITIZED], prefix, seconds=seconds / 4)
    stopped = [f"{tool} stopped {result['stopped']}" for tool, result in tools.items() if "stopped" in result]
    code = max(result.get("exit_code", 0) for result in tools.values())
    return {"exit_code": code, "tools": tools} | ({"last_lines": stopped} if stopped else {})


def _benchmark(report: Report, shrink: int) -> None:
    torch = _torch()
    if torch:
        # The same arithmetic on both sides: by default PyTorch's convolutions round their factors to 10 bits.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    floors: Floors | None = None
    try:
        floors = measure_floors(entries=max(1, 2**28 // shrink**2), side=max(1, 8192 // shrink))
        report.add(floors=floors._asdict())
    except Exception as error:
        report.add(floors={"error": f"{type(error).__name__}: {error}"})
    report.add(shrink=shrink, rows=[])
    for case in cases(torch, shrink=shrink):
        report.add(rows=[*report.data["rows"], _row(case, floors)])


def _row(case: Case, floors: Floors | None) -> dict[str, Any]:
    """Time one case; one that fails says so in its row, and the others go on."""
    row: dict[str, Any] = {"name": case.name, "target_ms": case.target, "least_ratio": case.least_ratio}
    try:
        times = device_time(case.run)
        row |= {f"{name}_ms": value for name, value in times._asdict().items() if name != "calls"}
        row["calls"] = times.calls
        if floors is not None:
            row["floor_ms"] = floors.milliseconds(case.moved, case.operations)
            row["fraction_of_floor"] = row["floor_ms"] / times.median
        if case.torch is not None:
            row["torch_ms"] = torch_time(case.torch).median
            row["torch_ratio"] = row["torch_ms"] / times.median
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
    return row


def markdown(data: dict[str, Any]) -> str:
    """Return the report as a page."""
    device = data["device"]
    lines = [
        "# GPU check",
        "",
        f"{device['card']}, compute capability {device['compute_capability']}, {device['date']}; "
        + ", ".join(f"{name} {device[name]}" for name in ("convla", "cupy", "numpy", "torch", "python", "driver")),
        "",
        f"Command: `{data['command']}`",
        "",
    ]
    for step in ("tests", "sanitizer"):
        if step in data:
            lines += [f"{step}: {_outcome(data[step])}", ""]
    if "rows" not in data:
        return "\n".join(lines)
    if data["shrink"] != 1:
        lines += [f"All sizes are divided by {data['shrink']}: these figures try the command and measure nothing.", ""]
    lines += [
        f"Median of {REPEATS} calls, or of fewer where they take long, by the device's events, after {WARM_UP} to warm "
        f"up, float32 without TF32. {_floors_in_words(data['floors'])}",
        "",
        f"| {' | '.join(['operation', *COLUMNS.values()])} |",
        "|" + "---|" * (len(COLUMNS) + 1),
    ]
    for row in data["rows"]:
        cells = [f"{row[column]:.4g}" if row.get(column) is not None else "" for column in COLUMNS]
        name = row["name"] + (f" (failed: {row['error']})" if "error" in row else "")
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join([*lines, ""])


def _floors_in_words(floors: dict[str, Any]) -> str:
    if "error" in floors:
        return f"The floors could not be measured: {floors['error']}."
    return (
        "The floor is the least time that moving the data, or the operations, take at "
        f"{floors['bytes_per_second']:.4g} bytes and {floors['operations_per_second']:.4g} operations a second, both "
        "measured on this card in this run."
    )


def _outcome(step: dict[str, Any]) -> str:
    if "skipped" in step:
        return f"not run: {step['skipped']}"
    if "stopped" in step:
        return f"stopped {step['stopped']}"
    verdict = "passed" if step["exit_code"] == 0 else f"FAILED (exit code {step['exit_code']})"
    last = step.get("last_lines")
    return f"{verdict}; {last[-1]}" if last else verdict
