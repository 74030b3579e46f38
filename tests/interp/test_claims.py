"""Claims: one process alone has one, whoever races for it, and a dead one's is taken over."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest

from interp import claims

HOLDING = """
import sys, time
from pathlib import Path
from interp import claims

claim = claims.take(Path(sys.argv[1]))
print("held" if claim else "refused", flush=True)
time.sleep(60)
"""


@pytest.fixture(params=["hard links", "no hard links"])
def path(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def unknown(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if request.param == "no hard links":
        monkeypatch.setattr(os, "link", unknown)
    return tmp_path / "work" / "model-a[1].2"


def elsewhere(file: Path, silent: float) -> None:
    """Make a claim one of another machine whose last sign of life is so many seconds ago."""
    file.write_text(json.dumps(json.loads(file.read_text()) | {"host": "elsewhere", "id": "elsewhere-1"}))
    now = file.stat().st_mtime
    os.utime(file, (now - silent, now - silent))


def taken(path: Path) -> claims.Claim:
    claim = claims.take(path)
    assert claim is not None
    return claim


def test_a_claim_is_made_once_and_released(path: Path) -> None:
    with taken(path) as claim:
        assert claims.take(path) is None
        assert claims.holder(path) == claim.owner
        assert str(claim.owner).startswith(f"the process {os.getpid()} on ")
        assert not claim.lost
        assert claims.take(path.with_name("model-a[1].2.3")) is not None, "another name"
    assert claims.holder(path) is None
    taken(path).release()
    assert claims.newest(path) is None


def test_a_killed_process_of_this_machine_holds_nothing(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDING, str(path)], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "held\n"
        assert claims.take(path) is None
        assert claims.holder(path) is not None
        running.send_signal(signal.SIGKILL)
    assert claims.holder(path) is None
    with taken(path):
        assert [file.name for file in path.parent.iterdir()] == [f"{path.name}.2"]


def test_another_process_with_the_same_number_holds_nothing(path: Path) -> None:
    claim = taken(path)
    told = json.loads(claim.file.read_text())
    claim.file.write_text(json.dumps(told | {"born": told["born"] - 1000.0}))
    taken(path).release()
    claim.release()


def test_a_silent_owner_elsewhere_expires(path: Path) -> None:
    claim = taken(path)
    elsewhere(claim.file, claims.EXPIRES - 60)
    assert claims.take(path) is None
    elsewhere(claim.file, claims.EXPIRES + 60)
    assert claims.silence(claim.file) > claims.EXPIRES
    assert claims.holder(path) is None
    with taken(path) as other:
        assert claim.lost
        claim.release()
        assert claims.holder(path) == other.owner, "who comes back late takes nothing away"
        assert not other.lost


def test_whether_an_owner_elsewhere_lives_is_known_from_its_next_sign(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = taken(path)
    elsewhere(claim.file, 30)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            os.utime(claim.file)

    monkeypatch.setattr(claims.time, "sleep", sleep)
    owner = claims.holder(path)
    assert owner is not None
    assert (owner.host, len(slept)) == ("elsewhere", 3)
    claim.release()


def test_an_owner_shows_that_it_lives(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.01)
    with taken(path) as claim:
        os.utime(claim.file, (0, 0))
        while claim.file.stat().st_mtime == 0:
            pass


def test_an_unfinished_claim_is_one_until_it_expires(path: Path) -> None:
    path.parent.mkdir()
    file = path.with_name(f"{path.name}.7")
    file.write_text("")
    assert claims.take(path) is None
    os.utime(file, (0, 0))
    with taken(path) as claim:
        assert claim.file.name == f"{path.name}.8"


def race(path: Path, runners: int = 8) -> list[claims.Claim]:
    """Who of so many has the claim, all starting at once."""
    start = Barrier(runners)

    def run(_: int) -> claims.Claim | None:
        start.wait()
        return claims.take(path)

    with ThreadPoolExecutor(runners) as pool:
        return [claim for claim in pool.map(run, range(runners)) if claim is not None]


@pytest.mark.parametrize("round_", range(5))
def test_one_of_many_has_it(path: Path, round_: int) -> None:
    winners = race(path)
    assert len(winners) == 1
    elsewhere(winners[0].file, claims.EXPIRES + 1)
    heirs = race(path)
    assert len(heirs) == 1
    assert winners[0].lost
    assert not heirs[0].lost
    for claim in (*winners, *heirs):
        claim.release()


def test_who_was_slow_gives_way_to_what_happened_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its look at a dead claim and its own, another took over, and released; a third has one now."""
    dead = taken(path)
    elsewhere(dead.file, claims.EXPIRES + 1)
    link: Callable[[Path, Path], bool] = claims._link
    third: list[claims.Claim] = []

    def slow(draft: Path, file: Path) -> bool:
        if not third:
            monkeypatch.setattr(claims, "_link", link)
            taken(path).release()
            third.append(taken(path))
        return link(draft, file)

    monkeypatch.setattr(claims, "_link", slow)
    assert claims.take(path) is None
    assert claims.holder(path) == third[0].owner
    for claim in (dead, *third):
        claim.release()
    assert not list(path.parent.iterdir())


def test_nothing_happens_twice_at_once(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count() -> None:
        for _ in range(5):
            with claims.held(tmp_path / "turn"):
                counter.write_text(str(int(counter.read_text()) + 1))

    threads = [Thread(target=count) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.read_text() == "30"
