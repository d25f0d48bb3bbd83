"""What can be wrong with a set, a function per subject. Each gives findings; what is all right gives none.

An **error** is something that training would get wrong or could not read. A **warning** is something that is wrong in
most sets but may be meant in this one. A **note** is good to know.

What makes the set whole is asked of all rows: pictures and prompts that can be read, two pictures in a pair, splits
that share nothing. What a model would learn is asked of the rows that training sees: sizes, lengths of prompts, labels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from mapo.check.leak import FEW_PROMPTS, MARGIN, Leak, Together
from mapo.check.pictures import ANIMATED, LATENTS, MISSING, UNREADABLE, PictureTable, difference
from mapo.check.rows import Finding, Flags, Integers, Rows, find, quote
from mapo.encode.buckets import nearest
from mapo.encode.seen import View, excess_tokens
from mapo.errors import count

ALIKE = 2.0  # grey levels of 255
NAMES = {
    "jpeg_quality": "JPEG quality", "bytes": "file size", "bytes_per_pixel": "bytes per pixel", "alpha": "transparency",
    "exif": "EXIF data", "rotated": "EXIF rotation",
}  # fmt: skip


def check_files(rows: Rows, pictures: PictureTable) -> list[Finding]:
    """Pictures that are not there, damaged or animated; how the others are stored."""
    found = pictures.found
    state = found["state"]

    def tell(i: int) -> str:
        bad = [f"{side}: {pictures.why[k]}" for side, places in rows.sides if (k := int(places[i])) in pictures.why]
        return f"{quote(rows.texts[i])} {'; '.join(bad)}"

    def kind(name: str, code: int, says: str) -> list[Finding]:
        bad = state == code
        remedy = "Make or import the set again, leaving these pictures out."
        return find(name, "error", _either(rows, bad), says, remedy, tell, pictures=f"{int(bad.sum()):,}")

    findings = kind("missing", MISSING, "Pictures that the set names but does not have: {pictures} in {n}.")
    findings += kind("unreadable", UNREADABLE, "Unreadable pictures: {pictures} in {n}.")
    findings += kind("animated", ANIMATED, "Animated pictures: {pictures} in {n}; training takes still ones.")
    other = pictures.read & ~np.isin(found["mode"], ("RGB", "RGBA"))
    modes = ", ".join(
        f"{mode} {n:,}" for mode, n in zip(*np.unique(found["mode"][other], return_counts=True), strict=True)
    )
    for name, bad, says in (
        ("latents_only", state == LATENTS, "Kept as latents only, so not looked at: {n}."),
        ("rotated", found["rotated"], "Stored on their side, turned upright by EXIF when read: {n}."),
        ("alpha", found["alpha"], "Transparent, laid on white when read: {n}."),
        ("mode", other, f"Not stored as RGB, converted when read: {{n}} ({modes})."),
    ):
        if bad.any():
            findings.append(Finding(name, "note", says.format(n=count(int(bad.sum()), "picture"))))
    used = np.zeros(len(found), bool)
    used[rows.chosen] = used[rows.rejected] = True
    if not used.all():
        findings.append(Finding("unused", "note", f"In no pair: {count(int((~used).sum()), 'picture')}."))
    return findings


def check_sizes(rows: Rows, pictures: PictureTable, view: View | None) -> list[Finding]:
    """The two pictures of a pair differ in size; pictures smaller than the model works at."""
    size = [(pictures.found["width"][k], pictures.found["height"][k]) for _, k in rows.sides]
    (w1, h1), (w2, h2) = size[0], size[-1]
    known = np.isfinite(w1) & np.isfinite(w2)
    findings = find(
        "sizes_differ", "warning", known & ((w1 != w2) | (h1 != h2)),
        "Chosen and rejected differ in size: {n}.",
        "The two sides are resized differently. SDXL is told the original size and can learn that instead.",
        lambda i: f"{quote(rows.texts[i])} {w1[i]:.0f} × {h1[i]:.0f} against {w2[i]:.0f} × {h2[i]:.0f}",
        trained=rows.trained,
    )  # fmt: skip
    if view:
        seen = np.zeros(len(pictures.found), bool)
        seen[rows.chosen[rows.trained]] = seen[rows.rejected[rows.trained]] = True
        small = seen & _smaller(pictures, view)
        works = f"the {view.resolution} pixels at which {view.name} works"
        needed = works if len(view.frames) == 1 else f"that of the frame in which {view.name} sees them"
        findings += find(
            "small", "warning", _either(rows, small),
            "Pictures with a side shorter than {needed}: {pictures} in {n}.",
            "They would be enlarged, and the model learns their blur.",
            lambda i: f"{quote(rows.texts[i])} " + ", ".join(f"{w[i]:.0f} × {h[i]:.0f}" for w, h in size),
            trained=rows.trained, pictures=f"{int(small.sum()):,}", needed=needed,
        )  # fmt: skip
    return findings


def _smaller(pictures: PictureTable, view: View) -> NDArray[np.bool_]:
    """Which pictures that were read are smaller than the frame that is most like their shape."""
    width, height = (np.where(pictures.read, pictures.found[name], 1.0) for name in ("width", "height"))
    frames = np.array(view.frames)[nearest(np.log(width / height), view.frames)]
    return np.asarray(pictures.read & ((width < frames[:, 1]) | (height < frames[:, 0])))


def check_prompts(rows: Rows, view: View | None) -> list[Finding]:
    """Empty, repeated, nearly equal and too long prompts; prompts on both sides of a split."""
    empty = np.array([not any(c.isprintable() and not c.isspace() for c in text) for text in rows.texts])
    findings = find(
        "empty_prompt", "error", empty, "Prompts in which there is nothing to read: {n}.",
        "Leave these pairs out.", lambda i: ascii(rows.texts[i][:40]),
    )  # fmt: skip
    findings += find(
        "prompt_in_two_splits", "error", _on_both_sides(rows, [rows.prompts]),
        "Prompts in more than one split: {n}.",
        "What is held out must not have been trained on: give all pairs of a prompt the same split.",
        lambda i: f"{quote(rows.texts[i])} here in {rows.split[i]}",
    )  # fmt: skip
    exact: dict[str, int] = {}
    spelling = np.array([exact.setdefault(text, len(exact)) for text in rows.texts])
    first = np.full(int(rows.prompts.max()) + 1, -1)
    first[rows.prompts[::-1]] = np.arange(len(rows))[::-1]
    first_of = first[rows.prompts]  # the first row with the same prompt
    findings += find(
        "alike_prompts", "note", spelling != spelling[first_of],
        "Prompts that are another one in other case, white space or coding of accents: {n}.",
        "They count as one prompt wherever prompts are counted or split, and are encoded as they are.",
        lambda i: f"{quote(rows.texts[i])}, in row {first_of[i]} {quote(rows.texts[first_of[i]])}",
    )  # fmt: skip
    numbers = np.bincount(rows.prompts)
    if numbers.max() > 1:
        most = int(numbers.argmax())
        several, text = int((numbers > 1).sum()), quote(rows.texts[first[most]])
        says = f"Prompts of several pairs: {several:,} of {len(numbers):,}; {numbers[most]:,} pairs of {text}."
        findings.append(Finding("repeated_prompts", "note", says))
    return findings + _too_long(rows, view)


def _too_long(rows: Rows, view: View | None) -> list[Finding]:
    if view is None:
        says = "The length of prompts was not checked."
        return [Finding("length_unknown", "note", says, "Name the model: --model M.")]
    over, most = np.zeros(len(rows), np.int64), view.most_tokens
    over[rows.trained] = excess_tokens(view, [rows.texts[i] for i in np.flatnonzero(rows.trained)])
    return find(
        "long_prompt", "warning", over > 0,
        "Prompts longer than the {most} tokens that {model} reads: {n}, by up to {over}.",
        "The end of such a prompt is cut off, so that it says nothing in training. Shorten it.",
        lambda i: f"{quote(rows.texts[i])} {most + over[i]} tokens, {over[i]} too many",
        trained=rows.trained, most=most, model=view.name, over=int(over.max()),
    )  # fmt: skip


def check_content(rows: Rows, pictures: PictureTable) -> list[Finding]:
    """The same pixels on both sides, in several pairs, in several splits, in several files; nearly the same."""
    sides = rows.contents
    same = rows.has_rejected & (sides[0] == sides[-1])
    findings = find(
        "same_picture", "error", same, "The same picture on both sides, to the pixel: {n}.",
        "Nothing can be preferred there. Leave these pairs out.", lambda i: quote(rows.texts[i]),
    )  # fmt: skip
    findings += find(
        "picture_in_two_splits", "warning", _on_both_sides(rows, sides),
        "Pictures that are in another split too, to the pixel: {n}.",
        "Held-out numbers then measure memory too. Give pairs that share pictures the same split.",
        lambda i: f"{quote(rows.texts[i])} here in {rows.split[i]}",
    )  # fmt: skip
    size = int(max(side.max() for side in sides)) + 1
    least, most = np.full(size, np.iinfo(np.int64).max), np.full(size, -1)
    for side in sides:
        np.minimum.at(least, side, rows.prompts)
        np.maximum.at(most, side, rows.prompts)
    shared = [(least < most)[side] for side in sides]
    findings += find(
        "picture_of_two_prompts", "note", np.any(shared, axis=0),
        "Pictures that stand under another prompt too, to the pixel: {n}.",
        "That may be meant, as with the photos of one subject.", lambda i: quote(rows.texts[i]),
    )  # fmt: skip
    uses = np.bincount(np.concatenate(sides), minlength=size)
    if (uses > 1).any():
        repeated, known = int((uses > 1).sum()), int((uses > 0).sum())
        says = f"Pictures in several pairs: {repeated:,} of {known:,}, one in up to {int(uses.max()):,}."
        findings.append(Finding("repeated_pictures", "note", says, "That is the rule in rankings."))
    read = pictures.found[pictures.read]
    if copies := len(read) - len(np.unique(read["content"])):
        says = f"Files with exactly the pixels of another file: {copies:,}."
        findings.append(Finding("same_pixels", "note", says, "They count as the same picture in everything said here."))
    alike = np.where(same, np.inf, closeness(rows, pictures)) < ALIKE
    findings += find(
        "nearly_same", "note", alike,
        "Nearly the same on both sides: {n}, less than {alike:g} of 255 grey levels apart in 8 × 8 averages.",
        "Close pairs can teach the most, so nothing here removes any. Look at some.", lambda i: quote(rows.texts[i]),
        trained=rows.trained, alike=ALIKE,
    )  # fmt: skip
    return findings


def closeness(rows: Rows, pictures: PictureTable) -> NDArray[np.float64]:
    """Grey levels by which the sketches of each pair's pictures differ; infinite where there are not two that were
    read."""
    apart = np.full(len(rows), np.inf)
    if not rows.has_rejected:
        return apart
    for start in range(0, len(rows), 8192):
        part = slice(start, start + 8192)
        apart[part] = difference(pictures.found[rows.chosen[part]], pictures.found[rows.rejected[part]])
    read = pictures.read
    return np.where(read[rows.chosen] & read[rows.rejected], apart, np.inf)


def check_labels(rows: Rows) -> list[Finding]:
    """Pairs of one prompt that contradict or repeat each other, by content; ties and weights of nothing.

    Only what training sees: a pair that contradicts one of another split has its prompt in two splits, which is told.
    """
    reversed_, cycle = contradictions(rows)
    first, earlier = _repeats(rows)
    if not rows.has_rejected:
        earlier &= rows.chosen != rows.chosen[first]  # a set stores the very same pair again only where it is asked to
    findings = find(
        "contradiction", "warning", reversed_,
        "Contradicted by another pair of the same prompt, which prefers the other picture: {n}.",
        "People differ, so this can be right; from one judge it is a mistake. `mapo label` settles it.",
        lambda i: f"{quote(rows.texts[i])} preference {rows.preference[i]:g}", trained=rows.trained,
    )  # fmt: skip
    findings += find(
        "cycle", "warning", cycle,
        "On a circle, where A is preferred to B, B to C, and C to A: {n}.",
        "No ranking fits such pairs.", lambda i: quote(rows.texts[i]), trained=rows.trained,
    )  # fmt: skip

    def tell(i: int) -> str:
        here, there = rows.preference[i], rows.preference[first[i]]
        differ = "" if here == there else f", preference {here:g} here, {there:g} there"
        return f"{quote(rows.texts[i])} as in row {first[i]}{differ}"

    findings += find(
        "repeated_pair", "warning", earlier, "Repeats of an earlier pair, with its prompt and its two pictures: {n}.",
        "Such a pair counts several times. Keep one of them, or make it one with a weight.", tell,
        trained=rows.trained,
    )  # fmt: skip
    ties = int((rows.preference == 0.5).sum())
    if ties:
        says = f"Ties (preference 0.5), left out of the leak test: {ties:,} of {count(len(rows), 'pair')}."
        findings.append(Finding("ties", "note", says))
    return findings + find(
        "no_weight", "note", rows.weight == 0, "Without part in training, as their weight is 0: {n}.",
        trained=rows.trained,
    )  # fmt: skip


def contradictions(rows: Rows) -> tuple[Flags, Flags]:
    """Which rows another row reverses, and which lie on a longer circle of preferences of one prompt.

    Only rows that training sees take part.
    """
    clear = rows.trained & (rows.preference > 0.5) & (rows.chosen_content != rows.rejected_content)
    better, worse, size = _nodes(rows)
    reversed_ = clear & np.isin(better * size + worse, (worse * size + better)[clear])
    edges = csr_array((np.ones(int(clear.sum())), (better[clear], worse[clear])), shape=(size, size))
    _, part = connected_components(edges, connection="strong")
    return reversed_, clear & ~reversed_ & (part[better] == part[worse])


def _nodes(rows: Rows) -> tuple[Integers, Integers, int]:
    """The two sides of each row as numbers of (prompt, content), and how many of these there are."""
    content = np.concatenate([rows.chosen_content, rows.rejected_content])
    keys = np.tile(rows.prompts, 2) * (int(content.max()) + 1) + content
    names, nodes = np.unique(keys, return_inverse=True)
    return nodes[: len(rows)], nodes[len(rows) :], len(names)


def _repeats(rows: Rows) -> tuple[Integers, Flags]:
    """The first row with the same prompt and pictures, and whether that is an earlier one; not if it is reversed.

    Rows that training does not see are their own first.
    """
    better, worse, size = _nodes(rows)
    tie = rows.preference == 0.5
    left, right = np.where(tie, np.minimum(better, worse), better), np.where(tie, np.maximum(better, worse), worse)
    seen, first = np.flatnonzero(rows.trained), np.arange(len(rows))
    _, earliest, place = np.unique((left * size + right)[seen], return_index=True, return_inverse=True)
    first[seen] = seen[earliest[place]]
    return first, first != np.arange(len(rows))


def _either(rows: Rows, flags: NDArray[np.bool_]) -> Flags:
    """The rows in which either picture is flagged."""
    return np.asarray(flags[rows.chosen] | flags[rows.rejected])


def _on_both_sides(rows: Rows, things: list[Integers]) -> Flags:
    """The rows that have a thing (a number per row, in one or several columns) that is in more than one split."""
    names, split = np.unique(np.array(rows.split), return_inverse=True)
    size = int(max(t.max() for t in things)) + 1
    least, most = np.full(size, len(names)), np.full(size, -1)
    for thing in things:
        np.minimum.at(least, thing, split)
        np.maximum.at(most, thing, split)
    return np.asarray(np.any([(least < most)[thing] for thing in things], axis=0))


def check_leaks(leaks: list[Leak], together: Together) -> list[Finding]:
    """What tells chosen from rejected without a look at what is shown."""
    findings = []
    for of_the_file, severity, remedy in (
        (
            True,
            "error",
            "Nothing that is shown can be the reason, so a model learns a shortcut. Bring both sides to one size and "
            "one file type and quality before importing them.",
        ),
        (
            False,
            "warning",
            "All right where this is what is preferred, as in a style that is brighter; a shortcut anywhere else.",
        ),
    ):
        found = [leak for leak in leaks if leak.of_the_file == of_the_file and leak.tells]
        if found:
            found.sort(key=lambda leak: -abs(leak.paired.value - 0.5))
            listed = ", ".join(statistic(leak.name) for leak in found)
            what = "the file gives" if of_the_file else "simple statistics of the pictures give"
            name = "leak_file" if of_the_file else "leak_content"
            says = f"Leak: {what} away which picture was chosen: {listed}. {_clearest(found)}{_how_it_is_known(found)}"
            findings.append(Finding(name, severity, says, remedy))
    findings += _too_few_to_tell(leaks)
    if together.share.low > 0.5 + MARGIN:
        share = together.share
        says = (
            f"Leak: all these statistics together tell chosen from rejected in {_percent(share.value)} of pairs whose "
            f"prompts they were not fitted to (95 % interval {_percent(share.low)} to {_percent(share.high)})."
        )
        remedy = "A simple classifier can tell the two sides apart, so the model can too."
        findings.append(Finding("leak_together", "warning", says, remedy))
    return findings


def _clearest(found: list[Leak]) -> str:
    """How often chosen has more, or less, of the first of these."""
    first = found[0].paired
    more, value, low, high = "more", first.value, first.low, first.high
    if value < 0.5:
        more, value, low, high = "less", 1 - value, 1 - high, 1 - low
    of = "it" if len(found) == 1 else statistic(found[0].name)
    interval = f"95 % interval {_percent(low)} to {_percent(high)}"
    return f"Chosen has {more} of {of} in {_percent(value)} of pairs ({interval})."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _how_it_is_known(found: list[Leak]) -> str:
    """Of an exact test, what it is over; nothing where an interval over prompts decided."""
    if found[0].p is None:
        return ""
    most = max(leak.differing for leak in found)
    p = min(leak.p for leak in found if leak.p is not None)
    return (
        f" There are fewer than {FEW_PROMPTS} prompts, so pairs that share no picture were counted one by one. "
        f"{most} differ in it (exact sign test, p = {p:.2g})."
    )


def _too_few_to_tell(leaks: list[Leak]) -> list[Finding]:
    """Where the few pairs that there are all differ in the same way, which may be chance."""
    same = [
        leak for leak in leaks
        if leak.p is not None and leak.of_the_file and not leak.tells
        and leak.differing >= 3 and leak.paired.value in (0, 1)
    ]  # fmt: skip
    if not same:
        return []
    listed = ", ".join(statistic(leak.name) for leak in same)
    says = f"In all {same[0].differing} pairs that can be counted the sides differ the same way in {listed}."
    return [Finding("leak_unsure", "note", says, "So few pairs can do so by chance. If they did not, it is a leak.")]


def statistic(name: str) -> str:
    """A statistic in words."""
    kind, _, value = name.partition(" ")
    kinds = {"format": "file type", "mode": "colour mode", "quality": "JPEG quality"}
    return f"{kinds[kind]} {value}" if kind in kinds and value else NAMES.get(name, name)
