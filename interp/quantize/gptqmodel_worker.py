"""The child process that writes AWQ and GPTQ checkpoints with GPTQModel; see `interp.child`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from interp.child import JobReport, serve
from interp.quantize.calibration import token_rows

BATCH_SIZE = 8
ENVIRONMENT = {
    "GPTQMODEL_CPU_WORKERS": "2",  # its default on two cores is one, and one worker waits for itself
    "GPTQMODEL_DISABLE_PACK_EXT": "1",  # packing in Python gives the same bytes and needs no compiler at run time
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def _settings(job: dict[str, Any]) -> dict[str, Any]:
    """GPTQModel's settings. Without a fallback it cannot replace GPTQ by rounding where calibration was too thin."""
    common = {"bits": job["bits"], "group_size": job["group_size"], "offload_to_disk": False, "fallback": None}
    common |= {"dynamic": job["dynamic"]} if job.get("dynamic") else {}
    if job["method"] == "awq":
        return common | {"quant_method": "awq", "format": "gemm", "sym": False}
    # Its default without act-order orders channels within what groups allow; a single group leaves nothing to order.
    aware = not job["act_order"] and job["group_size"] > 0
    own = {"sym": True, "desc_act": job["act_order"], "act_group_aware": aware}
    return common | own | {"quant_method": "gptq", "format": "gptq"}


@contextmanager
def _recorded_folds() -> Iterator[set[tuple[str, tuple[str, ...]]]]:
    """The modules of a block between which GPTQModel's AWQ moves scales: (producer, consumers)."""
    from gptqmodel.looper import awq_processor

    apply_scale = awq_processor.apply_scale
    folds: set[tuple[str, tuple[str, ...]]] = set()

    def recording(module: Any, scales_list: Any, *rest: Any, **named: Any) -> Any:
        folds.update((producer, tuple(consumers)) for producer, consumers, _, _ in scales_list)
        return apply_scale(module, scales_list, *rest, **named)

    awq_processor.apply_scale = recording
    try:
        yield folds
    finally:
        awq_processor.apply_scale = apply_scale


def write(job: dict[str, Any], report: JobReport) -> dict[str, Any]:
    """Quantize `source` into `out` with `method` "awq" or "gptq" and say which scales were moved where.

    The job's other fields: `calibration` (texts), `bits`, `group_size`, `act_order` (GPTQ only), `dynamic` (modules
    that are left as they are, where there are any).
    """
    from gptqmodel import GPTQModel, QuantizeConfig

    torch.manual_seed(0)
    # On a CPU GPTQModel would otherwise load, and save, what it does not quantize in bfloat16.
    settings = QuantizeConfig(**_settings(job))
    model = GPTQModel.load(job["source"], settings, dtype=torch.float16, trust_remote_code=False)
    config = model.model.config
    model.layer_callback = lambda layer_idx, submodule_finalized: report(layer_idx + 1, config.num_hidden_layers)
    ids = token_rows(model.tokenizer, job["calibration"], config.max_position_embeddings)
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids]
    with _recorded_folds() as folds:
        model.quantize(rows, batch_size=BATCH_SIZE, calibration_data_min_length=0)
    model.save(job["out"])
    return {"folds": sorted(folds), "calibration_tokens": sum(map(len, ids)), "computed_with": computed_with()}


def computed_with() -> dict[str, Any]:
    """What orders sums, and so decides their last bits: of nearly equal roundings another is written by one more
    thread."""
    return {"threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability()}


if __name__ == "__main__":
    serve(write)
