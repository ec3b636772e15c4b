"""Time and memory of ``sat-eval report`` on thousands of synthetic records.

::

    python -m benchmarks.report --records 5000 --seeds 5

A record of each evaluation is taken from a directory of real ones and given other weights, values
and names: groups of models with ``--seeds`` seeds each. Prints the number of records, the
processor seconds and the largest resident memory of the command.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from evaluations.core.record import Metric, Record, read_record, record_files

ROOT = Path(__file__).parents[1]


def templates(directory: Path, model: str) -> list[Record]:
    """The first record of each evaluation of a model."""
    found: dict[str, Record] = {}
    for path in record_files(directory):
        try:
            record = read_record(path)
        except ValueError:
            continue
        if record.model["name"] == model:
            found.setdefault(record.evaluation, record)
    return list(found.values())


def write_study(
    out: Path, records: Sequence[Record], n_groups: int, n_seeds: int, n_records: int
) -> int:
    """Write records of a study; returns their number, at most ``n_records``."""
    draws, written = random.Random(0), 0
    for group in range(n_groups):
        for seed in range(n_seeds):
            name = f"local-k{group + 1}-s{seed}"
            weights = hashlib.sha256(name.encode()).hexdigest()
            for record in records:
                if written == n_records:
                    return written
                made = _changed(record, name, weights, group, seed, draws)
                made.write(
                    out / f"{name}-{weights[:8]}" / f"{record.evaluation}-{record.config_hash}.json"
                )
                written += 1
    return written


def _changed(
    record: Record, name: str, weights: str, group: int, seed: int, draws: random.Random
) -> Record:
    ablation = {**(record.model.get("ablation") or {}), "k_attention": group + 1}
    training = {**record.model.get("training", {}), "seed": seed}
    named = {"name": name, "spec": name, "weights_hash": weights, "training": training}
    model = {**record.model, **named, "ablation": ablation}
    metrics = [_noisy(metric, draws) for metric in record.metrics]
    return dataclasses.replace(record, model=model, metrics=metrics)


def _noisy(metric: Metric, draws: random.Random) -> Metric:
    if metric.value is None:
        return metric
    return dataclasses.replace(metric, value=metric.value * draws.uniform(0.9, 1.1))


def measure(out: Path) -> dict[str, float]:
    """Run the command; processor seconds, seconds and MiB of it."""
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "evaluations.cli", "report", "--out", str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    seconds = time.perf_counter() - clock
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-2000:]
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"processor": processor, "seconds": seconds, "MiB": after.ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--source", default=str(ROOT / "results" / "builtin"))
    parser.add_argument("--model", default="demo:local-k4")
    given = parser.parse_args()
    records = templates(Path(given.source), given.model)
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)
        groups = -(-given.records // (len(records) * given.seeds))
        n = write_study(out, records, groups, given.seeds, given.records)
        size = sum(path.stat().st_size for path in out.rglob("*.json"))
        told = {"records": n, "groups": groups, "MiB of records": size / 2**20, **measure(out)}
    print(json.dumps({key: round(value, 1) for key, value in told.items()}, indent=1))


if __name__ == "__main__":
    main()
