"""The name of a prompt, and the split to which it belongs."""

from __future__ import annotations

import hashlib
import unicodedata

SPLITS = ("train", "validation", "test")


def normalise(prompt: str) -> str:
    """The form in which two prompts count as the same: case, white space and the coding of accents do not matter."""
    return " ".join(unicodedata.normalize("NFC", prompt).casefold().split())


def prompt_id(prompt: str) -> str:
    """A short stable name of a prompt: 16 hexadecimal digits."""
    return hashlib.sha256(normalise(prompt).encode()).hexdigest()[:16]


def split_of(prompt: str) -> str:
    """``train``, ``validation`` or ``test`` (80, 10, 10 %), by a stable hash: a prompt never changes sides."""
    place = int.from_bytes(hashlib.sha256(b"split:" + normalise(prompt).encode()).digest()[:8], "big") / 2**64
    return "train" if place < 0.8 else "validation" if place < 0.9 else "test"
