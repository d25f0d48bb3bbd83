#!/usr/bin/env bash
# Proves the floors of pyproject.toml: a virtual environment with the lowest versions that it allows, torch too, and all
# tests. The lowest torch is a download of 3 GB on Linux; TORCH=2.13.0 takes another.
#
#   scripts/floors.sh [FOLDER [ARGUMENTS OF PYTEST]]        default: /tmp/mapo-floors, all tests
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-/tmp/mapo-floors}
[ $# -eq 0 ] || shift
[ -x "$folder/bin/python" ] || python3 -m venv "$folder"
"$folder/bin/python" - > "$folder/floors.txt" <<'PYTHON'
import re, tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
optional = project["optional-dependencies"]
for need in [*project["dependencies"], *optional["label"], *optional["safety"]]:
    print("==".join(re.match(r"([\w-]+)>=([\w.]+)", need).groups()))
PYTHON
lowest=$(sed -n 's/^torch==//p' "$folder/floors.txt")
"$folder/bin/pip" install -q "torch==${TORCH:-$lowest}"
sed -i '/^torch==/d' "$folder/floors.txt"
"$folder/bin/pip" install -q -r "$folder/floors.txt" pytest pytest-xdist hypothesis "beartype>=0.19" \
  "httpx2>=2.0" "import-linter>=2.16" "websockets>=13"
"$folder/bin/pip" check
HF_HUB_OFFLINE=1 PYTHONPATH=src OMP_NUM_THREADS=1 "$folder/bin/python" -m pytest -q -n 2 --dist loadfile \
  --no-loadscope-reorder "$@"
