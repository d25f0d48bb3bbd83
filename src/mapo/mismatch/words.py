"""What the numbers of a mismatch mean: a table, sentences, and where a set lies on the scale of the study."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mapo.errors import count
from mapo.mismatch.denoising import Errors, Gap
from mapo.mismatch.mismatch import Mismatch
from mapo.statistics import MIN_PAIRS, MIN_PROMPTS, Interval
from mapo.texts import finite, write_json

FORMAT, VERSION = "mapo-mismatch", 1
SCALE = Path(__file__).with_name("scale.toml")
Estimate = tuple[float, float, float]  # value, low and high of the 95 % interval


@dataclass(frozen=True)
class Domain:
    """A domain of the study: its measured mismatch and how the objectives did there.

    ``best`` has the highest score, with its ``settings``; ``level`` cannot be told from it, ``worse`` is surely worse.
    ``base`` among them is the model before training.
    """

    name: str
    distance: Estimate
    encoder: str
    version: str
    revision: str
    relative_gap: Estimate
    pairs: int
    best: str
    level: list[str] = field(default_factory=list)
    worse: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


def read_scale(path: Path = SCALE) -> list[Domain]:
    """The domains that the study has measured; none where there is no study yet."""
    entries = tomllib.loads(path.read_text("utf-8")).get("domain", []) if path.is_file() else []
    return [
        Domain(**{**entry, "distance": tuple(entry["distance"]), "relative_gap": tuple(entry["relative_gap"])})
        for entry in entries
    ]


def write_mismatch(found: Mismatch, out: Path, scale: Sequence[Domain] | None = None) -> list[str]:
    """Write the numbers and what they mean to ``out``; the lines to print. ``scale``: default, that of the package."""
    says = sentences(found, read_scale() if scale is None else scale)
    head = {"format": FORMAT, "version": VERSION, "says": says, "conclusive": found.conclusive}
    write_json(out, finite(head | asdict(found)))
    return [*table(found), "", *says]


# ------------------------------------------------------------------ the table


def table(found: Mismatch) -> list[str]:
    """The numbers for a terminal, a row each, with their 95 % intervals."""
    d, e = found.distances, found.errors
    head = (
        f"{found.num_pairs} of {count(found.of_pairs, 'pair')} of the split {found.split}, "
        f"{count(found.num_prompts, 'prompt')}; "
        f"own samples at seed {', '.join(map(str, found.seeds))}"
    )
    rows = [("", "chosen", "rejected", "own samples")]
    if d is not None:
        rows.append((f"distance ({d.encoder})", _number(d.chosen, 3), _number(d.rejected, 3), _number(d.floor, 3)))
    rejected = e.rejected.error if e.rejected else None
    rows.append(("denoising error", _number(e.chosen.error, 4), _number(rejected, 4), _number(e.own, 4)))
    for name, errors in [("gap to own samples", e), *((f"  timesteps {b.first}-{b.last}", b) for b in found.bins)]:
        rows.append((name, _share(errors.chosen), _share(errors.rejected), ""))
    rows.append(("margin (rejected - chosen)", _number(e.margin, 4, sign=True), "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["   ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [head, "", *lines]


def _number(value: Interval | None, digits: int, sign: bool = False) -> str:
    if value is None:
        return "-"
    style = f"{'+' if sign else ''}.{digits}f"
    return f"{value.value:{style}}{_ends(value.low, value.high, style)}"


def _share(gap: Gap | None) -> str:
    if gap is None:
        return "-"
    value, low, high = (100 * x for x in (gap.relative.value, gap.relative.low, gap.relative.high))
    return f"{value:+.1f} %{_ends(low, high, '+.1f')}"


def _ends(low: float, high: float, style: str) -> str:
    """The ends of an interval, where the data give any."""
    return f" [{low:{style}}, {high:{style}}]" if math.isfinite(low) and math.isfinite(high) else ""


# ------------------------------------------------------------------ the sentences


def sentences(found: Mismatch, scale: Sequence[Domain]) -> list[str]:
    """What the numbers say, and what they do not."""
    notes = [f"Note: {note}" for note in found.notes]
    if not found.conclusive:
        few = f"{count(found.num_pairs, 'pair')} of {count(found.num_prompts, 'prompt')}"
        alone = " One prompt alone gives no intervals." if found.num_prompts == 1 else ""
        return [f"Nothing can be concluded from {few}: it takes {MIN_PAIRS} and {MIN_PROMPTS}.{alone}", *notes]
    told = [*_on_distance(found), *_on_errors(found.errors)]
    return [*told, *_on_choice(found, scale), *notes]


def _on_distance(found: Mismatch) -> list[str]:
    d = found.distances
    if d is None:
        return []
    if d.floor is None or d.excess is None:
        return ["Distance: one seed gives no yardstick; it takes two own samples of each prompt (--seeds 1000-1001)."]
    if not d.excess.conclusive:
        return ["Distance: the chosen pictures are not measurably further from the model's own than these are apart."]
    if d.excess.value < 0:
        return ["Distance: the chosen pictures are closer to the model's own samples than these to each other."]
    if not d.floor.value:
        return ["Distance: the chosen pictures differ from the model's own, which do not differ from each other."]
    times = f"{d.chosen.value / d.floor.value:.1f} times"
    from_each_other = "as far from the model's own samples as these are from each other"
    return [f"Distance: the chosen pictures are {times} {from_each_other}."]


def _on_errors(errors: Errors) -> list[str]:
    said = ["Denoising error: " + _on_gap("chosen", errors.chosen)]
    if errors.rejected is not None and errors.margin is not None:
        said.append("Denoising error: " + _on_gap("rejected", errors.rejected))
        if not errors.margin.conclusive:
            said.append("Margin: before training neither side can be told to be denoised better.")
        else:
            better, worse = ("chosen", "rejected") if errors.margin.value > 0 else ("rejected", "chosen")
            said.append(f"Margin: before training the {better} pictures are denoised better than the {worse} ones.")
    return said


def _on_gap(side: str, gap: Gap) -> str:
    if not gap.relative.conclusive:
        return f"the {side} pictures cannot be told from the model's own samples."
    way = "higher" if gap.relative.value > 0 else "lower"
    value, *ends = (100 * abs(x) for x in (gap.relative.value, gap.relative.low, gap.relative.high))
    by = f"{value:.1f} % [{min(ends):.1f}, {max(ends):.1f}]"
    return f"{way} for the {side} pictures than for the model's own samples, by {by}."


# ------------------------------------------------------------------ the scale of the study


def _on_choice(found: Mismatch, scale: Sequence[Domain]) -> list[str]:
    """Between which domains of the study the set lies, and what won there. Only like is compared with like."""
    if not found.usual:
        why = "the own samples were made otherwise than the model advises, and the study's scale as it advises"
        return [f"Objective and β: {why}, so nothing is said about them."]
    if scale and not found.on_scale:
        why = "no scale of this model is known, and that of the study is of the built-in mini"
        return [f"Objective and β: {why}, so nothing is said about them."]
    d = found.distances
    places: list[tuple[str, Interval, list[tuple[Domain, Estimate]]]] = []
    if d is not None:
        key = (d.encoder, d.version, d.revision)
        same = [(x, x.distance) for x in scale if (x.encoder, x.version, x.revision) == key]
        places.append(("distance", d.chosen, same))
    places.append(("relative gap", found.errors.chosen.relative, [(x, x.relative_gap) for x in scale]))
    told, named = [], dict[str, Domain]()
    for what, value, domains in places:
        if domains:
            words, near = _place(value, domains)
            told.append(f"Study: by its {what} the set lies {words}.")
            named |= {domain.name: domain for domain in near}
    if not told:
        return ["Objective and β: there is no study yet to compare this mismatch with, so nothing is said about them."]
    told += [f"Study: {_winner(domain)}." for domain in named.values()]
    return [
        *told,
        "The scale is that of the built-in world (docs/study.md): of other models and pictures it says little.",
    ]


def _place(value: Interval, domains: Sequence[tuple[Domain, Estimate]]) -> tuple[str, list[Domain]]:
    """Where an interval lies among those of the domains, in words, and the domains that were named."""
    ordered = sorted(domains, key=lambda pair: pair[1][0])
    below = [d for d, (_, _, high) in ordered if high < value.low][-1:]
    above = [d for d, (_, low, _) in ordered if low > value.high][:1]
    like = [d for d, (_, low, high) in ordered if high >= value.low and low <= value.high]
    if like:
        words = f"about as far as {_list([d.name for d in like])}"
    elif below and above:
        words = f"between {below[0].name} and {above[0].name}"
    else:
        words = f"above {below[0].name}, the highest" if below else f"below {above[0].name}, the lowest"
    return words, like or [*below, *above]


def _winner(domain: Domain) -> str:
    """How the objectives did in a domain; what cannot be told apart is not ranked."""
    where = f"in {domain.name}, with {domain.pairs:,} pairs,"
    if "base" in [domain.best, *domain.level]:
        worse = f"; {_list(domain.worse)} did worse than the best" if domain.worse else ""
        return f"{where} no objective was surely better than the untrained model{worse}"
    settings = ", ".join(f"{key} = {value:g}" for key, value in domain.settings.items())
    best = domain.best + (f" ({settings})" if settings else "")
    worse = _list([name for name in domain.worse if name != "base"])
    if domain.level:
        alike = f"{where} {best} had the highest score, and {_list(domain.level)} cannot be told from it"
        return alike + (f"; {worse} did worse" if worse else "")
    return f"{where} {best} won" + (f" over {worse}" if worse else "")


def _list(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
