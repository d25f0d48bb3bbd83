"""The laboratory: the built-in world, the study on it, and the demo. The product does not know it."""

from pathlib import Path

from mapo import worlds

MINI = Path(__file__).parent / "mini"

worlds.add(
    worlds.World(
        name="mini",
        models={name: MINI / folder for name, folder in (("mini", "model"), ("mini-flow", "model-flow"))},
        side=48,
        lists=tuple(f"{split}{suffix}" for split in ("train", "validation", "test") for suffix in ("", "-one", "-two")),
        read_list="mapo.lab.mini.scenes:read_list",
        parse="mapo.lab.mini.scenes:parse",
        scorers={"mini-learned": "mapo.lab.mini.scorer:Learned", "mini-search": "mapo.lab.mini.scorer:Search"},
        embedder="mini-learned",
    )
)
