"""What several tests of studies need."""

from __future__ import annotations

import sys

import pytest

from interp import cli
from probes.study import __main__ as study_command
from tests.study_files import Invoke


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs a command of `probes.study` and returns its exit code; what would end the process raises SystemExit."""
    monkeypatch.setattr(cli, "_leave", sys.exit)

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["study", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.run(study_command.app)
        return int(exit_.value.code or 0)

    return run
