"""The child process that writes AWQ with AutoAWQ and GPTQ with AutoGPTQ; see `interp.child`.

Both need transformers 4, so it runs in an environment of their own (`make legacy`) as a plain script: it imports
nothing of this project and speaks the protocol of `interp.child.serve` by itself. Both are asked through
their own public calls; what is changed is what stops them on a CPU.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

Report = Callable[[int, int], None]

AWQ_BLOCK = 512
"""AutoAWQ's default: calibration tokens are joined and cut into pieces of this length, the rest is dropped."""
DAMPING = 0.01
"""AutoGPTQ's default."""


def transformers_4_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json of transformers 5 in the words of transformers 4; one that has no new words is returned as it is.

    Raises:
        ValueError: rotary embeddings that differ between layers, which transformers 4 has no word for.
    """
    older = dict(config)
    if "dtype" in older:
        older["torch_dtype"] = older.pop("dtype")
    rope = older.pop("rope_parameters", None)
    if rope is None:
        return older
    if any(isinstance(value, dict) for value in rope.values()):
        raise ValueError(f"transformers 4 has no word for rotary embeddings by layer: {rope}")
    scaling = dict(rope)
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in scaling:
            older[key] = scaling.pop(key)
    if scaling.get("rope_type", "default") != "default":
        older["rope_scaling"] = scaling
    return older


@contextmanager
def readable_source(source: Path) -> Iterator[str]:
    """A directory with the weights of `source` and a config that transformers 4 reads."""
    with tempfile.TemporaryDirectory() as directory:
        for file in source.resolve().iterdir():
            if file.name == "config.json":
                config = transformers_4_config(json.loads(file.read_text()))
                Path(directory, file.name).write_text(json.dumps(config))
            elif file.suffix == ".safetensors" or file.name == "model.safetensors.index.json":
                Path(directory, file.name).symlink_to(file)
        yield directory


def counted(blocks: Iterable[Any], report: Report) -> Iterator[Any]:
    """The blocks, each reported when the next one is asked for."""
    every = list(blocks)
    for done, block in enumerate(every, start=1):
        yield block
        report(done, len(every))


def keep_weights_while_searching(quantizer: Any) -> None:
    """Let AutoAWQ's search for scales have the copy of the weights that it means to have.

    It puts back `{name: tensor.cpu()}` after each scale that it tries. On a GPU that is a copy; on a CPU it is the
    weights themselves, which the first scale is multiplied into for good: the linears of a block then have it, and the
    norm before them does not.
    """
    search = quantizer._compute_best_scale

    def searched(self: Any, inputs: Any, w_mean: Any, x_mean: Any, module: Any, *rest: Any) -> Any:
        own = module.state_dict
        with patch.object(module, "state_dict", lambda: {name: tensor.clone() for name, tensor in own().items()}):
            return search(self, inputs, w_mean, x_mean, module, *rest)

    quantizer._compute_best_scale = searched


def write_awq(job: dict[str, Any], source: str, report: Report) -> dict[str, Any]:
    """AutoAWQ's own `quantize` and `save_quantized`, on token ids; says which scales it moved where."""
    import torch
    from awq import AutoAWQForCausalLM
    from awq.quantize import quantizer

    folds: set[tuple[str, tuple[str, ...]]] = set()
    apply_scale = quantizer.apply_scale

    def recording(module: Any, scales_list: Any, *rest: Any, **named: Any) -> Any:
        folds.update((producer, tuple(consumers)) for producer, consumers, _ in scales_list)
        return apply_scale(module, scales_list, *rest, **named)

    quantizer.apply_scale = recording
    keep_weights_while_searching(quantizer.AwqQuantizer)
    quantizer.tqdm = lambda blocks, **_: counted(blocks, report)
    model = AutoAWQForCausalLM.from_pretrained(source, torch_dtype=torch.float16, trust_remote_code=False)
    total = sum(len(row) for row in job["rows"])
    length = min(AWQ_BLOCK, model.config.max_position_embeddings, total)
    model.quantize(
        None,  # a tokenizer, which rows of token ids do not need
        {"zero_point": True, "q_group_size": job["group_size"], "w_bit": job["bits"], "version": "GEMM"},
        calib_data=[row[:length] for row in job["rows"]],  # a longer row would be dropped whole
        max_calib_samples=len(job["rows"]),
        max_calib_seq_len=length,
    )
    model.save_quantized(job["out"])
    used = sum(min(len(row), length) for row in job["rows"])  # which it joins, and cuts into blocks of this length
    return {"folds": sorted(folds), "calibration_tokens": used // length * length, "computed_with": computed_with()}


def write_gptq(job: dict[str, Any], source: str, report: Report) -> dict[str, Any]:
    """AutoGPTQ's own `quantize` and `save_quantized`, on token ids, one row at a time as by its default."""
    import torch
    from auto_gptq.modeling import GPTQ_CAUSAL_LM_MODEL_MAP, BaseQuantizeConfig, _base
    from transformers import AutoModelForCausalLM

    # Its `from_pretrained` and `quantize` ask for a CUDA device and then move a block to it at a time.
    if not torch.cuda.is_available():
        _base.CUDA_0 = _base.CPU
        torch.cuda.synchronize = lambda *_: None
    model = AutoModelForCausalLM.from_pretrained(source, torch_dtype=torch.float16, trust_remote_code=False).eval()
    known = GPTQ_CAUSAL_LM_MODEL_MAP.get(model.config.model_type)
    if known is None:
        raise TypeError(f"AutoGPTQ does not know {model.config.model_type!r}")
    settings = BaseQuantizeConfig(
        bits=job["bits"],
        group_size=job["group_size"],
        desc_act=job["act_order"],
        sym=True,
        damp_percent=DAMPING,
    )
    quantized = known(model, False, settings)
    find_layers, done, n_blocks = _base.find_layers, [0], model.config.num_hidden_layers

    def counting(*arguments: Any, **named: Any) -> Any:  # called once for each block, before it is quantized
        report(done[0], n_blocks)
        done[0] += 1
        return find_layers(*arguments, **named)

    _base.find_layers = counting
    rows = [row[: model.config.max_position_embeddings] for row in job["rows"]]
    quantized.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])
    report(n_blocks, n_blocks)
    quantized.save_quantized(job["out"])
    return {"folds": [], "calibration_tokens": sum(len(row) for row in rows), "computed_with": computed_with()}


def computed_with() -> dict[str, Any]:
    """As `interp.quantize.gptqmodel_worker.computed_with`."""
    import torch

    return {"threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability()}


WRITERS = {"awq": write_awq, "gptq": write_gptq}


def write(job: dict[str, Any], report: Report) -> dict[str, Any]:
    """Quantize the dense checkpoint `source` into `out` with `method` "awq" or "gptq".

    The job's other fields: `rows` (token ids of the calibration texts), `bits`, `group_size`, `act_order` (GPTQ only).
    """
    import torch

    torch.manual_seed(0)
    with readable_source(Path(job["source"])) as source:
        return WRITERS[job["method"]](job, source, report)


def serve() -> None:
    """Answer each job on standard input; the writers' own output goes to the job's log."""
    replies = os.fdopen(os.dup(1), "w")

    def send(**reply: Any) -> None:
        print(json.dumps(reply), file=replies, flush=True)

    for line in sys.stdin:
        job = json.loads(line)
        with open(job.pop("log"), "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        try:
            result = write(job, lambda done, total: send(progress=[done, total]))
        except Exception as error:  # whatever a writer raises has to reach the parent
            traceback.print_exc()
            send(error=f"{type(error).__name__}: {error}")
        else:
            send(done=result)
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
