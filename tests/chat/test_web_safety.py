"""What other people's pages, paths and names can do to `mllm chat --web`: nothing."""

import io
import json
import os
import socket
import stat
import subprocess
import sys
from types import SimpleNamespace

import httpx
import pytest
from PIL import Image

from mllm.chat.conversation import Conversation, Shot, Turn
from mllm.chat.engine import Engine
from mllm.chat.pictures import picture_of
from mllm.chat.prompt import Usage
from mllm.chat.sampling import Sampling
from mllm.chat.web import guard, serve, show
from mllm.chat.web.session import Session, placed
from mllm.errors import UserError
from tests.chat.web_server import HTTP, serving, upload
from tests.hf.tiny import make_tiny, png

TOKEN = "a-token-of-the-test"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Engine(make_tiny(tmp_path_factory.mktemp("tiny")).export)


@pytest.fixture(scope="module")
def served(engine):
    with serving(engine, Sampling(max_new_tokens=4)) as served:
        yield served


@pytest.fixture(scope="module")
def with_token(engine):
    with serving(engine, Sampling(), host="0.0.0.0", token=TOKEN) as served:
        yield served


def test_everything_needs_the_token(with_token):
    for path in ("/", "/config", "/v1/models", "/gradio_api/file=/etc/passwd", "/assets/x.js"):
        assert HTTP.get(with_token.url + path).status_code == 401, path
    asked = HTTP.post(f"{with_token.url}/v1/chat/completions", json={"messages": []})
    assert asked.status_code == 401 and asked.json()["error"]["code"] == "invalid_api_key"
    assert upload(with_token.url, png(1), "x.png").status_code == 401
    for wrong in ("wrong", TOKEN[:-1], TOKEN + "x", "ä"):
        given = {"authorization": f"Bearer {wrong}".encode()}
        assert HTTP.get(f"{with_token.url}/v1/models", headers=given).status_code == 401
        assert HTTP.get(f"{with_token.url}/", params={"token": wrong}).status_code == 401
    given = {"authorization": f"Bearer {TOKEN}"}
    assert HTTP.get(f"{with_token.url}/v1/models", headers=given).status_code == 200


def test_the_token_in_the_address_becomes_a_cookie(with_token):
    with httpx.Client(verify=False) as client:
        first = client.get(f"{with_token.url}/", params={"token": TOKEN, "__theme": "dark"})
        assert first.status_code == 303 and first.headers["location"] == "/?__theme=dark"
        cookie = first.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite" in cookie and TOKEN not in cookie
        assert client.get(f"{with_token.url}/").status_code == 200
        assert client.get(f"{with_token.url}/config").status_code == 200
    forged = {"cookie": f"mllm_{with_token.port}={TOKEN}"}
    assert HTTP.get(f"{with_token.url}/", headers=forged).status_code == 401


def test_a_name_that_points_here_is_not_ours(served):
    for name in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "[bad"):
        answer = HTTP.get(f"{served.url}/v1/models", headers={"host": name})
        assert answer.status_code in (400, 403), name
    for name in ("localhost", "127.0.0.1:9", "[::1]:7860", "LOCALHOST:1"):
        answer = HTTP.get(f"{served.url}/v1/models", headers={"host": name})
        assert answer.status_code == 200, name


def test_pages_of_other_servers_may_not_ask(served):
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    address = f"{served.url}/v1/chat/completions"
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", f"{served.url}0"):
        headers = {"origin": origin}
        assert HTTP.post(address, json=body, headers=headers).status_code == 403, origin
        assert upload(served.url, png(1), "x.png", **headers).status_code == 403
        assert HTTP.get(f"{served.url}/config", headers=headers).status_code == 403
    own = HTTP.post(address, json=body, headers={"origin": served.url})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers
    # What a form elsewhere can send without asking first.
    plain = {"content-type": "text/plain"}
    assert HTTP.post(address, content=json.dumps(body), headers=plain).status_code == 415
    headers = HTTP.get(f"{served.url}/").headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"


def test_no_path_of_the_server_is_readable(served, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("SECRET")
    link = served.folder / "link.txt"
    link.symlink_to(secret)
    own = f"/gradio_api/file={served.folder}"
    up = "/.." * 8
    (served.folder / "own.txt").write_text("mine")
    assert HTTP.get(served.url + f"{own}/own.txt").text == "mine"
    for path in (
        "/gradio_api/file=/etc/passwd",
        f"/gradio_api/file={secret}",
        f"/gradio_api/file=file://{secret}",
        f"/gradio_api/file/{secret}",
        f"{own}{up}{secret}",
        f"{own}{up.replace('.', '%2e')}{secret}",
        f"{own}/link.txt",
        own,
        f"{own}/%00",
        "/gradio_api/file=README.md",
        "/gradio_api/file=http://127.0.0.1:1/",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        f"/assets{up}/etc/passwd",
        f"/static{up}/etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        f"/svelte{up}/etc/passwd",
        "/gradio_api/custom_component/1/client/component/../../etc/passwd",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/vibe-code/",
        "/gradio_api/dev/reload",
        "/monitoring",
        "/docs",
        "/openapi.json",
    ):
        answer = raw_get(served, path)
        assert answer.status in (400, 403, 404), f"{path}: {answer.status}"
        assert b"SECRET" not in answer.body and b"root:" not in answer.body, path
    for path in ("/gradio_api/run/x", "/gradio_api/vibe-edit/", "/gradio_api/process_recording"):
        assert HTTP.post(served.url + path, json={}).status_code == 404


def raw_get(served, path):
    """Unlike httpx this leaves `..` in the path."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        data = b""
        while more := connection.recv(65536):
            data += more
    return SimpleNamespace(status=int(data.split()[1]), body=data.partition(b"\r\n\r\n")[2])


def ask(served, files, session="s"):
    """What the page sends when a turn is asked, and what came of it: status, events."""
    return send(served, "_on_ask", {"text": "what colour is it?", "files": files}, session=session)


def send(served, handler, *inputs, session="s"):
    blocks = served.page.blocks
    (number, *_) = [n for n, f in blocks.fns.items() if f.name == handler]
    controls = [0, 1, 0, 1, 4, 0]
    body = {
        "data": [None, "", *controls, *inputs],
        "fn_index": number,
        "session_hash": session,
        "event_data": None,
        "trigger_id": None,
    }
    joined = HTTP.post(f"{served.url}/gradio_api/queue/join", json=body, timeout=30)
    if joined.status_code != 200:
        return joined.status_code, []
    events = []
    address = f"{served.url}/gradio_api/queue/data"
    with HTTP.stream("GET", address, params={"session_hash": session}, timeout=30) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
                if events[-1]["msg"] in ("process_completed", "close_stream"):
                    break
    return 200, events


def file_data(path, **more):
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}, "orig_name": "x.png", **more}


def test_only_what_was_uploaded_is_taken(served, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(1))
    number_before = len(list(served.folder.rglob("*")))
    for path in (
        secret,
        "/etc/passwd",
        f"{served.folder}/../{tmp_path.name}/secret.png",
        "http://127.0.0.1:1/x.png",
        "https://huggingface.co/x.png",
        f"file://{secret}",
        "data:image/png;base64,AAAA",
        "secret.png",
    ):
        assert ask(served, [file_data(path)])[0] == 400, path
        # In any part, whatever it is for, and however deep.
        assert send(served, "_on_undo", {"a": [file_data(path)]})[0] == 400, path
        assert send(served, "_on_take", file_data(path))[0] == 400, path
    assert len(list(served.folder.rglob("*"))) == number_before
    (path,) = upload(served.url, png(3), "../../../x.png").json()
    assert os.path.realpath(path).startswith(f"{served.folder}/")
    status, events = ask(served, [file_data(path, url="http://127.0.0.1:1/elsewhere.png")])
    assert status == 200 and events[-1]["success"], events[-1]


def test_without_the_guard_paths_would_be_read(engine, tmp_path, monkeypatch):
    """The planted fault: gradio alone does not check the paths that a mounted page is sent."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(1))
    monkeypatch.setattr(guard.Guard, "_has_own_paths", lambda self, body: True)
    with serving(engine, Sampling(max_new_tokens=4)) as served:
        status, events = ask(served, [file_data(secret)])
        assert status == 200 and not events[-1]["success"]  # the second lock: `has_launched`
        served.page.blocks.has_launched = False
        status, events = ask(served, [file_data(secret)], session="t")
        assert events[-1]["success"], "gradio checks by itself now"


def test_uploads_are_limited(served, monkeypatch):
    monkeypatch.setitem(guard.POSTED, guard.UPLOAD, 1000)
    assert upload(served.url, b"x" * 2000, "x.png").status_code == 413
    monkeypatch.undo()
    monkeypatch.setattr(served.page.blocks, "max_file_size", 1000)
    assert upload(served.url, b"x" * 2000, "x.png").status_code == 413


def bomb():
    buffer = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        (b"not a picture", "x.png", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "x.svg", "not a picture"),
        (bomb(), "x.png", "too large"),
        (b"x", "<img src=x onerror=alert(1)>.png", "not a picture"),
    ],
)
def test_bad_pictures_are_told_in_the_page(served, data, name, words):
    (path,) = upload(served.url, data, name).json()
    status, events = ask(served, [file_data(path)], session=name)
    assert status == 200
    said = json.dumps(events[-1]["output"])
    assert words in said and 'role=\\"alert\\"' in said
    assert str(served.folder) not in said and "<img src=x" not in said


def test_the_folder_is_private_and_gone_at_the_end(engine):
    with serving(engine, Sampling()) as served:
        folder = served.folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (path,) = upload(served.url, png(1), "x.png").json()
        assert os.path.exists(path)
    assert not folder.exists()


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2J\u202e${alert(1)}{{x}}'\"`"


def test_no_text_becomes_markup(tmp_path):
    picture = picture_of(png(1), HOSTILE + ".png")
    conversation = Conversation(HOSTILE, [Shot([picture, HOSTILE], HOSTILE)])
    conversation.turns.append(Turn([HOSTILE, picture]))
    thumbnails = show.Thumbnails(tmp_path)
    made = [
        show.turns(conversation, thumbnails),
        show.shots(conversation, thumbnails),
        show.notice(HOSTILE),
        show.escaped(HOSTILE),
        show.meter(Usage(1, 0, 0, 0, 0, 0), 10, 4),
    ]
    for text in made:
        for bad in ("<script", "<img src=x", "\x1b", "\u202e", "${", "{{", "`"):
            assert bad not in text, text
    assert "&lt;script&gt;alert(1)" in made[0]


def test_pictures_stand_where_the_text_names_them():
    one, two, three = (picture_of(png(seed), "x") for seed in (1, 2, 3))
    assert placed("what is it?", [one, two]) == [one, two, "what is it?"]
    assert placed("is [2] larger than [1]?", [one, two]) == ["is", two, "larger than", one, "?"]
    assert placed("[3] and [1]", [one, two, three]) == [two, three, "and", one]
    assert placed("see [4], a[0], [x] [1]", [one]) == ["see [4], a[0], [x]", one]
    assert placed("[1][1]", [one]) == [one, one]
    assert placed("list[1]", []) == ["list[1]"]
    assert placed(" ", []) == []


def test_two_events_of_one_session_do_not_mix(engine):
    session = Session()
    first = session.ask(engine, ["hello"], Sampling(max_new_tokens=4))
    next(first)
    for act in (session.undo, session.clear, lambda: next(session.retry(engine, Sampling()))):
        with pytest.raises(UserError, match="stop it first"):
            act()
    with pytest.raises(UserError, match="stop it first"):
        next(session.ask(engine, ["again"], Sampling()))
    list(first)
    assert [turn.content for turn in session.conversation.turns] == [["hello"]]
    assert session.conversation.turns[0].answer is not None and session.running is None


def test_where_it_binds_decides_on_the_token():
    assert serve._token("127.0.0.1", None) is None and serve._token("localhost", None) is None
    made = serve._token("0.0.0.0", None)
    assert made and len(made) >= 32 and made != serve._token("0.0.0.0", None)
    assert serve._token("::", None) and serve._token("::1", "long-enough") == "long-enough"
    for bad in ("short", "with a space in it", "umläute-umläute", "line\nbreak-in-it"):
        with pytest.raises(UserError, match="--token"):
            serve._token("0.0.0.0", bad)


def test_a_port_in_use_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: Address already in use"):
            serve.serve("nowhere", port=port)
    with pytest.raises(UserError, match="--host no-such-host"):
        serve.serve("nowhere", host="no-such-host.invalid", token="long-enough")


def test_without_gradio_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "mllm\[web\]"'):
        serve.serve("nowhere")


COMMAND = "import sys; from mllm.chat.web.serve import serve; serve(sys.argv[1], port=0)"


@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly(engine, tmp_path):
    """Even with a page open, whose connection never ends by itself."""
    line = [sys.executable, "-c", COMMAND, str(engine.model_dir)]
    process = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        url = process.stdout.readline().strip()
        (folder,) = tmp_path.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert url.startswith("http://127.0.0.1:"), process.stderr.read()
        with HTTP.stream("GET", f"{url}gradio_api/heartbeat/x", timeout=30) as stream:
            next(stream.iter_raw())
            process.send_signal(2)
            _, errors = process.communicate(timeout=30)
        assert process.returncode == 0 and errors == ""
        assert not list(tmp_path.iterdir())  # its folder is gone
    finally:
        process.kill()
