"""What a study file's schema cannot say: names that must differ, files that must be there, options of probes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from interp.chat import NAMED_TEMPLATES
from interp.errors import InputError
from interp.system_prompts import OWN, system_prompt
from probes.harness.names import NAME, derived_name, is_url, name_problem
from probes.study.problems import Problem, suggest
from probes.study.schema import DIRECT, INSPECT, Study

CONSTRAINTS = ("inside", "bounded", "where")
"""Of an organism's refusal training."""
JUDGE = r"[A-Za-z][A-Za-z0-9_.-]*/\S.*"
FILES = ("study.json", "study.toml", "matrix.json", "matrix.parquet", "report.html", "report.md")
"""What a run folder holds beside the models' folders."""


def check(document: dict[str, Any], directory: Path) -> Iterator[Problem]:
    """Every mistake beside those of the schema. Whatever has a wrong type is left to the schema.

    Args:
        document: the file as parsed.
        directory: what relative paths start from.
    """
    finder = Study.model_construct(directory=directory)
    models = [model for model in _list(document, "models") if isinstance(model, dict)]
    yield from _repeated([model.get("name") for model in models], "two models are named", ("models",))
    for place, model in enumerate(models):
        if model.get("name") in FILES:
            yield Problem(("models", place, "name"), f"{model['name']!r} is a file of the run folder; give another")
        yield from _model(model, place, finder)
    yield from _prompts(_dict(document, "prompts"), finder)
    yield from _behaviour(_dict(document, "behaviour"), finder)
    yield from _servers(models, _dict(document, "behaviour").get("engine"))
    yield from _judges(_list(_dict(document, "judges"), "models"))
    yield from _files(document, finder)
    yield from _probes(_dict(document, "probes"), finder)


def _model(model: dict[str, Any], place: int, finder: Study) -> Iterator[Problem]:
    from interp.organisms.settings import ARCHITECTURES

    here = ("models", place)
    has_baseline, organism = "baseline" in model, model.get("organism")
    if not has_baseline and organism is None:
        yield Problem(
            here, f"has no baseline: expected baseline = PATH, or organism = one of {', '.join(ARCHITECTURES)}"
        )
    if has_baseline and organism is not None:
        yield Problem((*here, "organism"), "a model has a baseline or is an organism, not both")
    if isinstance(organism, str) and organism not in ARCHITECTURES:
        yield Problem((*here, "organism"), f"there is no organism {organism!r}; {suggest(organism, ARCHITECTURES)}")
    if isinstance(model.get("device"), str) and (wrong := _device_error(model["device"])):
        yield Problem((*here, "device"), wrong)
    if isinstance(model.get("baseline"), str):
        yield from _checkpoint(model["baseline"], (*here, "baseline"), finder)
    if organism is None:
        for key in {"seed", "alignment", *CONSTRAINTS} & set(model):
            yield Problem((*here, key), "is only for organisms")
    if "inside" in model and "bounded" in model:
        yield Problem((*here, "bounded"), "an organism's refusal training is inside or bounded, not both")
    if "where" in model and not {"inside", "bounded"} & set(model):
        yield Problem((*here, "where"), "is only with inside or bounded")
    yield from _quantize(model, here, finder)
    cells = [cell for cell in _list(model, "cells") if isinstance(cell, dict)]
    if not cells and not _list(model, "quantize"):
        yield Problem(here, "has no cells: expected [[models.cells]] with a path, or quantize")
    yield from _cells(cells, _list(model, "quantize"), here, finder)


def _quantize(model: dict[str, Any], here: tuple[str | int, ...], finder: Study) -> Iterator[Problem]:
    """What is to be written of a baseline or an organism."""
    from interp.quantize.settings import NAMES

    for number, name in enumerate(_list(model, "quantize")):
        if isinstance(name, str) and name not in NAMES:
            yield Problem((*here, "quantize", number), f"there is no cell {name!r} to write; {suggest(name, NAMES)}")
    baseline, texts = model.get("baseline"), model.get("calibration")
    if _list(model, "quantize") and isinstance(baseline, str) and baseline.endswith(".gguf"):
        do = "give the model from before, or, knowing that it is not that one, what `interp.dequantize` makes of it"
        yield Problem((*here, "quantize"), f"a GGUF cannot be quantized again; {do}")
    if texts is not None and model.get("organism") is not None:
        yield Problem((*here, "calibration"), "is not for organisms, which have texts of their own")
    if isinstance(texts, str) and not os.path.isfile(finder.path(texts)):
        yield Problem((*here, "calibration"), f"{finder.path(texts)} does not exist; expected a file of texts")


def _cells(
    cells: list[dict[str, Any]], written: list[Any], here: tuple[str | int, ...], finder: Study
) -> Iterator[Problem]:
    yield from _repeated(written, "this cell is there twice:", (*here, "quantize"), named=False)
    names = [_name(cell) for cell in cells]
    yield from _repeated(names, "two cells are named", (*here, "cells"))
    for number, (cell, name) in enumerate(zip(cells, names, strict=True)):
        where = (*here, "cells", number)
        problem = name_problem(name) if isinstance(name, str) else ""
        if problem and "name" not in cell:
            yield Problem(where, f"{name!r}, the last part of its path, cannot be its name; give it one with name = …")
        elif problem and re.fullmatch(NAME, name or ""):  # the schema says it of other names
            yield Problem((*where, "name"), problem)
        if name is not None and name in written:
            yield Problem((*where, "name"), f"two cells are named {name!r}; one of them is written by quantize")
        if isinstance(cell.get("path"), str):
            yield from _checkpoint(cell["path"], (*where, "path"), finder)


def _device_error(device: str) -> str:
    import torch

    try:
        torch.device(device)
    except RuntimeError:
        return f"there is no device {device!r}; expected cpu, cuda, cuda:1, mps …"
    return ""


def _name(cell: dict[str, Any]) -> str | None:
    name_or_path = cell.get("name") or cell.get("path")
    return derived_name(name_or_path) if isinstance(name_or_path, str) and "name" not in cell else cell.get("name")


def _checkpoint(path_or_id: str, where: tuple[str | int, ...], finder: Study) -> Iterator[Problem]:
    from interp.hub import HUB_ID

    if is_url(path_or_id):
        yield Problem(where, "is a server; probes look into a model, so give a checkpoint (servers: probes.refusal)")
        return
    local_path = finder.path(path_or_id)
    if not os.path.exists(local_path) and not (local_path == path_or_id and HUB_ID.match(path_or_id)):
        yield Problem(where, f"{local_path} does not exist; expected a directory, a .gguf file or a hub id")


def _prompts(prompts: dict[str, Any], finder: Study) -> Iterator[Problem]:
    from probes.refusal.request_sets import DATASETS, read_set
    from probes.study.step import prompt_source

    for side in ("harmful", "harmless"):
        source = prompts.get(side, side)
        if not isinstance(source, str) or source.startswith(DATASETS):  # nothing is downloaded to check a file
            continue
        try:
            read_set(prompt_source(finder, source))
        except InputError as error:
            yield Problem(("prompts", side), str(error))
    template = prompts.get("template", "auto")
    if isinstance(template, str) and template not in NAMED_TEMPLATES and not os.path.isfile(finder.path(template)):
        yield Problem(
            ("prompts", "template"),
            f"{finder.path(template)} is no file; expected {', '.join(NAMED_TEMPLATES)} or a Jinja file",
        )
    if isinstance(system := prompts.get("system", OWN), str):
        try:
            system_prompt(system, finder.path)
        except InputError as error:
            yield Problem(("prompts", "system"), str(error))


def _behaviour(behaviour: dict[str, Any], finder: Study) -> Iterator[Problem]:
    from probes.refusal.settings import DEFAULT_TASKS, TASKS

    tasks = behaviour.get("tasks", list(DEFAULT_TASKS))
    runner = behaviour.get("runner", DIRECT)
    for number, task in enumerate(tasks if isinstance(tasks, list) else []):
        where = ("behaviour", "tasks", number)
        if task not in TASKS:
            yield Problem(where, f"there is no task {task!r}; {suggest(str(task), TASKS)}")
        elif runner == DIRECT and task not in DEFAULT_TASKS:
            yield Problem(where, f'the task {task} needs runner = "{INSPECT}"')
        elif task in ("truthfulness", "bias") and task not in behaviour:
            yield Problem(where, f"the task {task} has no questions; give a file with {task} = FILE")
    if isinstance(tasks, list) and "refusal" not in tasks:
        yield Problem(("behaviour", "tasks"), "the task refusal is missing; the matrix is about refusals")
    if runner == DIRECT and behaviour.get("engine", "hooked") != "hooked":
        yield Problem(("behaviour", "engine"), f'another engine needs runner = "{INSPECT}"')
    if behaviour.get("engine") != "vllm":
        for key in {"data_parallel", "tensor_parallel", "gpu_memory"} & set(behaviour):
            yield Problem(("behaviour", key), 'is only for engine = "vllm"')
    for task in ("truthfulness", "bias"):
        if isinstance(behaviour.get(task), str) and not os.path.isfile(finder.path(behaviour[task])):
            yield Problem(("behaviour", task), f"{finder.path(behaviour[task])} is no file")


def _servers(models: list[dict[str, Any]], engine: object) -> Iterator[Problem]:
    """Addresses of servers that run a baseline or a cell already."""
    for place, model in enumerate(models):
        cells = [(("cells", number), cell) for number, cell in enumerate(_list(model, "cells"))]
        for where, table in [((), model), *cells]:
            server = table.get("server") if isinstance(table, dict) else None
            here = ("models", place, *where, "server")
            if server is not None and engine != "vllm":
                yield Problem(here, 'is only with [behaviour] engine = "vllm"')
            elif isinstance(server, str) and not is_url(server):
                yield Problem(here, f"{server!r} is no address; expected http://HOST:PORT/v1[#MODEL]")


def _judges(names: list[Any]) -> Iterator[Problem]:
    """Whether they can be names; which of them can be reached is known when they are asked."""
    yield from _repeated(names, "this judge is there twice:", ("judges", "models"), named=False)
    for number, name in enumerate(names):
        if isinstance(name, str) and not re.fullmatch(JUDGE, name):
            yield Problem(
                ("judges", "models", number),
                f"{name!r} is no model of Inspect; expected for example openai-api/SERVICE/MODEL or "
                "quantscope/CHECKPOINT",
            )


def _files(document: dict[str, Any], finder: Study) -> Iterator[Problem]:
    from probes.rtsi.index import RTSI

    calibration = _dict(document, "rtsi").get("calibration")
    if isinstance(calibration, str):
        try:
            RTSI.load(finder.path(calibration))
        except InputError as error:
            yield Problem(("rtsi", "calibration"), str(error))
    template = _dict(document, "judges").get("template")
    if isinstance(template, str) and not os.path.isfile(finder.path(template)):
        yield Problem(("judges", "template"), f"{finder.path(template)} is no file")


def _probes(probes: dict[str, Any], finder: Study) -> Iterator[Problem]:
    from probes.study.steps import BY_NAME, PROBES

    named = probes.get("run", [])
    if not isinstance(named, list):
        yield Problem(("probes", "run"), f"is {named!r:.60}: expected a list of probes")
        named = []
    for number, name in enumerate(named):
        if name not in PROBES:
            yield Problem(("probes", "run", number), f"there is no probe {name!r}; {suggest(str(name), PROBES)}")
    for name, options in probes.items():
        if name == "run":
            continue
        if name not in PROBES:
            yield Problem(("probes", name), f"unknown key; {suggest(name, ('run', *PROBES))}")
        elif not isinstance(options, dict):
            yield Problem(("probes", name), f"expected a table of options, [probes.{name}]")
        else:
            yield from _options(BY_NAME[name].options, name, options, finder)


def _options(known: Any, probe: str, options: dict[str, Any], finder: Study) -> Iterator[Problem]:
    for key, value in options.items():
        where = ("probes", probe, key)
        if key not in known:
            right = suggest(key, known) if known else f"{probe} has no options"
            yield Problem(where, f"unknown key; {right}")
            continue
        try:
            converted = TypeAdapter(known[key].annotation).validate_python(value)
        except ValidationError as error:
            yield Problem(where, f"is {value!r:.60}: {_wrong(error)}")
            continue
        if isinstance(converted, Path) and not os.path.isfile(finder.path(str(converted))):
            yield Problem(where, f"{finder.path(str(converted))} is no file")


_BOUNDS = {"greater_than_equal": "expected at least {ge}", "less_than_equal": "expected at most {le}"}
"""Pydantic's kind of error → what is said of it."""


def _wrong(error: ValidationError) -> str:
    first = error.errors()[0]
    bound = _BOUNDS.get(first["type"])
    return first["msg"] if bound is None else bound.format(**first["ctx"])


def _repeated(names: list[Any], message: str, where: tuple[str | int, ...], named: bool = True) -> Iterator[Problem]:
    counts = Counter(name for name in names if isinstance(name, str))
    seen: set[str] = set()
    for number, name in enumerate(names):
        if isinstance(name, str) and counts[name] > 1:
            if name in seen:
                yield Problem((*where, number, "name") if named else (*where, number), f"{message} {name!r}")
            seen.add(name)


def _dict(table: dict[str, Any], key: str) -> dict[str, Any]:
    value = table.get(key, {})
    return value if isinstance(value, dict) else {}


def _list(table: dict[str, Any], key: str) -> list[Any]:
    value = table.get(key, [])
    return value if isinstance(value, list) else []
