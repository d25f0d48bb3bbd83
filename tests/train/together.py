"""Trainings of several processes, all of a list in the same processes: starting them takes longer than they do."""

import json

from torch.distributed import TCPStore

from apart import ended, started

CODE = """
import json, os, sys
from pathlib import Path
from mapo.train.config import make_config
from mapo.train.train import train
for number, (values, out) in enumerate(json.loads(Path(sys.argv[1]).read_text())):
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)  # by which one meeting differs from the next
    train(make_config(values), Path(out))
"""


def train_together(folder, jobs, world=2):
    """Train each of ``jobs``, settings and a run folder, with so many processes over gloo, which meet as under torchrun."""
    file = folder / "jobs.json"
    file.write_text(json.dumps([(values, str(out)) for values, out in jobs]))
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    meeting = {"MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    found = ended(started(["-c", CODE, file], world, **meeting))
    assert [code for code, _, _ in found] == [0] * world, [said[-3000:] for _, _, said in found]
