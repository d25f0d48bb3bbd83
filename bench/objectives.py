"""Every objective once on the mini world, with nothing searched: what its default settings do at one rate.

    python bench/objectives.py [--work work/objectives] [--out bench/results] [--objectives kto sdpo …]

Cartoon and safety, 256 pairs, three seeds, 96 steps of 8 pairs, learning rate 1e-4, the objective's own defaults. The
pools of pairs, the prompts and the judges are those of `mapo study`. Pictures of the test prompts are judged by the
judge that took no part in making the pairs. No rate and no knob was searched for anyone: this shows that an objective
trains and what its defaults do here, not which one is best; docs/study.md compares those that were searched. The same
command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measured import write_measured

SEEDS, PAIRS, STEPS, RATE, PICTURES = (0, 1, 2), 256, 96, 1e-4, 3
DOMAINS = ("cartoon", "safety")


def make_pool(work: Path, name: str) -> None:
    """The pairs of a domain and their encodings."""
    from mapo.encode.fill import encode
    from mapo.lab.study.domains import DOMAINS
    from mapo.lab.study.runs import HELD_OUT
    from mapo.models import find_model, open_model
    from mapo.pairs import PairSet

    pool = work / "pools" / name
    if not pool.exists():
        DOMAINS[name].pool("mini", pool, 2 * PAIRS + HELD_OUT)
    encode(open_model(find_model("mini")), PairSet(pool), work / "cache", images_per_batch=32)


def shares(look: dict[str, Any]) -> tuple[float, float]:
    """The shares of pictures that show the goal, and that follow their prompt, by the judge of results."""
    from mapo.lab.study.domains import CONFIRMED_BY

    found = [look[f"{what} {CONFIRMED_BY}"] for what in ("reached", "followed")]
    return found[0].count("1") / len(found[0]), found[1].count("1") / len(found[1])


def spread(values: tuple[float, ...]) -> str:
    """The mean of some shares, the least and the most."""
    return f"{statistics.mean(values):6.1%} [{min(values):.1%}, {max(values):.1%}]"


def main() -> None:
    """Train, look, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/objectives"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--objectives", nargs="+")
    args = parser.parse_args()

    from mapo.lab.study.domains import DOMAINS as ALL
    from mapo.lab.study.runs import Job, ResultsFile, look, run
    from mapo.train.objectives import OBJECTIVES

    args.work.mkdir(parents=True, exist_ok=True)
    ledger, rows = ResultsFile(args.work / "ledger.jsonl"), []
    for domain in DOMAINS:
        make_pool(args.work, domain)
    for name in args.objectives or OBJECTIVES:
        for domain in DOMAINS:
            looks = []
            for seed in SEEDS:
                settings = {"lr": RATE, **OBJECTIVES[name].settings}
                job = Job(
                    domain, name, tuple(sorted(settings.items())), PAIRS, seed, (STEPS,), "test", PICTURES,
                    ALL[domain].version,
                )  # fmt: skip
                row = ledger.rows.get(job.key) or ledger.add(
                    job.key, {"job": asdict(job), "looks": run(args.work, job, "mini")}
                )
                looks.append(row["looks"][-1])
            reached, followed = zip(*(shares(one) for one in looks), strict=True)
            failed = sum("failed" in one for one in looks)
            rows.append({
                "objective": name, "domain": domain, "reached": reached, "followed": followed, "failed": failed,
                "settings": OBJECTIVES[name].settings,
            })  # fmt: skip
            told = [f"{word} {spread(v)}" for word, v in (("reached", reached), ("followed", followed))]
            print(f"{name:14} {domain:8} {'  '.join(told)}" + (f"  {failed} failed" if failed else ""), flush=True)
    base = {}
    for domain in DOMAINS:
        job = Job(domain, "none", (), PAIRS, 0, (0,), "test", PICTURES, ALL[domain].version)
        base[domain] = shares(look(args.work, job, "mini"))
        print(f"{'untrained':14} {domain:8} reached {base[domain][0]:6.1%}  followed {base[domain][1]:6.1%}")
    if args.out:
        about = {
            "pairs": PAIRS, "steps": STEPS, "pairs_per_step": 8, "lr": RATE,
            "seeds": SEEDS, "untrained": base, "rows": rows,
        }  # fmt: skip
        write_measured(args.out / "objectives.json", about)


if __name__ == "__main__":
    main()
