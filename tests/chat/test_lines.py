"""Texts and pictures of typed lines."""

import http.server
import io
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mllm.chat.lines import LineReader
from mllm.chat.pictures import MAX_BYTES, Picture, picture_of, read_picture
from mllm.errors import UserError
from tests.hf.tiny import picture, png

READER = LineReader(lambda note: None)


def kinds(content: list[str | Picture]) -> list[str]:
    return [part if isinstance(part, str) else f"<{part.name}>" for part in content]


@pytest.mark.parametrize(
    "line, expected",
    [
        ("look: cat.png what's it?", ["look:", "<cat.png>", "what's it?"]),
        (
            "'two words.png' and two\\ words.png",
            ["<two words.png>", "and", "<two words.png>"],
        ),
        ("./cat.png ./cat.png", ["<cat.png>", "<cat.png>"]),
        ("I wrote to logo.png, don't ask", ["I wrote to logo.png, don't ask"]),
        ("what colour is in cat.png?", ["<cat.png>", "what colour is in?"]),
        ("see ./cat.png, what is it?", ["see,", "<cat.png>", "what is it?"]),
        ("cat.png: is it red?", ["<cat.png>", "is it red?"]),
        ("cat.png!", ["<cat.png>"]),
        ("look at two\\ words.png...", ["look at...", "<two words.png>"]),
        ("is it like 'two words.png'?", ["<two words.png>", "is it like?"]),
        ('"two words.png", "cat.png".', ["<two words.png>", "<cat.png>"]),
        ("http://127.0.0.1/cat.png here", ["http://127.0.0.1/cat.png here"]),
        ("  ", []),
    ],
)
def test_paths_are_found_anywhere_in_a_line(folder: Path, line: str, expected: list[str]):
    assert kinds(READER.content(line)) == expected


def test_what_only_looks_like_a_picture_is_noted(folder: Path):
    notes: list[str] = []
    reader = LineReader(notes.append)
    assert kinds(reader.content("is it in dog.png?")) == ["is it in dog.png?"]
    reader.content("a\x1b[2J.png")
    reader.content("http://host/cat.png")
    reader.content("x" * 5000 + ".png")  # longer than a name may be
    assert notes[:3] == [
        "dog.png: no such file; taken as text",
        "a\\x1b[2J.png: no such file; taken as text",
        "http://host/cat.png: taken as text; --allow-urls fetches pictures",
    ]


@pytest.mark.parametrize(
    "path, reason",
    [
        ("./dog.png", "dog.png: No such file"),
        ("./bad.png", r"bad.png: not a picture \(20 bytes"),
        ("./pipe.png", "pipe.png: not a file"),
        ("./huge.png", "too large|at most 64,000,000"),
        ("./long.png", "a picture has at most 67,108,864"),
        ("/dev/zero.png", "/dev/zero.png"),
    ],
)
def test_what_is_no_picture_is_one_line_with_its_name(folder: Path, path: str, reason: str):
    # A bomb: 900 million pixels in a file of some 900 kB.
    if path == "./huge.png":
        Image.new("1", (30_000, 30_000)).save(folder / "huge.png")
    with open(folder / "long.png", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError, match=reason) as caught:
        READER.content(f"look at {path}")
    assert str(caught.value).count("\n") == 0


def test_any_file_may_be_named_by_command(folder: Path):
    (folder / "photo").write_bytes(png(5))
    picture, text = READER.named_picture("photo is it red?", "usage")
    assert (picture.name, text) == ("photo", "is it red?")
    assert READER.named_picture("'two words.png'", "usage")[1] == ""
    with pytest.raises(UserError, match="usage"):
        READER.named_picture("", "usage")
    with pytest.raises(UserError, match=r"drawn.svg: not a picture .*; draw it as PNG first"):
        READER.named_picture("drawn.svg", "usage")
    with pytest.raises(UserError, match="not a file"):
        READER.named_picture("/dev/zero", "usage")
    assert READER.path("'a b.json'") == Path("a b.json")
    for name in ("~nosuchuser/x.json", "a\0b"):
        with pytest.raises(UserError, match=r"home folder|zero byte"):
            READER.path(name)


def test_an_animation_is_its_first_frame_and_says_so(folder: Path):
    picture = read_picture("moving.gif")
    assert picture.label == "moving.gif (24 x 24, animated: its first frame)"
    assert not read_picture("cat.png").is_animated
    assert picture_of(png(1), "other") == read_picture("cat.png")


def test_no_broken_file_is_more_than_one_line():
    """Bytes of a good animation changed at random: a picture, or a `UserError`."""
    file = io.BytesIO()
    picture(3).save(file, "GIF", save_all=True, append_images=[picture(4)])
    good, draws = file.getvalue(), random.Random(0)
    refused = 0
    for _ in range(1500):
        bad = bytearray(good)
        for _ in range(draws.randint(1, 4)):
            bad[draws.randrange(len(bad))] = draws.randrange(256)
        try:
            picture_of(bytes(bad), "x.gif")
        except UserError:
            refused += 1
    assert 50 < refused < 1450


def test_bytes_that_are_no_utf8_become_signs_that_are():
    assert READER.content("is \udcff it") == ["is \ufffd it"]
    assert READER.shot("a \udcff => b\udcfe", "usage").answer == "b\ufffd"


def test_shots_have_two_sides(folder: Path):
    shot = READER.shot("cat.png what is it? => a => b", "usage")
    assert kinds(shot.content) == ["<cat.png>", "what is it? => a"] and shot.answer == "b"
    (folder / "photo").write_bytes(png(5))
    assert kinds(READER.shot("photo => a dax", "usage").content) == ["<photo>"]
    assert READER.shot("a word => another", "usage").content == ["a word"]
    for line in ("cat.png", "cat.png =>", "=> a", ""):
        with pytest.raises(UserError, match="usage"):
            READER.shot(line, "usage")


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_line_is_more_than_it_says(line: str):
    """Text without names of pictures comes back whole, but for the space around it."""
    assert READER.content(line) == ([line.strip()] if line.strip() else [])


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(png(1) if self.path.startswith("/cat") else b"no picture")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_addresses_are_fetched_only_where_allowed(address: str):
    reader = LineReader(lambda note: None, allows_urls=True)
    shown = reader.content(f"{address}/cat.png?size=1 is it red?")
    assert shown[0] == picture_of(png(1), "x") and shown[1] == "is it red?"
    assert READER.content(f"{address}/cat.png?size=1 is it red?") == [
        f"{address}/cat.png?size=1 is it red?"
    ]
    with pytest.raises(UserError, match="without --allow-urls"):
        READER.given_picture(f"{address}/cat")
    with pytest.raises(UserError, match="not a picture"):
        reader.given_picture(f"{address}/dog")
    # A server cannot send us to a file of ours, nor can a user's "address".
    with pytest.raises(UserError, match="/away: "):
        reader.given_picture(f"{address}/away")
    assert reader.content("file:///etc/passwd") == ["file:///etc/passwd"]
    # What is no picture by its name stays text; a port that is none is one line.
    assert reader.content(f"see {address}/cat or not") == [f"see {address}/cat or not"]
    for url in ("http://localhost:abc/x.png", "http://[::1/x.png"):
        with pytest.raises(UserError, match=r"x\.png"):
            reader.given_picture(url)
    with pytest.raises(UserError, match="refused"):
        reader.given_picture("http://127.0.0.1:1/cat.png")
