"""A study on a Ray cluster of two machines, one of which is lost."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from interp import cli
from interp.errors import InputError, MissingExtra
from interp.files import child_search_path, sha256
from probes.study import run as studies
from probes.study.reader import read_study
from probes.study.run import run_study
from probes.study.workers import roster
from tests.study_files import PARTS_OF_EACH, write_models

ROOT = Path(__file__).parents[3]
HERE = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HERE, reason='Ray is not installed: pip install "quantscope[ray]"')


@pytest.mark.skipif(HERE, reason="Ray is installed")
def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"needs the package ray.*quantscope\[ray\]"):
        run_study(read_study(write_models(tmp_path, 1)), tmp_path / "run", ray="auto")


def test_what_a_model_needs_is_no_part_of_what_workers_agree_on(tmp_path: Path) -> None:
    from probes.study.keys import agreement
    from probes.study.step import Asked

    file = write_models(tmp_path, 1)
    study = read_study(file)
    file.write_text(file.read_text().replace('name = "tiny1"', 'name = "tiny1"\nnum_cpus = 4\nnum_gpus = 0.5'))
    larger = read_study(file)
    assert (larger.models[0].num_cpus, larger.models[0].num_gpus) == (4, 0.5)
    assert agreement(larger, Asked.of(larger)) == agreement(study, Asked.of(study))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores, and two machines with one each."""
    from ray.cluster_utils import Cluster

    before = os.environ.get("RAY_USAGE_STATS_ENABLED")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()
    os.environ.pop("RAY_USAGE_STATS_ENABLED") if before is None else os.environ.update(RAY_USAGE_STATS_ENABLED=before)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a study of three models, and what one worker made of it."""
    file = write_models(tmp_path_factory.mktemp("study"), 3)
    studies._report, report = (lambda _: None), studies._report
    run_study(read_study(file), file.parent / "alone")
    studies._report = report
    return file.parent


def tables(run: Path) -> dict[str, str]:
    return {str(file.relative_to(run)): sha256(file) for file in sorted(run.rglob("*.parquet"))}


def started(original: Path, run: Path, cluster: Any) -> subprocess.Popen[bytes]:
    """The command, running."""
    command = [sys.executable, "-m", "probes.study", "run", str(original / "study.toml"), "--out", str(run)]
    environment = os.environ | {"PYTHONPATH": child_search_path(), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "--ray", cluster.address], env=environment, cwd=ROOT, stdout=subprocess.PIPE)


def lose(cluster: Any, pid: int) -> None:
    """Kill the machine that a process runs on."""
    agents = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    (node,) = (node for agent, node in agents.items() if psutil.Process(pid).ppid() == agent)
    cluster.remove_node(node, allow_graceful=False)


@needs_ray
@pytest.mark.slow
def test_a_lost_machine_loses_nothing(original: Path, cluster: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started(original, run, cluster) as ran:
        while ran.poll() is None:
            workers = roster(run)
            at_work = workers[(workers["shard"] == "ray") & (workers["finished"] > 0) & (workers["state"] == "at work")]
            if len(at_work):
                lose(cluster, int(at_work["pid"].iloc[0]))
                break
        ran.communicate(timeout=600)
    assert ran.returncode == cli.Exit.MEASURED
    assert tables(run) == tables(original / "alone")
    workers = roster(run)
    assert sorted(workers["state"].value_counts().to_dict()) == ["finished", "lost"]
    assert workers["finished"].sum() == 3 * PARTS_OF_EACH, "nothing that was finished is measured again"


@needs_ray
@pytest.mark.slow
def test_who_is_told_to_stop_stops_the_cluster_too(original: Path, cluster: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started(original, run, cluster) as ran:
        while ran.poll() is None and not (roster(run)["finished"] > 0).any():
            pass
        ran.send_signal(signal.SIGTERM)
        ran.communicate(timeout=600)
    assert ran.returncode == cli.Exit.REQUEUE
    assert "at work" not in set(roster(run)["state"])


@needs_ray
def test_a_model_that_no_machine_has_room_for(original: Path, cluster: Any, tmp_path: Path) -> None:
    file = original / "large.toml"
    file.write_text((original / "study.toml").read_text().replace('name = "tiny1"', 'name = "tiny1"\nnum_cpus = 64'))
    with pytest.raises(
        InputError, match=r"No machine of the cluster has room for tiny1 \(num_cpus = 64, num_gpus = 0\)"
    ):
        run_study(read_study(file), tmp_path / "run", ray=cluster.address)


@needs_ray
def test_no_cluster(original: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no Ray cluster at 127\.0\.0\.1:1"):
        run_study(read_study(original / "study.toml"), tmp_path / "run", ray="127.0.0.1:1")
