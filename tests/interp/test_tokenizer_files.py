"""What lies beside the weights: damaged or hostile, it ends in a message, and its code never runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp import load, open_checkpoint
from interp.chat import encode
from interp.errors import InputError
from interp.generation import generate
from interp.loading import surroundings
from interp.tokenizer_files import open_tokenizer, read_vocabulary
from tests.tiny_models import TEXTS, tokenizer


@pytest.fixture
def model(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny("llama"), tmp_path / "model"))


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    change(content)
    file.write_text(json.dumps(content))


def newer(content: dict[str, Any]) -> None:
    content["model"]["type"] = "TokenMonster"


DAMAGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a newer model": newer,
    "a newer pre-tokenizer": lambda content: content.update(pre_tokenizer={"type": "Quantum"}),
    "no model": lambda content: content.pop("model"),
    "a vocabulary that is a list": lambda content: content["model"].update(vocab=["a"]),
    "a merge of unknown tokens": lambda content: content["model"].update(merges=["qqqq zzzz"]),
    "ids that are text": lambda content: content["model"].update(vocab={"a": "b"}),
    "added tokens that are numbers": lambda content: content.update(added_tokens=[5]),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_tokenizer_that_is_newer_or_damaged_is_told_in_words(
    damage: Callable[[dict[str, Any]], object], model: Path
) -> None:
    edit(model / "tokenizer.json", damage)
    with pytest.raises(
        InputError,
        match=r"tokenizer\.json is not a tokenizer that .+ can read \(.+Download it again.+upgrade tokenizers",
    ):
        read_vocabulary(model / "tokenizer.json")
    with pytest.raises(InputError, match=r"holds no tokenizer that transformers can read \(.+give the baseline"):
        surroundings(open_checkpoint(model), None)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"model_max_length": ' + "9" * 10_000 + "}"])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"])
def test_json_that_is_none_is_named(name: str, content: str, model: Path) -> None:
    (model / name).write_text(content)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        surroundings(open_checkpoint(model), None)


@pytest.mark.parametrize(
    ("key", "value"),
    [("model_max_length", "long"), ("bos_token", 5), ("chat_template", 7), ("extra_special_tokens", 3)],
)
def test_a_setting_of_another_type_is_no_traceback(key: str, value: Any, model: Path) -> None:
    (model / "chat_template.jinja").unlink(missing_ok=True)
    edit(model / "tokenizer_config.json", lambda content: content.update({key: value}))
    with pytest.raises(InputError):
        load(model).token_ids(TEXTS, chat=True)


@pytest.mark.parametrize("eos", ["</s>", {"a": 1}, [1, "x"], True, 1.5, [[1]]])
def test_ends_of_answers_are_token_ids(eos: Any, model: Path) -> None:
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(InputError, match=r"generation_config\.json: eos_token_id"):
        surroundings(open_checkpoint(model), None)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_pipe_is_not_waited_for(name: str, model: Path) -> None:
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    with pytest.raises(InputError, match="a pipe"):
        surroundings(open_checkpoint(model), None)


def test_a_text_that_the_tokenizer_fails_on_is_told_in_words() -> None:
    with pytest.raises(InputError, match="cannot read a text"):
        encode(tokenizer(), ["\ud800"])


CODE = "open({mark!r}, 'w').write('ran')\nclass Own: pass\ndef generate(*_, **__): pass\n"
LOADS = """
import sys
from interp import load
from interp.errors import InputError
from probes.quality.text_metrics import load_encoder

for path in sys.argv[1:]:
    for use in (load, load_encoder):
        try:
            use(path)
        except InputError as error:
            assert "own code" in str(error) or "custom code" in str(error), error
            print("refused")
        else:
            print("opened")
"""


def test_code_in_a_checkpoint_is_neither_run_nor_asked_about(model: Path, tmp_path: Path) -> None:
    """A tokenizer, a config and a generation script that would leave a file behind, and a user who says yes."""
    mark = tmp_path / "mark"
    (model / "custom_generate").mkdir()
    for file in ("own.py", "custom_generate/generate.py"):
        (model / file).write_text(CODE.format(mark=str(mark)))
    settings: dict[str, dict[str, Any]] = {
        "generation_config.json": {"custom_generate": str(model), "auto_map": {"GenerationConfig": "own.Own"}},
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "OwnTokenizer"},
        "config.json": {"model_type": "own", "auto_map": dict.fromkeys(("AutoConfig", "AutoModel"), "own.Own")},
    }
    directories = [Path(shutil.copytree(model, tmp_path / name)) for name in settings]
    for directory, (name, added) in zip(directories, settings.items(), strict=True):
        edit(directory / name, lambda content, added=added: content.update(added))  # type: ignore[misc]
    command = [sys.executable, "-c", LOADS, *map(str, directories)]
    done = subprocess.run(command, input="y\n" * 50, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "[y/N]" not in done.stdout + done.stderr
    assert not mark.exists()
    assert done.stdout.split() == ["opened"] * 2 + ["refused"] * 4


@pytest.mark.parametrize("pad", [320, 32_000, -1])
def test_a_pad_token_outside_the_vocabulary_changes_nothing(pad: int, model: Path, tiny: Callable[[str], Path]) -> None:
    """As fine-tunes of Llama 2 have it: added to the tokenizer, and no row of the embedding for it."""
    good = load(tiny("llama"))
    edit(model / "config.json", lambda content: content.update(pad_token_id=pad))
    own = open_tokenizer(model)
    own.add_special_tokens({"pad_token": "[PAD]"})
    own.save_pretrained(model)
    other = load(model)
    assert other.tokenizer.pad_token_id == 320  # the number of rows
    assert torch.equal(other.logits(TEXTS), good.logits(TEXTS))
    names = ["blocks.1.hook_resid_post"]
    assert torch.equal(other.activations(TEXTS, names)[names[0]], good.activations(TEXTS, names)[names[0]])
    prompts = good.token_ids(TEXTS)
    assert generate(other, prompts, 5) == generate(good, prompts, 5)
    with pytest.raises(InputError, match=r"the token 320 \('\[PAD\]'\).*below 320"):
        other.token_ids(["[PAD]"])
    with pytest.raises(InputError, match="the token 320"):
        generate(other, [[0, 320]], 5)
