"""Real servers for tests of remote shards: HTTP with ranges, S3 (moto), and a proxy that spoils."""

import http.client
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = tuple[int, dict[str, str], bytes]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, headers, data = self.server.answer(
            self.command, self.path, dict(self.headers), body
        )
        fault = self.server.fault(self.command, dict(self.headers))
        if fault:
            self.server.faults[fault] += 1
        if fault in ("500", "503", "403"):
            status, headers, data = int(fault), {"Content-Type": "application/xml"}, b"<Error/>"
        if fault == "short":  # headers and body agree, on less than was asked for
            data = data[: len(data) // 2]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", headers.get("Content-Length") or str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            linger = struct.pack("ii", 1, 0)  # close with a reset, as a dying host does
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            return
        if fault == "stall":  # longer than the client waits for a byte
            self.wfile.write(data[:10])
            self.wfile.flush()
            time.sleep(self.server.stall_seconds)
        if fault == "slow":
            for start in range(0, len(data), 1 + len(data) // 8):
                time.sleep(0.02)
                self.wfile.write(data[start : start + 1 + len(data) // 8])
            return
        self.wfile.write(data)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self.handle_any
        raise AttributeError(name)

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True  # the client went away, as it may

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Faults:
    """Which requests for ranges are spoilt: a share of them at random, each kind in turn."""

    share: float = 0.0
    kinds: tuple[str, ...] = ("500", "cut", "slow", "short", "503", "stall")
    draws: random.Random = field(default_factory=lambda: random.Random(0))
    number: int = 0

    def __call__(self, command: str, headers: dict[str, str]) -> str:
        if command != "GET" or "Range" not in headers or self.draws.random() >= self.share:
            return ""
        self.number += 1
        return self.kinds[self.number % len(self.kinds)]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    answer: Callable[[str, str, dict[str, str], bytes], Answer]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fault: Callable[[str, dict[str, str]], str] = Faults()
        self.faults: Counter[str] = Counter()
        self.requests: list[tuple[str, str, str]] = []  # command, path, range
        self.stall_seconds = 3.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def running(server: _Server) -> Iterator[_Server]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class FolderServer(_Server):
    """Serves a folder; knows ranges unless told otherwise."""

    def __init__(self, folder: Path, knows_ranges: bool = True) -> None:
        super().__init__()
        self.folder, self.knows_ranges = folder, knows_ranges

    def answer(self, command: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        self.requests.append((command, path, headers.get("Range", "")))
        file = self.folder / path.partition("?")[0].lstrip("/")
        if not file.is_file():
            return 404, {}, b"no"
        data, etag = file.read_bytes(), f'"{file.stat().st_mtime_ns:x}"'
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range", ""))
        if not found or not self.knows_ranges:
            return 200, {"ETag": etag}, data
        start, end = int(found[1]), min(int(found[2]), len(data) - 1)
        if start >= len(data):
            return 416, {"Content-Range": f"bytes */{len(data)}"}, b""
        content_range = f"bytes {start}-{end}/{len(data)}"
        return 206, {"ETag": etag, "Content-Range": content_range}, data[start : end + 1]


class Proxy(_Server):
    """Passes requests on to another server, spoiling some answers."""

    def __init__(self, upstream: str) -> None:
        super().__init__()
        self.upstream = upstream.removeprefix("http://")

    def answer(self, command: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        self.requests.append((command, path, headers.get("Range", "")))
        connection = http.client.HTTPConnection(self.upstream, timeout=30)
        try:
            connection.request(command, path, body, headers)
            reply = connection.getresponse()
            data = reply.read()
        finally:
            connection.close()
        left_out = ("connection", "transfer-encoding", "server", "date")
        if command != "HEAD":
            left_out += ("content-length",)
        kept = {k: v for k, v in reply.getheaders() if k.lower() not in left_out}
        return reply.status, kept, data


@contextmanager
def s3_server() -> Iterator[str]:
    """moto's S3 in a process of its own; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
