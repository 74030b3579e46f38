"""Requests that arrive one by one → batches of similar length.

Inspect's own batcher for transformers waits up to two seconds for stragglers and polls for results every second; here
a batch starts as soon as arrivals pause, and every request is woken by its own batch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread

import anyio
import anyio.from_thread
import anyio.lowlevel

from interp.generation import Answer

LAST_BATCH = 60.0
"""Seconds that the end of the process waits for the batch under way, which its engine was told to stop."""
PAUSE = 0.02
"""Seconds without a new request after which a batch starts although it is not full."""

Generate = Callable[[Sequence[Sequence[int]], int], list[Answer]]
"""Prompts and the largest number of new tokens → answers."""


@dataclass(eq=False)
class _Request:
    prompt: list[int]
    max_new_tokens: int
    token: anyio.lowlevel.EventLoopToken
    answered: anyio.Event = field(default_factory=anyio.Event)
    result: Future[Answer] = field(default_factory=Future)

    def wake(self) -> None:
        with suppress(anyio.RunFinishedError):  # the run was interrupted: nobody waits any more
            anyio.from_thread.run_sync(self.answered.set, token=self.token)


class Batcher:
    """Runs concurrent requests together, in one worker thread.

    Args:
        generate: called in the worker thread with at most `batch_size` prompts, longest first, which share their
            largest number of new tokens.
        batch_size: prompts per call.
    """

    def __init__(self, generate: Generate, batch_size: int) -> None:
        self._generate = generate
        self._batch_size = batch_size
        self._arrivals: SimpleQueue[_Request | None] = SimpleQueue()
        self._thread: Thread | None = None

    async def submit(self, prompt: list[int], max_new_tokens: int) -> Answer:
        """Wait for the answer of one prompt; raises what `generate` raised for its batch."""
        if self._thread is None:
            self._thread = Thread(target=self._work, name="quantscope-batches", daemon=True)
            self._thread.start()
            # Python cannot shut down under a thread that computes: it would abort after Ctrl-C.
            weakref.finalize(self, _finish, self._arrivals, self._thread)
        request = _Request(prompt, max_new_tokens, anyio.lowlevel.current_token())
        self._arrivals.put(request)
        try:
            await request.answered.wait()
        except BaseException:
            request.result.cancel()
            raise
        return request.result.result()

    def close(self) -> None:
        """End the worker thread after the batch it is at."""
        self._arrivals.put(None)

    def _work(self) -> None:
        waiting: list[_Request] = []
        while self._collect(waiting):
            waiting.sort(key=lambda request: (request.max_new_tokens, len(request.prompt)), reverse=True)
            limit = waiting[0].max_new_tokens
            batch = [r for r in waiting[: self._batch_size] if r.max_new_tokens == limit]
            del waiting[: len(batch)]
            self._run([request for request in batch if request.result.set_running_or_notify_cancel()])

    def _collect(self, waiting: list[_Request]) -> bool:
        """Move what has arrived to `waiting`, at least one request; False when closed."""
        try:
            while True:
                enough = len(waiting) >= self._batch_size
                request = self._arrivals.get(timeout=0 if enough else PAUSE) if waiting else self._arrivals.get()
                if request is None:
                    return False
                waiting.append(request)
        except Empty:
            return True

    def _run(self, batch: list[_Request]) -> None:
        if not batch:
            return
        try:
            answers = self._generate([request.prompt for request in batch], batch[0].max_new_tokens)
        except BaseException as error:
            for request in batch:
                request.result.set_exception(error)
        else:
            for request, answer in zip(batch, answers, strict=True):
                request.result.set_result(answer)
        for request in batch:
            request.wake()


def _finish(arrivals: SimpleQueue[_Request | None], thread: Thread) -> None:
    """At the end of the process: let the worker finish the batch it is at; what else waits has been cancelled."""
    arrivals.put(None)
    thread.join(LAST_BATCH)
