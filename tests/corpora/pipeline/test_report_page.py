"""The page of an import: what came from the input can do nothing there."""

import re
import shutil
import subprocess

import pytest

from corpora.command import main


@pytest.fixture
def page(tmp_path) -> str:
    bad = '{"text": "</pre><script>alert(1)</script><img src=x onerror=alert(2)>" \n'
    (tmp_path / "<b>in.jsonl").write_text('{"text": "good"}\n' * 4 + bad)
    source, out = str(tmp_path / "<b>in.jsonl"), str(tmp_path / "out")
    main(["import", "text", source, "--out", out, "--workers", "1"])
    return (tmp_path / "out/import-report.html").read_text()


def test_the_page_shows_the_figures_and_escapes_the_examples(page):
    assert "&lt;script&gt;alert(1)" in page
    for tag in ("<script", "<img", "<b>in", "src=", "http://", "https://"):
        assert tag not in re.sub(r"&lt;[^&]*&gt;", "", page)
    assert "<b>80.0%</b>kept" in page
    assert "not JSON" in page


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_renders_it(page, tmp_path):
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    path = tmp_path / "out/import-report.html"
    shown = subprocess.run([*command, f"file://{path}"], capture_output=True, text=True, check=True)
    assert "samples kept" in shown.stdout
