"""Put questions to a judge, any model that Inspect can reach: at temperature 0, with retries, and nothing twice."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import anyio

from interp.errors import InputError
from interp.redaction import redact, without_known_keys
from interp.thinking import split_thinking
from probes.harness.event_loop import outside_notebook, without_loop
from probes.harness.server_replies import one_line
from probes.harness.transport import UNSCORED, GaveUp, guard, patiently
from probes.judges.settings import Patience
from probes.judges.template import JudgeTemplate, parse_verdict, sha256_of
from probes.judges.verdict_store import JudgeVerdict, VerdictKey, VerdictStore
from probes.labels.label import Label

if TYPE_CHECKING:
    from inspect_ai.model import Model


@dataclass(frozen=True)
class JudgedResponse:
    """A response to be judged."""

    request: str
    response: str


@dataclass(frozen=True)
class Judgement:
    """What came of one item.

    Attributes:
        label: the verdict; unscored where the judge gave none that can be read.
        text: what the judge said.
        notes: how what it was shown differs from the response.
    """

    label: Label
    text: str
    notes: list[str]


class Judge:
    """A judge that remembers.

    Args:
        model: its name for Inspect, such as "openai-api/local/llama" or "quantscope/checkpoints/fp16", or a model.
        template: the question.
        store: of its verdicts.
        patience: how it is asked.

    Raises:
        InputError: no such model, or its key, package or checkpoint is missing.
    """

    def __init__(
        self, model: str | Model, template: JudgeTemplate, store: VerdictStore, patience: Patience | None = None
    ) -> None:
        self.model = open_model(model) if isinstance(model, str) else model
        self.template = template
        self.store = store
        self.patience = patience or Patience()
        guard(self.model, self.patience.timeout)
        self.name = judge_name(self.model)
        self.identity = judge_identity(self.model)

    def judge(self, items: Sequence[JudgedResponse], done: Callable[[], object] = lambda: None) -> list[Judgement]:
        """Verdicts in the order of the items; those in the store are not asked for again.

        Args:
            items: responses, with their requests.
            done: called after each.

        Raises:
            InputError: the judge kept failing. What it said before is in the store.
        """
        return without_loop(lambda: anyio.run(self._judge, items, done))

    async def _judge(self, items: Sequence[JudgedResponse], done: Callable[[], object]) -> list[Judgement]:
        counts = Counter(items)  # the same response twice is asked about once
        judgements: dict[JudgedResponse, Judgement] = {}
        failures: list[GaveUp] = []
        limiter = anyio.CapacityLimiter(self.patience.connections)

        async def one(item: JudgedResponse) -> None:
            async with limiter:
                if failures:
                    return
                try:
                    judgements[item] = await self._judge_one(item)
                except GaveUp as stopped:
                    failures.append(stopped)
            for _ in range(counts[item]):
                done()

        async with anyio.create_task_group() as tasks:
            for item in counts:
                tasks.start_soon(one, item)
        if failures:
            known = sum(counts[item] for item in judgements)
            raise InputError(
                f"The judge {self.name} failed: {failures[0]}",
                "a model that answers",
                f"{known} of {len(items)} responses are judged and kept in {self.store.path}: when it answers "
                "again, run the same command to go on",
            )
        return [judgements[item] for item in items]

    async def _judge_one(self, item: JudgedResponse) -> Judgement:
        question = self.template.ask(item.request, item.response)
        key = VerdictKey(self.identity, self.template.sha256, sha256_of(item.request), sha256_of(item.response))
        verdict = self.store.get(key)
        if verdict is None:
            text = (await self._ask(question.text)).encode("utf-8", "replace").decode()
            verdict = JudgeVerdict(_label(text), text)
            self.store.put(key, verdict)
        return Judgement(_label(verdict.text), verdict.text, question.notes)

    async def _ask(self, question: str) -> str:
        # Inspect's providers, and the packages under them, raise whatever a server's reply makes them stumble over.
        return await patiently(lambda: self._generate(question), self.patience, failures=(Exception,))

    async def _generate(self, question: str) -> str:
        """The judge's answer; where its server did not let it answer, the reason, which holds no verdict."""
        from inspect_ai.model import GenerateConfig

        config = GenerateConfig(temperature=0, max_tokens=self.patience.max_tokens, max_retries=0)
        output = await self.model.generate(question, config=config)
        if output.error:
            raise RuntimeError(output.error)
        return without_known_keys(str((output.metadata or {}).get(UNSCORED) or output.completion))


def _label(text: str) -> Label:
    """The verdict of a judge's answer; its reasoning, where a server leaves it in, holds none.

    Stored answers are read anew, so that a verdict which an older parser could not read is not lost.
    """
    return parse_verdict(split_thinking("", text).answer)


def open_model(name: str) -> Model:
    """A model by its Inspect name.

    Raises:
        InputError: as `Judge`.
    """
    from inspect_ai._util.error import PrerequisiteError
    from inspect_ai.model import get_model

    try:
        with outside_notebook():
            return get_model(name, memoize=False)
    except PrerequisiteError as error:
        message = re.sub(r"\[/?[a-z ]+\]", "", str(error.message)).replace("ERROR: ", "")
        raise InputError(
            redact(f"The judge {name} cannot be used: {one_line(message)}"),
            do="Set the variable (to anything for a server that asks for no key), or install the package",
        ) from None
    except InputError:
        raise
    except (ValueError, ImportError) as error:
        raise InputError(
            redact(f"There is no judge {name!r}: {one_line(str(error))}"),
            "a model of Inspect, such as openai-api/SERVICE/MODEL (with SERVICE_BASE_URL and SERVICE_API_KEY in the "
            "environment) or quantscope/CHECKPOINT",
        ) from None


def judge_name(model: Any) -> str:
    """What identifies a judge in tables and in the store: its Inspect name and its server's address, no credentials."""
    url = getattr(model.api, "base_url", None)
    if not url:
        return str(model)
    parts = urlsplit(str(url))
    return f"{model} at {urlunsplit((parts.scheme, parts.netloc.rpartition('@')[2], parts.path, '', ''))}"


def judge_identity(model: Any) -> str:
    """What the store knows a judge by: a checkpoint's content, so that other weights in its place are asked anew.

    Any other model is known by `judge_name` alone: which weights a server runs under a name, it does not say.
    """
    api = model.api
    return api.identity() if hasattr(api, "identity") else judge_name(model)
