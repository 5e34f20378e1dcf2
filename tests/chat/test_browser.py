"""`mllm chat --web` in a real Chromium: what a reader sees and does."""

import base64
import json
import shutil
from types import SimpleNamespace

import pytest

from mllm.chat.engine import Engine
from mllm.chat.sampling import Sampling
from tests.chat.test_web_safety import HOSTILE
from tests.chat.web_server import serving
from tests.hf.tiny import make_tiny, png

pytestmark = pytest.mark.slow

LONG = 100_000  # milliseconds that the slowest machine may take for anything
NARROW = 420  # pixels

# Puts a file where a clipboard or a drag would have it.
GIVE = """
(node, [kind, data, name]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], name, {type: 'image/png'}));
  const event = kind === 'paste'
    ? new ClipboardEvent('paste', {clipboardData: files, bubbles: true, cancelable: true})
    : new DragEvent('drop', {dataTransfer: files, bubbles: true, cancelable: true});
  node.dispatchEvent(event);
}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"), num_steps=60, seq_len=320)


@pytest.fixture(scope="module")
def served(tiny):
    with serving(Engine(tiny.export, max_prefixes=4), Sampling(max_new_tokens=8)) as served:
        yield served


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    assert path, "no chromium on PATH: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Reader:
    """Somebody before the page."""

    def __init__(self, page, url):
        self.page, self.asked_for, self.troubles = page, [], []
        page.set_default_timeout(LONG)
        page.on("request", lambda request: self.asked_for.append(request.url))
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("dialog", lambda dialog: (self.troubles.append("dialog"), dialog.dismiss()))
        page.goto(url)
        page.wait_for_selector("#meter .meter")

    def attach(self, *pictures, box="#box"):
        before = self.page.locator(f"{box} img").count()
        files = [{"name": n, "mimeType": "image/png", "buffer": d} for n, d in pictures]
        self.page.locator(f"{box} input[type=file]").set_input_files(files)
        self.wait_count(f"{box} img", before + len(pictures))

    def give(self, kind, data):
        """Pastes a picture into the box, or drops it there."""
        before = self.page.locator("#box img").count()
        node = self.page.locator("#box textarea" if kind == "paste" else "#box .full-container")
        node.first.evaluate(GIVE, [kind, base64.b64encode(data).decode(), f"{kind}.png"])
        self.wait_count("#box img", before + 1)

    def wait_count(self, selector, number):
        script = "([s, n]) => document.querySelectorAll(s).length === n"
        self.page.wait_for_function(script, arg=[selector, number])

    def send(self, text):
        self.page.locator("#box textarea").fill(text)
        self.page.locator("#box textarea").press("Enter")

    def ask(self, text):
        """Asks and waits for the whole answer, which it gives back."""
        number = self.page.locator("#chat .user").count()
        self.send(text)
        self.wait_count("#chat .user", number + 1)
        return self.answer()

    def answer(self):
        done = self.page.locator("#answer .model:not(.running):not(.waiting)")
        done.wait_for()
        self.page.wait_for_function(
            "() => document.querySelector('#actions button').disabled"  # Stop
        )
        return done.inner_text()

    def press(self, name):
        self.page.get_by_role("button", name=name, exact=True).click()

    def open(self, panel):
        self.page.locator(f"#{panel} button.label-wrap").click()

    def parts(self, place):
        """Texts and pictures of a turn, in order."""
        kinds = self.page.locator("#chat .user").nth(place).locator("> *")
        return [
            "PICTURE" if node.evaluate("n => n.tagName") == "A" else node.inner_text()
            for node in kinds.all()
        ]

    def set(self, label, value):
        control = self.page.get_by_label(label, exact=True)
        if not control.is_visible():
            self.open("sampling")
        control.fill(str(value))
        control.press("Tab")


@pytest.fixture
def reader(chromium, served):
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    reader = Reader(context.new_page(), served.url)
    yield reader
    context.close()
    assert reader.troubles == []
    addresses = [url for url in reader.asked_for if not url.startswith(("data:", "blob:"))]
    assert addresses and all(url.startswith(f"{served.url}/") for url in addresses)


def test_pictures_by_upload_paste_and_drag_anywhere_in_a_turn(reader):
    reader.attach(("one.png", png(1)))
    reader.give("paste", png(2))
    reader.give("drop", png(3))
    assert reader.ask("is [3] larger than [1]?")
    assert reader.parts(0) == ["PICTURE", "is", "PICTURE", "larger than", "PICTURE", "?"]
    shown = reader.page.locator("#chat img")
    assert shown.count() == 3
    assert shown.evaluate_all("nodes => nodes.every((n) => n.naturalWidth > 0)")
    assert reader.page.locator("#box img").count() == 0
    assert reader.page.locator("#box textarea").input_value() == ""
    assert "18 in 3 pictures" in reader.page.locator("#meter").inner_text()


def test_turns_are_taken_back_and_tried_again(reader):
    reader.ask("what colour is it?")
    first = reader.ask("An image of")
    reader.set("temperature", 1.5)
    answers = {first}
    for attempt in range(1, 4):
        reader.press("Retry")
        reader.page.locator(f"#answer [data-attempt='{attempt}']").wait_for()
        answers.add(reader.answer())
    assert len(answers) > 1 and reader.page.locator("#chat .user").count() == 2
    reader.press("Undo")
    reader.wait_count("#chat .user", 1)
    assert reader.parts(0) == ["what colour is it?"]
    reader.press("Clear")
    reader.wait_count("#chat .user", 0)
    assert reader.page.get_by_role("button", name="Retry", exact=True).is_disabled()


def test_shots_teach_and_are_removed(reader):
    plain = reader.page.locator("#meter b").inner_text()
    for number in (1, 2):
        reader.attach((f"{number}.png", png(number)), box="#shot-box")
        reader.page.locator("#shot-box textarea").fill("what colour is it?")
        reader.page.locator("#shot-answer textarea").fill("red")
        reader.press("Add shot")
        reader.wait_count("#shots li", number)
    assert reader.page.locator("#shots li img").count() == 2
    assert "what colour is it?⇒red" in reader.page.locator("#shots li").first.inner_text().replace(
        "\n", ""
    )
    full = reader.page.locator("#meter b").inner_text()
    assert int(full) > int(plain) + 2 * 6
    reader.page.get_by_role("button", name="Remove shot 1").click()
    reader.wait_count("#shots li", 1)
    reader.press("Add shot")  # nothing to add: told, not done
    reader.page.locator("#notice [role=alert]").wait_for()
    assert reader.page.locator("#shots li").count() == 1


def test_candidates_are_ranked(reader):
    reader.ask("what colour is it?")
    reader.open("rank-panel")
    reader.page.locator("#candidates textarea").fill("red | no, not any more | <b>x</b>")
    reader.press("Rank")
    rows = reader.page.locator("#ranking tbody tr")
    rows.first.wait_for()
    shown = [row.inner_text().split("\t") for row in rows.all()]
    assert {row[0] for row in shown} == {"red", "no, not any more", "<b>x</b>"}
    shares = [float(row[2].removesuffix(" %")) for row in shown]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=0.3)
    reader.page.locator("#candidates textarea").fill("red")
    reader.press("Rank")
    reader.page.locator("#notice [role=alert]").wait_for()


def test_a_transcript_goes_out_and_comes_back(reader, tmp_path):
    reader.attach(("two words.png", png(1)))
    answer = reader.ask("what colour is [1] there?")
    reader.open("transcript-panel")
    with reader.page.expect_download() as caught:
        reader.press("Download")
    path = tmp_path / "chat.json"
    caught.value.save_as(path)
    saved = json.loads(path.read_text())
    (turn,) = saved["branches"]["main"]["turns"]
    assert turn["answer"]["text"] == answer and len(saved["pictures"]) == 1
    reader.press("Clear")
    reader.wait_count("#chat .user", 0)
    reader.page.locator("#transcript-panel input[type=file]").set_input_files(path)
    reader.wait_count("#chat .user", 1)
    assert reader.parts(0) == ["what colour is", "PICTURE", "there?"]
    assert reader.page.locator("#answer .model").inner_text() == answer
    other = tmp_path / "other.json"
    other.write_text(json.dumps(saved | {"pictures": {}}))
    reader.page.locator("#transcript-panel input[type=file]").set_input_files(other)
    notice = reader.page.locator("#notice [role=alert]")
    notice.wait_for()
    assert "is not in the file" in notice.inner_text()
    assert reader.page.locator("#chat .user").count() == 1


def test_a_full_context_is_a_choice(reader):
    text = "red apple " * 12
    panel = reader.page.locator("#full .full")
    number = 0
    while True:
        reader.send(text)
        reader.page.wait_for_function(
            "n => document.querySelectorAll('#chat .user').length > n"
            " || document.querySelector('#full .full')",
            arg=number,
        )
        if panel.is_visible():
            break
        reader.answer()
        number += 1
        assert number < 30, "320 positions must be full by now"
    assert number >= 2
    assert reader.page.locator("#chat .user").count() == number  # nothing was asked
    assert reader.page.locator("#box textarea").input_value() == text  # and nothing lost
    reader.press("Cancel")
    panel.wait_for(state="hidden")
    assert reader.page.locator("#chat .left-out").count() == 0
    reader.page.locator("#box textarea").press("Enter")
    reader.page.get_by_role("button", name="Leave the oldest").click()
    reader.wait_count("#chat .user", number + 1)
    reader.answer()
    assert reader.page.locator("#chat .left-out").count() == 1
    assert reader.page.locator("#chat .user.dropped").count() >= 1
    assert not panel.is_visible()


def test_what_is_written_stays_text(reader):
    text = (
        HOSTILE.replace("\x1b[2J\u202e", "") + " ![x](https://evil.example/x.png) $$x^2$$ <b>b</b>"
    )
    reader.set("max_new_tokens", 2)
    reader.attach(("<img src=x onerror=alert(1)>.png", png(1)))
    assert reader.ask(text)
    assert reader.parts(0) == ["PICTURE", text]
    assert reader.page.locator("#chat b, #chat script, #chat .katex").count() == 0
    assert reader.page.locator("#chat img").count() == 1


def test_a_bad_picture_is_told_and_the_text_stays(reader):
    reader.page.locator("#box input[type=file]").set_input_files(
        {"name": "bad.png", "mimeType": "image/png", "buffer": b"not a picture at all"}
    )
    reader.page.wait_for_timeout(1000)
    reader.send("what is it?")
    notice = reader.page.locator("#notice [role=alert]")
    notice.wait_for()
    assert "bad.png: not a picture" in notice.inner_text()
    assert reader.page.locator("#box textarea").input_value() == "what is it?"


@pytest.fixture
def long_served(tiny, tmp_path_factory):
    """The same weights with a context that takes long to fill, and no end before."""
    folder = tmp_path_factory.mktemp("long") / "export"
    shutil.copytree(tiny.export, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"seq_len": 32768}))
    engine = Engine(folder)
    engine._stops = [engine.processor.tokenizer.vocab_size - 1]
    with serving(engine, Sampling(temperature=2.0, max_new_tokens=30000)) as served:
        yield SimpleNamespace(**vars(served), engine=engine)


def test_an_answer_streams_and_stops(chromium, long_served):
    context = chromium.new_context()
    reader = Reader(context.new_page(), long_served.url)
    reader.send("what colour is it?")
    reader.page.locator("#answer .running").wait_for()
    length = len(reader.page.locator("#answer").inner_text())
    reader.page.wait_for_function(
        "n => document.querySelector('#answer').innerText.length > n + 20", arg=length
    )
    assert reader.page.get_by_role("button", name="Undo", exact=True).is_disabled()
    reader.press("Stop")
    assert reader.answer().endswith("[stopped]")
    context.close()
    assert reader.troubles == []


def test_a_reader_who_leaves_ends_the_answer(chromium, long_served):
    context = chromium.new_context()
    reader = Reader(context.new_page(), long_served.url)
    reader.send("what colour is it?")
    reader.page.locator("#answer .running").wait_for()
    (running,) = long_served.page._running.values()
    context.close()
    assert running.stopped.wait(timeout=60)


def test_a_narrow_window_holds_everything(reader):
    reader.page.set_viewport_size({"width": NARROW, "height": 800})
    reader.attach(("one.png", png(1)))
    reader.ask("is it [1] " + "verylongword" * 12 + "?")
    for panel in ("rank-panel", "transcript-panel", "sampling"):
        reader.open(panel)
    assert reader.page.evaluate("document.documentElement.scrollWidth") <= NARROW
    for name in ("Retry", "Undo", "Clear", "Add shot", "Rank", "Download"):
        box = reader.page.get_by_role("button", name=name, exact=True).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= NARROW, name


def test_two_readers_have_a_conversation_each(chromium, served, reader):
    reader.ask("what colour is it?")
    context = chromium.new_context()
    other = Reader(context.new_page(), served.url)
    assert other.page.locator("#chat .user").count() == 0
    other.ask("An image of")
    assert reader.page.locator("#chat .user").count() == 1
    context.close()
