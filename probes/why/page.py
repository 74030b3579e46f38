"""A cell explained on one page of text."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from typing import Any

import pandas as pd

from probes.harness.names import BASELINE
from probes.labels.refused import BROADER
from probes.stats.intervals import ALPHA, Estimate, interval_of
from probes.why.blame import Blame, labelled
from probes.why.explanation import Explanation
from probes.why.keep_list import KeepList
from probes.why.margin_shift import MarginShift
from probes.why.rewriting import KEPT, PLAIN
from probes.why.rivals import Rival

SHOWN = 6
"""Linears of the attribution."""
WIDTH = 100


def page(found: Explanation, variants: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page.

    Args:
        found: about the cell.
        variants: rows of `probes.why.rewriting.measure_variants`, if the cell was written again.
    """
    sections = {
        f"WHY {found.cell}": _moved(found.margin),
        "Which explanation fits": _explained(found.rivals),
        "Which linears did it": _blamed(found.blame),
        "What putting them back gives": _restored(found),
        "What to keep at higher precision": _kept(found.keep),
        **({"Written again with that list": _rewritten(variants)} if variants else {}),
        "How sure this is": _sure(found, variants),
    }
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections.items())


def _moved(margin: MarginShift) -> Iterator[str]:
    yield (
        f"The refusal margin of {margin.n} harmful prompts, the log-odds (nats) of starting a refusal, is "
        f"{margin.before.value:+.2f} in the baseline"
    )
    yield f"and {margin.after.value:+.2f} in the cell: it moved by {_interval(margin.shift)}. {_size(margin)}"
    yield (
        f"On {margin.to_answer} of them it fell below 0, even odds, and on {margin.to_refusal} it rose above (what is "
        f"refused, answers say); on harmless prompts it moved by {_interval(margin.harmless_shift)}."
    )


def _size(margin: MarginShift) -> str:
    if margin.within_chance:
        return "That is within chance."
    return "A refusal is less likely to begin." if margin.shift.value < 0 else "A refusal is more likely to begin."


def _explained(rivals: Sequence[Rival]) -> Iterator[str]:
    yield "The measurement is asked first; a verdict says what would have spoken, or did speak, against it."
    for rival in rivals:
        number = "" if isnan(rival.value.value) else f"{rival.evidence}: {_amount(rival.value)}. "
        null = f"Null: {rival.null}. " if rival.null and number else ""
        yield f"- {rival.explanation}: {rival.verdict.upper()}, {rival.why}"
        if number:
            yield f"    {number.rstrip()}"
            yield f"    {null}Against it would be {rival.falsified_by}."


def _blamed(blame: Blame) -> Iterator[str]:
    total = blame.total
    yield (
        f"Shares of the shift of {blame.n} harmful prompts ({total['shift']:+.3f}), nats; all parts add up to "
        f"{total['attribution']:+.3f}."
    )
    shares = blame.modules["attribution"]
    yield (
        f"Pushes towards answering add up to {shares[shares < 0].sum():+.3f}, towards refusing to "
        f"{shares[shares > 0].sum():+.3f}."
    )
    yield "z: against errors of the same sizes with random signs."
    for _, row in blame.modules[:SHOWN].iterrows():
        interval = interval_of(row, "attribution")
        yield f"{labelled(row):<24} {_interval(interval, 3):<26} z {row['z']:+.1f}"
    rest = blame.modules["attribution"][SHOWN:]
    if len(rest):
        yield f"{f'the other {len(rest)}':<24} {rest.sum():+.3f}"


def _restored(explanation: Explanation) -> Iterator[str]:
    yield (
        f"Share of the shift that comes back on {explanation.margin.n} {'other ' if explanation.held_out else ''}"
        "harmful prompts when the baseline's weights are put into the cell."
    )
    restoration = explanation.restoration
    if not restoration.shares:
        reason = restoration.linears["reason"].iloc[0].removeprefix("no share: ")
        yield f"There is no share: {reason}. Gains in nats instead:"
    unit = "share" if restoration.shares else "gain"
    yield f"{'linears':>7}  {'by attribution':<22} {'by size of error':<17} {'random':<8} p of attribution"
    by_error = restoration.by("weight_error").set_index("k")
    for _, row in restoration.by("attribution").iterrows():
        value = interval_of(row, unit)
        random = f"{row[f'random_{unit}']:+.2f}" if row["draws"] else "–"
        p = f"{row['p']:.2f}" if row["draws"] else "–"
        yield f"{row['k']:>7}  {_interval(value):<22} {by_error.loc[row['k'], unit]:<+17.2f} {random:<8} {p}"


def _kept(keep: KeepList) -> Iterator[str]:
    if not keep.kept:
        yield f"Nothing: {keep.choice.why}. More prompts may show a shift; --keep N gives a list all the same."
        return
    cost = "" if isnan(keep.bits) else f": {keep.bits:.2f} → {keep.kept_bits:.2f} bits per weight"
    top_linears, n = keep.choice.linears, len(keep.kept)
    yield f"{n} linear{'s' * (n != 1)} in float16{cost}."
    yield f"Why so many: {keep.choice.why}."
    yield from (f"- {name}{'' if name in top_linears else ' (completes a group)'}" for name in keep.kept)
    options = keep.forms["llama_cpp_options"]
    assert isinstance(options, list)
    yield f"GPTQModel       dynamic={json.dumps(keep.forms['gptqmodel_dynamic'])}"
    yield f"llm-compressor  ignore={json.dumps(keep.forms['llm_compressor_ignore'])}"
    yield f"llama-quantize  {' '.join(map(shlex.quote, options))}"
    yield f"Runtimes that fuse q, k and v, or gate and up (vLLM), need such a group kept whole: {_groups(keep)}."


def _groups(keep: KeepList) -> str:
    """Whether the list splits groups, and what it would cost to complete them."""
    missing = len(keep.whole) - len(keep.kept)
    if not missing:
        return "here they are"
    bits = "" if isnan(keep.whole_bits) else f", {keep.whole_bits:.2f} bits per weight"
    return f"--fused adds the {missing} missing here ({len(keep.whole)} linears{bits})"


def _rewritten(variants: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    shares = any(not isnan(row["share"]) for row in variants if row["variant"] == KEPT)
    unit = "share" if shares else "gain"
    yield (f"{'':<10} {'bits':>5}  {'margin':<21} {f'{unit} that came back':<22} {'refuses':<20} over-refuses")
    for row in variants:
        bits = "" if isnan(row["bits_per_weight"]) else f"{row['bits_per_weight']:.2f}"
        gain = "" if row["variant"] in (BASELINE, PLAIN) else _interval(interval_of(row, unit))
        yield (
            f"{row['variant']:<10} {bits:>5}  {_interval(interval_of(row, 'margin')):<21} {gain:<22} "
            f"{_percent(interval_of(row, 'refusal_rate')):<20} {_percent(interval_of(row, 'over_refusal_rate'))}"
        )
    kept_row = next(row for row in variants if row["variant"] == KEPT)
    random = [row["gain"] for row in variants if row["variant"].startswith("random")]
    if random:
        yield (
            f"The list gains {_interval(interval_of(kept_row, 'gain'))} nats of margin, random linears of its number "
            f"and sizes {min(random):+.2f} to {max(random):+.2f} (p = {kept_row['p']:.2f} of {len(random)} lists)."
        )
        yield from _smallest_p(len(random))
    yield (
        f"Of {kept_row['n_prompts']} prompts it refuses {kept_row['refusals_gained']} that the plain cell answers, and "
        f"answers {kept_row['refusals_lost']} that it refuses. Counted by: {BROADER}."
    )


def _smallest_p(n: int) -> Iterator[str]:
    """What so few random lists cannot show."""
    if 1 / (1 + n) > ALPHA:
        enough = round(1 / ALPHA) - 1
        yield (
            f"{n} random list{'s' * (n != 1)} cannot give a p below {1 / (1 + n):.2f}: --sets {enough} can reach "
            f"{ALPHA:g}."
        )


def _sure(explanation: Explanation, variants: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if explanation.margin.within_chance:
        yield "- The shift is within chance on these prompts: nothing has to be acted upon."
    gap = abs(explanation.blame.total["gap"])
    state = "complete" if explanation.blame.complete else "NOT complete: allow more steps"
    yield f"- The attribution misses {gap:.1e} of the shift after {explanation.blame.steps} steps ({state})."
    clear = int((explanation.blame.modules["p"] < ALPHA).sum())
    yield (
        f"- {clear} of {len(explanation.blame.modules)} parts have shares beyond errors with random signs "
        f"(p < {ALPHA:g}; {ALPHA * len(explanation.blame.modules):.0f} expected by chance)."
    )
    if explanation.keep.kept:
        yield f"- {_list_is(explanation)}"
    if explanation.keep.kept and not variants:
        yield "- A cell written with this list may differ from one with weights put back: the rest is fitted anew."
    yield (
        "- Margins are of how an answer begins: one that refuses in other words than the baseline's counts as "
        "answering. Whether it is refused in the end, only answers show."
    )


def _list_is(explanation: Explanation) -> str:
    """What the random lists say of the chosen one."""
    curve = explanation.restoration.by("attribution")
    p = curve.loc[curve["k"] == len(explanation.keep.choice.linears), "p"] if "p" in curve else pd.Series(dtype=float)
    if not len(p) or not p.iloc[0] <= ALPHA:
        return "The list is a guess: it is not shown to do more than random linears of the same sizes."
    if not explanation.held_out:
        return "The list does more than random ones, on the prompts that it was chosen by, which flatters it."
    if not explanation.keep.choice.supported:
        return (
            "The list moves the margin more than random ones of its sizes do, but there is no loss that it gives back."
        )
    caveat = "" if explanation.keep.given else "; its length was chosen on these, which flatters the share and p"
    return (
        "The list gives back more than random ones when it is exchanged, on prompts that its order does not come from"
        f"{caveat}."
    )


def _interval(value: Estimate, digits: int = 2) -> str:
    if isnan(value.value):
        return "–"
    bounds = "" if isnan(value.low) else f" [{value.low:+.{digits}f}, {value.high:+.{digits}f}]"
    return f"{value.value:+.{digits}f}{bounds}"


def _amount(value: Estimate) -> str:
    """A count where it is one, else a number with its interval."""
    return f"{value.value:.0f}" if isnan(value.low) and value.value.is_integer() else _interval(value)


def _percent(value: Estimate) -> str:
    return f"{value.value:.0%} [{value.low:.0%}, {value.high:.0%}]"
