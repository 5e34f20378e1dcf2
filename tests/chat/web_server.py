"""A real server of `mllm chat --web` in a thread, on a free port, with a tiny export."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx

from mllm.chat.engine import Engine
from mllm.chat.sampling import Sampling
from mllm.chat.web import serve

HTTP = httpx.Client(verify=False, timeout=60)  # one: each would read all certificates


@contextmanager
def serving(
    engine: Engine, sampling: Sampling, host: str = "127.0.0.1", token: str | None = None
) -> Iterator[SimpleNamespace]:
    """`url`, `port`, `folder` and `page` of a server that is up."""
    before = dict(os.environ)  # gradio has its folder there: one server's at a time
    with serve._bound(host, 0) as listening, serve._private_folder() as folder:
        port = listening.getsockname()[1]
        served = serve.build(engine, sampling, folder, host, port, token)
        thread = threading.Thread(target=served.run, args=[listening])
        thread.start()
        url = f"http://127.0.0.1:{port}"
        try:
            wait_for(lambda: served.server.started, "the server to start")
            yield SimpleNamespace(url=url, port=port, folder=folder, page=served.page)
        finally:
            served.server.should_exit = True
            thread.join(timeout=20)
            os.environ.clear()
            os.environ.update(before)
            assert not thread.is_alive(), "the server did not end"


def wait_for(condition: Any, what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def upload(url: str, data: bytes, name: str, **headers: str) -> httpx.Response:
    """What the page does with a file."""
    return HTTP.post(f"{url}/gradio_api/upload", files={"files": (name, data)}, headers=headers)
