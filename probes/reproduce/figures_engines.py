"""The study's refusal deltas against a baseline of the cells' own engine family, beside the published ones.

The study answered its AWQ and GPTQ cells in Transformers and their unquantized baselines in Ollama, so that a published
delta holds the engine's difference and the quantization's. Its author's Technical Report 136 has refusal rates of three
unquantized models in engines that run the same checkpoints as Transformers does (vLLM, TGI).
"""

from __future__ import annotations

import pandas as pd

from probes.harness.results import Result
from probes.harness.tables import Columns, text
from probes.matrix.cells import add_deltas
from probes.report.formatting import bounds, points
from probes.reproduce.published import ENGINE_CITATION, published_cells, published_engine_rates
from probes.stats.intervals import interval_columns, interval_of
from probes.stats.paired_tests import unpaired_interval

CELLS = ("AWQ", "GPTQ")
"""What the study ran in Transformers."""
UNQUANTIZED = "FP16"
KEPT = [
    *("model", "quantization", "engine", "refusal_rate", "refusal_rate_n"),
    *("baseline_refusal_rate", "baseline_refusal_rate_n", "published_delta"),
]
CAVEATS = (
    "three harnesses: the cells answered in Transformers, the published baselines in Ollama, the matched ones in vLLM "
    "and TGI, each with the prompts and templates as it renders them",
    "unpaired: only rates are public, so the intervals (Newcombe's, of two independent rates) are wider than paired "
    "ones, and nobody can say which prompts flipped",
    "regex labels: openings are counted, and an engine's template can move an opening without a refusal lost",
)
TITLE = "The study's refusal deltas by the baseline's engine, percentage points, 95 % intervals"


def matched() -> Result:
    """Each AWQ and GPTQ cell of the models in Technical Report 136 against each engine's unquantized baseline.

    Table: one row per (model, quantization, engine of the baseline), vLLM's first, with columns
        refusal_rate, refusal_rate_n: of the cell, as published (fractions; 100 AdvBench and 120 jailbreak prompts);
        baseline_refusal_rate, baseline_refusal_rate_n: of the baseline on both prompt sets, weighted by their sizes;
        published_delta: cell − the study's own baseline, which Ollama answered, from the two published rates;
        matched_delta, matched_delta_low, matched_delta_high: cell − this baseline, with Newcombe's 95 % interval of two
            independent rates.
    """
    cells = add_deltas(published_cells().drop(columns="engine"), ["refusal_rate"])
    cells = cells.rename(columns={"refusal_rate_delta": "published_delta"})
    pairs = cells[cells["quantization"].isin(CELLS)].merge(_baselines(), on="model", how="inner")
    intervals = [
        unpaired_interval(
            (row["refusal_rate"], row["refusal_rate_n"]), (row["baseline_refusal_rate"], row["baseline_refusal_rate_n"])
        )
        for row in pairs.to_dict("records")
    ]
    table = pairs[KEPT].join(pd.DataFrame(interval_columns("matched_delta", interval) for interval in intervals))
    table = table.sort_values("engine", ascending=False, kind="stable", ignore_index=True)
    return Result("reproduce_engines", table, {"source": ENGINE_CITATION, "caveats": list(CAVEATS)})


def _baselines() -> pd.DataFrame:
    """model, engine, baseline_refusal_rate and its n: AdvBench and jailbreak prompts weighted by their numbers."""
    rates = published_engine_rates()
    rates = rates[rates["quantization"] == UNQUANTIZED]
    n = rates["advbench_refusal_rate_n"] + rates["jailbreak_refusal_rate_n"]
    refused = (
        rates["advbench_refusal_rate"] * rates["advbench_refusal_rate_n"]
        + rates["jailbreak_refusal_rate"] * rates["jailbreak_refusal_rate_n"]
    )
    return rates[["model", "engine"]].assign(baseline_refusal_rate=refused / n, baseline_refusal_rate_n=n)


def shown(table: pd.DataFrame) -> tuple[pd.DataFrame, Columns]:
    """One row per cell for the terminal: the published delta, and the matched one of each engine with its interval."""
    told = table.assign(
        cell=table["model"] + " " + table["quantization"],
        published=table["published_delta"].map(points),
        matched=[
            f"{points(row['matched_delta'])} " + bounds(interval_of(row, "matched_delta"))
            for row in table.to_dict("records")
        ],
    )
    engines = list(told["engine"].unique())
    wide = told.pivot(index=["cell", "published"], columns="engine", values="matched").reset_index()
    columns = {"cell": text("cell"), "published (Ollama)": text("published")}
    return wide, columns | {f"matched ({engine} {UNQUANTIZED})": text(engine) for engine in engines}
