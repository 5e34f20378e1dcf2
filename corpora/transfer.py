"""How remote shards are read: the settings, and what this process has transferred so far."""

import json
import os
import threading
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mllm.errors import UserError

MIB, GIB = 1 << 20, 1 << 30
STORAGE_OPTIONS = "MLLM_STORAGE_OPTIONS"
NUMBERS = {  # environment variable: field it sets, and the factor to its unit
    "MLLM_SHARD_CACHE_GIB": ("cache_bytes", GIB),
    "MLLM_SHARD_CHUNK_MIB": ("chunk_bytes", MIB),
    "MLLM_REMOTE_ATTEMPTS": ("attempts", 1),
    "MLLM_REMOTE_REQUESTS": ("max_requests", 1),
    "MLLM_REMOTE_TIMEOUT_SECONDS": ("timeout_seconds", 1),
}


@dataclass(frozen=True)
class RemoteSettings:
    """How remote shards are read. Taken from the environment, so that workers inherit it."""

    cache_dir: Path = Path("~/.cache/mllm/shards")  # on a local disk; $MLLM_CACHE/shards if set
    cache_bytes: int = 16 * GIB  # of all processes together; 0 keeps nothing on disk
    chunk_bytes: int = 8 * MIB  # what one request fetches at least; part of a chunk's name
    max_request_bytes: int = 64 * MIB  # neighbouring chunks that one request fetches at most
    max_requests: int = 8  # under way at once, per process
    attempts: int = 6  # of one request, before the read fails
    back_off_seconds: float = 0.5  # after the first failure; doubles, with jitter
    max_back_off_seconds: float = 30.0
    timeout_seconds: float = 60.0  # without a connection or a byte
    slowest_bytes_per_second: int = 250_000  # a request that crawls below this is cut off
    claim_seconds: float = 60.0  # waiting for another process that fetches the same chunk
    # Per scheme, what its fsspec file system takes: {"s3": {"endpoint_url": ..., "key": ...}}.
    storage_options: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    @classmethod
    def from_environment(cls) -> "RemoteSettings":
        """Settings of this process. UserError names a variable that cannot be read."""
        given: dict[str, Any] = {}
        if os.environ.get("MLLM_CACHE"):
            given["cache_dir"] = Path(os.environ["MLLM_CACHE"]) / "shards"
        for variable, (name, factor) in NUMBERS.items():
            if variable in os.environ:
                given[name] = _number(variable) * factor
        kinds = {f.name: f.type for f in fields(cls)}
        given = {k: int(v) if kinds[k] in (int, "int") else v for k, v in given.items()}
        for name in ("chunk_bytes", "attempts", "max_requests", "timeout_seconds"):
            if name in given and given[name] <= 0:
                variable = next(v for v, (set_name, _) in NUMBERS.items() if set_name == name)
                raise UserError(f"{variable}={os.environ[variable]}: give a larger number")
        return cls(**given, storage_options=_storage_options())

    def deadline_seconds(self, num_bytes: int) -> float:
        """How long one request for `num_bytes` may take in all."""
        return self.timeout_seconds + num_bytes / self.slowest_bytes_per_second


def _number(variable: str) -> float:
    text = os.environ[variable]
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise UserError(f"{variable}={text}: not a number in its range")
    return value


def _storage_options() -> dict[str, dict[str, Any]]:
    try:
        options = json.loads(os.environ.get(STORAGE_OPTIONS) or "{}")
    except ValueError:
        options = None
    if not isinstance(options, dict) or not all(isinstance(v, dict) for v in options.values()):
        # Its content is not repeated: it may hold credentials.
        raise UserError(f'{STORAGE_OPTIONS}: not JSON of the form {{"s3": {{"option": value}}}}')
    return options


@dataclass
class Transfer:
    """Counters of one process."""

    requests: int = 0  # for ranges of bytes, each attempt counted
    retries: int = 0  # attempts after a first one, for ranges, opening and listing
    opens: int = 0  # requests for an object's size and version
    bytes_fetched: int = 0
    bytes_asked: int = 0  # by readers
    chunk_reads: int = 0  # looks into chunks
    cache_hits: int = 0  # of these, without a request of this process
    evictions: int = 0  # chunks that this process removed

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def count(self, **amounts: int) -> None:
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)


TRANSFER = Transfer()


def _count_anew() -> None:
    global TRANSFER
    TRANSFER = Transfer()


os.register_at_fork(after_in_child=_count_anew)  # a worker counts its own; a held lock stays behind


def count(**amounts: int) -> None:
    """Adds to this process's counters."""
    TRANSFER.count(**amounts)


def transfer_report() -> dict[str, int | float]:
    """This process's counters since it began, and the ratios that cost money.

    `requests_per_gb` is per 1e9 bytes fetched, `fetched_per_byte_asked` is what chunks cost (or
    the cache saved).
    """
    counters = {f.name: getattr(TRANSFER, f.name) for f in fields(Transfer)}
    return counters | {
        "requests_per_gb": round(1e9 * counters["requests"] / max(counters["bytes_fetched"], 1), 1),
        "fetched_per_byte_asked": round(
            counters["bytes_fetched"] / max(counters["bytes_asked"], 1), 3
        ),
    }


def transfer_line() -> str:
    """`transfer_report()` as one line for people."""
    report = transfer_report()
    return (
        f"remote: {report['bytes_asked'] / 1e6:,.1f} MB asked, "
        f"{report['bytes_fetched'] / 1e6:,.1f} MB fetched in {report['requests']:,} requests "
        f"({report['requests_per_gb']:,} per GB), {report['retries']:,} retries, "
        f"{report['cache_hits']:,} of {report['chunk_reads']:,} chunk reads from the cache, "
        f"{report['evictions']:,} evictions"
    )
