"""The command line: parse, call the library, show what it returns; one module a command."""

from convla.cli import initialize, inspect, reproduce, study, train, verify
from convla.cli.app import app, run

__all__ = ["app", "run"]

COMMANDS = (reproduce, verify, inspect, initialize, train, study)
"""Importing a command's module adds it to the application."""
