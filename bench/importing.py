"""Import: rows a second against plain `datasets`, memory at 10⁵ and 10⁶ rows, and opening a set of 10⁶ pairs.

    python bench/importing.py [--rows 600] [--rounds 5] [--few 100000] [--many 1000000] [--out bench/results]

(1) The same Parquet file of 512-pixel JPEGs in Pick-a-Pic's columns goes through `mapo import` and through a map of
`datasets` that does the same: hash, decode, check, write Parquet. `datasets` with one process and with as many as there
are cores; reading the file into its cache is not counted. Rounds of the variants alternate. (2) Anonymous memory
(RssAnon) of a process that imports rows of 8-pixel PNGs, sampled while it runs. (3) Time to open the larger set.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from measured import write_measured

HERE = Path(__file__).resolve()
SCHEMA = pa.schema(
    [("jpg_0", pa.binary()), ("jpg_1", pa.binary()), ("label_0", pa.float64()), ("label_1", pa.float64()),
     ("caption", pa.string())]
)  # fmt: skip


def write_source(path: Path, pictures: Iterator[bytes], rows: int, at_once: int) -> Path:
    """Pick-a-Pic's columns; two pictures a row."""
    with pq.ParquetWriter(path, SCHEMA, compression="none", use_dictionary=False) as file:
        for start in range(0, rows, at_once):
            numbers = range(start, min(start + at_once, rows))
            sides = [[next(pictures) for _ in numbers] for _ in range(2)]
            labels = [[float((k + side) % 2) for k in numbers] for side in range(2)]
            file.write_table(pa.table([*sides, *labels, [f"picture number {k}" for k in numbers]], schema=SCHEMA))
    return path


def large_pictures() -> Iterator[bytes]:
    """JPEGs of 512 pixels, no two alike, of the size that photographs have (some 50 KiB)."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    while True:
        coarse = Image.fromarray(rng.integers(0, 256, (48, 48, 3), np.uint8))
        buffer = io.BytesIO()
        coarse.resize((512, 512), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
        yield buffer.getvalue()


def small_pictures() -> Iterator[bytes]:
    """PNGs of 8 pixels, no two alike."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    begin = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    end, rest, number = chunk(b"IEND", b""), bytes(8 * 25 - 5), 0
    while True:
        number += 1
        yield begin + chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">I", number) + rest, 1)) + end


def ours(source: Path, work: Path) -> float:
    """Seconds of our import."""
    from mapo.importers import import_pairs

    start = time.perf_counter()
    import_pairs(source, work / "pairs")
    return time.perf_counter() - start


def convert(row: dict[str, Any]) -> dict[str, Any]:
    """The same work as ours, for a map of `datasets`."""
    import hashlib

    from PIL import Image

    labels = (row["label_0"], row["label_1"])
    if labels not in ((0, 1), (1, 0)) or not row["caption"].strip():
        raise ValueError("bad row")
    chosen, rejected = (row["jpg_0"], row["jpg_1"]) if labels[0] else (row["jpg_1"], row["jpg_0"])
    result = {"prompt": row["caption"], "chosen": chosen, "rejected": rejected}
    for side in ("chosen", "rejected"):
        picture: Any = Image.open(io.BytesIO(result[side]))
        picture.load()
        picture.getexif()
        result |= {f"{side}_sha256": hashlib.sha256(result[side]).hexdigest()}
        result |= {f"{side}_width": picture.width, f"{side}_height": picture.height}
    return result


def plain_datasets(source: Path, work: Path, processes: int | None) -> float:
    """Seconds of a map and of writing its result."""
    import datasets

    datasets.disable_progress_bars()
    data = datasets.load_dataset("parquet", data_files=str(source), split="train", cache_dir=str(work / "cache"))
    start = time.perf_counter()
    mapped = data.map(convert, remove_columns=data.column_names, num_proc=processes)
    mapped.to_parquet(str(work / "pairs.parquet"))
    return time.perf_counter() - start


def rates(folder: Path, rows: int, rounds: int) -> dict[str, float]:
    """Median rows a second of each variant."""
    from mapo.importers.checking import cores

    source = write_source(folder / "large.parquet", large_pictures(), rows, 100)
    variants: dict[str, Callable[[Path], float]] = {
        "mapo": lambda work: ours(source, work),
        "datasets, 1 process": lambda work: plain_datasets(source, work, None),
        f"datasets, {cores()} processes": lambda work: plain_datasets(source, work, cores()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            with tempfile.TemporaryDirectory(dir=folder) as work:
                spent = run(Path(work))
            if number:  # the first round warms up
                seconds[name].append(spent)
    return {name: rows / statistics.median(spent) for name, spent in seconds.items()}


def anonymous_mib() -> float:
    """RssAnon of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def measure_memory(source: Path, out: Path) -> dict[str, float]:
    """Peak anonymous memory while ``source`` is imported, in MiB, and rows a second."""
    from mapo.importers import import_pairs

    peak, stop = [anonymous_mib()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            peak[0] = max(peak[0], anonymous_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    begin, start = peak[0], time.perf_counter()
    counts = import_pairs(source, out)
    spent = time.perf_counter() - start
    stop.set()
    thread.join()
    return {
        "rows": counts["pairs"],
        "before_mib": begin,
        "peak_mib": peak[0],
        "rows_per_second": counts["pairs"] / spent,
    }


def measure_opening(folder: Path) -> dict[str, float]:
    """Seconds to open a set and to show one pair of it, and anonymous memory afterwards."""
    from mapo.pairs import PairSet

    before, start, busy = anonymous_mib(), time.perf_counter(), time.process_time()
    opened = PairSet(folder)
    spent, busy = time.perf_counter() - start, time.process_time() - busy
    opened.image_bytes(opened[len(opened) // 2].chosen)
    memory = {"before_mib": before, "after_mib": anonymous_mib()}
    return {"pairs": len(opened), "seconds": spent, "processor_seconds": busy, **memory}


def child(what: str, *paths: Path) -> dict[str, float]:
    """A measurement in a process of its own."""
    command = [sys.executable, str(HERE), "--child", what, *map(str, paths)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--few", type=int, default=100_000)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path, default=Path("work/importing"))
    parser.add_argument("--child", nargs="+")
    args = parser.parse_args()
    if args.child:
        what, *paths = args.child
        measure = {"memory": measure_memory, "opening": measure_opening}[what]
        print(json.dumps(measure(*map(Path, paths))))  # type: ignore[operator]
        return
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    speed = rates(args.work, args.rows, args.rounds)
    memory = {}
    for name, count in (("few", args.few), ("many", args.many)):
        source = write_source(args.work / f"{name}.parquet", small_pictures(), count, 1000)
        memory[name] = child("memory", source, args.work / name)
        source.unlink()
    opening = [child("opening", args.work / "many") for _ in range(7)]
    best = max(v for k, v in speed.items() if k != "mapo")
    ratios = {
        "rows a second, mapo / the better of datasets": speed["mapo"] / best,
        f"peak memory, {args.many} / {args.few} rows": memory["many"]["peak_mib"] / memory["few"]["peak_mib"],
        f"seconds to open {args.many} pairs, median": statistics.median(o["seconds"] for o in opening),
        f"seconds to open {args.many} pairs, least disturbed": min(o["seconds"] for o in opening),
    }
    for name, value in {**speed, **ratios}.items():
        print(f"{name:50} {value:10.3f}")
    result = {
        "pyarrow": pa.__version__,
        "rows_per_second": speed,
        "memory": memory,
        "opening": opening,
        "ratios": ratios,
    }
    if args.out:
        write_measured(args.out / "importing.json", result)
    shutil.rmtree(args.work)


if __name__ == "__main__":
    main()
