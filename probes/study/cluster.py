"""The models of a study measured on a Ray cluster: a task for each, wherever there is room for it.

A task is a worker like any other (`probes.study.workers`): it claims its model in the run folder, which all machines of
the cluster see, and what it measures is there when it dies. Ray starts the task of a lost machine again on another one.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from interp.cli import Requeue, warn
from interp.errors import InputError
from interp.files import child_search_path
from interp.quantize.cells import need
from probes.study.checkpoints import located
from probes.study.keys import agreement
from probes.study.measuring import Bars, Work, measure_all
from probes.study.reader import parse_study
from probes.study.schema import Model, Study
from probes.study.state import Record, RunFolder, StudyPart, records
from probes.study.step import Asked
from probes.study.workers import AGREED, FOLDER, counted, joined

RETRIES = 10
"""How often a task is started again whose machine was lost."""
POLL = 1.0
"""Seconds between two looks at what the tasks have done."""
CONNECTING = 20.0
"""Seconds in which a cluster answers."""
GRACE = 30.0
"""Seconds that dropped tasks get to release their models."""
_TOLD = ("QUANTSCOPE_CACHE", "HF_HOME", "HF_HUB_OFFLINE")
"""Environment variables of this process that a task has, too."""


def measure_on_cluster(work: Work, address: str) -> dict[StudyPart, Record]:
    """As `probes.study.measuring.measure_all`, by tasks of a cluster; this process tells how far they are.

    Args:
        work: what is to be measured.
        address: of the cluster, as `ray.init` takes it.

    Raises:
        MissingExtra: Ray is not installed.
        InputError: there is no such cluster, or it cannot give a model what the study says.
        Requeue: it was asked to stop, and the parts under way are finished.
    """
    need("ray", "ray", "ray", "Measuring on a cluster")
    places = {model.name: located(work.study, model) for model in work.study.models}
    todo = work.todo(work.folder.begin(work.study, places))
    models = [model for model in work.study.models if model.name in {part.model for part in todo}]
    if models:
        with _connected(address):
            _follow(work, _tasks(work, models), len(todo))
    work.folder.reload()
    return records(work.study, work.folder, {model.name: located(work.study, model) for model in work.study.models})


@contextmanager
def _connected(address: str) -> Iterator[None]:
    import ray

    told = {name: os.environ[name] for name in _TOLD if name in os.environ}
    environment = {"env_vars": {"PYTHONPATH": child_search_path(), **told}}
    try:
        _reach(address)
        with _own_sigterm():
            ray.init(address, runtime_env=environment, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"There is no Ray cluster at {address} ({error})",
            "the address of one that runs, auto, or local",
            "Start one with `ray start --head`",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray takes SIGTERM for a crash of its own; afterwards it means again what it meant before."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if current_thread() is main_thread():
        signal.signal(signal.SIGTERM, before)


def _reach(address: str) -> None:
    """Ray tries for many minutes where nobody listens."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECTING).close()


def _tasks(work: Work, models: Sequence[Model]) -> dict[Any, str]:
    """A running task for each model."""
    import ray

    study = work.study
    told = (study.text, str(study.directory.absolute()), str(work.folder.path.absolute()))
    task, tasks = ray.remote(_measure_there), {}
    for model in models:
        room = {"num_cpus": float(model.num_cpus), "num_gpus": _gpus(model)}
        _check_room(model, room)
        placed = task.options(**room, max_retries=RETRIES, name=model.name)
        tasks[placed.remote(*told, model.name, work.failed_only, str(_stop_file(work)))] = model.name
    return tasks


def _check_room(model: Model, room: Mapping[str, float]) -> None:
    """A task that no machine has room for would wait for ever."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    names = {"num_cpus": "CPU", "num_gpus": "GPU"}
    if not any(all(machine.get(names[key], 0) >= amount for key, amount in room.items()) for machine in machines):
        needed = ", ".join(f"{key} = {amount:g}" for key, amount in room.items())
        raise InputError(f"No machine of the cluster has room for {model.name} ({needed})", "one that has so much")


def _gpus(model: Model) -> float:
    if model.num_gpus is not None:
        return model.num_gpus
    return 1.0 if (model.device or "").startswith("cuda") else 0.0


def _stop_file(work: Work) -> Path:
    """Tells all tasks to end after the part under way."""
    return work.folder.path.absolute() / FOLDER / f"{work.worker.record.owner.id}.stop"


def _follow(work: Work, tasks: Mapping[Any, str], parts: int) -> None:
    """Wait for tasks, and show how many parts are done; whatever ends this drops those under way."""
    bars = Bars()
    try:
        with bars.parts(parts):
            _wait(work, tasks, bars)
    except BaseException:
        _drop(tasks)
        raise
    finally:
        _stop_file(work).unlink(missing_ok=True)


def _wait(work: Work, tasks: Mapping[Any, str], bars: Bars) -> None:
    import ray

    before, done, left = set(counted(work.folder.path)), 0, list(tasks)
    while left:
        ended, left = ray.wait(left, timeout=POLL)
        for task in ended:
            _end(task, tasks[task])
        workers = {name: about for name, about in counted(work.folder.path).items() if name not in before}
        bars.working_on(" · ".join(sorted({model for _, model in workers.values() if model})) or "waiting for a worker")
        now = sum(count for count, _ in workers.values())
        bars.finished(now - done)
        done = now
        if work.stop():
            _stop_file(work).touch()
    if work.stop():
        raise Requeue


def _end(task: Any, model: str) -> None:
    """Tell why a task could not go on; what it lacks is missing from the run."""
    import ray

    try:
        problem = ray.get(task)
    except ray.exceptions.RayError as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        warn(f"{model}: {problem}")


def _drop(tasks: Mapping[Any, str]) -> None:
    import ray

    with suppress(Exception):  # the cluster may be what went wrong
        for task in tasks:
            ray.cancel(task)
        ray.wait(list(tasks), num_returns=len(tasks), timeout=GRACE)


def _measure_there(text: str, directory: str, path: str, model: str, failed_only: bool, stop_file: str) -> str:
    """Measure one model on a machine of the cluster; what kept it from that, or ""."""
    run, stop = Path(path), Path(stop_file)
    if not (run / FOLDER / AGREED).exists():
        return f"the run folder {run} is not on the disk of {socket.gethostname()}: give one that all machines share"
    try:
        study = parse_study(text, Path(directory), f"The study on {socket.gethostname()}")
        _measure_model(study, run, model, failed_only, stop)
    except InputError as error:
        return str(error)
    except Requeue:
        return ""
    return ""


def _measure_model(study: Study, run: Path, model: str, failed_only: bool, stop: Path) -> None:
    with joined(run, agreement(study, Asked.of(study)), "ray", changed=True) as worker:
        measure_all(Work(study, RunFolder.at(run), worker, [model], failed_only, stop.exists, patient=True))
