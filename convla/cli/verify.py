"""`convla verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convla.cli.app import app
from convla.verification import verify_ledger

__all__: list[str] = []


@app.command("verify")
def _verify(
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Statements such as CSM-6, or sources such as RCK; by default all."),
    ] = None,
    max_examples: Annotated[int, typer.Option(help="Random inputs that each property draws.")] = 50,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the whole report there.")] = None,
) -> int:
    """Check every statement of the ledger: proofs at a size, properties, counterexamples, measurements.

    The exit code is 1 if any verdict is contradicted by its evidence.
    """
    return verify_ledger(ids or [], max_examples=max_examples, json_file=json_file)
