"""Sources of many rows in every kind of file that holds some."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_fixtures import BLUE, encoded, noise

KINDS_OF_FILES = ("json", "ndjson", "csv", "tsv", "arrow", "tar", "metadata", "hpdv2", "imagereward")


def make_long(folder: Path, kind: str, count: int) -> Path:
    """``count`` pairs in two files of a kind, of splits of their own; the fourth is bad."""
    (folder / "test").mkdir()
    (folder / "train").mkdir()
    half = count // 2
    for split, numbers in (("test", range(half)), ("train", range(half, count))):
        for k in numbers:
            (folder / split / f"{k}.png").write_bytes(encoded(noise(k)))
        (folder / split / "r.png").write_bytes(BLUE)
        _write(folder / split, kind, [(k, None if k == 3 else f"prompt {k}") for k in numbers])
    return folder if kind in ("arrow", "tar", "metadata") else Path(f"{folder}/*/x.*")


def _write(folder: Path, kind: str, prompts: list[tuple[int, str | None]]) -> None:
    rows: list[dict[str, Any]] = [{"prompt": p, "chosen": f"{k}.png", "rejected": "r.png"} for k, p in prompts]
    match kind:
        case "json":
            (folder / "x.json").write_text(json.dumps(rows))
        case "ndjson":
            (folder / "x.ndjson").write_text("\n".join(map(json.dumps, rows)))
        case "metadata":
            named = [{"prompt": r["prompt"], **{f"{s}_file_name": r[s] for s in ("chosen", "rejected")}} for r in rows]
            (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, named)))
        case "csv" | "tsv":
            with (folder / f"x.{kind}").open("w", newline="") as file:
                writer = csv.writer(file, delimiter="," if kind == "csv" else "\t")
                writer.writerows([list(rows[0]), *(list(row.values()) for row in rows)])
        case "arrow":
            table = pa.Table.from_pylist(
                [{**row, "chosen": {"bytes": (folder / row["chosen"]).read_bytes(), "path": None}} for row in rows],
                pa.schema(
                    [
                        ("prompt", pa.string()),
                        ("chosen", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                        ("rejected", pa.string()),
                    ]
                ),
            )
            with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as stream:
                stream.write_table(table, max_chunksize=25)
            state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": None}
            (folder / "state.json").write_text(json.dumps(state))
            (folder.parent / "dataset_dict.json").write_text(json.dumps({"splits": ["test", "train"]}))
        case "tar":
            with tarfile.open(folder / "0000.tar", "w") as tar:
                for k, prompt in prompts:
                    members = {"chosen.png": encoded(noise(k)), "rejected.png": BLUE, "txt": (prompt or "").encode()}
                    for end, data in members.items():
                        info = tarfile.TarInfo(f"{k:03}.{end}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
        case "hpdv2":
            lists = [{"prompt": p, "image_path": ["r.png", f"{k}.png"], "human_preference": [0, 1]} for k, p in prompts]
            (folder / "x.json").write_text(json.dumps(lists))
        case "imagereward":
            pictures = [
                {"prompt": prompt, "prompt_id": f"{k}", "rank": rank, "image_path": name}
                for k, prompt in prompts
                for rank, name in ((2, "r.png"), (1, f"{k}.png"))
            ]
            (folder / "x.json").write_text(json.dumps(pictures))
