"""The verb as the command line and Python give it, and what they hand to a training so that it can be watched."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mapo.train.monitor.monitor import Hands


def hands() -> Hands:
    """What other rooms do for a training while it goes on."""
    from mapo.watch.hands import hands

    return hands()
