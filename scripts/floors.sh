#!/usr/bin/env bash
# Proves the floors of pyproject.toml: a virtual environment with the lowest versions that it allows, and the tests that
# touch the libraries most. Torch itself is taken as it is (TORCH=2.13.0); the tests took seven minutes on two cores.
#
#   scripts/floors.sh [FOLDER]        default: /tmp/mapo-floors
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-/tmp/mapo-floors}
python3 -m venv "$folder"
"$folder/bin/pip" install -q "torch==${TORCH:-2.13.0}"
"$folder/bin/python" - > "$folder/floors.txt" <<'PYTHON'
import re, tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
optional = project["optional-dependencies"]
for need in [*project["dependencies"], *optional["label"]]:
    name, lowest = re.match(r"([\w-]+)>=([\w.]+)", need).groups()
    if name != "torch":
        print(f"{name}=={lowest}")
PYTHON
"$folder/bin/pip" install -q -r "$folder/floors.txt" pytest pytest-xdist hypothesis "beartype>=0.19"
"$folder/bin/pip" check
HF_HUB_OFFLINE=0 PYTHONPATH=src "$folder/bin/python" -m pytest -q tests/models tests/export tests/train/test_train.py tests/sample \
  tests/encode tests/pairs
