"""What an import says at its end beside its counts: the splits of the source, and what was left out of rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from mapo.pairs.splits import SPLITS

SPLIT, BY_PROMPT, LEFT_OUT, REPEATS, META = "split ", "by prompt ", "left out ", "repeats ", "meta"
OF = " of "


@dataclass
class ImportCounts:
    """``notes`` counts pairs by the split that was published or not, rows left out by reason, and values of meta.

    ``shared`` is how many prompts the source has in several splits.
    """

    notes: Counter[str] = field(default_factory=Counter)
    shared: int = 0

    def add_published(self, split: str) -> None:
        """Count a pair whose split the source publishes."""
        self.notes[SPLIT + split] += 1

    def add_by_prompt(self, name: str) -> None:
        """Count a pair that is split by prompt; ``name`` is what the source calls its split, or empty."""
        self.notes[BY_PROMPT + name] += 1

    def add_repeat(self, split: str, first: str) -> None:
        """Count a pair of one published split that another had first."""
        self.notes[f"{REPEATS}{split}{OF}{first}"] += 1

    def add_left_out(self, why: str) -> None:
        """Count a row that its source itself says is not a pair."""
        self.notes[LEFT_OUT + why] += 1

    def add_lost(self, values: int) -> None:
        """Count values of meta that are left out."""
        self.notes[META] += values

    def _of(self, start: str) -> dict[str, int]:
        return {key.removeprefix(start): n for key, n in self.notes.items() if key.startswith(start) and n}

    def facts(self) -> dict[str, Any]:
        """What the set keeps of it."""
        published, left_out = self._of(SPLIT), self._of(LEFT_OUT)
        facts: dict[str, Any] = {}
        if published:
            facts["splits"] = {**published, **({"by prompt": n} if (n := sum(self._of(BY_PROMPT).values())) else {})}
        if left_out:
            facts["left_out"] = left_out
        if self.notes.get(META):
            facts["meta_left_out"] = self.notes[META]
        return facts

    def left_out(self) -> list[str]:
        """A sentence for each reason why rows were left out."""
        return [f"{n} {'row was' if n == 1 else 'rows were'} left out: {why}." for why, n in self._of(LEFT_OUT).items()]

    def lines(self) -> list[str]:
        """What is printed."""
        published, others = self._of(SPLIT), self._of(BY_PROMPT)
        said = self.left_out()
        if count := self.notes.get(META):
            values = "value of meta has" if count == 1 else "values of meta have"
            said.append(f"{count} {values} no form in JSON (bytes, NaN) and {'is' if count == 1 else 'are'} left out.")
        if published:
            counts = ", ".join(f"{published[split]} {split}" for split in SPLITS if split in published)
            said.append(f"The source's own splits are kept: {counts} (--split by-prompt splits by prompt instead).")
            if len(published) == 1 and not others:
                only = next(iter(published))
                held = "no pair is held out" if only == "train" else "there is nothing to train on"
                said.append(f"All pairs are in {only}, so {held}.")
        for name, n in others.items():
            if name or published:
                whose = f"the split {name!r}" if name else "no split that is known"
                pairs = "1 pair is" if n == 1 else f"{n} pairs are"
                said.append(f"{pairs} of {whose}, and split by prompt.")
        for names, n in self._of(REPEATS).items():
            later, first = names.split(OF)
            repeat = f"1 pair of {later} repeats a pair" if n == 1 else f"{n} pairs of {later} repeat pairs"
            said.append(f"{repeat} of {first} and {'is' if n == 1 else 'are'} left out.")
        if self.shared and (len(published) > 1 or others):
            prompts = "1 prompt stands" if self.shared == 1 else f"{self.shared} prompts stand"
            said.append(f"{prompts} in more than one split of the source: what is held out is not new to training.")
        return said
