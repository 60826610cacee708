"""The command line: parse, call the library, show what it returns; one module a command."""

from convla.cli.app import app, run

__all__ = ["app", "run"]
