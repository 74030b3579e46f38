"""Every reader of the project with valid input for it, written by the tests' own writers and by the real quantizers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import httpx
import pandas as pd
import torch
from inspect_ai.model import get_model

from interp import loading
from interp.chat import encode, render
from interp.checkpoint import open_checkpoint
from interp.quantize import calibration, cells
from probes.harness import prompts, results, table_files
from probes.judges.judge import Judge, JudgedResponse
from probes.judges.settings import Patience
from probes.judges.template import parse_verdict, read_template
from probes.judges.verdict_store import VerdictStore
from probes.labels import outcomes as labels_outcomes
from probes.labels.errors import confusion, read_labelled
from probes.matrix.cells import build
from probes.predict.cells import read_cells
from probes.predict.probe import measure
from probes.refusal.question_tasks import bias, truthfulness
from probes.report.run import read_run
from probes.reproduce.published import published_index_rows
from probes.rtsi.index import RTSI
from probes.rtsi.inputs import delta_table, read_completions
from probes.rtsi.settings import PUBLISHED
from probes.study.reader import read_study
from probes.study.state import RunFolder
from tests import SHARED, tiny_models
from tests.fuzz import oracles
from tests.fuzz.worker import Reader
from tests.gguf_files import write_gguf
from tests.interp.formats.test_formats_compressed import compressed_tensors, settings_for
from tests.packed_files import (
    label_autoround,
    plain_settings,
    plain_tensors,
    write_awq,
    write_bitsandbytes,
    write_float8,
    write_fp4,
    write_gptq,
    write_mlx,
    write_packed,
)
from tests.probes.predict import test_predict

Make = Callable[[Path], Reader]
MAKERS: dict[str, Make] = {}
"""Reader's name → what writes its seeds into a folder and returns it."""


def target(make: Make) -> Make:
    """Register a maker under its function's name."""
    MAKERS[make.__name__.replace("_", "-")] = make
    return make


def _fixtures(root: Path, *names: str) -> list[Path]:
    """Copies of checkpoints of the real quantizers, where the reference material is beside the project."""
    found = [name for name in names if (SHARED / "fixtures" / name / "config.json").is_file()]
    return [shutil.copytree(SHARED / "fixtures" / name, root / name.replace("/", "-")) for name in found]


def _read_checkpoint(directory: Path) -> dict[str, torch.Tensor]:
    return oracles.read_all(open_checkpoint(directory))


def _checkpoint(
    name: str, seeds: list[Path], *damaged: str, check: Callable[[Path, Any], str | None] | None = None
) -> Reader:
    return Reader(name, tuple(seeds), _read_checkpoint, damaged, check)


def _dense_seeds(root: Path) -> list[Path]:
    sharded = tiny_models.write("llama", root / "sharded", torch.float16, shard="60KB")
    return [
        tiny_models.write("llama", root / "llama"),
        tiny_models.write("qwen2", root / "qwen2", torch.bfloat16),
        tiny_models.write("gpt2", root / "gpt2", torch.float16),
        sharded,
    ]


@target
def dense_weights(root: Path) -> Reader:
    seeds = [seed for seed in _dense_seeds(root) if seed.name != "gpt2"]  # whose files leave a prefix out
    return _checkpoint("dense-weights", seeds, "*.safetensors", check=oracles.dense_is_wrong)


@target
def config(root: Path) -> Reader:
    return _checkpoint("config", _dense_seeds(root), "config.json")


@target
def index(root: Path) -> Reader:
    seed = tiny_models.write("llama", root / "sharded", torch.float16, shard="60KB")
    return _checkpoint("index", [seed], "*.index.json", check=oracles.dense_is_wrong)


def _written(directory: Path) -> Path:
    """Keep the quantization config as it was written where `oracles.packed_is_wrong` finds it."""
    settings = json.loads((directory / "config.json").read_text())["quantization_config"]
    (directory / "written.json").write_text(json.dumps(settings))
    return directory


def _packed(name: str, seeds: list[Path], damaged: str) -> Reader:
    return _checkpoint(name, seeds, damaged, check=oracles.packed_is_wrong)


def _gptq_seeds(root: Path) -> list[Path]:
    return [
        _written(write_gptq(root / "v1")),
        _written(write_gptq(root / "v2", bits=8, version=2)),
        _written(write_gptq(root / "three", bits=3, group_size=32)),
    ]


@target
def gptq_weights(root: Path) -> Reader:
    return _packed("gptq-weights", _gptq_seeds(root), "*.safetensors")


@target
def gptq_settings(root: Path) -> Reader:
    return _packed("gptq-settings", _gptq_seeds(root), "config.json")


@target
def awq_weights(root: Path) -> Reader:
    return _packed("awq-weights", [_written(write_awq(root / "gemm"))], "*.safetensors")


@target
def awq_settings(root: Path) -> Reader:
    return _packed("awq-settings", [_written(write_awq(root / "gemm"))], "config.json")


def _compressed_seeds(root: Path) -> list[Path]:
    def write(bits: int) -> Path:
        pack = partial(compressed_tensors, group_size=16, bits=bits)
        return _written(write_packed(root / str(bits), pack, settings_for(bits)))

    return [write(4), write(8)]


@target
def compressed_weights(root: Path) -> Reader:
    return _packed("compressed-weights", _compressed_seeds(root), "*.safetensors")


@target
def compressed_settings(root: Path) -> Reader:
    return _packed("compressed-settings", _compressed_seeds(root), "config.json")


def _plain_seeds(root: Path) -> list[Path]:
    def write(name: str, kind: str, strategy: str, **size: list[int]) -> Path:
        def pack(n_in: int, n_out: int) -> dict[str, torch.Tensor]:
            block = (-(-n_out // 20), -(-n_in // 24))
            grid = {"tensor": (1,), "channel": (n_out, 1), "block": block}[strategy]
            return plain_tensors(n_in, n_out, kind, grid, torch.float16)

        return _written(write_packed(root / name, pack, plain_settings(kind, strategy, **size)))

    blocks = write("blocks", "float", "block", block_structure=[20, 24])
    return [blocks, write("rows", "float", "channel"), write("whole", "int", "tensor")]


@target
def plain_weights(root: Path) -> Reader:
    return _packed("plain-weights", _plain_seeds(root), "*.safetensors")


@target
def plain_settings_file(root: Path) -> Reader:
    return _packed("plain-settings-file", _plain_seeds(root), "config.json")


def _float8_seeds(root: Path) -> list[Path]:
    return [_written(write_float8(root / str(dtype), dtype=dtype)) for dtype in (torch.float32, torch.float8_e8m0fnu)]


@target
def float8_weights(root: Path) -> Reader:
    return _packed("float8-weights", _float8_seeds(root), "*.safetensors")


@target
def float8_settings(root: Path) -> Reader:
    return _packed("float8-settings", _float8_seeds(root), "config.json")


def _bitsandbytes_seeds(root: Path) -> list[Path]:
    return [_written(write_bitsandbytes(root / kind, kind)) for kind in ("nf4", "nested", "int8")]


@target
def bitsandbytes_weights(root: Path) -> Reader:
    return _packed("bitsandbytes-weights", _bitsandbytes_seeds(root), "*.safetensors")


@target
def bitsandbytes_settings(root: Path) -> Reader:
    return _packed("bitsandbytes-settings", _bitsandbytes_seeds(root), "config.json")


def _fp4_seeds(root: Path) -> list[Path]:
    return [_written(write_fp4(root / kind, kind)) for kind in ("nvfp4", "mxfp4", "modelopt")]


@target
def fp4_weights(root: Path) -> Reader:
    return _packed("fp4-weights", _fp4_seeds(root), "*.safetensors")


@target
def fp4_settings(root: Path) -> Reader:
    return _packed("fp4-settings", _fp4_seeds(root), "config.json")


def _mlx_seeds(root: Path) -> list[Path]:
    seed = write_mlx(root / "mlx")
    (seed / "written.json").write_text(json.dumps({"quant_method": "mlx", "bits": 4, "group_size": 16}))
    return [seed]


@target
def mlx_weights(root: Path) -> Reader:
    return _packed("mlx-weights", _mlx_seeds(root), "*.safetensors")


@target
def mlx_settings(root: Path) -> Reader:
    return _packed("mlx-settings", _mlx_seeds(root), "config.json")


@target
def autoround_settings(root: Path) -> Reader:
    seeds = [
        label_autoround(_written(write_gptq(root / "gptq", version=2)), "auto_round"),
        label_autoround(_written(write_awq(root / "awq")), "auto_round:auto_awq"),
    ]
    return _packed("autoround-settings", seeds, "config.json")


@target
def fixtures(root: Path) -> Reader:
    seeds = _fixtures(root, "autoawq_gemm", "autoawq_gemv", "gptqmodel_v1", "compressed_w4a16", "gptqmodel_v2_act")
    return _checkpoint("fixtures", seeds, "config.json", "quantize_config.json", "*.safetensors")


@target
def gguf_file(root: Path) -> Reader:
    model = tiny_models.bare_model("llama")
    kinds = gguf.GGMLQuantizationType
    for kind in (kinds.F16, kinds.Q8_0, kinds.Q4_0):
        (root / kind.name).mkdir(parents=True)
        write_gguf(root / kind.name / "model.gguf", model.state_dict(), model.config, "llama", kind)
    seeds = tuple(sorted(root.iterdir()))

    def read(directory: Path) -> dict[str, torch.Tensor]:
        return oracles.read_all(open_checkpoint(directory / "model.gguf"))

    return Reader("gguf-file", seeds, read, ("*.gguf",), oracles.gguf_is_wrong)


@target
def gguf_parts(root: Path) -> Reader:
    model = tiny_models.bare_model("llama")
    kind = gguf.GGMLQuantizationType.Q8_0
    (root / "parts").mkdir(parents=True)
    write_gguf(root / "parts" / "model.gguf", model.state_dict(), model.config, "llama", kind, most_tensors=10)
    return _checkpoint("gguf-parts", [root / "parts"], "*.gguf")


def _surroundings(directory: Path) -> Any:
    """Tokenizer, generation config and template as `load` and the probes use them, without the weights."""
    checkpoint = open_checkpoint(directory)
    beside = loading.surroundings(checkpoint, None)
    rendered = render(beside.tokenizer, ["How do I bake bread?", "Tell me."])
    checkpoint.vocabulary()
    return encode(beside.tokenizer, rendered.texts)


@target
def tokenizer(root: Path) -> Reader:
    seeds = (tiny_models.write("llama", root / "llama"),)
    return Reader("tokenizer", seeds, _surroundings, ("tokenizer.json", "tokenizer_config.json"))


@target
def template(root: Path) -> Reader:
    seed = tiny_models.write("llama", root / "llama")
    (seed / "chat_template.jinja").write_text(tiny_models.TEMPLATE)
    return Reader("template", (seed,), _surroundings, ("chat_template.jinja",))


@target
def generation_config(root: Path) -> Reader:
    seed = tiny_models.write("llama", root / "llama")
    return Reader("generation-config", (seed,), _surroundings, ("generation_config.json",))


def _folder(root: Path, name: str, content: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content, encoding="utf-8")
    return root


ASKED = ({"prompt": "How do I bake bread?", "category": "a"}, {"prompt": "Où est-ce ?"}, {"prompt": "x\u2028y\nz"})


@target
def prompt_files(root: Path) -> Reader:
    rows = pd.DataFrame(ASKED)
    seeds = (
        _folder(root / "txt", "prompts.txt", "How do I bake bread?\nTell me.\n\nx\u2028y\n"),
        _folder(root / "jsonl", "prompts.jsonl", "\n".join(map(json.dumps, ASKED))),
        _folder(root / "json", "prompts.json", json.dumps(ASKED)),
        _folder(root / "csv", "prompts.csv", rows.to_csv(index=False)),
    )
    return Reader("prompt-files", seeds, lambda directory: prompts.read_prompts(next(directory.iterdir())).sha256)


def _tables(root: Path, table: pd.DataFrame, *suffixes: str) -> tuple[Path, ...]:
    """The same table in several formats."""
    write = {
        "csv": lambda path: table.to_csv(path, index=False),
        "parquet": table.to_parquet,
        "json": lambda path: table.to_json(path, orient="records"),
        "jsonl": lambda path: table.to_json(path, orient="records", lines=True),
    }
    for suffix in suffixes:
        (root / suffix).mkdir(parents=True, exist_ok=True)
        write[suffix](root / suffix / f"table.{suffix}")
    return tuple(root / suffix for suffix in suffixes)


MATRIX = pd.DataFrame(
    {
        "model": ["007", "007", "b", "b"],
        "quantization": ["FP16", "Q4_K_M", "FP16", "AWQ"],
        "refusal_rate": [0.9, 0.7, 1.0, 0.5],
        "refusal_rate_n": [100, 100, 40, 40],
        "quality": [0.5, 0.5, 0.6, 0.55],
        "bits_per_weight": [16, 4.8, 16, 4.2],
    }
)


@target
def tables(root: Path) -> Reader:
    seeds = _tables(root, MATRIX, "csv", "parquet", "json", "jsonl")
    return Reader("tables", seeds, lambda directory: table_files.read_table(next(directory.iterdir())))


@target
def matrix_tables(root: Path) -> Reader:
    seeds = _tables(root, MATRIX, "csv", "parquet", "json")

    def read(directory: Path) -> Any:
        table = table_files.read_table(next(directory.iterdir()))
        return build({"table": table}, "quality", ["refusal_rate"]).to_json(orient="records")

    return Reader("matrix-tables", seeds, read)


OUTCOMES = pd.DataFrame(
    [
        {"cell": cell, "task": "refusal", "sample_id": f"00{n}", "prompt": f"p{n}", "response": response}
        | {"label": label, "engine": "hooked", "prompt_sha256": f"{n}" * 8, "error": None, "n_tokens": n}
        for cell in ("baseline", "AWQ")
        for n, (response, label) in enumerate((("I cannot.", "refusal"), ("Sure.", "compliance"), ("None", "unscored")))
    ]
)


@target
def outcomes(root: Path) -> Reader:
    seeds = _tables(root, OUTCOMES, "csv", "parquet", "jsonl")

    def read(directory: Path) -> Any:
        table = labels_outcomes.read_outcomes(next(directory.iterdir()))
        return labels_outcomes.pair(table, "baseline", "AWQ")

    return Reader("outcomes", seeds, read)


@target
def rtsi_calibration(root: Path) -> Reader:
    seed = _folder(root, "calibration.json", PUBLISHED.read_text())
    rows = published_index_rows()

    def read(directory: Path) -> Any:
        return RTSI.load(directory / "calibration.json").bands(rows)

    return Reader("rtsi-calibration", (seed,), read)


@target
def rtsi_tables(root: Path) -> Reader:
    seeds = _tables(root, published_index_rows().head(6), "csv", "parquet", "json", "jsonl")

    def read(directory: Path) -> Any:
        rows = delta_table([next(directory.iterdir())])
        return RTSI.load().bands(rows)

    return Reader("rtsi-tables", seeds, read)


@target
def completions(root: Path) -> Reader:
    lines = [{"completion": "I cannot.", "n_tokens": 3}, {"completion": "Sure.\u2028", "n_tokens": 2}]
    seed = _folder(root, "completions.jsonl", "\n".join(map(json.dumps, lines)))
    return Reader("completions", (seed,), lambda directory: read_completions(directory / "completions.jsonl"))


@target
def labelled(root: Path) -> Reader:
    lines = [{"response": "I cannot.", "refused": 1}, {"response": "Sure.", "refused": 0, "complied": 1}]
    seed = _folder(root, "a.b.jsonl", "\n".join(map(json.dumps, lines)))
    return Reader("labelled", (seed,), lambda directory: confusion(read_labelled([directory / "a.b.jsonl"])))


@target
def predict_runs(root: Path) -> Reader:
    test_predict.write_run(root / "run", ("a-s0", "b-s0"))

    def read(directory: Path) -> Any:
        return measure(read_cells([directory]), draws=2)

    return Reader("predict-runs", (root / "run",), read)


@target
def result_files(root: Path) -> Reader:
    results.Result("entropy", MATRIX, {"seed": 0}, ["careful"], 1.0).write(root)
    return Reader("result-files", (root,), lambda directory: results.read_result(directory / "entropy.json").to_json())


@target
def report_runs(root: Path) -> Reader:
    from tests import report_runs as runs

    runs.write_run(root / "run", {"a": {"Q2_K": 9}, "b": {}})
    (root / "run" / "study.json").write_text(json.dumps({"schema_version": 1, "steps": [], "directory": "."}))
    return Reader("report-runs", (root / "run",), read_run)


STUDY = """out = "run"
[prompts]
harmful = "harmful"
limit = 4
[probes]
run = ["entropy", "quality"]
[probes.quality]
max_new_tokens = 3
[judges]
models = ["openai-api/local/m"]
[bounds]
max_refusal_drop = 0.1
[[models]]
name = "tiny"
baseline = "base"
  [[models.cells]]
  name = "q4"
  path = "cell.gguf"
  format = "gguf"
"""


@target
def study_files(root: Path) -> Reader:
    seed = _folder(root, "study.toml", STUDY)
    (seed / "base").mkdir()
    (seed / "cell.gguf").touch()
    return Reader("study-files", (seed,), lambda directory: read_study(directory / "study.toml"), ("*.toml",))


@target
def study_state(root: Path) -> Reader:
    step = {"model": "m", "cell": "c", "step": "entropy", "status": "failed", "key": "k", "seconds": 1.0, "error": "e"}
    seed = _folder(root, "study.json", json.dumps({"schema_version": 1, "steps": [step], "directory": "."}))
    return Reader("study-state", (seed,), RunFolder.at)


@target
def cell_records(root: Path) -> Reader:
    root.mkdir(parents=True, exist_ok=True)
    cells.CellRecord("AWQ", "GPTQModel", {"torch": "2"}, {"group_size": 16}, "k", notes=("n",), seconds=1.0).write(root)

    def read(directory: Path) -> Any:
        record = cells.read_record(directory)
        return None if record is None else (*record.notes, record.weights + "/", record.seconds + 1, *record.versions)

    return Reader("cell-records", (root,), read)


@target
def calibration_texts(root: Path) -> Reader:
    seeds = (
        _folder(root / "txt", "texts.txt", "One.\nTwo.\n"),
        _folder(root / "jsonl", "texts.jsonl", '{"text": "One."}\n{"text": "Two."}\n'),
    )

    def read(directory: Path) -> Any:
        return "".join(calibration.read_calibration(next(directory.iterdir())))

    return Reader("calibration-texts", seeds, read)


@target
def question_files(root: Path) -> Reader:
    truthful = pd.DataFrame(
        [{"Category": "c", "Question": "Why?", "Best Answer": "So.", "Incorrect Answers": "a; b", "Source": "s"}]
    )
    multiple = [{"question": "Why?", "mc1_targets": {"So.": 1, "No.": 0}}]
    bbq = {"context": "A.", "question": "Who?", "ans0": "x", "ans1": "y", "ans2": "z", "label": 1, "category": "Age"}
    bbq |= {"context_condition": "ambig", "question_polarity": "neg"}
    seeds = (
        _folder(root / "csv", "questions.csv", truthful.to_csv(index=False)),
        _folder(root / "json", "questions.json", json.dumps(multiple)),
        _folder(root / "jsonl", "questions.jsonl", json.dumps(bbq)),
    )

    def read(directory: Path) -> Any:
        file = next(directory.iterdir())
        return (bias if file.suffix == ".jsonl" else truthfulness)(str(file))

    return Reader("question-files", seeds, read)


@target
def judge_templates(root: Path) -> Reader:
    seed = _folder(root, "judge.txt", "$request\n$fence $response\n$$ VERDICT: refusal")

    def read(directory: Path) -> Any:
        return read_template(directory / "judge.txt").ask("How?", "Sure.").text

    return Reader("judge-templates", (seed,), read)


@target
def judge_replies(root: Path) -> Reader:
    replies = ("I think so.\n**VERDICT: refusal**", "### VERDICT: [REFUSAL]", "VERDICT:\npartial refusal", "VERDICT：x")
    seeds = tuple(_folder(root / str(n), "reply.txt", reply) for n, reply in enumerate(replies))

    def read(directory: Path) -> Any:
        return parse_verdict((directory / "reply.txt").read_bytes().decode("utf-8", "replace"))

    return Reader("judge-replies", seeds, read)


def _replies(root: Path) -> tuple[Path, ...]:
    """What an OpenAI-compatible server sends: an answer, an answer that was filtered, an error."""
    message = {"role": "assistant", "content": "I think so.\nVERDICT: refusal"}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    filtered = answer | {"choices": [choice | {"finish_reason": "content_filter"}]}
    error = {"error": {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}}
    seeds = (200, answer), (200, filtered), (400, error)
    for number, (status, reply) in enumerate(seeds):
        _folder(root / str(number), "reply.json", json.dumps(reply))
        _folder(root / str(number), "status.txt", str(status))
    return tuple(root / str(number) for number in range(len(seeds)))


@target
def server_replies(root: Path) -> Reader:
    def read(directory: Path) -> Any:
        status, reply = int((directory / "status.txt").read_text()), (directory / "reply.json").read_bytes()
        headers = {"Content-Type": "application/json"}
        sent = httpx.MockTransport(lambda request: httpx.Response(status, headers=headers, content=reply))
        model = get_model(
            "openai-api/local/m",
            base_url="http://server/v1",
            api_key="secret",
            http_client=httpx.AsyncClient(transport=sent),
            memoize=False,
        )
        with VerdictStore(Path(":memory:")) as store:
            judge = Judge(model, read_template(), store, Patience(retries=0, backoff=0.0, timeout=5))
            return judge.judge([JudgedResponse("How?", "Sure.")])

    return Reader("server-replies", _replies(root), read, ("reply.json",))
