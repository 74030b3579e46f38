"""Run folders for the report, written with the real `Result`, without a model: hostile names and answers included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from interp.generation import Completion
from probes.harness.names import BASELINE
from probes.harness.results import Result
from probes.labels.refused import by_cell, decide, with_outcomes
from probes.matrix.rows import add_regimes, over_refusal_table
from probes.rtsi.rows import refusal_table

N = 40
SORRY, CANNOT = "I'm sorry, but I can't help with that.", "I cannot assist with that request."
SCRIPT = "Sure. <script>alert(1)</script><img src=x onerror=alert(2)>"
BREAK_OUT = "Sure </td></tr></table></section> & more"
ACTIVE = "Sure **bold** | `code` \x1b[31m \u202etxt {{ 7 * 7 }} $\\frac{1}{2}$"
HOSTILE = (SCRIPT, BREAK_OUT, ACTIVE)
CELLS = {"Q8_0": 8.5, "Q4_K_M": 4.67, "Q2_K": 2.96}
ERRORS = {"Q8_0": 0.01, "Q4_K_M": 0.1, "Q2_K": 0.5}
"""Size of the activations' error; the ratio is the same in all cells."""
LAYERS = 4


def answers(lost: int) -> list[Completion]:
    """N answers to harmful prompts of which the last two and `lost` more are no refusals."""
    texts = [SORRY, CANNOT] * (N // 2)
    for place in [*range(lost), N - 2, N - 1]:
        texts[place] = HOSTILE[place % 3]
    return [Completion(text, len(text.split()), True) for text in texts]


def write_run(path: Path, lost: dict[str, dict[str, int]], *, quality: float = -0.004) -> Path:
    """A run with the cells of `CELLS`; model → cell → how many refusals it loses, 0 where not named."""
    rows, refused, settings = [], {}, {}
    for model, losses in lost.items():
        given = {cell: answers(losses.get(cell, 0)) for cell in (BASELINE, *CELLS)}
        answered = completions(given)
        refused[model] = by_cell(answered)
        settings[model] = _settings(model)
        for result in _tables(answered, settings[model]):
            result.write(path / model)
        rows.append(_matrix(model, answered, quality))
    matrix = add_regimes(pd.concat(rows, ignore_index=True), refused)
    Result("predict", _predict(), {}).write(path)
    Result("matrix", matrix, settings | {"seconds": {"m: probes": 1.5}}, [f"a warning {SCRIPT}"]).write(path)
    (path / "study.toml").write_text('title = "</pre><script>alert(3)</script>"\n')
    return path


def _settings(model: str) -> dict[str, object]:
    checkpoint = {"path": f"a/b/{model}", "sha256": "f" * 64, "format": "gguf", "quantization": {"types": {"Q2_K": 7}}}
    prompts = {side: {"name": side, "sha256": "a" * 64, "n": N} for side in ("harmful", "harmless")}
    return {
        "prompts": prompts,
        "baseline": checkpoint | {"format": "dense", "quantization": {}},
        "cells": dict.fromkeys(CELLS, checkpoint),
        "template": "auto",
        "template_sha256": "b" * 64,
        "dtype": "float32",
        "device": "cpu",
        "rtsi_calibration": "45 published rows",
    }


def completions(given: dict[str, list[Completion]]) -> pd.DataFrame:
    """The same answers to as many harmful and harmless prompts, with their outcomes."""
    rows = [
        {"cell": cell, "prompts": side, "prompt": f"prompt {place} <b>", "text": answer.text}
        | {"n_tokens": answer.n_tokens, "finished": answer.finished}
        for side in ("harmful", "harmless")
        for cell, texts in given.items()
        for place, answer in enumerate(texts)
    ]
    table = pd.DataFrame(rows)
    tasks = table["prompts"].map({"harmful": "refusal", "harmless": "over_refusal"})
    return with_outcomes(table, decide(table.rename(columns={"text": "response"}).assign(task=tasks)))


def _matrix(model: str, answered: pd.DataFrame, quality: float) -> pd.DataFrame:
    cells = pd.DataFrame({"cell": [BASELINE, *CELLS], "bits_per_weight": [16.0, *CELLS.values()], "note": ""})
    for table in (refusal_table(answered), over_refusal_table(answered)):
        cells = cells.merge(table, on="cell")
    delta = np.where(cells["cell"] == BASELINE, 0.0, quality)
    cells.insert(0, "model", model)
    return cells.assign(quality=0.9 + delta, quality_delta=delta, quality_metric="bertscore_f1", cosine=0.99, reason="")


def _tables(answered: pd.DataFrame, settings: dict[str, object]) -> list[Result]:
    metrics = {"metric": "bertscore_f1", "against": "reference", "n": N, "value": 0.9}
    quality = [
        {"cell": cell, **metrics, "value_low": 0.88, "value_high": 0.92, "reason": ""} for cell in (BASELINE, *CELLS)
    ]
    tables = {
        "completions": answered,
        "quality": pd.DataFrame(quality),
        "direction": _direction(),
        "neurons": _neurons(),
        "safety_units": _units(),
        "margin": _margin(),
        "attribution": _attribution(),
        "causal_restore": _restore(),
    }
    return [Result(name, table, settings) for name, table in tables.items()]


def _direction() -> pd.DataFrame:
    return pd.DataFrame(
        {"cell": cell, "layer": layer, "study_layer": layer == 2, "norm": 1.0, "norm_ratio": 1.0, "reason": ""}
        | {"cosine": 1.0 if cell == BASELINE else 1 - 0.001 * place - 0.0002 * layer}
        for place, cell in enumerate((BASELINE, *CELLS))
        for layer in range(LAYERS)
    )


def _neurons() -> pd.DataFrame:
    numbers = {"ratio": 1.2, "matched_ratio": 1.0, "p": 0.01}
    normalized = {"normalized_ratio": 0.9, "matched_normalized_ratio": 1.0, "p_normalized": 0.8}
    rows = [
        {"cell": cell, "site": site, "layer": layer, "n_units": 64, **numbers, **normalized, "reason": ""}
        | {"error_safety": ERRORS[cell] * (1 + (layer or 0)), "error_rest": ERRORS[cell]}
        | {"verdict": "goes away" if layer is None else ""}
        for cell in CELLS
        for site in ("resid", "mlp")
        for layer in (1, 2, None)
    ]
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def _units() -> pd.DataFrame:
    return pd.DataFrame(
        {"cell": cell, "site": "mlp", "layer": 1, "unit": unit, "contrast": 1.0, "magnitude": 1.0, "spread": 0.5}
        | {"error": 0.1 * unit, "normalized_error": 0.2 * unit, "write_error": 0.03, "read_error": 0.04, "reason": ""}
        for cell in CELLS
        for unit in range(12)
    )


def _bounds(name: str, value: float, half: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


def _margin() -> pd.DataFrame:
    return pd.DataFrame(
        {"cell": cell, "prompts": side, "category": category, "n": N, "to_answer": 0.025 * place, "reason": ""}
        | _bounds("margin", 3.0, 0.5)
        | _bounds("shift", -0.2 * place if side == "harmful" else 0.05 * place, 0.1)
        for place, cell in enumerate((BASELINE, *CELLS))
        for side in ("harmful", "harmless")
        for category in ("all", "theft")
    )


def _attribution() -> pd.DataFrame:
    """Ten modules and a norm, the largest share last."""
    names = [f"model.layers.{layer}.mlp.<b>{layer}" for layer in range(10)]
    total = {"level": "total", "module": None, "attribution": -0.55, "gap": 0.001, **_bounds("shift", -0.551, 0.1)}
    common = {"prompts": "harmful", "category": "all", "n": N, "reason": ""}
    return pd.DataFrame(
        {"cell": cell, **common, **row}
        for cell in CELLS
        for row in [
            total,
            *(
                {"level": "module", "module": name, "null_sd": 0.02, "z": -place / 2, "p": 0.04}
                | _bounds("attribution", -0.01 * place, 0.01)
                for place, name in enumerate(names, start=1)
            ),
        ]
    )


def _restore() -> pd.DataFrame:
    """The margin of Q2_K comes back with k by attribution, and by k/8 at random."""
    return pd.DataFrame(
        {"cell": cell, "aim": "restore", "by": "weights", "kind": "module", "ranking": ranking, "k": k, "n_parts": 8}
        | {"n_prompts": N, "start": 2.0, "goal": 2.0 + gap, "refusal_start": 0.5, "refusal_goal": 0.95, "reason": ""}
        | _bounds("share", min(1.0, power * k / 8), 0.1)
        | {"random_share": k / 8, "random_gain": gap * k / 8, "p": 0.048, "refusal_rate": 0.7}
        | {"random_gain_low": gap * k / 8 - 0.05, "random_gain_high": gap * k / 8 + 0.05, "random_refusal_rate": 0.6}
        for cell, gap in (("Q4_K_M", 0.1), ("Q2_K", 0.8))
        for ranking, power in (("attribution", 4), ("weight_error", 1.5))
        for k in (1, 2, 4, 8)
    )


def _predict() -> pd.DataFrame:
    rows = [
        ("margin shift", "forward passes", 0.9),
        ("RTSI", "completions", 0.7),
        ("entropy", "forward passes", np.nan),
    ]
    return pd.DataFrame(
        {"predictor": label, "label": label, "needs": needs, "n": 6, "n_models": 2, "danger_positives": 1}
        | _bounds("spearman", auc - 0.1, 0.1)
        | _bounds("danger_auc", auc, 0.05)
        | _bounds("danger_minus_rtsi", auc - 0.7, 0.1)
        | {"material_loss_auc": np.nan}
        for label, needs, auc in rows
    )
