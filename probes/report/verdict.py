"""The first screen: which cells lost refusals while quality held, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from probes.harness.engine_marks import sentence
from probes.harness.names import BASELINE
from probes.labels.baseline import little_to_lose
from probes.labels.moved import COLUMN as DISAGREE
from probes.matrix.regimes import LOST_ELSEWHERE, MORE_PROMPTS, QUALITY_OF_OWN
from probes.report import tradeoff
from probes.report.formatting import bounds, cut, joined, number, percent, plural, points
from probes.report.losses import Loss, LossKind
from probes.report.run import Run

FEW = 10
"""Cells shown at once; of more, the quiet ones are folded away."""
NAMED = 4
"""Cells named in one sentence."""
LEAST = (-0.13, 0.07)
"""Ends of the drawn axis, at least, as fractions."""


@dataclass(frozen=True)
class Verdict:
    """What the first screen says.

    Attributes:
        kind: the worst that a cell did.
        title: one sentence.
        sentences: what is behind it.
        advice: what to do.
    """

    kind: LossKind
    title: str
    sentences: list[str]
    advice: str


def build(run: Run) -> dict[str, Any]:
    """The verdict and the cells to show, the worst first."""
    all_losses = run.losses
    loud = [loss for loss in all_losses if loss.kind < LossKind.QUIET]
    shown = all_losses if len(all_losses) <= FEW else all_losses[: max(FEW, len(loud))]
    return {
        "verdict": verdict(run, all_losses),
        "picture": tradeoff.picture(run, all_losses),
        "shown": shown,
        "folded": all_losses[len(shown) :],
        "axis": DeltaAxis.around(all_losses),
        "paired": all(loss.paired for loss in all_losses),
        "threshold": run.rule.refusal_loss,
        "facts": _facts(run, all_losses),
        "counted_by": run.counted_by,
    }


def verdict(run: Run, found: list[Loss]) -> Verdict:
    """The sentences of the first screen from every cell's loss."""
    if not found:
        title = "No quantized cell was measured"
        return Verdict(LossKind.QUIET, title, ["The matrix holds baselines only."], "Measure a quantized copy.")
    kinds = list(LossKind)[:-1]
    danger, drift, small, blind, unknown = ([loss for loss in found if loss.kind == kind] for kind in kinds)
    sentences = [_told(loss) for loss in (*danger, *drift)[:NAMED]]
    if len(danger) + len(drift) > NAMED:
        sentences.append(f"The other {len(danger) + len(drift) - NAMED} are in the table.")
    if small:
        sentences.append(
            f"{_names(small)} lost fewer than {percent(-run.rule.refusal_loss)} points, but more than chance explains."
        )
    if blind:
        sentences.append(_blind(blind))
    if unknown:
        sentences.append(f"{_names(unknown)} could not be measured.")
    if not danger and not drift:
        sentences += [_largest(found), *_power(found)]
    sentences += [sentence(loss.name, loss.engines) + "." for loss in found if loss.engines]
    sentences += _disagreements(found)
    title = "; ".join([*_little_to_lose(run), _title(found, danger, drift)])
    return Verdict(found[0].kind, title, sentences, _advice(run, found))


def _little_to_lose(run: Run) -> list[str]:
    """Which baselines refuse next to nothing, said before everything else."""
    rows = run.matrix[run.matrix["cell"] == BASELINE]
    called = [
        f"The baseline of {cut(row['model'], 40)}" if run.several else "The baseline" for _, row in rows.iterrows()
    ]
    counts = (rows["refusal_rate"] * rows["n_total"]).round()  # undefined where no answer was scored
    notes = [little_to_lose(n, of, name) for name, n, of in zip(called, counts, rows["n_total"], strict=True)]
    return [sentence for sentence in notes if sentence]


def _blind(blind: list[Loss]) -> str:
    """Which cells' prompts cannot tell, and how many would do."""
    needed = max(int(loss.row["prompts_needed"]) for loss in blind)
    enough = f"About {needed} would do." if needed else "No number of prompts would do."
    changes = "; ".join(f"{loss.name} {_with(loss.refusals)}" for loss in blind[:NAMED])
    return (
        f"Whether {_names(blind)} lost refusals cannot be told with these {max(loss.n for loss in blind)} prompts "
        f"({changes} points). {enough}"
    )


def _disagreements(all_losses: list[Loss]) -> list[str]:
    """Where refusals and their openings changed differently."""
    told = [(loss.name, loss.row.get(DISAGREE)) for loss in all_losses]
    sentences = [f"{name}: {words}." for name, words in told if isinstance(words, str) and words]
    more = (
        [f"Of {plural(len(sentences) - NAMED, 'more cell')} the matrix says the like."]
        if len(sentences) > NAMED
        else []
    )
    return sentences[:NAMED] + more


def _title(all_losses: list[Loss], danger: list[Loss], drift: list[Loss]) -> str:
    if all(loss.kind == LossKind.UNKNOWN for loss in all_losses):
        return "No cell could be measured"
    blind = sum(loss.kind == LossKind.UNRESOLVED for loss in all_losses)
    if blind == len(all_losses):
        return "Cannot tell with these prompts whether refusals were lost"
    if not _quality_known(all_losses):
        return _title_without_quality(all_losses, drift)
    unknown = sum(np.isnan(loss.quality.value) for loss in drift)
    more = "more " if danger else ""
    beside = {
        f"{more}lost refusals together with quality": len(drift) - unknown,
        f"{more}lost refusals, quality not known": unknown,
    }
    if danger:
        title = f"{len(danger)} of {plural(len(all_losses), 'cell')} lost refusals while quality held"
    else:
        title = f"No cell {'is known to have ' if unknown else ''}lost refusals while its quality held"
    untold = [f"of {blind} these prompts cannot tell"] if blind else []
    return "; ".join([title, *(f"{count} {what}" for what, count in beside.items() if count), *untold])


def _quality_known(all_losses: list[Loss]) -> bool:
    """Whether the change of quality is known of any cell."""
    return any(not np.isnan(loss.quality.value) for loss in all_losses)


def _title_without_quality(all_losses: list[Loss], drift: list[Loss]) -> str:
    """How many lost refusals, and of how many of the others these prompts cannot tell."""
    blind = [loss for loss in all_losses if loss.kind == LossKind.UNRESOLVED]
    others = len(all_losses) - len(drift)
    count = f"{len(drift)} of {plural(len(all_losses), 'cell')}" if drift else "No cell"
    whose = {0: "", 1: "its "}.get(len(drift), "their ")
    title = f"{count} lost refusals; {whose}quality was not measured"
    if not blind:
        return title
    rest = "the other" if others == 1 else "the others" if len(blind) == others else f"{len(blind)} of the others"
    return f"{title}. Of {rest if drift else len(blind)}, {max(loss.n for loss in blind)} prompts cannot tell"


def _told(loss: Loss) -> str:
    row = loss.row
    before = row["refusal_rate"] - loss.refusals.value
    quality = "quality is not known" if np.isnan(loss.quality.value) else _quality(loss)
    return (
        f"{loss.name} refuses {percent(row['refusal_rate'])} % of {loss.n} harmful prompts instead of "
        f"{percent(before)} % ({_with(loss.refusals)} points); {quality}."
    )


def _quality(loss: Loss) -> str:
    """The change of quality; of a model without references, by how much its answers and tokens are others."""
    change = f"quality {_with(loss.quality)} points"
    if loss.row.get("quality_metric") != QUALITY_OF_OWN:
        return change
    return (
        f"{change} against the baseline's own answers (KL {number(loss.row['kl_mean'], '.3f')} nats a token, "
        f"{percent(loss.row['top1_flips'])} % of the likeliest tokens are others)"
    )


def _with(interval: Any) -> str:
    return f"{points(interval.value)} {bounds(interval)}".strip()


def _largest(all_losses: list[Loss]) -> str:
    known = [loss for loss in all_losses if not np.isnan(loss.refusals.value)]
    if not known:
        return "How refusals changed is not known for any cell."
    worst = min(known, key=lambda loss: loss.refusals.value)
    if worst.refusals.value >= 0:
        return "No cell refuses fewer harmful prompts than its baseline."
    return f"The largest drop is {_with(worst.refusals)} points ({worst.name}; 95 % interval)."


def _power(all_losses: list[Loss]) -> list[str]:
    """What these prompts could have shown, which is what "no loss" is worth."""
    detectable = [loss.detectable for loss in all_losses if not np.isnan(loss.detectable)]
    if not detectable:
        return []
    counts = sorted({loss.n for loss in all_losses if loss.n})
    prompts = f"{counts[0]} prompts" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} prompts"
    return [
        f"With {prompts}, the smallest loss that would have been found in 4 of 5 tries is "
        f"{percent(min(detectable), 1)} points"
        + (f" (up to {percent(max(detectable), 1)}, depending on the cell)" if _differ(detectable) else "")
        + ". A smaller one can be there unseen."
    ]


def _differ(values: list[float]) -> bool:
    return percent(min(values), 1) != percent(max(values), 1)


def _advice(run: Run, all_losses: list[Loss]) -> str:
    rejected = [loss for loss in all_losses if str(loss.row["action"]).startswith("reject")]
    review = [loss for loss in all_losses if loss.row["action"] == "manual_review"]
    floor = [loss for loss in all_losses if loss.row["action"] == "conservative_floor_candidate"]
    direct = [loss for loss in all_losses if loss.row["action"] == "direct_safety_eval"]
    more = [loss for loss in all_losses if loss.row["action"] == MORE_PROMPTS]
    sentences = []
    if rejected:
        sentences.append(f"Do not deploy {_names(rejected)}.")
    if review:
        sentences.append(f"Read the completions of {_names(review)}: the rule and the judge disagree.")
    if floor:
        level = _levels(floor, rejected) if len(floor) > NAMED else _names(floor)
        sentences.append(f"To deploy one, test {level}, with your own prompts and a judge first.")
    if more:
        sentences.append(f"Ask {_names(more)} more prompts before deciding.")
    if direct:
        sentences += _direct(direct)
    if not rejected:
        sentences.insert(0, "Nothing has to be rejected on this evidence, and nothing is cleared by it.")
    return " ".join(sentences)


def _levels(floor: list[Loss], rejected: list[Loss]) -> str:
    """The candidates as a range of bits, unless a cell in that range is rejected."""
    lowest = min(floor, key=_bits)
    marked = f"the {len(floor)} cells marked Candidate"
    if any(_bits(lowest) <= _bits(loss) < np.inf for loss in rejected):
        return marked
    return f"{marked}, from {lowest.cell} ({number(_bits(lowest), '.2f')} bits per weight) upwards"


def _direct(direct: list[Loss]) -> list[str]:
    """Which cells to evaluate directly: those whose format did harm elsewhere apart."""
    by_reason: dict[str, list[Loss]] = {}
    for loss in direct:
        elsewhere = str(loss.row.get("action_reason", "")).startswith(LOST_ELSEWHERE)
        by_reason.setdefault(LOST_ELSEWHERE if elsewhere else "no rule decides", []).append(loss)
    return [f"Evaluate {_names(cells)} directly: {reason}." for reason, cells in by_reason.items()]


def _bits(loss: Loss) -> float:
    bits = float(loss.row.get("bits_per_weight", np.nan))
    return np.inf if np.isnan(bits) else bits


def _names(cell_losses: list[Loss]) -> str:
    names = [loss.name for loss in cell_losses]
    return joined(names if len(names) <= NAMED + 1 else [*names[:NAMED], f"{len(names) - NAMED} more"])


def _facts(run: Run, all_losses: list[Loss]) -> list[tuple[str, str, str]]:
    """(number, unit, what it is) for the row of figures."""
    quality_known = _quality_known(all_losses)
    worst_kinds = (LossKind.DANGER,) if quality_known else (LossKind.DANGER, LossKind.DRIFT)
    what = "lost refusals while quality held" if quality_known else "lost refusals; quality was not measured"
    count = sum(loss.kind in worst_kinds for loss in all_losses)
    known = [loss for loss in all_losses if not np.isnan(loss.refusals.value)]
    facts = [(str(count), f"of {plural(len(all_losses), 'cell')}", what)]
    if known:
        worst = min(known, key=lambda loss: loss.refusals.value)
        facts.append((points(worst.refusals.value), "points", f"largest change of refusals, {worst.name}"))
    detectable = [loss.detectable for loss in all_losses if not np.isnan(loss.detectable)]
    if detectable:
        facts.append((percent(min(detectable), 1), "points", "smallest loss that these prompts could have shown"))
    references = run.matrix[run.matrix["cell"] == BASELINE]
    if len(references):
        rates = references["refusal_rate"]
        rate = " to ".join(dict.fromkeys([percent(rates.min()), percent(rates.max())]))
        asked = f"of {int(references['n_total'].max())} harmful prompts refused by the "
        facts.append((rate, "%", asked + ("baseline" if len(rates) == 1 else "baselines")))
    return facts


@dataclass(frozen=True)
class DeltaAxis:
    """Where a difference of rates lies in a drawing.

    Attributes:
        low, high: the differences at both ends, fractions.
    """

    low: float
    high: float

    @classmethod
    def around(cls, found: list[Loss]) -> DeltaAxis:
        """Wide enough for every interval."""
        ends = [end for loss in found for end in (*loss.refusals[:3], *loss.quality[:3]) if not np.isnan(end)]
        return cls(min([LEAST[0], *(1.03 * end for end in ends)]), max([LEAST[1], *(1.03 * end for end in ends)]))

    def at(self, delta: float) -> float:
        """Per cent of the drawing's width."""
        return round(100 * (delta - self.low) / (self.high - self.low), 2)
