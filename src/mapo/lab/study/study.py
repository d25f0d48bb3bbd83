"""The paper's claims on the built-in world: which method learns a preference from how many pairs, at what cost?

``study`` makes the pairs of every domain, chooses each method's settings on the validation split at 256 pairs with the
same number of trials, then trains with several seeds at several numbers of pairs and looks at test prompts. Every
training is a line in ``trials.jsonl`` or ``runs.jsonl`` and is made once, so the command can be stopped at any time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mapo.errors import MapoError, several, suggest
from mapo.files import prepare_out
from mapo.lab.study.crew import Crew
from mapo.lab.study.methods import METHODS
from mapo.lab.study.search import SearchResult, compass, lengthen, merit, value
from mapo.texts import read_object, write_json
from mapo.worlds import MODELS


@dataclass(frozen=True)
class StudyPlan:
    """What a study does; a folder belongs to one plan, but for what is in MAY_GROW."""

    model: str = "mini"
    domains: tuple[str, ...] = ("cartoon", "safety", "culture", "personalization", "general", "pixel-art")
    methods: tuple[str, ...] = tuple(METHODS)
    pairs: tuple[int, ...] = (256, 64, 1024)  # in this order
    seeds: int = 5
    trials: int = 6  # of every method in every domain
    tuned_at: int = 256
    looks: tuple[int, ...] = (16, 48, 128)  # steps of 8 pairs after which a trial is looked at; the best ends training
    longer: bool = True  # whether the best trial goes further where its last look was its best and below ENOUGH
    picture_seeds: int = 2
    pool: int = 1024


QUICK = StudyPlan(
    domains=("safety", "culture"), pairs=(64,), seeds=3,
    trials=3, tuned_at=64, looks=(16, 48), longer=False, picture_seeds=1, pool=128,
)  # fmt: skip
ENOUGH = 0.95  # a score that no search goes further for
MOST_PAIRS = 3_900  # general preference has 400 prompts with ten pairs each, and some are held out
MAY_GROW = ("domains", "methods", "pairs", "seeds", "trials")


def study(
    out: Path,
    *,
    quick: bool = False,
    model: str = "mini",
    domains: str | Sequence[str] = (),
    methods: str | Sequence[str] = (),
    pairs: Sequence[int] = (),
    seeds: int | None = None,
    trials: int | None = None,
    looks: Sequence[int] = (),
    workers: int | None = None,
) -> None:
    """Run a study of a built-in ``model`` into ``out``, or go on with it.

    What is not named is as in the plan (``QUICK`` or the full one).

    Where ``looks`` are given no training goes further than the last of them. ``workers`` trainings run at a time;
    default: one per core, or one where there is a GPU.
    """
    from mapo.shards import owned

    if model not in MODELS:
        raise MapoError(f"The study is made on a built-in model, and {model!r} is not one. {suggest(model, MODELS)}")
    whole = replace(QUICK if quick else StudyPlan(), model=model)
    plan = _plan(whole, several(domains), several(methods), pairs, seeds, trials, looks)
    if workers is not None and workers < 1:
        raise MapoError("--workers has to be at least 1.")
    with owned(out):
        _run_study(out, _open(out, plan), quick, workers or _workers())
    print(f"tables: {out / 'tables.md'}; figures: {out / 'figures'}")


def _run_study(out: Path, plan: StudyPlan, quick: bool, workers: int) -> None:
    from mapo.lab.study.cost import cost
    from mapo.lab.study.tables import PARTS, read_part, write_tables

    for part in PARTS:
        read_part(out, part)  # damage is said before hours of training
    with Crew(out, workers) as crew:
        bar = tqdm(total=len(plan.domains) * _count(plan), desc="study", unit="run", smoothing=0)
        for domain in plan.domains:
            _make_pool(out, domain, plan)
            _measure(out, domain, plan)
            untrained = _look_at_base(crew, domain, plan)
            tuned = _tune(crew, domain, plan, untrained, bar)
            _run_all(crew, domain, plan, tuned, bar)
            write_tables(out)
        bar.close()
    known = (read_part(out, "cost") or {"methods": {}})["methods"]
    if not known.keys() >= set(plan.methods):  # measured side by side, or they could not be compared
        methods = [method for method in METHODS if method in {*known, *plan.methods}]
        write_json(out / "cost.json", cost(out, plan.model, plan.domains[0], methods, rounds=1 if quick else 3))
        write_tables(out)


def _plan(
    plan: StudyPlan,
    domains: Sequence[str],
    methods: Sequence[str],
    pairs: Sequence[int],
    seeds: int | None,
    trials: int | None,
    looks: Sequence[int],
) -> StudyPlan:
    from mapo.lab.study.domains import DOMAINS

    for given, known, what in ((domains, DOMAINS, "domain"), (methods, METHODS, "method")):
        for name in given:
            if name not in known:
                raise MapoError(f"There is no {what} {name!r}. {suggest(name, known)}")
    changed: dict[str, Any] = {
        "domains": tuple(dict.fromkeys(domains)),
        "methods": tuple(dict.fromkeys(methods)),
        "pairs": tuple(dict.fromkeys(pairs)),
        "seeds": seeds,
        "trials": trials,
        "looks": tuple(sorted(set(looks))),
        "longer": False if looks else None,
    }
    plan = replace(plan, **{k: v for k, v in changed.items() if v not in ((), None)})
    if min(plan.seeds, plan.trials, *plan.pairs, *plan.looks) < 1:
        raise MapoError("--seeds, --trials, --pairs and --look have to be at least 1.")
    if max(plan.pairs) > MOST_PAIRS:
        raise MapoError(f"--pairs can be at most {MOST_PAIRS:,}: some domains have no more.")
    return replace(plan, pool=max(plan.pool, *plan.pairs))


def _open(out: Path, plan: StudyPlan) -> StudyPlan:
    """The plan for a folder, which may have larger pools than it asks for."""
    if out.is_file():
        raise MapoError(f"{out} is a file. Choose another --out.")
    path = out / "study.json"
    fixed = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(plan).items() if k not in MAY_GROW}
    if path.exists():
        before = {"model": "mini", **read_object(path, "a study", "Choose another --out.")}  # the only one, once
        if isinstance(pool := before.get("pool"), int) and pool > plan.pool:
            plan, fixed["pool"] = replace(plan, pool=pool), pool
        if changed := [k for k, v in fixed.items() if before.get(k) != v]:
            if changed == ["pool"]:
                raise MapoError(f"{out} has pools of {before['pool']} pairs. For more --pairs choose another --out.")
            names = dict.fromkeys({"longer": "looks"}.get(name, name) for name in changed)
            raise MapoError(f"{out} is a study with another {', '.join(names)}. Choose another --out.")
        return plan
    if out.exists() and any(out.iterdir()):
        raise MapoError(f"{out} exists and is not a study. Choose another --out.")
    prepare_out(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, fixed)
    return plan


def _workers() -> int:
    import torch

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


def _count(plan: StudyPlan) -> int:
    """The trainings of a domain."""
    return len(plan.methods) * (plan.trials + len(plan.pairs) * plan.seeds)


# ------------------------------------------------------------------ stages


def _make_pool(out: Path, domain: str, plan: StudyPlan) -> None:
    """The pairs of a domain, their encodings, and what it takes to see their goal."""
    from mapo.encode.fill import encode
    from mapo.lab.study.domains import DOMAINS, Eyes
    from mapo.lab.study.runs import HELD_OUT
    from mapo.models import find_model, open_model
    from mapo.pairs import PairSet

    pool = out / "pools" / domain
    if not pool.exists():
        DOMAINS[domain].pool(plan.model, pool, plan.pool + HELD_OUT)
    if thing := {"culture": "motif", "personalization": "subject"}.get(domain):
        Eyes(out / "probes").probe(thing)
    encode(open_model(find_model(plan.model)), PairSet(pool), out / "cache", images_per_batch=32)


def _measure(out: Path, domain: str, plan: StudyPlan) -> None:
    """How far the domain's pairs are from the model, as `mapo mismatch` measures it."""
    from mapo.lab.study.tables import read_part
    from mapo.mismatch.mismatch import measure

    rows = read_part(out, "mismatch") or []
    if any(row["domain"] == domain for row in rows):
        return
    found = measure(plan.model, out / "pools" / domain, out / "mismatch-images" / domain, split="all")
    assert found.distances and found.distances.floor and found.errors.rejected  # a pool keeps both sides
    rows.append(
        {
            "domain": domain,
            "distance": asdict(found.distances.chosen),
            "floor": asdict(found.distances.floor),
            "gap": asdict(found.errors.chosen.relative),
            "gap of rejected": asdict(found.errors.rejected.relative),
            "encoder": [found.distances.encoder, found.distances.version, found.distances.revision],
        }
    )
    write_json(out / "mismatch.json", rows)


def _look_at_base(crew: Crew, domain: str, plan: StudyPlan) -> Mapping[str, Any]:
    """What the untrained model does; its look at the validation prompts."""
    from mapo.lab.study.domains import DOMAINS
    from mapo.lab.study.runs import Job, look

    def task(split: str, seeds: int) -> Callable[[], Any]:
        job = Job(domain, "base", (), 0, 0, (0,), split, seeds, DOMAINS[domain].version)
        return lambda: crew.do("base", job, look, crew.out, job, plan.model)

    return crew.together([task("test", plan.picture_seeds), task("validation", 1)])[1]["looks"]  # type: ignore[no-any-return]


def looks_of(method: str, plan: StudyPlan) -> tuple[int, ...]:
    """The steps after which a method's trials are looked at: the plan's, and before its last one the method's own."""
    return tuple(sorted({*plan.looks, *(steps for steps in METHODS[method].looks if steps < max(plan.looks))}))


def _tune(crew: Crew, domain: str, plan: StudyPlan, untrained: Mapping[str, Any], bar: Any) -> dict[str, SearchResult]:
    """Settings and number of steps for each method."""
    from mapo.lab.study.domains import DOMAINS
    from mapo.lab.study.runs import Job, run
    from mapo.lab.study.tables import read_part
    from mapo.models import find_model, open_model
    from mapo.models.noise.flow import RectifiedFlow

    version = DOMAINS[domain].version
    flow = isinstance(open_model(find_model(plan.model)).process, RectifiedFlow)

    def task(method: str) -> Callable[[], SearchResult]:
        steps = looks_of(method, plan)

        def trial(settings: Mapping[str, float], steps: tuple[int, ...]) -> tuple[float, Any]:
            told = tuple((k, float(f"{v:.4g}")) for k, v in settings.items())
            job = Job(domain, method, told, plan.tuned_at, 1000, steps, "validation", 1, version)
            looks = crew.do("trials", job, run, crew.out, job, plan.model)["looks"]
            bar.update()
            best = max(looks, key=merit)
            return merit(best), {"settings": dict(told), "steps": best["steps"], "value": value(best)}

        def search() -> SearchResult:
            begins, factors = METHODS[method].begins(flow), METHODS[method].factors
            found = compass(lambda settings: trial(settings, steps), begins, factors, plan.trials)
            if not plan.longer or found.result["steps"] < steps[-1]:
                return found

            def longer(steps: int) -> tuple[float, Any]:
                bar.total += 1
                result = trial(found.settings, (steps,))[1]
                return result["value"], result

            first = found.result["value"], found.result
            return replace(found, result=lengthen(longer, first, steps[-1], ENOUGH)[1])

        return search

    found = dict(zip(plan.methods, crew.together([task(method) for method in plan.methods]), strict=True))
    known = read_part(crew.out, "tuned") or {}
    for method, best in found.items():
        known[f"{domain} {method}"] = {**asdict(best), "helped": best.result["value"] > value(untrained)}
    write_json(crew.out / "tuned.json", known)
    return found


def _run_all(crew: Crew, domain: str, plan: StudyPlan, tuned: Mapping[str, SearchResult], bar: Any) -> None:
    from mapo.lab.study.domains import DOMAINS
    from mapo.lab.study.runs import Job, run

    def task(method: str, pairs: int, seed: int) -> Callable[[], None]:
        best = tuned[method].result
        settings, version = tuple(best["settings"].items()), DOMAINS[domain].version
        job = Job(domain, method, settings, pairs, seed, (best["steps"],), "test", plan.picture_seeds, version)

        def work() -> None:
            crew.do("runs", job, run, crew.out, job, plan.model)
            bar.update()

        return work

    crew.together(
        task(method, pairs, seed) for pairs in plan.pairs for seed in range(plan.seeds) for method in plan.methods
    )
