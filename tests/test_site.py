"""The site of the documentation builds without a warning and shows every public name."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "zensical.toml"
FACES = ["interp", "probes", *(".".join(stub.parts[-3:-1]) for stub in sorted(ROOT.glob("[ip]*/*/__init__.pyi")))]
needs_docs = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("zensical", "mkdocstrings_handlers")),
    reason="the site needs the extra docs: pip install 'quantscope[docs]'",
)


def listed(navigation: Any) -> list[str]:
    """The files of a navigation, in their order."""
    if isinstance(navigation, str):
        return [navigation]
    entries = navigation.values() if isinstance(navigation, dict) else navigation
    return [file for entry in entries for file in listed(entry)]


def home(thing: Any) -> str:
    """Where a function or class is defined."""
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"


def test_every_page_is_in_the_navigation_once() -> None:
    pages = listed(tomllib.loads(CONFIG.read_text(encoding="utf-8"))["project"]["nav"])
    written = sorted(page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md"))
    assert sorted(pages) == written, "a new page gets a line in the `nav` of zensical.toml"


@pytest.mark.parametrize("face", FACES)
def test_every_face_is_on_one_page(face: str) -> None:
    pages = [page.read_text(encoding="utf-8") for page in ROOT.glob("docs/api/*.md")]
    times = sum(len(re.findall(rf"^::: {re.escape(face)}$", page, re.M)) for page in pages)
    assert times == 1, f"a new package gets its line `::: {face}` on a page of docs/api"


@needs_docs
def test_indented_lines_of_a_docstring_are_a_list() -> None:
    from scripts.site_extensions import with_lists

    table = (
        "One row per cell, with columns\n    cell, n_prompts: its name;\n    Δ: a shift,\n        in nats.\nAnd so on."
    )
    assert with_lists(f"What it is.\n\n{table}") == (
        "What it is.\n\nOne row per cell, with columns\n\n"
        "- `cell`, `n_prompts`: its name;\n- Δ: a shift,\n    in nats.\n\nAnd so on."
    )
    for unchanged in ("Args:\n    cell: its name.", "As here:\n\n    >>> measure()", "One line\nand another."):
        assert with_lists(unchanged) == unchanged


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(CONFIG, folder)
    shutil.copytree(ROOT / "docs", folder / "docs")
    for name in ("interp", "probes", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    build = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    finished = subprocess.run(build, cwd=folder, text=True, capture_output=True, env=os.environ | {"NO_COLOR": "1"})
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder / "site"


@needs_docs
@pytest.mark.slow
def test_the_site_shows_every_public_name(site: Path) -> None:
    api = "".join(page.read_text(encoding="utf-8") for page in site.glob("api/*.html"))
    things = {
        f"{face}.{name}": getattr(import_module(face), name) for face in FACES for name in import_module(face).__all__
    }
    shown = [thing for name, thing in things.items() if f'id="{name}"' in api or f'id="{home(thing)}"' in api]
    missing = [name for name, thing in things.items() if not any(thing is other for other in shown)]
    assert not [name for name in missing if not isinstance(things[name], ModuleType)]


@needs_docs
@pytest.mark.slow
def test_shell_blocks_that_are_not_run_are_blocks_of_the_site(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert "sh norun\n" not in page.read_text(encoding="utf-8"), page


@needs_docs
@pytest.mark.slow
def test_the_site_asks_no_other_host_for_anything(site: Path) -> None:
    """It is read without a network, and tells nobody that it is."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe)[^>]*\bsrc="(https?:)?//[^"]*"', text), page
        assert not re.findall(r'<link[^>]*rel="(?:stylesheet|preconnect|icon)"[^>]*href="(https?:)?//[^"]*"', text), (
            page
        )
