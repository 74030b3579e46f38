"""Shared fixtures. jaxtyping annotations of our own packages are enforced with beartype while tests run."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from tests import SHARED

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: two threads wait for each other more than they compute
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network should fail, not download
install_import_hook(["interp", "probes"], "beartype.beartype")
settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


@cache
def real_model() -> Path:
    """Where the real model lies, if it is there; imported late, so that the hook above sees every module."""
    from interp.files import cache_directory
    from interp.real_model import MEMBER

    return cache_directory() / "models" / Path(MEMBER).name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the real model or a GPU their tests are skipped; nothing is downloaded by a test."""
    for item in items:
        if item.get_closest_marker("real") and not real_model().exists():
            item.add_marker(pytest.mark.skip(reason=f"{real_model().name} is not in the cache: run `make test-real`"))
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not _has_gpu():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="this machine, or its PyTorch, has no CUDA"))


def pytest_collection_finish() -> None:
    """What is imported by now stays, and is not searched for garbage again and again."""
    gc.collect()
    gc.freeze()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many tests of the real model and of GPUs were not run, so that neither is taken for tested."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "real" in report.keywords]
    if skipped:
        missing = f"{real_model().name} is not in the cache (`make test-real` puts it there)"
        terminalreporter.write_line(f"{len(skipped)} tests of the real model were not run: {missing}")
    if on_gpu := [report for report in terminalreporter.stats.get("skipped", []) if "gpu" in report.keywords]:
        terminalreporter.write_line(f"{len(on_gpu)} tests on a GPU were not run: there is none here")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference material beside the project; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference material at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def fixtures(shared: Path) -> Path:
    """Tiny checkpoints written by the real quantizers."""
    return shared / "fixtures"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name in `tests.tiny_models.CONFIGS` → a checkpoint directory of that tiny random model, float32, written once."""
    from tests.tiny_models import write

    return cache(lambda name: write(name, tmp_path_factory.mktemp("tiny") / name))


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine any command may take the half minute after which it says how far it is."""
    from interp import progress

    monkeypatch.setattr(progress, "EVERY", 1e6)


@pytest.fixture(scope="session")
def organism() -> Path:
    """The default organism: trained once (minutes), then taken from the user's cache."""
    from interp.organisms.training import train

    return train()
