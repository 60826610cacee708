"""The entry point of the command line; small, so that an interruption while the rest is imported ends quietly."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - to the end of the process
    terminated = []

    def terminate(*_: object) -> None:
        # Answered as Ctrl-C is: what has been begun is put away, what is saved is told, processes are ended.
        terminated.append(True)
        raise KeyboardInterrupt

    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, terminate)
    try:
        from convla.cli import run

        code = run(sys.argv[1:])
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        code = _without_parser(sys.argv[1:])
    except KeyboardInterrupt:
        print("convla: interrupted", file=sys.stderr)
        code = 130
    sys.exit(_flushed(143 if terminated and code == 130 else code))


def _without_parser(arguments: list[str]) -> int:
    """Tell the version, or what is found here, neither of which needs one; else what is missing."""
    from convla import __version__
    from convla.errors import install_line

    if arguments in (["--version"], ["-V"]):
        print(f"convla {__version__}")
        return 0
    if arguments == ["doctor"]:
        from convla.doctor import examine, report

        findings = examine()
        print(report(findings))
        return int(any(finding.bad for finding in findings))
    print(f"convla: the command line needs the extra cli: {install_line('cli')}", file=sys.stderr)
    return 2


def _flushed(code: int) -> int:
    """Write out what is still held back, here and not as the interpreter ends, where an error cannot be answered."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest has nowhere to go
        if code == 0 and not isinstance(error, BrokenPipeError):  # whoever closed a pipe has read enough
            print(f"convla: standard output: {error.strerror}", file=sys.stderr)
        return code or 1
    return code


if __name__ == "__main__":
    main()
