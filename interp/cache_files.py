"""A cache of activations in files: one safetensors file a batch, written atomically, read when a name is asked for.

    DIRECTORY/cache.json           what was asked: names, positions, model
    DIRECTORY/texts.safetensors    tokens, lengths, which places are real
    DIRECTORY/<n>.safetensors      one forward pass: `indices`, and an activation a name, in the model's dtype

A pass whose file is there is not computed again, so that an interrupted cache goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from interp.batching import batches
from interp.cache import ActivationCache, Rows, finite
from interp.documents import checked, read_json_object, require_file
from interp.errors import InputError
from interp.files import atomic_file
from interp.hooks import Names
from interp.positions import Position
from interp.running import Prepared, passes

if TYPE_CHECKING:
    from interp.model import HookedModel

SCHEMA_VERSION = 1
ABOUT, TEXTS, INDICES = "cache.json", "texts.safetensors", "indices"
TEXT_DTYPES = {"tokens": torch.int64, "lengths": torch.int64, "mask": torch.bool}
"""Tensor of the file of texts → its type."""


class _About(BaseModel):
    """What is read of cache.json.

    Attributes:
        names: of the hooks that were kept.
        passes: the texts of each forward pass, by index.
    """

    model_config = ConfigDict(strict=True, extra="allow")
    names: list[str]
    passes: list[list[int]]


class StoredActivations(Mapping[str, Tensor]):
    """Hook name → [n_texts, …], float32, read from a cache's files each time it is asked for.

    Attributes:
        directory: of the cache.
    """

    def __init__(self, directory: Path, about: _About, mask: Tensor) -> None:
        self.directory = directory
        self._about = about
        self._mask = mask

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._about.names:
            raise KeyError(name)
        rows = Rows(self._mask)
        for indices, activations in self.batches([name]):
            rows.put(indices, activations)
        return rows.values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._about.names)

    def __len__(self) -> int:
        return len(self._about.names)

    def batches(self, names: Sequence[str] | None = None) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """File by file: which texts, and {name: [batch, …]} in the dtype they were computed in."""
        widths: dict[str, torch.Size] = {}
        for number, texts in enumerate(self._about.passes):
            file, mask = _file(self.directory, number), self._mask[texts]
            stored = _tensors(file, [INDICES, *(names or self._about.names)])
            indices = stored.pop(INDICES)
            shapes = {name: mask.shape + widths.setdefault(name, t.shape[mask.ndim :]) for name, t in stored.items()}
            same = indices.dtype == torch.int64 and indices.tolist() == texts
            if not same or any(tensor.shape != shapes[name] for name, tensor in stored.items()):
                raise _damaged(file, f"it holds other texts or positions than {ABOUT} says")
            yield indices, stored


def write_cache(
    model: HookedModel,
    texts: str | Sequence[str],
    names: Names,
    directory: Path,
    position: Position,
    chat: bool,
    batch_size: int | None,
) -> ActivationCache:
    """See `HookedModel.write_cache`."""
    prepared, selected = Prepared.of(model, texts, position, chat), model.hooks.select(names)
    plan = [b.indices.tolist() for b in batches(prepared.token_ids, -1, batch_size, torch.device("cpu"))]
    _claim(directory, _describe(model, prepared, selected, position, plan), model.hooks.active)
    _write_texts(directory, prepared)
    number = {tuple(indices): which for which, indices in enumerate(plan)}

    def there(indices: list[int]) -> bool:
        return _file(directory, number[tuple(indices)]).exists()

    for indices, activations in passes(model, prepared, selected, batch_size, logits=False, skip=there):
        for name, value in activations.items():
            finite(name, value[prepared.places.kept[indices].to(value.device)])
        _save(_file(directory, number[tuple(indices.tolist())]), {INDICES: indices, **activations})
    return read_cache(directory)


def read_cache(directory: str | Path) -> ActivationCache:
    """Open a cache that `HookedModel.write_cache` wrote; an activation is read when its name is asked for.

    Args:
        directory: of the cache.

    Raises:
        InputError: no cache, a damaged one, or one that is not finished.

    Example:
        >>> cache = read_cache("caches/harmful")
        >>> cache["blocks.3.hook_resid_post"].shape
    """
    directory = Path(directory)
    about = checked(_About, _read_about(directory), str(directory / ABOUT))
    missing = [n for n in range(len(about.passes)) if not _file(directory, n).is_file()]
    if missing or not (directory / TEXTS).is_file():
        raise InputError(
            f"The cache {directory} is not finished: {len(missing)} of {len(about.passes)} files are missing",
            "all of them",
            "Call write_cache again with the same arguments: it goes on where it was",
        )
    stored = _tensors(directory / TEXTS, TEXT_DTYPES)
    tokens, lengths, mask = stored.values()
    if {name: tensor.dtype for name, tensor in stored.items()} != TEXT_DTYPES:
        raise _damaged(directory / TEXTS, "its tensors are of other types")
    texts = sorted(text for one in about.passes for text in one)
    if not mask.ndim or lengths.shape != mask.shape[:1] or texts != list(range(len(mask))):
        raise _damaged(directory / TEXTS, f"it holds other texts than {ABOUT} says")
    if tokens.ndim != 1 or (lengths < 0).any() or lengths.sum() != len(tokens):
        raise _damaged(directory / TEXTS, "the lengths of its texts are not those of its tokens")
    token_ids = [ids.tolist() for ids in tokens.split(lengths.tolist())]
    return ActivationCache(StoredActivations(directory, about, mask), mask, token_ids)


def _tensors(file: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of one file of a cache.

    Raises:
        InputError: it is damaged, or lacks one of them.
    """
    from safetensors import SafetensorError, safe_open

    require_file(file, "a file of a cache")
    try:
        with safe_open(file, "pt") as stored:
            return {name: stored.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise _damaged(file, str(error)) from error


def _damaged(file: Path, why: str) -> InputError:
    do = "Write the cache again into another directory"
    return InputError(f"{file} is damaged: {why}", "what HookedModel.write_cache wrote", do)


def _read_about(directory: Path) -> dict[str, Any]:
    if not (directory / ABOUT).is_file():
        raise InputError(f"{directory} holds no {ABOUT}", "a directory that HookedModel.write_cache wrote")
    about = read_json_object(directory / ABOUT)
    if about.get("schema_version") != SCHEMA_VERSION:
        problem = f"The cache {directory} has schema version {about.get('schema_version')}"
        raise InputError(problem, f"version {SCHEMA_VERSION}", "Write it again into another directory")
    return about


def _describe(
    model: HookedModel, prepared: Prepared, names: list[str], position: Position, plan: list[list[int]]
) -> dict[str, Any]:
    """What determines every number of a cache."""
    stored = model.checkpoint
    return {
        "schema_version": SCHEMA_VERSION,
        "names": names,
        "position": str(position),
        "tokens_sha256": hashlib.sha256(json.dumps(prepared.token_ids).encode()).hexdigest(),
        "model": None if stored is None else str(stored.path.resolve()),
        "model_files": None if stored is None else stored.stamp(),
        "dtype": str(model.hf.dtype).removeprefix("torch."),
        "passes": plan,
    }


def _claim(directory: Path, about: dict[str, Any], hooked: bool) -> None:
    """Write what a cache is about, unless it is there already.

    Raises:
        InputError: the directory holds something else, or another cache; or a cache of which nobody can say whether it
            was made by the same interventions or by the same model in memory.
    """
    if directory.is_dir() and any(directory.iterdir()):
        known = _read_about(directory)
        differing = [key for key, value in about.items() if known.get(key) != value]
        if hooked or about["model"] is None:
            differing.append("interventions" if hooked else "a model in memory")
        if differing:
            raise InputError(
                f"{directory} holds another cache; what differs, or cannot be compared: {', '.join(differing)}",
                "a new directory, or the cache of the same texts, hooks and model, to go on with it",
                "Give another directory; nothing was changed in this one",
            )
        return
    with atomic_file(directory / ABOUT) as temporary:
        temporary.write_text(json.dumps(about), encoding="utf-8")


def _write_texts(directory: Path, prepared: Prepared) -> None:
    flat = [token for ids in prepared.token_ids for token in ids]
    lengths = [len(ids) for ids in prepared.token_ids]
    tensors = {"tokens": torch.tensor(flat), "lengths": torch.tensor(lengths), "mask": prepared.places.kept}
    _save(directory / TEXTS, tensors)


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    with atomic_file(path) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)


def _file(directory: Path, number: int) -> Path:
    return directory / f"{number:05}.safetensors"
