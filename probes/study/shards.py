"""The share of a study's models that one of several workers measures."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from interp.errors import InputError
from probes.study.schema import Study

AUTO = "auto"
_TASK, _COUNT, _FIRST, _STEP = (f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "COUNT", "MIN", "STEP"))


@dataclass(frozen=True)
class Shard:
    """One of several workers that share out the models of a study.

    Attributes:
        number: from 1.
        count: of all shards.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> Shard:
        """What "2/4" means; "auto" is the task of the Slurm array that runs here.

        Raises:
            InputError: neither, or no array's task.
        """
        if text == AUTO:
            return cls._of_array(environment)
        if not re.fullmatch(r"[0-9]{1,6}/[0-9]{1,6}", text):
            raise InputError(f"The shard is {text!r}", f"NUMBER/COUNT, for example 1/4, or {AUTO}")
        number, count = map(int, text.split("/"))
        return cls._checked(number, count, text)

    @classmethod
    def _of_array(cls, environment: Mapping[str, str]) -> Shard:
        told = {name: environment.get(name, "1" if name == _STEP else "") for name in (_TASK, _COUNT, _FIRST, _STEP)}
        if wrong := [f"{name}={value}" for name, value in told.items() if not value.isdecimal() or len(value) > 9]:
            problem = f"This is no task of a Slurm array: {', '.join(wrong)}"
            raise InputError(problem, "numbers there", "Submit it with sbatch --array, or give --shard NUMBER/COUNT")
        task, count, first, step = (int(value) for value in told.values())
        place = (task - first) / max(step, 1)
        return cls._checked(int(place) + 1 if place.is_integer() else 0, count, f"{task} of {first} to … by {step}")

    @classmethod
    def _checked(cls, number: int, count: int, text: str) -> Shard:
        if not 1 <= number <= count:
            raise InputError(f"There is no shard {text!r}", f"a number from 1 to the number of shards ({count})")
        return cls(number, count)

    def models(self, study: Study) -> list[str]:
        """The names of its models: whole ones, so that each baseline is opened by one worker, by numbers of cells."""
        shares: list[list[str]] = [[] for _ in range(self.count)]
        cells = {model.name: len(model.cell_names) for model in study.models}
        for name in sorted(cells, key=lambda name: -cells[name]):
            min(shares, key=lambda share: sum(map(cells.__getitem__, share))).append(name)
        return shares[self.number - 1]

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"
