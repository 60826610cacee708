"""`convla initialize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convla.cli.app import app
from convla.cli.output import INTERRUPTED, check_writable, complain, counted, progress_bars
from convla.networks.kernels import ModelArrays, initialize_file
from convla.networks.weights import WEIGHT_FORMATS, printable
from convla.similarity import Initialization

__all__: list[str] = []


@app.command("initialize")
def _initialize(
    source: Annotated[Path, typer.Argument(metavar="IN", help=f"A file of weights: {', '.join(WEIGHT_FORMATS)}.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Where all its arrays go, in any of these formats.")],
    iterations: Annotated[int, typer.Option(help="Steps of Adam, with betas (0.5, 0.999).")] = 200,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 0.001,
    keep_norms: Annotated[
        bool, typer.Option("--keep-norms", help="Minimise the scale-invariant form and keep every filter's norm.")
    ] = False,
    state: Annotated[
        Path | None, typer.Option(help="An .npz file that keeps the state; if it is there, go on from it.")
    ] = None,
    save_every: Annotated[int, typer.Option(help="Steps between two savings of --state.")] = 50,
    only: Annotated[
        list[str] | None,
        typer.Option(help="A pattern of the kernels' names, such as 'model.layer1.*'; may be given again."),
    ] = None,
) -> int:
    """Minimise the convolutional similarity of a model's kernels before training (CSM Algorithm 1).

    Everything else in the file is copied bit for bit. Without --only the kernels are the arrays of 3 to 5 axes whose
    names end in weight, kernel, filter or conv and whose names and neighbours say nothing else.
    """
    check_writable("OUT", target)
    check_writable("--state", state)
    choices: list[ModelArrays] = []
    with progress_bars() as progress:
        bar = progress.add_task("similarity", total=iterations)

        def show(now: Initialization) -> None:
            progress.update(bar, completed=now.iteration, description=f"similarity {now.losses[-1]:.6g}")

        try:
            result = initialize_file(
                source,
                target,
                iterations=iterations,
                learning_rate=learning_rate,
                keep_norms=keep_norms,
                state=state,
                save_every=save_every,
                only=only or (),
                chosen=choices.append,
                progress=show,
            )
        except KeyboardInterrupt:
            progress.stop()
            rest = f"the same command goes on from {state}" if state else "with --state it could go on from there"
            complain(f"interrupted: {target} is not written; {rest}")
            return INTERRUPTED
    losses = f"{result.losses[0]:.6g} -> {result.losses[-1]:.6g}" if result.losses else "not computed"
    layers, steps = counted(len(result.kernels), "layer"), counted(result.iteration, "step")
    print(f"{layers}, {steps}, similarity {losses}; in {target}")
    for choice in choices:
        for name, kernel in choice.kernels.items():
            print(f"  changed: {printable(name)} {'x'.join(map(str, kernel.shape))}")
        kept: dict[str, list[str]] = {}
        for name, reason in choice.others.items():
            kept.setdefault(reason, []).append(name)
        for reason, names in kept.items():
            shown = ", ".join(map(printable, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            print(f"  as it was: {shown}: {printable(reason)}")
    return 0
