"""Ranges of bytes of remote objects: fsspec's file systems, bounded requests, retries, errors.

A file system belongs to the process that made it: its connections and its event loop do not
survive a fork. Nothing here repeats a credential: messages pass through `redacted`, and the
client libraries, whose debug lines hold signed headers, log from INFO on.
"""

import asyncio
import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import sync

from corpora.transfer import MIB, RemoteSettings, count
from mllm.errors import UserError

CONNECT_SECONDS = 10.0
RETRIED = (408, 425, 429, "RequestTimeout")  # and every 5xx
REFUSED = (401, 403)
ABSENT = (404, 410)
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "https": "aiohttp", "http": "aiohttp"}
CHATTY_LOGGERS = ("botocore", "aiobotocore", "s3fs", "gcsfs", "fsspec", "aiohttp", "urllib3")

Result = TypeVar("Result")


class RemoteUnavailable(OSError):
    """A remote object could not be read in all the attempts allowed. One line, no credentials."""


class _Passing(Exception):
    """A fault that another attempt may not meet; its text is ours."""


@dataclass(frozen=True)
class Reply:
    data: bytes
    object_size: int
    version: str  # ETag or time of change; "" where the server says neither


def stat_object(url: str, settings: RemoteSettings) -> tuple[int, str]:
    """Size in bytes and version of an object, from a request for its first byte."""
    reply = _attempt(url, settings, lambda: _get(url, 0, 1, settings), opens=1)
    return reply.object_size, reply.version


def fetch_range(url: str, start: int, stop: int, version: str, settings: RemoteSettings) -> bytes:
    """Bytes `start` to `stop` of the version of an object that was opened.

    Raises:
        UserError: the object is gone, replaced or refused.
        RemoteUnavailable: the network or the server failed in every attempt.
    """

    def once() -> bytes:
        reply = _get(url, start, stop, settings, version)
        if len(reply.data) != stop - start:
            raise _Passing(f"{len(reply.data):,} of {stop - start:,} bytes came")
        return reply.data

    data = _attempt(url, settings, once, requests=1)
    count(bytes_fetched=len(data))
    return data


def list_folder(url: str, settings: RemoteSettings, *, may_be_absent: bool = False) -> list[str]:
    """Names right under a folder. UserError where it is not there or may not be listed."""
    scheme, _, path = url.partition("://")

    def once() -> list[str]:
        try:
            found = _file_system(scheme, settings).ls(path, detail=False)
        except FileNotFoundError:
            if may_be_absent:
                return []
            raise
        return [name.rstrip("/").rpartition("/")[2] for name in found]

    return _attempt(url, settings, once, opens=1)


def put_object(url: str, source: Path, settings: RemoteSettings) -> None:
    """Uploads a file, in place of what is there.

    Raises:
        UserError: refused, or no such bucket or file.
        RemoteUnavailable: the network or the server failed in every attempt.
    """
    scheme, _, path = url.partition("://")

    def once() -> None:
        files = _file_system(scheme, settings)
        if scheme == "file":  # elsewhere folders are only names
            files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.put_file(str(source), path)

    _attempt(url, settings, once, "written")


def remove_object(url: str, settings: RemoteSettings, *, recursive: bool = False) -> None:
    """Removes an object, or all below a folder."""
    scheme, _, path = url.partition("://")
    _attempt(url, settings, lambda: _file_system(scheme, settings).rm(path, recursive), "removed")


def redacted(text: str, settings: RemoteSettings) -> str:
    """`text` on one line, without queries, users in URLs, and values of storage options."""
    for secret in sorted(_secrets(settings.storage_options), key=len, reverse=True):
        text = text.replace(secret, "***")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        if os.environ.get(variable):
            text = text.replace(os.environ[variable], "***")
    text = re.sub(r"(?<=://)[^/\s'\"]*@", "", text)
    text = re.sub(r"\?[^\s'\")>]+", "?***", text)
    return " ".join(text.split())[:300]


def _secrets(options: Any) -> list[str]:
    """Every text of the options that is long enough to be a secret, but for plain URLs."""
    if isinstance(options, dict):
        return [secret for value in options.values() for secret in _secrets(value)]
    if isinstance(options, list):
        return [secret for value in options for secret in _secrets(value)]
    is_secret = isinstance(options, str) and len(options) >= 4 and "://" not in options
    return [options] if is_secret else []


# ---------------------------------------------------------------- attempts


def _attempt(
    url: str,
    settings: RemoteSettings,
    once: Callable[[], Result],
    deed: str = "read",
    **counted: int,
) -> Result:
    """Calls `once` until it succeeds, with growing pauses; a lasting error ends it at once."""
    for attempt in range(1, settings.attempts + 1):
        try:
            with _slots(settings.max_requests):
                count(**counted, retries=int(attempt > 1))
                return once()
        except Exception as error:
            reason = _passing_reason(url, error, settings)
        # `from None` throughout: what the libraries raise may spell signed URLs and headers.
        if attempt == settings.attempts:
            raise RemoteUnavailable(
                f"{url}: cannot be {deed} after {attempt} attempts ({reason})"
            ) from None
        pause = settings.back_off_seconds * 2 ** (attempt - 1)
        time.sleep(min(pause, settings.max_back_off_seconds) * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


def _passing_reason(url: str, error: Exception, settings: RemoteSettings) -> str:
    """Why another attempt may help. UserError where none does; our own bugs pass through."""
    scheme = url.partition("://")[0]
    if isinstance(error, UserError):
        raise error
    status, code = _answer(error)
    if isinstance(error, FileNotFoundError) or status in ABSENT:
        raise UserError(f"{url}: no such object or bucket") from None
    if isinstance(error, PermissionError) or status in REFUSED:
        raise UserError(f"{url}: access refused; check the credentials for {scheme}") from None
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        raise UserError(f"{url}: no credentials found for {scheme}; set them up first") from None
    if status == 416:
        raise UserError(f"{url}: is empty, or was cut; write it again") from None
    if 300 <= status < 500 and status not in RETRIED and code not in RETRIED:
        raise UserError(f"{url}: the server answers {status} {code}".rstrip()) from None
    if isinstance(error, _Passing):
        return str(error)
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return "timed out"
    module = type(error).__module__.partition(".")[0]
    if isinstance(error, OSError) or module in ("aiohttp", "botocore", "aiobotocore", "urllib3"):
        text = redacted(str(error), settings)
        return f"{type(error).__name__}: {text}" if text else type(error).__name__
    raise error


def _answer(error: Exception) -> tuple[int, str]:
    """HTTP status (0 where there was none) and S3's word for it."""
    for cause in (error, error.__cause__):
        response = getattr(cause, "response", None)  # botocore's; s3fs wraps it
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return status, str(response.get("Error", {}).get("Code", ""))
    status = getattr(error, "status", 0)  # aiohttp's
    return (status if isinstance(status, int) else 0), ""


# ---------------------------------------------------------------- one request


def _get(url: str, start: int, stop: int, settings: RemoteSettings, version: str = "") -> Reply:
    """Sends one request. `version`: what the object must still be, "" for any."""
    scheme, _, path = url.partition("://")
    files = _file_system(scheme, settings)
    deadline = settings.deadline_seconds(stop - start)
    if scheme == "s3":
        return sync(files.loop, _get_s3, files, path, start, stop, version, timeout=deadline)
    if scheme in ("http", "https"):
        return sync(files.loop, _get_http, files, url, start, stop, version, timeout=deadline)
    # Elsewhere no version comes with the bytes, so it is asked for before each request.
    info = files.info(path)
    if info["type"] != "file":
        raise FileNotFoundError(url)
    names = ("ETag", "etag", "generation", "mtime", "created")
    found = next((str(info[name]) for name in names if info.get(name)), "")
    _check_version(url, version, found)
    return Reply(files.cat_file(path, start=start, end=stop), info["size"], found)


async def _get_s3(files: Any, path: str, start: int, stop: int, version: str) -> Reply:
    bucket, key, _ = files.split_path(path)
    answer = await files._call_s3(
        "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}"
    )
    async with answer["Body"] as body:
        found = answer.get("ETag", "")
        _check_version(f"s3://{path}", version, found)
        size = _object_size(f"s3://{path}", answer.get("ContentRange"))
        return Reply(await body.read(), size, found)


async def _get_http(files: Any, url: str, start: int, stop: int, version: str) -> Reply:
    session = await files.set_session()
    options = dict(files.kwargs)
    headers = dict(options.pop("headers", {}))
    headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    async with session.get(files.encode_url(url), headers=headers, **options) as answer:
        answer.raise_for_status()
        if url.startswith("https://") and answer.url.scheme != "https":
            raise UserError(f"{url}: the server redirects from https to http, which is refused")
        found = answer.headers.get("ETag") or answer.headers.get("Last-Modified", "")
        _check_version(url, version, found)
        # Checked before the body: a server that ignores ranges would send the whole shard.
        size = _object_size(url, answer.headers.get("Content-Range"))
        return Reply(await answer.read(), size, found)


def _object_size(url: str, content_range: str | None) -> int:
    total = (content_range or "").rpartition("/")[2]
    if not total.isdigit():
        raise UserError(
            f"{url}: this server does not serve ranges of bytes; copy the shards to one that does"
        )
    return int(total)


def _check_version(url: str, version: str, found: str) -> None:
    if version and found != version:
        raise UserError(
            f"{url}: was replaced while it was being read; run `mllm corpora index` on the corpus"
        )


# ---------------------------------------------------------------- file systems of this process

_SYSTEMS: dict[tuple[int, str, str], Any] = {}  # a parent's stay referenced: closing them in a
_SLOTS: dict[tuple[int, int], threading.Semaphore] = {}  # child would reach into its connections
_LOCK = threading.Lock()


def _new_lock() -> None:
    global _LOCK
    _LOCK = threading.Lock()  # a thread of the parent may have held it


os.register_at_fork(after_in_child=_new_lock)


def _slots(number: int) -> threading.Semaphore:
    with _LOCK:
        return _SLOTS.setdefault((os.getpid(), number), threading.Semaphore(number))


def _file_system(scheme: str, settings: RemoteSettings) -> Any:
    options = settings.storage_options.get(scheme, {})
    key = (os.getpid(), scheme, json.dumps([options, settings.timeout_seconds], default=str))
    with _LOCK:
        if key not in _SYSTEMS:
            _SYSTEMS[key] = _make_file_system(scheme, options, settings)
        return _SYSTEMS[key]


def _make_file_system(scheme: str, options: dict[str, Any], settings: RemoteSettings) -> Any:
    for name in CHATTY_LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.getEffectiveLevel(), logging.INFO))
    defaults: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    try:
        if scheme == "s3":
            config = {
                "connect_timeout": min(CONNECT_SECONDS, settings.timeout_seconds),
                "read_timeout": settings.timeout_seconds,
                "retries": {"max_attempts": 0},  # the attempts are ours, and counted
                "max_pool_connections": settings.max_requests + 2,
            } | options.get("config_kwargs", {})
            files = fsspec.filesystem("s3", **defaults | options | {"config_kwargs": config})
            files.retries = 1
            return files
        if scheme in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(
                sock_connect=min(CONNECT_SECONDS, settings.timeout_seconds),
                sock_read=settings.timeout_seconds,
            )
            client = {"timeout": timeout, "read_bufsize": MIB} | options.get("client_kwargs", {})
            return fsspec.filesystem(scheme, **defaults | options | {"client_kwargs": client})
        return fsspec.filesystem(scheme, **defaults | options)
    except ImportError:
        raise UserError(
            f'{scheme}://: {PACKAGES.get(scheme, "fsspec")} is missing; pip install "mllm[remote]"'
        ) from None
