"""The command `python -m probes.entropy`."""

from __future__ import annotations

import typer

from interp import cli
from probes.harness import tables
from probes.harness.options import Options, with_streaming

COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "prompts": tables.text("prompts"),
    "n": tables.number("n", "d"),
    "entropy (nats)": tables.interval("entropy", ".3f"),
    "shift (nats)": tables.interval("shift", "+.3f"),
}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@with_streaming
def main(options: Options) -> None:
    """Entropy (nats) of the first answer token, and its shift from the baseline."""
    from probes.entropy.probe import measure
    from probes.harness.options import finish

    result = measure(*options.inputs(), **options.settings())
    finish(result, tables.render("First-token entropy", result.table, COLUMNS), options)


if __name__ == "__main__":
    cli.run(app)
