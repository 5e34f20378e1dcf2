"""Who may ask what of the server, before anything else sees a request.

gradio has more routes than this page needs, some of which read paths or fetch addresses, and does
not check the paths in what a mounted page is sent; so only the routes that are needed pass, and
only with paths below the server's own folder.

* The `Host` of a server on this machine must name this machine: a page elsewhere could make its own
  name point here (DNS rebinding).
* An `Origin` must be this server: other pages may not use the reader's browser to ask.
* With a token, every request carries it: in `Authorization: Bearer`, or in a cookie that
  `/?token=` sets.
* A body says its length beforehand and has at most as many bytes as its route takes.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from mllm.chat.pictures import MAX_BYTES
from mllm.chat.web.refusal import error_body

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COMPLETIONS = "/v1/chat/completions"
FILE = "/gradio_api/file="
UPLOAD = "/gradio_api/upload"

# Bytes of a body, by route. An upload may be several files, each at most MAX_BYTES; base64 takes
# four bytes for three.
MAX_EVENT = 4 << 20
POSTED = {
    COMPLETIONS: MAX_BYTES * 3 // 2,
    UPLOAD: 4 * MAX_BYTES,
    "/gradio_api/queue/join": MAX_EVENT,
    "/gradio_api/cancel": MAX_EVENT,
    "/gradio_api/reset": MAX_EVENT,
}
READ = (
    "/",
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/manifest.json",
    "/robots.txt",
    "/gradio_api/startup-events",
    "/gradio_api/queue/data",
    "/gradio_api/upload_progress",
)
READ_BELOW = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/", FILE, "/v1/")

# gradio's page has scripts within it and builds functions from strings.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),  # the address may hold the token
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]


class Guard:
    """ASGI middleware; see the file's head.

    Args:
        folder: of uploads and thumbnails; no other path is taken or given.
        hosts: names that `Host` may have; None: any.
        token: None: nobody needs one.
        port: keeps the cookies of servers on one machine apart.
    """

    def __init__(
        self,
        app: App,
        folder: Path,
        hosts: frozenset[str] | None,
        token: str | None,
        port: int,
    ) -> None:
        self.app, self.folder, self.hosts = app, Path(os.path.realpath(folder)), hosts
        self.token = token
        self.cookie = f"mllm_{port}"
        # Not the token itself: a cookie may hold only some characters.
        self.cookie_value = hashlib.sha256(f"mllm cookie {token}".encode()).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        path = scope["path"]
        if reason := self._foreign(headers):
            await _reply(send_with_headers, path, 403, reason)
            return
        if self.token is not None and not self._has_token(headers):
            await self._ask_for_token(scope, send_with_headers)
            return
        if refused := self._refused(scope["method"], path, headers):
            await _reply(send_with_headers, path, *refused)
            return
        if scope["method"] == "POST" and path not in (UPLOAD, COMPLETIONS):
            body = await _whole(receive)
            if not self._has_own_paths(body):
                await _reply(send_with_headers, path, 400, "a path that was not uploaded here")
                return
            receive = _again(body, receive)
        await self.app(scope, receive, send_with_headers)

    def _foreign(self, headers: dict[str, str]) -> str | None:
        """Why a request does not come from a page or a program that means this server."""
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            return f"this server is not called {_name(host)!r}"
        origin = headers.get("origin")
        if origin is not None and _place(origin) != host.lower():
            return "asked by a page of another server"
        return None

    def _refused(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and reason; None where nothing speaks against the request."""
        if method == "POST":
            return _refused_body(path, headers)
        if method not in ("GET", "HEAD"):
            return 405, f"{method} is not served"
        if path not in READ and not path.startswith(READ_BELOW):
            return 404, "nothing here"
        if path.startswith(FILE) and not self._is_own(path.removeprefix(FILE)):
            return 403, "not a file of this chat"
        return None

    def _is_own(self, path: str) -> bool:
        """Whether a path names a file below the server's folder, links followed."""
        try:
            real = Path(os.path.realpath(path))
            return Path(path).is_absolute() and real.is_relative_to(self.folder) and real.is_file()
        except (ValueError, OSError):  # a zero byte, a name too long
            return False

    def _has_own_paths(self, body: bytes) -> bool:
        """Whether each `path` in a JSON body is `_is_own`."""
        try:
            left = [json.loads(body)] if body else []
        except (ValueError, RecursionError):
            return False
        while left:
            value = left.pop()
            if isinstance(value, list):
                left += value
            elif isinstance(value, dict):
                left += value.values()
                path = value.get("path")
                if path is not None and not (isinstance(path, str) and self._is_own(path)):
                    return False
        return True

    def _has_token(self, headers: dict[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._is_token(given.strip())
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return False
        return morsel is not None and _equal(morsel.value, self.cookie_value)

    def _is_token(self, given: str) -> bool:
        return self.token is not None and _equal(given, self.token)

    async def _ask_for_token(self, scope: Scope, send: Send) -> None:
        """Takes the token from the address, once, or says where to find it."""
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = query.pop("token", [""])
        if scope["path"] != "/" or not self._is_token(given[-1]):
            if scope["path"].startswith("/v1/"):
                reason = "this server needs its token: Authorization: Bearer TOKEN"
            else:
                reason = "This chat needs its token: open the address that its server printed."
            await _reply(send, scope["path"], 401, reason)
            return
        # Lax: Strict would not be sent along when the address was opened from another page.
        cookie = f"{self.cookie}={self.cookie_value}; HttpOnly; SameSite=Lax; Path=/"
        place = "/?" + urlencode(query, doseq=True) if query else "/"
        headers = [(b"location", place.encode()), (b"set-cookie", cookie.encode())]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _refused_body(path: str, headers: dict[str, str]) -> tuple[int, str] | None:
    limit = POSTED.get(path)
    if limit is None:
        return 404, "nothing here"
    if path != UPLOAD and headers.get("content-type", "").split(";")[0] != "application/json":
        return 415, "the body must be application/json"  # what another page's form cannot send
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdecimal()):
        return 411, "the body's length must be given: Content-Length"
    if int(length) > limit:
        return 413, f"a body of {int(length):,} bytes; at most {limit:,} are taken"
    return None


def _name(host: str) -> str:
    """`localhost` of `localhost:7860`, `::1` of `[::1]:7860`."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _place(origin: str) -> str:
    """`localhost:7860` of `http://localhost:7860`."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


async def _whole(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` first."""
    is_given = False

    async def receive_again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


async def _reply(send: Send, path: str, status: int, reason: str) -> None:
    if path.startswith("/v1/"):
        code = "invalid_api_key" if status == 401 else None
        body, kind = json.dumps(error_body(reason, code=code, status=status)), "application/json"
    else:
        body, kind = reason + "\n", "text/plain; charset=utf-8"
    data = body.encode()
    headers = [
        (b"content-type", kind.encode()),
        (b"content-length", str(len(data)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
