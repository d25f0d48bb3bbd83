"""Seeds of several parts."""

from __future__ import annotations

import hashlib


def mixed_seed(*parts: object) -> int:
    """One number of 63 bits that depends on all of ``parts``, in all of its bits.

    torch's generator on a CPU has only 32 bits of its seed, so parts that stand in different bits may not be heard.
    """
    return int.from_bytes(hashlib.sha256(":".join(map(str, parts)).encode()).digest()[:8], "big") >> 1
