"""The command `python -m interp.organisms`."""

from __future__ import annotations

import typer

from interp import cli

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    architecture: str = "llama",
    seed: int = 0,
    alignment: float = 1.0,
    inside: str | None = None,
    bounded: float | None = None,
    where: str = "*",
) -> None:
    """Train one organism, or find it in the cache; print its path, the seconds it took and its losses.

    --inside Q4_0 or Q8_0 keeps every weight's code in that format while it learns to refuse, --bounded 0.15 keeps it
    within that share of its 4-bit step, and --where "*.mlp.*" confines either to some linears.
    """
    import json
    import time

    from interp.documents import read_json_object
    from interp.organisms.constraints import constraint
    from interp.organisms.training import train
    from interp.progress import Stages

    started = time.monotonic()
    with Stages() as stages:
        path = train(
            architecture,
            seed,
            alignment,
            progress=lambda done, total: stages.show(f"training {architecture}", done, total),
            constraint=constraint(inside, bounded, where),
        )
    losses = read_json_object(path / "organism.json").get("losses")
    seconds = time.monotonic() - started
    print(f"{path}\n{seconds:.1f} s; final losses in nats: {json.dumps(losses)}")
    cli.ending([], [["interp.quantize", "--baseline", path, "--out", "cells"]])


if __name__ == "__main__":
    cli.run(app)
