"""The first batch after a resume at step 10^7, of corpora of 10^8 samples (or MLLM_BENCH_SAMPLES).

    MLLM_BENCH_SAMPLES=1000000000 python -m mllm.bench seek     51 GB of disk, half an hour once

The corpora stay in runs/bench/seek-N for the next time; see `_giant` for what they are made of.
Each measurement is a process of its own; before it, the files' pages are dropped from memory.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from mllm.bench import _giant, machine

STEPS = (0, 10_000_000)
ROUNDS = 3
VERIFIED_ROWS = 100_000


def run() -> dict[str, Any]:
    num_samples = int(os.environ.get("MLLM_BENCH_SAMPLES", 100_000_000))
    root = Path(f"runs/bench/seek-{num_samples}").absolute()
    began = time.perf_counter()
    config_path = _giant.build(root, num_samples)
    built = time.perf_counter()
    _first_batch(config_path, 0)  # plans, where no plan stands
    planned = time.perf_counter()
    measured: dict[str, list[dict[str, float]]] = {str(step): [] for step in STEPS}
    for _ in range(ROUNDS):
        for step in STEPS:
            _drop_pages(root)
            measured[str(step)].append(_first_batch(config_path, step))
    return {
        **machine.describe("numpy", "numba", "torch"),
        "samples": num_samples,
        "disk_bytes": _giant.disk_bytes(root),
        "build_seconds": built - began,
        "plan_seconds": planned - built,
        "first_batch": {
            step: {name: float(np.median([m[name] for m in rounds])) for name in rounds[0]}
            for step, rounds in measured.items()
        },
        "verified": _verify(config_path),
    }


def lines(result: dict[str, Any]) -> list[str]:
    found = [
        f"{result['samples']:,} samples in three sources, {result['disk_bytes'] / 1e9:.1f} GB of "
        f"index, lengths and plans"
    ]
    for step, m in result["first_batch"].items():
        found.append(
            f"step {int(step):>10,}, after imports: open {m['open_seconds']:.2f} s + batch "
            f"{m['batch_seconds']:.2f} s = {m['seconds']:.2f} s, peak {m['peak_mib']:,.0f} MiB "
            f"({m['import_mib']:,.0f} before), {m['reads']:,.0f} read calls, "
            f"{m['read_mib']:,.1f} MiB from disk, {m['page_faults']:,.0f} pages mapped from files"
        )
    v = result["verified"]
    found.append(
        f"{v['rows']:,} rows equal to brute force; each of {v['epoch_rows']:,} rows once an epoch, "
        f"each of {v['samples']:,} samples in the plan"
    )
    return found


def _first_batch(config_path: Path, step: int) -> dict[str, float]:
    command = [sys.executable, "-m", "mllm.bench.seek", str(config_path), str(step)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return json.loads(printed)


def _measure(config_path: str, step: int) -> dict[str, float]:
    """Opens the stream and composes one step; runs in a process of its own."""
    from mllm.config import load_config
    from mllm.stream.stream import TokenStream

    config = load_config(config_path)
    import_mib, reads, read_bytes = _peak_mib(), *_reads()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    began = time.perf_counter()
    stream = TokenStream.from_config(config)
    opened = time.perf_counter()
    stream.batch(
        step, rank=0, world_size=16, micro_batch_size=config.train.micro_batch_size // 16
    )  # a rank's share: 16 rows of 256
    done = time.perf_counter()
    reads_after, read_bytes_after = _reads()
    return {
        "open_seconds": opened - began,
        "batch_seconds": done - opened,
        "seconds": done - began,
        "import_mib": import_mib,
        "peak_mib": _peak_mib(),
        "reads": reads_after - reads,
        "read_mib": (read_bytes_after - read_bytes) / 2**20,
        "page_faults": resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults,
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _reads() -> tuple[int, int]:
    """Read system calls of this process, and bytes it had from the disk."""
    text = Path("/proc/self/io").read_text()
    counts = dict(line.split(": ") for line in text.splitlines())
    return int(counts["syscr"]), int(counts["read_bytes"])


def _drop_pages(root: Path) -> None:
    """Asks the kernel to forget the files' pages; needs no root."""
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ---------------------------------------------------------------- brute force
def _verify(config_path: Path) -> dict[str, int]:
    """Compares the stream with what long sums and loops say. AssertionError where it differs."""
    from mllm.config import load_config
    from mllm.stream.stream import TokenStream

    stream = TokenStream.from_config(load_config(str(config_path)))
    num_rows = [source.plan.num_rows for source in stream.sources]
    epoch_rows = sum(_check_epoch(stream, number) for number in range(len(num_rows)))
    samples = sum(_check_plan(source) for source in stream.sources)
    starts = [_starts(source.plan.row_pieces.counts) for source in stream.sources]
    cut_starts = [_starts(source.plan.row_cuts.counts) for source in stream.sources]
    pattern = stream.order.mixtures[0].pattern.tolist()
    taken = [0] * len(num_rows)  # rows that each source has given so far
    for first in range(0, VERIFIED_ROWS, stream.global_batch_size):
        order = stream.rows(first // stream.global_batch_size).order
        for place in range(stream.global_batch_size):
            source_id = pattern[(first + place) % len(pattern)]
            source, plan = stream.sources[source_id], stream.sources[source_id].plan
            assert order.source_ids[place] == source_id
            assert order.epochs[place] == taken[source_id] // num_rows[source_id]
            taken[source_id] += 1
            row = int(order.rows[place])
            expected = [
                [int(sample), 0, source.length(int(sample))]
                for sample in plan.piece_samples[slice(*starts[source_id][row : row + 2])]
            ]
            for cut in range(*cut_starts[source_id][row : row + 2]):
                piece = expected[plan.cut_places[cut]]
                piece[1:] = [int(plan.cut_starts[cut]), int(plan.cut_stops[cut])]
            assert [list(piece) for piece in plan.pieces(row)] == expected
            assert sum(stop - start for _, start, stop in expected) <= stream.seq_len
    return {"rows": VERIFIED_ROWS, "epoch_rows": epoch_rows, "samples": samples}


def _check_epoch(stream: Any, source_id: int) -> int:
    """Every row of a source once in its first epoch, by marking each."""
    from mllm.stream.permute import epoch_row

    size = stream.sources[source_id].plan.num_rows
    is_seen = np.zeros(size, dtype=bool)
    for first in range(0, size, 1 << 16):
        positions = np.arange(first, min(first + (1 << 16), size))
        keys = np.full(len(positions), 12345 + source_id, dtype=np.uint64)
        is_seen[epoch_row(positions, np.full(len(positions), size), keys)] = True
    assert is_seen.all()
    return size


def _check_plan(source: Any) -> int:
    """Every sample of a source stands in its plan, by marking each."""
    is_seen = np.zeros(len(source.corpus), dtype=bool)
    pieces = source.plan.piece_samples
    for first in range(0, len(pieces), 1 << 24):
        is_seen[pieces[first : first + (1 << 24)]] = True
    assert is_seen.all()
    return len(is_seen)


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]))))
