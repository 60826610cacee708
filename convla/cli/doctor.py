"""`convla doctor`."""

from __future__ import annotations

from convla.cli.app import app
from convla.doctor import examine, report

__all__: list[str] = []


@app.command("doctor")
def _doctor() -> int:
    """Say what is found here: versions, engines, GPU, threads, caches, extras, and how to get what is missing.

    The exit code is 1 where something that is there does not work.
    """
    findings = examine()
    print(report(findings))
    return int(any(finding.bad for finding in findings))
