"""From intervals to words: which number is the headline, what may be said about it, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mapo.errors import count
from mapo.report.evidence import PEOPLE, PREFERENCE, PROMPT_FOLLOWING, Comparison, Guard
from mapo.score.scorers import FLAWS
from mapo.statistics import EVEN, MIN_PAIRS, MIN_PROMPTS, Interval

THIN, MINUS, DASH = "\u202f", "\u2212", "\u2013"


@dataclass(frozen=True)
class Verdict:
    """One sentence, what it rests on, and ``call``: better, worse, or undecided."""

    sentence: str
    detail: str
    call: str
    headline: Comparison | None


def judge(
    comparisons: Sequence[Comparison], goal: str | None, left_out: tuple[int, int] = (0, 0), shows: str = ""
) -> Verdict:
    """What can be said about the goal, which is what people prefer where there are votes and no goal was named.

    Of several scorers that did not make the training pairs (as far as was said) the most cautious speaks, so that no
    scorer is picked for its answer; where their calls contradict each other there is none. A flaw is the goal only
    where it was named. ``left_out``: how many prompts were trained on and take no part, and of how many. ``shows`` is
    said in place of a verdict where no goal was named, as what was to be learned is nothing that a scorer knows.
    """
    metrics = {c.metric for c in comparisons}
    only = PREFERENCE if PREFERENCE in metrics else next(iter(metrics)) if len(metrics) == 1 else None
    if not goal and (said := _without_goal(comparisons, only, shows)):
        return said
    metric = goal.removeprefix("-") if goal else only or ""
    heard = [c for c in comparisons if c.metric == metric]
    free = [c for c in heard if not c.made_pairs] or heard
    headline = min(free, key=_caution)
    win, word = headline.win, metric.replace("_", " ") + (" (lower is better)" if headline.lower_is_better else "")
    numbers = f"{percent(win.value)} of {count(win.pairs, 'pair')}"
    bounds = f"95{THIN}% interval {span(win, True)}"
    calls = {c.win.value > EVEN for c in free if c.win.conclusive}
    if len(calls) > 1:
        seen = "; ".join(f"{c.scorer} sees after win {percent(c.win.value)}" for c in free)
        return Verdict(f"The scorers disagree on {word}, so no winner is called: {seen}.", "", "undecided", headline)
    if win.pairs < MIN_PAIRS or win.prompts < MIN_PROMPTS:
        call = "undecided"
        wanted = f"a verdict takes {MIN_PAIRS} pairs from {MIN_PROMPTS} prompts"
        sentence = (
            f"Nothing can be concluded on {word}: {_count(win)} are too few, {wanted}. After wins "
            f"{percent(win.value)} ({bounds})."
        )
        if left_out[0]:
            few = str(win.prompts) if win.prompts < MIN_PROMPTS else _count(win)
            sentence = (
                f"{left_out[0]} of {count(left_out[1], 'prompt')} {'was' if left_out[0] == 1 else 'were'} "
                f"trained on and {'is' if left_out[0] == 1 else 'are'} left out; {few} are too few to "
                f"compare: {wanted}. On {word} after wins {percent(win.value)} ({bounds})."
            )
    elif not win.conclusive:
        call = "undecided"
        sentence = f"No difference can be called on {word}: after wins {numbers}, and the {bounds} covers 50{THIN}%."
    elif win.value > EVEN:
        call, sentence = "better", f"After beats before on {word}: it wins {numbers} ({bounds})."
    else:
        call, sentence = "worse", f"After is worse than before on {word}: it wins only {numbers} ({bounds})."
    detail = _detail(headline, free, heard)
    people = next((c for c in comparisons if c.scorer == PEOPLE and c is not headline), None)
    return Verdict(sentence, f"{detail} {_beside(people, call)}" if people else detail, call, headline)


def _without_goal(comparisons: Sequence[Comparison], only: str | None, shows: str) -> Verdict | None:
    """What is said where no goal was named; None where the metric that is ``only`` one can be the goal."""
    if shows and only != PREFERENCE:
        detail = f"{_conclusive(comparisons)} No scorer knows what was to be learned; --goal names a metric to go by."
        return Verdict(shows, detail, "undecided", None)
    if (metrics := {c.metric for c in comparisons}) <= FLAWS:
        return Verdict(
            "No goal was named, and nothing at hand knows better or worse, so no winner is called.",
            f"What was scored ({_listed(metrics)}) looks for flaws alone. Score by a scorer of quality too, or let "
            f"people judge. Where fewer flaws are what training was for, say --goal=-{min(metrics)}.",
            "undecided",
            None,
        )
    if only is None:
        return Verdict(
            "No goal was named, so no winner is called.",
            f"{_conclusive(comparisons)} Name the metric that training was for with --goal; to choose it after seeing "
            "them would be to choose the answer.",
            "undecided",
            None,
        )
    return None


def _conclusive(comparisons: Sequence[Comparison]) -> str:
    clear = sum(c.win.conclusive for c in comparisons)
    exclude = "excludes" if clear == 1 else "exclude"
    return f"{clear} of {count(len(comparisons), 'win rate')} below {exclude} 50{THIN}%."


def _beside(people: Comparison, call: str) -> str:
    """What people said where the verdict is about a scorer's metric."""
    win = people.win
    told = f"{percent(win.value)} of {_count(win)}, {span(win, True)}"
    if not win.conclusive:
        return f"People, asked blindly, are not clearly of either opinion: after wins {told}."
    if (call, win.value > EVEN) in (("better", False), ("worse", True)):
        return f"People, asked blindly, say otherwise: after wins {told}."
    return f"People, asked blindly: after wins {told}."


def told_by(people: Comparison) -> str:
    """Who the people were, in sentences, without names."""
    panel = people.panel
    assert panel, "the comparison is one of people"
    who = "one person" if len(panel.shares) == 1 else f"{len(panel.shares)} people"
    words = [
        f"{count(panel.votes, 'vote')} by {who} on {len(people.pairs)} of "
        f"{count(len(people.pairs) + people.missing, 'pair')}, blind."
    ]
    words.append(
        f"{count(panel.ties, 'tie')} and {count(panel.both_bad, 'time')} both bad count half; {panel.skipped} "
        "skipped do not count."
    )
    if len(panel.shares) == 1:
        words.append("The interval is over prompts: it says nothing about other people.")
    else:
        each = ", ".join(f"{percent(share)} of {count(votes, 'vote')}" for votes, share in panel.shares[:8])
        more = f" and {len(panel.shares) - 8} more" if len(panel.shares) > 8 else ""
        words.append(
            f"Where several judged a pair their votes are averaged. Each by themselves gave after {each}{more}. "
            "The interval is over prompts, for these people: others may see it otherwise."
        )
    return " ".join(words)


def _listed(metrics: Collection[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in sorted(metrics))


def _caution(comparison: Comparison) -> float:
    """How far an interval keeps from 50 %, negative when it covers it."""
    win = comparison.win
    return max(win.low - EVEN, EVEN - win.high) if win.conclusive else -1 + abs(win.value - EVEN)


def _detail(headline: Comparison, free: Sequence[Comparison], heard: Sequence[Comparison]) -> str:
    win = headline.win
    who = PEOPLE + " who did not know which was which" if headline.panel else headline.scorer
    said = f"By {who}, from {count(win.prompts, 'prompt')}; ties count half."
    if headline.made_pairs:
        return f"{said} It is also the judge that made the training pairs, so it is not independent evidence."
    if len(free) > 1:
        part = " that had no part in making the training pairs" if len(free) < len(heard) else ""
        said += f" It is the most cautious of {len(free)} scorers{part}."
    others = [c for c in heard if c is not headline]
    if others:
        said += " " + "; ".join(
            f"{c.scorer}{' (made the pairs)' if c.made_pairs else ''}: {percent(c.win.value)}, {span(c.win, True)}"
            for c in others
        )
        said += "."
    return said


def followed(comparison: Comparison) -> str:
    """One sentence on how well prompts are followed before and after."""
    c = comparison
    change = f"{signed(c.difference, c.rate)} (95{THIN}% interval {span(c.difference, c.rate, sign=True)})"
    values = f"{number(c.before, c.rate, places(c))} before and {number(c.after, c.rate, places(c))} after"
    values += based_on(c)
    name = c.scorer if c.metric == PROMPT_FOLLOWING else f"{c.scorer} ({c.metric.replace('_', ' ')})"
    if not c.difference.conclusive and not c.difference.value:
        return f"{name}: {values}. No difference was seen: {change}."
    if not c.difference.conclusive:
        return f"{name}: {values}. The difference, {change}, may be chance."
    return f"{name}: {values}. Prompts are followed {'better' if c.difference.value > 0 else 'worse'}: {change}."


def based_on(comparison: Comparison) -> str:
    """On how many pairs a number rests, where some have none."""
    c = comparison
    return f", on {len(c.pairs)} of {count(len(c.pairs) + c.missing, 'pair')}" if c.missing else ""


def _count(win: Interval) -> str:
    return f"{count(win.pairs, 'pair')} from {count(win.prompts, 'prompt')}"


# ------------------------------------------------------------------ numbers


def score(value: float, comparison: Comparison) -> str:
    """One picture's score: yes or no, or a number with as many decimals as the mean difference is known to."""
    return ("no", "yes")[int(value)] if comparison.rate else _minus(value, max(1, decimals(comparison.difference)))


def percent(share: float) -> str:
    """A share as per cent with one decimal."""
    return f"{_minus(100 * share, 1)}{THIN}%"


def decimals(interval: Interval) -> int:
    """How many decimals of a real number are worth printing: two digits of the interval's width."""
    width = interval.high - interval.low
    scale = width if math.isfinite(width) and width > 0 else abs(interval.value) / 100
    return min(6, max(0, 1 - math.floor(math.log10(scale)))) if scale > 0 else 0


def places(found: Comparison | Guard) -> int:
    """How many decimals before and after are both written with."""
    return max(decimals(found.before), decimals(found.after))


def number(interval: Interval, rate: bool, places: int | None = None) -> str:
    """The estimate alone, as per cent for a rate."""
    return percent(interval.value) if rate else _minus(interval.value, decimals(interval) if places is None else places)


def signed(interval: Interval, rate: bool) -> str:
    """A difference with its sign, in points for a rate."""
    value = _minus(100 * interval.value, 1, True) if rate else _minus(interval.value, decimals(interval), True)
    return f"{value} points" if rate else value


def span(interval: Interval, rate: bool, sign: bool = False, places: int | None = None) -> str:
    """The interval's two ends."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return "unknown"
    scale, digits = (100, 1) if rate else (1, decimals(interval) if places is None else places)
    ends = [_minus(scale * end, digits, sign) for end in (interval.low, interval.high)]
    return (" to " if sign else DASH).join(ends) + ("" if sign or not rate else f"{THIN}%")


def _minus(value: float, places: int, sign: bool = False) -> str:
    text = f"{value:+.{places}f}" if sign else f"{value:.{places}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)
