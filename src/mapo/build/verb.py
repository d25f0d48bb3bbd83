"""The verb as the command line and Python give it: texts and folders in, the room's work done."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapo.build.recipe import changed_recipe, read_recipe
from mapo.errors import MapoError
from mapo.files import inside, named
from mapo.shards import WHOLE, Shard

if TYPE_CHECKING:
    from mapo.build.against import Own

LOG = logging.getLogger(__name__)


def build(
    recipe: str, model: str, prompts: str | Sequence[str], num_pairs: int, out: Path, *,
    judges: Sequence[str] = (), prefixes: str | Sequence[str] = (), candidates: int | None = None,
    seeds: str | None = None, shard: Shard = WHOLE, **how: Any,
) -> dict[str, int] | None:  # fmt: skip
    """Build a set with a recipe of that name; its counts, or None where other shards are not done yet.

    ``prompts`` is a source of prompts, or a list of them. The rest is as :func:`mapo.build.build.build` takes it.
    """
    found = changed_recipe(read_recipe(recipe), prefixes, candidates, seeds)
    from mapo.build.build import build
    from mapo.build.judge import parse_filter
    from mapo.sample.prompts import asked_prompts, source_name

    filters = [parse_filter(judge) for judge in judges]
    how["prompts_from"] = source_name(prompts) if isinstance(prompts, str) else None
    return build(found, model, asked_prompts(prompts), num_pairs, out, judges=filters, shard=shard, **how)


def build_against(
    chosen: Path, model: str, out: Path, *, captions: Path | None = None, drawn: Path | None = None,
    judges: Sequence[str] = (), raw: bool = False, **how: Any,
) -> dict[str, int]:  # fmt: skip
    """Build a set of the pictures of a folder, which are chosen, and of what ``model`` draws from their captions.

    Captions are those of the folder, or of a file that `mapo caption` wrote. The drawings lie in ``drawn``, by default
    beside the set. The rest is as :func:`mapo.build.against.build_against` takes it.
    """
    from mapo.build.against import build_against
    from mapo.build.judge import parse_filter

    if len(judges) > 1:
        raise MapoError("--judge: with --chosen one judge chooses among the drawings. Name one.")
    own = _own_pictures(chosen, captions, raw)
    judge = parse_filter(judges[0]) if judges else None
    place = named(out)
    drawn = place.with_name(f"{place.name}-rejected") if drawn is None else drawn
    if drawn.resolve().is_relative_to(chosen.resolve()):
        raise MapoError(f"--out {out} lies in {chosen}, whose pictures are read. Choose another place.")
    return build_against(own, model, out, drawn, judge=judge, **how)


def build_alone(
    chosen: Path, model: str, out: Path, *, captions: Path | None = None, raw: bool = False, **how: Any
) -> dict[str, int]:
    """Build a set of the same pictures without rejected ones, as :func:`mapo.build.against.build_alone` does."""
    from mapo.build.against import build_alone

    return build_alone(_own_pictures(chosen, captions, raw), model, out, **how)


def build_beside(
    chosen: Path, rejected: Path, model: str, out: Path, *, captions: Path | None = None, raw: bool = False, **how: Any
) -> dict[str, int]:
    """Build a set of the pictures of two folders that have the same names, as
    :func:`mapo.build.rejected.build_beside` does."""
    from mapo.build.rejected import build_beside, refuse_within, rejected_of, told_unused

    refuse_within(chosen, rejected)
    own = _own_pictures(chosen, captions, raw)
    found, unused = rejected_of(own, rejected)
    if unused:
        LOG.warning(told_unused(rejected, unused))
    return build_beside(own, found, model, out, **how)


def _own_pictures(chosen: Path, captions: Path | None, raw: bool) -> list[Own]:
    """The pictures of a folder that are kept, with their captions; MapoError where they are not fit for training."""
    from mapo.build.against import Own
    from mapo.captions.fit import refuse_unfit
    from mapo.captions.folder import of_file, read_captions

    kept = of_file(chosen, captions, raw=raw) if captions else read_captions(chosen, raw=raw)
    refuse_unfit(chosen, kept, fewest=1)
    return [Own(one.file, one.caption, inside(chosen, one.file, str(chosen))) for one in kept]


def build_from_images(
    folder: Path, out: Path, *, judges: Sequence[str], captions: Path | None = None, rankings: str = "best-worst",
    sensitive: bool = False, shard: Shard = WHOLE,
) -> dict[str, int] | None:  # fmt: skip
    """Build a set of the pictures of a folder that share a prompt; its counts, or None where other shards are not done.

    Prompts are those of the folder, or of a file that `mapo caption` wrote. With ``sensitive``, or where a judge looks
    for what is unsafe, the set is marked, and no prompt is used that could mean minors.
    """
    from mapo.build.from_images import build_from_images, check_asked
    from mapo.build.groups import read_groups
    from mapo.build.judge import parse_filter
    from mapo.shards import refuse_existing

    refuse_existing(out)
    if not judges:
        raise MapoError(
            f"Nobody says which pictures of {folder} are better. Name a judge, such as --judge pickscore:pickscore, or "
            f"judge them yourself: mapo label {folder} --out {out}"
        )
    asked = check_asked([parse_filter(judge) for judge in judges], rankings)
    groups = read_groups(folder, captions, sensitive=sensitive or asked.unsafe)
    return build_from_images(groups, out, asked, shard=shard)
