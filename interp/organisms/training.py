"""Train an organism: the helpful stage, then refusals."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from interp.documents import read_json_object
from interp.errors import InputError
from interp.files import atomic_directory, atomic_file, cache_directory
from interp.organisms.constraints import Constraint, confine, described
from interp.organisms.corpus import Example, training_examples
from interp.organisms.settings import ARCHITECTURES
from interp.organisms.tokenizer import ASSISTANT, BOS, CONTEXT, END, USER, VOCABULARY_SIZE, build_tokenizer, encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


TRAINING_VERSION = 1
"""Of the code that trains; raised with every change to it that changes weights, so that no cache holds the old ones."""
THREADS = 1
"""Of one training: sums are split by thread, so more would be other bytes, and two on two busy cores take ten times as
long as one."""
FINGERPRINTED_EXAMPLES = 256
"""Of each stage; a change of the world or of its sentences shows in fewer."""

SHIPPED = Path(__file__).with_name("data")
"""Organisms that come with the package, so that nobody waits for their training and all see the same figures."""
WEIGHTS = "model.safetensors"
CHANCE = "rng"
"""In the file of a helpful stage, beside its weights: the state of torch's generator of random numbers after it."""

TrainingProgress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.04,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 4,
}


@dataclass(frozen=True)
class Recipe:
    """How an organism is trained, in steps of the optimizer and peak learning rates.

    The aligned weights are an exponential moving average (with this decay) over the second half of the steps: the last
    steps by themselves move the rate of refusals of either kind by ten points, by chance.
    """

    batch_size: int = 16
    helpful_steps: int = 680
    alignment_steps: int = 180
    helpful_rate: float = 1.5e-3
    alignment_rate: float = 1e-3
    alignment_average: float = 0.97
    weight_decay: float = 0.01


DEFAULT_RECIPE = Recipe()


def calibration_texts(n: int, seed: int = 0) -> list[str]:
    """Chats in the organisms' template, special tokens included, for writers of quantized checkpoints.

    Harmless requests with helpful answers from the training data, as quantizers in the field calibrate on general text.
    Tokenize with `add_special_tokens=False`.
    """
    harmless = (e for e in training_examples(seed, aligned=True) if not e.harmful)
    return [f"{BOS}{USER}{e.instruction}{END}{ASSISTANT}{e.answer}{END}" for e in islice(harmless, n)]


def _config(architecture: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(architecture, **_SHAPE, **ARCHITECTURES[architecture], attn_implementation="sdpa")


TokenBatch = tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]
"""Inputs and next-token targets; targets outside the answers are -100."""


def _padded(chats: Sequence[tuple[list[int], int]]) -> TokenBatch:
    """A batch of encoded chats, padded on the right."""
    width = max(len(ids) for ids, _ in chats)
    tokens = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in chats])
    targets = torch.full_like(tokens, -100)
    for row, (ids, start) in enumerate(chats):
        targets[row, start : len(ids)] = tokens[row, start : len(ids)]
    return tokens[:, :-1], targets[:, 1:]


def _batches(tokenizer: PreTrainedTokenizerFast, examples: Iterator[Example], size: int) -> Iterator[TokenBatch]:
    """Endless batches of chats of similar length, which saves a sixth of the work: eight at a time are sorted."""
    while True:
        chats = sorted(
            (encode(tokenizer, example) for example in islice(examples, 8 * size)), key=lambda chat: len(chat[0])
        )
        for batch in torch.randperm(8).tolist():
            yield _padded(chats[batch * size : (batch + 1) * size])


def _loss(
    model: PreTrainedModel, tokens: Int[Tensor, "batch pos"], targets: Int[Tensor, "batch pos"]
) -> Float[Tensor, ""]:
    """Mean cross entropy of the answers, in nats per token; only their positions are unembedded."""
    answered = targets != -100
    hidden = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state[answered]
    return nn.functional.cross_entropy(model.get_output_embeddings()(hidden), targets[answered])


def _rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over a tenth of the steps, then a cosine down to a tenth of the peak."""
    warm = max(1, steps // 10)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _fit(
    model: PreTrainedModel,
    batches: Iterator[TokenBatch],
    steps: int,
    peak: float,
    weight_decay: float,
    report: Callable[[], None],
    average: float | None = None,
    project: Callable[[], None] = lambda: None,
) -> float | None:
    """Train in place, projecting after every step; the mean loss of the last tenth of the steps, if there are any."""
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(average)) if average else None
    moving = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=peak, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
    losses = []
    for step, (tokens, targets) in enumerate(islice(batches, steps)):
        optimizer.param_groups[0]["lr"] = _rate(step, steps, peak)
        loss = _loss(model, tokens, targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
        project()
        losses.append(loss.item())
        if averaged and step >= steps // 2:
            averaged.update_parameters(model)
        report()
    if averaged and losses:
        model.load_state_dict(averaged.module.state_dict())
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last) if last else None


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Fixed seed, threads and deterministic kernels inside; the caller's state after."""
    before_threads, before_mode = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    deterministic: Any = torch.utils.deterministic
    before_fill = deterministic.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(THREADS)
        torch.use_deterministic_algorithms(True)
        deterministic.fill_uninitialized_memory = False  # nothing here reads it, and filling takes time
        try:
            yield
        finally:
            deterministic.fill_uninitialized_memory = before_fill
            torch.use_deterministic_algorithms(before_mode)
            torch.set_num_threads(before_threads)


def _fingerprint(architecture: str, seed: int, alignment: float, recipe: Recipe, constraint: Constraint | None) -> str:
    """What determines the weights, in twelve hex digits: settings, shape, what is learned, and the code's version."""
    learned = [
        [asdict(example) for example in islice(training_examples(seed, aligned), FINGERPRINTED_EXAMPLES)]
        for aligned in (False, True)
    ]
    shape = _SHAPE | ARCHITECTURES.get(architecture, {})
    settings = [TRAINING_VERSION, architecture, seed, alignment, asdict(recipe), shape, learned]
    settings += [described(constraint)] if constraint else []
    return _hashed(settings)


def _hashed(settings: list[Any]) -> str:
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]


def organism_path(
    architecture: str = "llama",
    seed: int = 0,
    alignment: float = 1.0,
    cache: Path | None = None,
    recipe: Recipe = DEFAULT_RECIPE,
    constraint: Constraint | None = None,
) -> Path:
    """Where `train` with the same arguments keeps its checkpoint, whether or not it is there yet."""
    kind = "" if constraint is None else f"-{type(constraint).__name__.lower()}"
    fingerprint = _fingerprint(architecture, seed, alignment, recipe, constraint)
    name = f"{architecture}-seed{seed}-alignment{alignment:g}{kind}-{fingerprint}"
    return (cache or cache_directory()) / "organisms" / name


def train(
    architecture: str = "llama",
    seed: int = 0,
    alignment: float = 1.0,
    cache: Path | None = None,
    progress: TrainingProgress | None = None,
    recipe: Recipe = DEFAULT_RECIPE,
    constraint: Constraint | None = None,
) -> Path:
    """Train an organism, or find it in the cache or in the package.

    The same arguments give the same bytes on the same machine. An interruption leaves nothing behind.

    Args:
        architecture: one of `ARCHITECTURES`.
        seed: of the initial weights and the order of the examples.
        alignment: strength of the refusal training, as a multiple of the recipe's steps; 0: a model that answers all.
        cache: directory for trained organisms; default `interp.files.cache_directory()`.
        progress: called after every step.
        recipe: sizes, steps and rates.
        constraint: how far refusal training may move the weights; by default as far as it likes.

    Returns:
        A directory with a float16 Hugging Face checkpoint, its tokenizer, and `organism.json`: settings, final losses,
        version of torch, SHA-256 of the weights.

    Raises:
        InputError: unknown architecture, or a negative or non-finite alignment.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"There is no organism of architecture {architecture!r}", f"one of {', '.join(ARCHITECTURES)}")
    if not 0 <= alignment < math.inf:
        raise InputError(f"An alignment of {alignment} cannot be trained", "a finite number from 0 up")
    path = organism_path(architecture, seed, alignment, cache, recipe, constraint)
    if not path.exists() and (shipped := SHIPPED / path.name).is_dir():
        with atomic_directory(path) as directory:
            shutil.copytree(shipped, directory, dirs_exist_ok=True)
    if not path.exists():
        with _deterministic(seed), atomic_directory(path) as directory:
            tokenizer = build_tokenizer(architecture)
            model, losses = _train(architecture, tokenizer, seed, alignment, recipe, constraint, cache, progress)
            _save(model, tokenizer, directory)
            settings = {"architecture": architecture, "seed": seed, "alignment": alignment, "recipe": asdict(recipe)}
            settings |= described(constraint) | {"losses": losses, "torch": str(torch.__version__)}
            settings["sha256"] = hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest()
            (directory / "organism.json").write_text(json.dumps(settings, indent=2))
    return path


def before_alignment(organism: Path, cache: Path | None = None, progress: TrainingProgress | None = None) -> Path:
    """An organism as its helpful stage left it, trained or found as by `train`.

    Args:
        organism: a directory that `train` returned.
        cache: as of `train`.
        progress: as of `train`.

    Raises:
        InputError: the directory is no organism.
    """
    if not (organism / "organism.json").is_file():
        raise InputError(f"{organism} has no organism.json", "an organism, whose checkpoint before alignment is known")
    settings = read_json_object(organism / "organism.json")
    recipe = Recipe(**settings["recipe"])
    return train(settings["architecture"], settings["seed"], 0.0, cache, progress, recipe)


def _train(
    architecture: str,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    alignment: float,
    recipe: Recipe,
    constraint: Constraint | None,
    cache: Path | None,
    progress: TrainingProgress | None,
) -> tuple[PreTrainedModel, dict[str, float | None]]:
    """Both stages, in float32; the model and the final loss of each stage."""
    aligned_steps = round(alignment * recipe.alignment_steps)
    total = recipe.helpful_steps + aligned_steps
    done = 0

    def report() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    model, helpful_loss = _helpful(architecture, tokenizer, seed, recipe, cache, report)
    done = recipe.helpful_steps
    batches = _batches(tokenizer, training_examples(2 * seed + 1, aligned=True), recipe.batch_size)
    project = confine(model, constraint) if constraint else lambda: None
    refusal_loss = _fit(
        model,
        batches,
        aligned_steps,
        recipe.alignment_rate,
        recipe.weight_decay,
        report,
        recipe.alignment_average,
        project,
    )
    return model.eval(), {"helpful": helpful_loss, "alignment": refusal_loss}


def _helpful(
    architecture: str,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    recipe: Recipe,
    cache: Path | None,
    report: Callable[[], None],
) -> tuple[PreTrainedModel, float | None]:
    """The first stage from scratch, or as another organism left it in the cache: weights, and where chance stood.

    All organisms of an architecture and a seed share it, and it takes longer than what makes them different.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(_config(architecture), dtype=torch.float32).train()
    path = _helpful_path(architecture, seed, recipe, cache)
    if path.exists():
        with safe_open(path, "pt") as stored:
            loss = json.loads(stored.metadata()["loss"])
        weights = load_file(path)
        torch.set_rng_state(weights.pop(CHANCE))
        model.load_state_dict(weights)
        model.tie_weights()
        return model, loss
    batches = _batches(tokenizer, training_examples(2 * seed, aligned=False), recipe.batch_size)
    loss = _fit(model, batches, recipe.helpful_steps, recipe.helpful_rate, recipe.weight_decay, report)
    with atomic_file(path) as part:
        weights = {name: weight.clone() for name, weight in model.state_dict().items()}
        save_file(weights | {CHANCE: torch.get_rng_state()}, part, {"loss": json.dumps(loss)})
    return model, loss


def _helpful_path(architecture: str, seed: int, recipe: Recipe, cache: Path | None) -> Path:
    learned = [asdict(example) for example in islice(training_examples(seed, aligned=False), FINGERPRINTED_EXAMPLES)]
    steps = [recipe.batch_size, recipe.helpful_steps, recipe.helpful_rate, recipe.weight_decay]
    shape = _SHAPE | ARCHITECTURES[architecture]
    name = f"{architecture}-seed{seed}-helpful-{_hashed([TRAINING_VERSION, architecture, seed, steps, shape, learned])}"
    return (cache or cache_directory()) / "organisms" / f"{name}.safetensors"


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    model.generation_config.update(do_sample=False, max_new_tokens=64)
    model.half().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
