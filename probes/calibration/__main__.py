"""The command `python -m probes.calibration`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp import cli
from probes.harness import tables
from probes.harness.options import Options, with_streaming

COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "prompts": tables.text("prompts"),
    "n": tables.number("n", "d"),
    "top-1": tables.number("top1", ".3f"),
    "confidence shift": tables.interval("confidence_shift", "+.3f"),
    "agreement": tables.interval("agreement", ".2f"),
    "ECE fidelity": tables.number("ece_fidelity", ".3f"),
    "ECE refusal": tables.number("ece_refusal", ".3f"),
    "top-5": tables.number("top5", ".3f"),
    "logit range": tables.number("logit_range", ".1f"),
    "Gini": tables.number("gini", ".3f"),
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@with_streaming
def main(
    options: Options,
    outcomes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="refusal.parquet of probes.refusal, for ECE against refusals.")
    ] = None,
) -> None:
    """Confidence of the first answer token: top-1 and top-5 probability, Gini impurity, logit range, calibration."""
    from probes.calibration.probe import measure, refusals_from
    from probes.harness.options import finish
    from probes.labels.outcomes import read_outcomes
    from probes.labels.refused import counted_by

    baseline, cells, harmful, harmless = options.inputs()
    answers = None if outcomes is None else read_outcomes(outcomes)
    refusals = None if answers is None else refusals_from(answers, harmful)
    outcome = "" if answers is None else counted_by(answers)
    result = measure(baseline, cells, harmful, harmless, refusals=refusals, outcome=outcome, **options.settings())
    suffix = f"; refusals by: {outcome}" if outcome else ""
    title = f"First-token confidence and calibration{suffix}"
    finish(result, tables.render(title, result.table, COLUMNS), options)


if __name__ == "__main__":
    cli.run(app)
