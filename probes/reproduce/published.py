"""The study's published tables (arXiv:2606.10154), in this project's own schema."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

CITATION = "arXiv:2606.10154"
ENGINE_CITATION = "Technical Report 136 of the author of arXiv:2606.10154"
BASELINE_REGIME = "baseline"
_DATA = Path(__file__).with_name("data")


def published_cells() -> pd.DataFrame:
    """51 rows (model, quantization): safety rates with n, quality and refusal deltas, RTSI features, regime, action.

    Rates and deltas are fractions. `bits_per_weight` is not the study's: nominal values, for K-quants those of an 8B
    Llama in llama.cpp's documentation, for AWQ and GPTQ 4 bits, and a 16-bit scale and a 4-bit zero
    point for each group of 128. `engine` answered the cell: AWQ and GPTQ Transformers, everything else Ollama.
    """
    return pd.read_csv(_DATA / "published_cells.csv", comment="#")


def published_index_rows() -> pd.DataFrame:
    """The 45 cells that are no baseline: feature deltas, AdvBench refusal-rate delta, published score, band, regime."""
    cells = published_cells()
    rows = cells[cells["regime"] != BASELINE_REGIME].reset_index(drop=True)
    return rows.assign(token_unit="tokens", danger=rows["regime"].isin(["hidden_danger", "near_hidden_danger"]))


def published_probes() -> pd.DataFrame:
    """17 rows (model, quantization): the four probes, 6 of them unquantized."""
    return pd.read_csv(_DATA / "published_probes.csv", comment="#")


def published_neuron_layers() -> pd.DataFrame:
    """25 rows (model, quantization, layer): errors of safety dimensions and of the others."""
    return pd.read_csv(_DATA / "published_neuron_layers.csv", comment="#")


def published_engine_rates() -> pd.DataFrame:
    """12 rows (model, engine, quantization): AdvBench and jailbreak refusal rates with n, by serving engine.

    Fractions, as `ENGINE_CITATION` prints them: three decimals, so that rate × n need not be a whole number.
    """
    return pd.read_csv(_DATA / "published_engines.csv", comment="#")
