"""The command `python -m probes.refusal`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from interp import cli
from interp.errors import InputError
from probes.harness import tables
from probes.harness.options import Options, with_options
from probes.harness.transport import Patience
from probes.refusal.settings import MAX_NEW_TOKENS, TASKS, EngineName

if TYPE_CHECKING:
    from probes.refusal.subjects import Subject


COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "task": tables.text("task"),
    "n": tables.number("n", "d"),
    "refuses": tables.interval("refusal_rate", ".3f"),
    "openings": tables.number("refusal_rate_study_lexicon", ".3f"),
    "partly": tables.number("n_partial", "d"),
    "degenerate": tables.number("n_degenerate", "d"),
    "score": tables.number("mean_score", ".3f"),
    "tokens": tables.number("mean_tokens", ".1f"),
}


@dataclass(frozen=True)
class Running:
    """What runs the checkpoints.

    Attributes:
        engine: by name.
        like: where tokenizers come from; None for the baseline.
        servers: name of a cell (or of the baseline) → address of a server that runs it already.
        data_parallel: copies of a checkpoint that vLLM starts.
        tensor_parallel: GPUs per copy.
        gpu_memory: share of each GPU's memory that vLLM takes.
    """

    engine: EngineName
    like: str | None = None
    servers: Mapping[str, str] = field(default_factory=dict)
    data_parallel: int = 1
    tensor_parallel: int = 1
    gpu_memory: float | None = None


def subject_of(name: str, path: str, baseline: str, running: Running, options: Options) -> Subject:
    """A server where the path is a URL, else a checkpoint, which takes its tokenizer from `like` or the baseline."""
    from probes.harness.names import is_url
    from probes.refusal.engines import EngineSettings
    from probes.refusal.settings import BATCH_SIZE
    from probes.refusal.subjects import LocalSubject, ServerSubject

    if is_url(path):
        return ServerSubject.at(path, options.chat_template.system)
    like = running.like or (None if path == baseline or is_url(baseline) else baseline)
    settings = EngineSettings(
        path,
        running.engine,
        like,
        options.dtype,
        options.device,
        data_parallel=running.data_parallel,
        tensor_parallel=running.tensor_parallel,
        gpu_memory=running.gpu_memory,
    )
    return LocalSubject(
        settings,
        options.template,
        options.chat_template.system,
        options.batch_size or BATCH_SIZE,
        running.servers.get(name) if running.engine is EngineName.VLLM else None,
    )


def _servers(
    given: Sequence[str], names: Sequence[str], engine: EngineName, baseline_engine: EngineName | None
) -> dict[str, str]:
    """Name of a cell → address.

    Raises:
        InputError: one that names no cell, or is no address; another engine.
    """
    from probes.harness.names import BASELINE, is_url

    servers: dict[str, str] = {}
    for each in given:
        name, _, address = each.partition("=")
        if name not in names or not is_url(address):
            raise InputError(
                f"--server {each} is no address of a cell", f"NAME=http://HOST:PORT/v1, NAME one of {', '.join(names)}"
            )
        servers[name] = address
    others = servers.keys() - ({BASELINE} if baseline_engine is EngineName.VLLM else set())
    if others and engine is not EngineName.VLLM:
        raise InputError("--server is for --engine vllm, which sends it token ids", do="Add --engine vllm")
    return servers


def _check_pairs(baseline: str, cells: Mapping[str, str], force: bool) -> list[str]:
    from interp.checkpoint import open_checkpoint
    from interp.pairs.baseline import baseline_warnings
    from interp.pairs.weight_error import check_pair
    from probes.harness.names import BASELINE, is_url

    doubts = [] if is_url(baseline) else baseline_warnings(open_checkpoint(baseline))
    return [f"{BASELINE}: {warning}" for warning in doubts] + [
        f"{name}: {warning}"
        for name, path in cells.items()
        if not (is_url(path) or is_url(baseline))
        for warning in (*open_checkpoint(path).warnings, *check_pair(baseline, path, force=force))
    ]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@with_options
def main(
    options: Options,
    task: Annotated[
        list[str] | None, typer.Option(metavar="TASK", help=f"One of {', '.join(TASKS)}; give it again for more.")
    ] = None,
    truthfulness: Annotated[
        str | None, typer.Option(metavar="FILE", help="Questions: TruthfulQA.csv or its mc_task.json.")
    ] = None,
    bias: Annotated[str | None, typer.Option(metavar="FILE", help="Questions: a .jsonl file of BBQ.")] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="datasets:NAME[:SPLIT]", help="Harmful requests from a dataset by name.")
    ] = None,
    engine: Annotated[EngineName, typer.Option(help="What runs the cells that are files.")] = EngineName.HOOKED,
    baseline_engine: Annotated[
        EngineName | None, typer.Option(help="What runs the baseline.", show_default="as --engine")
    ] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=URL",
            help="With --engine vllm: a server that runs this cell, or the baseline, already; again for more.",
            show_default="vLLM is started for each",
        ),
    ] = None,
    data_parallel: Annotated[int, typer.Option(min=1, metavar="N", help="Copies of a checkpoint in vLLM.")] = 1,
    tensor_parallel: Annotated[int, typer.Option(min=1, metavar="N", help="GPUs per copy in vLLM.")] = 1,
    gpu_memory: Annotated[
        float | None,
        typer.Option(min=0.01, max=1, metavar="SHARE", help="Of each GPU for vLLM.", show_default="vLLM's own"),
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Compare across engines all the same: the baseline for the cells' engine."),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Take tokenizer and config from here.", show_default="the baseline"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Where an answer is cut.")] = MAX_NEW_TOKENS,
    retries: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of a request that a server does not answer.")
    ] = Patience.retries,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="For one answer of a server, its queue included.")
    ] = Patience.timeout,
    determinism: Annotated[bool, typer.Option(help="Ask the baseline twice.")] = True,
) -> None:
    """Answers of every cell to harmful, harmless and wrapped requests, labelled.

    A path may be the URL of an OpenAI-compatible server, http://HOST:PORT/v1[#MODEL].
    """
    from probes.harness.names import BASELINE, CONTROL
    from probes.harness.options import cell_paths, check_writable
    from probes.labels.label import Label
    from probes.labels.refused import counted_by
    from probes.refusal.controls import again, notes
    from probes.refusal.probe import baseline_notes, build_tasks, measure, rates
    from probes.refusal.run import BehaviourRun
    from probes.refusal.settings import BATCH_SIZE, DEFAULT_TASKS

    check_writable(options.out)
    paths = cell_paths(options.quantized)
    harmful = prompts or str(options.harmful or "harmful")
    questions = {name: path for name, path in (("truthfulness", truthfulness), ("bias", bias)) if path is not None}
    tasks = build_tasks(
        task or (*DEFAULT_TASKS, *questions), harmful, str(options.harmless or "harmless"), options.limit, questions
    )
    batch_size = options.batch_size or BATCH_SIZE
    names = [BASELINE, *paths, *([] if control is None else [CONTROL])]
    places = _servers(server or [], names, engine, baseline_engine)
    running = Running(engine, like, places, data_parallel, tensor_parallel, gpu_memory)
    subject = partial(subject_of, baseline=options.baseline, running=running, options=options)
    base = subject(BASELINE, options.baseline, running=replace(running, engine=baseline_engine or engine))
    patience = Patience(retries, timeout=timeout)
    run = BehaviourRun(options.out, tasks, max_tokens, connections=4 * batch_size, patience=patience)
    with cli.resumable(run.keeps_answers):
        result = measure(
            base,
            {name: subject(name, path) for name, path in paths.items()},
            run,
            control=None if control is None else subject(CONTROL, control),
            repeat=again(base) if determinism else None,
            warnings=_check_pairs(options.baseline, paths, options.force),
        )
    files = result.write(options.out)
    if options.as_json:
        typer.echo(result.to_json())
    else:
        cell_rates = rates(result.table)
        title = f"What the cells do: refusals by the {counted_by(cell_rates)}, beside the study's openings"
        for note in baseline_notes(cell_rates):
            cli.console.print(f"{note}.", markup=False, highlight=False)
        cli.console.print(tables.render(title, cell_rates, COLUMNS))
        for note in notes(result.settings):
            cli.console.print(note, highlight=False)
    for warning in result.warnings:
        cli.warn(warning)
    cli.ending(files, [["probes.drift", options.out, "--baseline", BASELINE], ["probes.report", options.out]])
    of_cells = result.table[~result.table["cell"].isin([BASELINE, CONTROL])]
    if (of_cells["label"] == Label.UNSCORED).all():
        raise typer.Exit(cli.Exit.NOTHING_MEASURED)


if __name__ == "__main__":
    cli.run(app)
