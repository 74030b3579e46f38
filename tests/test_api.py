"""`help()` is enough: what users call is typed, and says what its parameters are, what it raises and how it is used."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from types import FunctionType
from typing import Any

import pytest

import interp
from probes.__main__ import PROBES

NAMES = (
    *(f"interp.{name}" for name in interp.__all__),
    "interp.quantize.write_cells",
    "interp.dequantize.export",
    "probes.refusal.ask.ask",
    "interp.generation.complete",
    "interp.reading.ReadsTexts",
    "probes.harness.comparison.Cells",
    "probes.harness.comparison.compare",
    "probes.harness.prompts.PromptSet",
    "probes.harness.prompts.builtin",
    "probes.harness.prompts.read_prompts",
    "probes.harness.results.Result",
    "probes.harness.results.read_result",
    "probes.labels.outcomes.read_outcomes",
    "probes.measurements.Measurements",
    "probes.measurements.MeasuredTable",
    "probes.measurements.measure",
    "probes.refusal.rates",
    "probes.rtsi.RTSI",
    "probes.rtsi.is_refusal",
    "probes.rtsi.refusal_features",
    "probes.reproduce.reproduce",
    "probes.study.read_study",
    "probes.study.run_study",
    *(f"probes.{name}.measure" for name in PROBES if hasattr(import_module(f"probes.{name}"), "measure")),
)
SKLEARN = {"get_params", "set_params", "set_fit_request", "get_metadata_routing", "set_predict_request"}


def thing(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def functions(name: str) -> Iterator[tuple[str, FunctionType]]:
    """A function itself; the public methods and properties of a class."""
    found = thing(name)
    if not inspect.isclass(found):
        yield name, inspect.unwrap(found)
        return
    for attribute, value in vars(found).items():
        function = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
        if isinstance(function, FunctionType) and not attribute.startswith("_") and attribute not in SKLEARN:
            yield f"{name}.{attribute}", inspect.unwrap(function)


PUBLIC = dict(item for name in NAMES for item in functions(name))


def parameters(function: FunctionType) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]


@pytest.mark.parametrize("name", PUBLIC)
def test_typed_and_documented(name: str) -> None:
    function = PUBLIC[name]
    documented = inspect.getdoc(function) or ""
    assert documented, "no docstring"
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty, "no return type"
    for parameter in parameters(function):
        assert parameter.annotation is not inspect.Parameter.empty, f"{parameter.name} has no type"
        assert re.search(rf"\b{parameter.name}\b", documented), f"{parameter.name} is not documented"
    if re.search(r"^\s+raise \w*(InputError|NotFinite)", inspect.getsource(function), re.M):
        assert "Raises:" in documented, "what it raises is not documented"


@pytest.mark.parametrize("name", NAMES)
def test_shows_how_it_is_used(name: str) -> None:
    documented = inspect.getdoc(thing(name)) or ""
    assert ">>> " in documented


def test_help_lists_the_public_names() -> None:
    assert set(interp.__all__) <= set(dir(interp))
    assert all(callable(getattr(interp, name)) for name in interp.__all__)
