"""Where things stand: the rules of docs/extending.md's Layout, read from the imports of every file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from probes.__main__ import MODULES as COMMANDS
from probes.__main__ import PROBES

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for package in ("interp", "probes")
    for file in (ROOT / package).rglob("*.py")
}
LAYERS = (
    ("interp",),
    ("probes.stats",),
    ("probes.harness",),
    ("probes.entropy", "probes.direction", "probes.neurons", "probes.geometry", "probes.labels", "probes.reversion"),
    ("probes.calibration", "probes.quality", "probes.refusal", "probes.margin", "probes.matrix"),
    ("probes.judges", "probes.rtsi", "probes.attribution", "probes.fragility", "probes.depth"),
    ("probes.drift", "probes.predict", "probes.causal", "probes.coverage"),
    ("probes.why", "probes.report", "probes.check"),
    ("probes.reproduce",),
    ("probes.study",),
    ("probes.measurements", "probes.demo", "probes.real", "probes.__main__"),
)
"""A file may import what stands in its own folder or in a layer above its own in this list."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]
HEAVY = ("torch", "transformers", "pandas", "numpy", "scipy", "sklearn", "statsmodels", "inspect_ai", "matplotlib")


def imports(name: str) -> Iterator[str]:
    """The modules of ours that a file imports, at its top or late; what only a type checker reads does not count."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in for_types:
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield from {module if module in MODULES else node.module} & set(MODULES)


IMPORTS = {name: set(imports(name)) for name in MODULES}


def folder(name: str) -> str:
    return ".".join(name.split(".")[:2]) if name.startswith("probes") else "interp"


def layer(name: str) -> int:
    return next(position for position, names in enumerate(LAYERS) if folder(name) in names)


def test_files_import_each_other_in_no_circle() -> None:
    list(TopologicalSorter(IMPORTS).static_order())


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"probes"}))
def test_nothing_is_imported_upward(name: str) -> None:
    upward = [other for other in IMPORTS[name] if folder(other) != folder(name) and layer(other) >= layer(name)]
    assert not upward
    assert not [other for other in IMPORTS[name] if other.endswith("__main__") and folder(other) != folder(name)]


def test_a_command_is_a_folder_of_its_name() -> None:
    for name in set(PROBES) - {"demo"}:
        assert {f"probes.{name}", f"probes.{name}.__main__"} <= set(MODULES)


def test_every_folder_is_in_the_layout() -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    layout = set(re.findall(r"[a-z_]+", text.partition("## Layout")[2].partition("```")[2].partition("```")[0]))
    assert not {name.split(".")[1] for name in MODULES if name.count(".") > 1} - layout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_import_from_faces(page: Path) -> None:
    faces = {name for name, file in MODULES.items() if file.name == "__init__.py"}
    named = set(re.findall(r"\b(?:from|import) ((?:interp|probes)(?:\.\w+)*)", page.read_text(encoding="utf-8")))
    assert named <= faces


def _loaded(code: str) -> set[str]:
    """Which heavy packages are loaded after running the code in a new interpreter."""
    printing = f"{code}\nimport sys\nprint(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", printing], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "name",
    ["interp", "probes", *(f"{module}.__main__" for module in COMMANDS.values() if module != "probes.demo")],
)
def test_help_loads_nothing_heavy(name: str) -> None:
    assert not _loaded(f"import {name}")


@pytest.mark.parametrize(
    "code",
    [
        "from probes.rtsi import RTSI, is_refusal, refusal_features",
        "import probes.stats.correlations",
        "import interp.inspect.headers",
        "import probes.matrix.cells",
        "import probes.rtsi.validation",
        "import probes.drift.probe",
        "import probes.reproduce.recompute",
        "import probes.labels.errors",
        "import probes.predict.probe",
        "import probes.study.summary",
        "import probes.rtsi.rows",
        "import probes.report.files",
        "import probes.check.gate, probes.check.junit, probes.check.screen, probes.check.stored",
    ],
)
def test_what_works_on_tables_loads_no_torch(code: str) -> None:
    assert "torch" not in _loaded(code)
