"""Bars are shown where there is something to do."""

from typing import Any

from mapo import progress


def test_a_bar_of_nothing_is_not_shown():
    shown = list[str]()

    def hook(**how: Any) -> progress.Bar:
        shown.append(how["desc"])
        return progress.Bar(**how)

    with progress.show_with(hook):
        for total in (0, 1, None):
            progress.bar(total=total, desc=str(total)).close()
    assert shown == ["1", "None"]
