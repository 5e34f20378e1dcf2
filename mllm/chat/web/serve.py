"""The chat in a browser and /v1 on one port, until Ctrl-C."""

import ipaddress
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm.chat.conversation import Branches, Conversation
from mllm.chat.sampling import Sampling
from mllm.errors import UserError

MAX_PREFIXES = 4  # conversations that go on at once without computing their beginnings anew
MIN_TOKEN = 8  # characters
CLOSE_SECONDS = 2  # that open connections have at the end


def serve(
    model_dir: str | Path,
    sampling: Sampling | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    token: str | None = None,
    conversation: Conversation | None = None,
) -> None:
    """Serves until Ctrl-C. Prints the address.

    Args:
        sampling: what the page's controls begin with, and what requests to /v1 leave out.
        host: an address of this machine; with one that others reach, a token is needed.
        port: 0 takes a free one.
        token: None makes one where it is needed.
        conversation: with shots or system text that each session begins with.

    Raises:
        UserError: gradio is not installed, the port is in use, or `model_dir` is no export.
    """
    _need_gradio()
    token = _token(host, token)
    with _bound(host, port) as listening, _private_folder() as folder:
        from mllm.chat.engine import Engine

        port = listening.getsockname()[1]
        engine = Engine(model_dir, max_prefixes=MAX_PREFIXES)
        served = build(engine, sampling or Sampling(), folder, host, port, token, conversation)
        name = f"[{host}]" if ":" in host else host
        print(f"http://{name}:{port}/{f'?token={token}' if token else ''}", flush=True)
        print(f"OpenAI clients: base_url http://{name}:{port}/v1; Ctrl-C ends", flush=True)
        try:
            served.run(listening)
        finally:
            engine.close()


@dataclass
class Served:
    """The app and the server that runs it."""

    app: Any
    server: Any
    page: Any

    def run(self, listening: socket.socket) -> None:
        """Until Ctrl-C, or until `server.should_exit` is set."""
        with suppress(KeyboardInterrupt):  # uvicorn gives the signal on when it is done
            self.server.run(sockets=[listening])


def build(
    engine: Any,
    sampling: Sampling,
    folder: Path,
    host: str,
    port: int,
    token: str | None,
    conversation: Conversation | None = None,
) -> Served:
    """
    Args:
        folder: private, for what is uploaded.
    """
    _settle_gradio(folder)
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    from mllm.chat.pictures import MAX_BYTES
    from mllm.chat.web.api import router
    from mllm.chat.web.guard import Guard
    from mllm.chat.web.look import CSS, theme
    from mllm.chat.web.page import Page
    from mllm.chat.web.session import Session

    thumbnails = folder / "thumbnails"
    thumbnails.mkdir(exist_ok=True)
    gr.set_static_paths([thumbnails])
    first = Session(Branches({"main": conversation or Conversation()}))
    page = Page(engine, first, sampling, thumbnails)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router(engine, sampling))
    gr.mount_gradio_app(
        app,
        page.blocks,
        path="/",
        server_name=host,
        server_port=port,
        max_file_size=MAX_BYTES,
        show_error=False,  # a message of ours is in the page; others may hold paths
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        theme=theme(),
        css=CSS,
    )
    # gradio checks the paths in what it is sent only after `launch`, which is not called here.
    page.blocks.has_launched = True
    hosts = frozenset({host.lower(), *LOCAL_NAMES}) if _is_local(host) else None
    guarded = Guard(app, folder, hosts, token, port)
    config = uvicorn.Config(
        guarded,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )
    return Served(guarded, _server(config, page), page)


LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def _server(config: Any, page: Any) -> Any:
    """A uvicorn server that ends answers and connections before it waits for them.

    An open page holds a connection that never ends by itself.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: Any = None) -> None:
            page.stop_all()
            for connection in list(self.server_state.connections):
                connection.transport.close()  # type: ignore[union-attr]
            await super().shutdown(sockets)

    return Server(config)


def _is_local(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _token(host: str, token: str | None) -> str | None:
    if token is None:
        return None if _is_local(host) else secrets.token_urlsafe(24)
    if len(token) < MIN_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(
            f"--token: at least {MIN_TOKEN} letters, digits and signs without spaces; left out, "
            "one is made"
        )
    return token


def _need_gradio() -> None:
    import importlib.util

    if importlib.util.find_spec("gradio") is None:
        raise UserError('the browser chat needs gradio: pip install "mllm[web]"')


def _settle_gradio(folder: Path) -> None:
    """What gradio reads from the environment: nothing is sent anywhere, all files in `folder`."""
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
        "GRADIO_MCP_SERVER": "False",
    }


@contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder that nobody else reads, gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="mllm-chat-")).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket.

    Raises:
        UserError: the port is in use, or the host is none of this machine's.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: {error}") from None
    with socket.socket(family, kind) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
        except OSError as error:
            mend = "; choose another by --port" if error.errno == 98 else ""
            reason = error.strerror or error
            raise UserError(f"--host {host} --port {port}: {reason}{mend}") from None
        listening.listen(128)
        yield listening
