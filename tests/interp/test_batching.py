from __future__ import annotations

import threading
from collections.abc import Sequence

import anyio
import pytest

from interp.generation import Answer
from probes.refusal.request_batcher import Batcher


async def ask(batcher: Batcher, requests: Sequence[tuple[list[int], int]]) -> list[Answer]:
    answers: list[Answer | None] = [None] * len(requests)

    async def one(place: int, prompt: list[int], limit: int) -> None:
        answers[place] = await batcher.submit(prompt, limit)

    async with anyio.create_task_group() as group:
        for place, (prompt, limit) in enumerate(requests):
            group.start_soon(one, place, prompt, limit)
    return [answer for answer in answers if answer is not None]


def test_batches_are_full_sorted_and_answer_their_own_requests() -> None:
    batches: list[tuple[list[int], int]] = []
    all_have_arrived = threading.Event()

    def echo(prompts: Sequence[Sequence[int]], limit: int) -> list[Answer]:
        assert all_have_arrived.wait(60)
        batches.append(([len(prompt) for prompt in prompts], limit))
        return [Answer([*prompt, limit], True) for prompt in prompts]

    async def ask_while_busy() -> list[Answer]:
        batcher = Batcher(echo, 4)
        async with anyio.create_task_group() as group:
            group.start_soon(batcher.submit, [0], 1000)  # the largest limit goes first and shares it with nobody
            await anyio.wait_all_tasks_blocked()

            async def release() -> None:
                await anyio.wait_all_tasks_blocked()
                all_have_arrived.set()

            group.start_soon(release)
            answers = await ask(batcher, requests)
        return answers

    requests = [([place] * (1 + place * 7 % 10), 5 if place % 5 else 9) for place in range(20)]
    answers = anyio.run(ask_while_busy)
    assert [answer.tokens for answer in answers] == [[*prompt, limit] for prompt, limit in requests]
    assert batches.pop(0) == ([1], 1000)
    assert [length for lengths, limit in batches for length in lengths if limit == 5] == sorted(
        (len(prompt) for prompt, limit in requests if limit == 5), reverse=True
    )
    assert [(len(lengths), limit) for lengths, limit in batches] == [(4, 9)] + [(4, 5)] * 4


def test_an_error_reaches_every_request_of_its_batch_and_no_other() -> None:
    def fail_on_long(prompts: Sequence[Sequence[int]], limit: int) -> list[Answer]:
        if len(prompts[0]) > 2:
            raise MemoryError("too long")
        return [Answer([], True) for _ in prompts]

    batcher = Batcher(fail_on_long, 2)

    async def both() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            await ask(batcher, [([1, 1, 1], 1), ([2, 2, 2], 1)])
        assert caught.group_contains(MemoryError)
        assert await ask(batcher, [([3], 1)]) == [Answer([], True)]

    anyio.run(both)


def test_a_request_given_up_is_not_computed() -> None:
    computed: list[int] = []
    release = threading.Event()

    def slow(prompts: Sequence[Sequence[int]], limit: int) -> list[Answer]:
        release.wait(10)
        computed.extend(prompt[0] for prompt in prompts)
        return [Answer([], True) for _ in prompts]

    async def give_up() -> None:
        batcher = Batcher(slow, 1)
        async with anyio.create_task_group() as group:
            group.start_soon(batcher.submit, [1], 1)
            await anyio.sleep(0.1)
            with anyio.move_on_after(0.05):
                await batcher.submit([2], 1)
            release.set()

    anyio.run(give_up)
    assert computed == [1]
