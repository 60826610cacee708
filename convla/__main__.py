"""The entry point of the command line; small, so that an interruption while the rest is imported ends quietly."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from convla.cli import run

        code = run(sys.argv[1:])
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print("convla: the command line needs the extra cli: pip install 'convla[cli]'", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("convla: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
