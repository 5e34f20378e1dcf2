"""Whole imports: what went in comes out, whatever the number of tasks and after any kill."""

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import webdataset

from corpora.command import main
from corpora.document import Turn
from corpora.index import build_index
from corpora.reader import Corpus
from mllm.errors import UserError

from .readers.reading import coded, image

DOWNLOADED = Path(__file__).parents[2] / "data" / "img2dataset"


def shards(out: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.glob("*.tar*")}


def write_text(folder: Path, files: int = 7, lines: int = 30) -> list[str]:
    """JSON lines of which every tenth is broken; the good texts in order."""
    folder.mkdir()
    texts = []
    for f in range(files):
        with open(folder / f"{f}.jsonl", "w") as file:
            for i in range(lines):
                texts.append(f"file {f} line {i} " + "x" * (i * 37 % 90))
                file.write(json.dumps({"text": texts[-1], "url": f"http://{f}/{i}"}) + "\n")
                if i % 10 == 0:
                    file.write('{"text": \n')
    return texts


def run(*arguments: str | Path) -> int:
    return main(["import", *map(str, arguments)])


def command(*arguments: str | Path, **settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mllm.cli", "corpora", "import", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **settings,
    )


def report_of(out: Path) -> dict:
    return json.loads((out / "import-report.json").read_bytes())


@pytest.fixture
def small_units(monkeypatch):
    """Units of 2 kB in place of megabytes."""
    monkeypatch.setattr("corpora.pipeline.plan.MEGABYTE", 2000)


def test_text_goes_in_order_and_bad_lines_are_counted(tmp_path, small_units, capsys):
    texts = write_text(tmp_path / "in")
    arguments = ("text", tmp_path / "in", "--out", tmp_path / "out", "--unit-megabytes", 1)
    assert run(*arguments, "--workers", 1, "--samples-per-shard", 20) == 0
    corpus = Corpus(tmp_path / "out")
    assert [corpus.document(i).segments[0].text for i in range(len(corpus))] == texts
    assert corpus.document(31).meta == {"url": "http://1/1"}
    report = report_of(tmp_path / "out")
    assert (report["read"], report["kept_samples"], report["dropped"]) == (231, 210, 21)
    (read,) = report["steps"]
    assert read["dropped"] == {"not JSON": 21}
    assert len(read["examples"]["not JSON"]) == 5
    assert report["fingerprint"] == corpus.fingerprint
    assert report["units"] > 7
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert [n for n in names if not n.startswith("shard-")] == [
        "import-logs",
        "import-report.html",
        "import-report.json",
        "index",
    ]
    printed = capsys.readouterr()
    assert "kept 90.9% of 231 records read" in printed.out
    assert "dropped by read: not JSON: 21" in printed.out
    assert printed.err == ""


def test_shards_are_equal_for_any_number_of_tasks(tmp_path, small_units):
    write_text(tmp_path / "in")
    found = []
    for tasks in (1, 2, 5):
        out = tmp_path / f"out{tasks}"
        options = ("--unit-megabytes", 1, "--samples-per-shard", 8, "--workers", 1)
        run("text", tmp_path / "in", "--out", out, "--tasks", tasks, *options)
        found.append(shards(out))
        stats = [json.loads(p.read_bytes()) for p in out.glob("import-logs/read-*/stats/*.json")]
        shares = [task[0]["stats"]["ranks"] for task in stats]
        assert len(shares) == tasks
        assert max(shares) - min(shares) <= 1
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 20


def test_a_plain_webdataset_reader_reads_the_result(tmp_path):
    (tmp_path / "in").mkdir()
    rows = [(f"caption {i}", image(c)) for i, c in enumerate(("red", "green", "blue"))]
    lines = "".join(f"{caption}\t{coded(data)}\n" for caption, data in rows)
    (tmp_path / "in/a.tsv").write_text(lines)
    run("pairs", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)
    urls = [str(path) for path in (tmp_path / "out").glob("*.tar")]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [(s["txt"].decode(), s["png"]) for s in samples] == rows
    assert len({s["__key__"] for s in samples}) == 3


def test_turns_reach_the_corpus(tmp_path):
    rows = [{"instruction": "Add.", "input": "1 2", "output": "3"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    run("instruct", tmp_path / "a.json", "--out", tmp_path / "out", "--workers", 1)
    document = Corpus(tmp_path / "out").document(0)
    assert document.turns == (Turn("user", 1), Turn("assistant", 1))
    assert [(s.text, s.is_scored) for s in document.segments] == [
        ("Add.\n1 2", False),
        (" 3", True),
    ]


def test_img2dataset_is_indexed_in_place_with_its_own_statistics(tmp_path, capsys):
    before = shards(DOWNLOADED)
    assert run("pairs", DOWNLOADED, "--out", tmp_path / "out", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["read"], report["kept_samples"], report["kept_share"]) == (6, 4, 0.666667)
    assert report["steps"][0]["dropped"] == {
        "Image decoding error": 1,
        "HTTP Error 404: File not found": 1,
    }
    assert shards(DOWNLOADED) == before
    assert not list((tmp_path / "out").glob("*.tar"))
    corpus = Corpus(DOWNLOADED, tmp_path / "out")
    assert len(corpus) == 4
    assert corpus.document(0).segments[1].text == "a red circle"
    assert corpus.document(0).segments[0].data.startswith(b"\xff\xd8")
    with pytest.raises(UserError, match=r"kept 66.7% of 6 records.*download: Image decoding"):
        run("pairs", DOWNLOADED, "--out", tmp_path / "strict", "--min-kept", 0.9)
    assert not (tmp_path / "strict" / "index.json").exists()


def test_an_index_of_tars_is_not_put_over_a_corpus_or_another_index(tmp_path):
    write_text(tmp_path / "in", files=1)
    run("text", tmp_path / "in", "--out", tmp_path / "text", "--workers", 1)
    before = Corpus(tmp_path / "text").fingerprint
    with pytest.raises(UserError, match="holds another corpus"):
        run("pairs", DOWNLOADED, "--out", tmp_path / "text")
    assert Corpus(tmp_path / "text").fingerprint == before
    shutil.copytree(DOWNLOADED, tmp_path / "more")
    for _ in range(2):  # again over its own index
        run("pairs", tmp_path / "more", "--out", tmp_path / "index")
    run("pairs", tmp_path / "more", "--out", tmp_path / "more")
    with pytest.raises(UserError, match="holds another corpus or its index"):
        run("pairs", DOWNLOADED, "--out", tmp_path / "index")


def test_img2dataset_is_written_anew_when_filters_are_asked_for(tmp_path):
    arguments = ("pairs", DOWNLOADED, "--out", tmp_path / "out", "--workers", 1)
    assert run(*arguments, "--max-chars", 13) == 0
    corpus = Corpus(tmp_path / "out")
    documents = [corpus.document(i) for i in range(len(corpus))]
    assert [d.segments[1].text for d in documents] == ["a red circle", "a blue circle"]
    original = Corpus(*index_of(DOWNLOADED, tmp_path / "index"))
    assert documents[0].segments == original.document(0).segments
    assert documents[0].meta == original.document(0).meta


def index_of(corpus_dir: Path, index_dir: Path) -> tuple[Path, Path]:
    build_index(corpus_dir, index_dir)
    return corpus_dir, index_dir


def test_nothing_kept_is_an_error_whatever_the_floor(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "short"}\n')
    arguments = ("text", tmp_path / "a.jsonl", "--out", tmp_path / "out", "--workers", 1)
    with pytest.raises(UserError, match=r"kept none of 1 records; main reasons: .* \(1\)"):
        run(*arguments, "--min-chars", 100, "--min-kept", 0)


def test_filters_and_duplicates_are_counted_by_step(tmp_path, small_units):
    (tmp_path / "in").mkdir()
    texts = [f"number {i % 25} of some words" for i in range(60)] + ["short"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "in/a.jsonl").write_text(lines)
    found = []
    for tasks in (1, 3):
        out = tmp_path / f"out{tasks}"
        options = ("--min-words", 3, "--dedup-exact", "text", "--min-kept", 0.3)
        cut = ("--unit-megabytes", 1, "--tasks", tasks, "--workers", 1)
        run("text", tmp_path / "in", "--out", out, *options, *cut)
        found.append(shards(out))
    assert found[0] == found[1]
    corpus = Corpus(out)
    assert [corpus.document(i).segments[0].text for i in range(len(corpus))] == texts[:25]
    report = report_of(out)
    dropped = {s["name"]: sum(s["dropped"].values()) for s in report["steps"] if s["dropped"]}
    assert sorted(dropped.values()) == [1, 35]
    assert next(iter(dropped)) != "duplicates"  # in the order in which steps run
    assert (report["read"], report["kept_samples"]) == (61, 25)


def test_too_little_kept_fails_with_reasons_and_without_index(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + "bad\n" * 6 + '{"text": ""}\n' * 3)
    result = command("text", tmp_path / "a.jsonl", "--out", tmp_path / "out", "--workers", "1")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "kept 10.0% of 10 records, under --min-kept 50%" in result.stderr
    assert "read: not JSON (6), read: no text (3)" in result.stderr
    assert report_of(tmp_path / "out")["dropped"] == 9
    with pytest.raises(UserError, match="no index"):
        Corpus(tmp_path / "out")
    # A lower floor goes on from there.
    arguments = ("text", tmp_path / "a.jsonl", "--out", tmp_path / "out", "--min-kept", 0.05)
    assert run(*arguments, "--workers", 1) == 0
    assert len(Corpus(tmp_path / "out")) == 1


def test_the_same_command_again_leaves_what_stands(tmp_path, capsys):
    write_text(tmp_path / "in", files=1)
    arguments = ("text", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)
    run(*arguments)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.tar")}
    run(*arguments)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.tar")} == before
    assert not (tmp_path / "out/import-work").exists()
    with pytest.raises(UserError, match="import of other sources or options"):
        run(*arguments, "--min-words", 2)
    with open(tmp_path / "in/0.jsonl", "a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(UserError, match="import of other sources or options"):
        run(*arguments)


def test_a_folder_that_holds_a_corpus_is_not_written_into(tmp_path, corpus_dir):
    write_text(tmp_path / "in", files=1)
    with pytest.raises(UserError, match="holds a corpus already"):
        run("text", tmp_path / "in", "--out", corpus_dir)


def test_a_broken_file_is_named_at_the_end(tmp_path, capsys):
    import gzip

    (tmp_path / "in").mkdir()
    data = gzip.compress(b"".join(b'{"text": "%d"}\n' % i for i in range(5000)))
    (tmp_path / "in/a.jsonl.gz").write_bytes(data[: len(data) // 2])
    run("text", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)
    assert f"only its beginning was read: {tmp_path}/in/a.jsonl.gz" in capsys.readouterr().out


def test_text_that_no_utf8_can_spell_is_dropped(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "half \\ud83d"}\n{"text": "whole \\ud83d\\ude00"}\n'
    )
    run("text", tmp_path / "a.jsonl", "--out", tmp_path / "out", "--workers", 1)
    assert Corpus(tmp_path / "out").document(0).segments[0].text == "whole \U0001f600"
    assert report_of(tmp_path / "out")["steps"][0]["dropped"] == {
        "text with half a surrogate pair": 1
    }


def test_a_name_that_is_not_utf8_goes_through_all(tmp_path, capsys):
    import gzip

    folder = os.fsencode(tmp_path) + b"/h\xf4tel"
    os.mkdir(folder)
    Path(os.fsdecode(folder + b"/caf\xe9.txt")).write_text("coffee")
    cut = gzip.compress(os.urandom(1 << 17).hex().encode())[: 1 << 16]
    Path(os.fsdecode(folder + b"/t\xe9.txt.gz")).write_bytes(cut)
    out = os.fsdecode(folder + b"/out")
    arguments = ("text", os.fsdecode(folder), "--out", out, "--workers", 1, "--min-kept", 0)
    assert run(*arguments) == 0
    document = Corpus(out).document(0)
    assert (document.segments[0].text, document.meta) == ("coffee", {"file": "caf\udce9.txt"})
    shown = "h\\udcf4tel/t\\udce9.txt.gz"
    assert shown in capsys.readouterr().out
    assert shown in Path(out, "import-report.html").read_text()
    assert run(*arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out)["sources"] == [os.fsdecode(folder)]


def test_a_file_system_that_takes_no_more_is_one_line_and_the_rest_goes_on(tmp_path):
    big_input(tmp_path / "in")
    arguments = ("text", tmp_path / "in", "--out", tmp_path / "out", "--unit-megabytes", 1)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    stopped = command(*arguments, "--workers", 1, preexec_fn=small_files)
    assert (stopped.returncode, stopped.stderr.count("\n")) == (2, 1), stopped.stderr
    assert run(*arguments, "--workers", 1) == 0
    assert len(Corpus(tmp_path / "out")) == 1800


DIES = """
import os, signal, sys
from corpora.shards import ShardSeries

write, written = ShardSeries.write, 0

def write_and_die(self, document):
    global written
    write(self, document)
    written += 1
    if written == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

ShardSeries.write = write_and_die
from corpora.pipeline import plan
plan.MEGABYTE = 2000
from corpora.command import main
main(["import", *sys.argv[2:]])
"""


@pytest.mark.parametrize("writes", [3, 290])  # in the first pass and in the second
def test_a_killed_import_goes_on_and_writes_what_an_unbroken_one_writes(
    tmp_path, small_units, writes
):
    write_text(tmp_path / "in")
    same = ("--unit-megabytes", 1, "--samples-per-shard", 8, "--dedup-exact", "text")
    run("text", tmp_path / "in", "--out", tmp_path / "whole", *same, "--workers", 1)
    arguments = ("text", tmp_path / "in", "--out", tmp_path / "out", *same)
    killed = subprocess.run(
        [sys.executable, "-c", DIES, str(writes), *map(str, arguments), "--workers", "1"],
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out/index").exists()
    assert list((tmp_path / "out").rglob("*.tar.tmp-*"))
    run(*arguments, "--tasks", 3, "--workers", 1)
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")
    assert Corpus(tmp_path / "out").fingerprint == Corpus(tmp_path / "whole").fingerprint


def big_input(folder: Path) -> None:
    """Six files, each a unit of a megabyte."""
    folder.mkdir()
    for f in range(6):
        lines = (json.dumps({"text": f"{f} {i} " + "word " * 600}) for i in range(300))
        (folder / f"{f}.jsonl").write_text("\n".join(lines))


@pytest.mark.slow
def test_two_processes_write_what_one_writes_and_leave_stderr_clean(tmp_path):
    big_input(tmp_path / "in")
    same = ("--unit-megabytes", 1, "--samples-per-shard", 50, "--dedup-near-text")
    for out, workers in (("one", 1), ("two", 2)):
        arguments = ("text", tmp_path / "in", "--out", tmp_path / out, *same)
        result = command(*arguments, "--workers", workers, "--min-kept", 0)
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
    assert shards(tmp_path / "one") == shards(tmp_path / "two")


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_leaves_no_process_behind(tmp_path):
    big_input(tmp_path / "in")
    process = subprocess.Popen(
        [sys.executable, "-m", "mllm.cli", "corpora", "import", "text", str(tmp_path / "in")]
        + ["--out", str(tmp_path / "out"), "--unit-megabytes", "1", "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not who_holds(tmp_path / "out/shard-"):
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (130, "mllm: interrupted\n")
    assert not who_holds(tmp_path / "out")


@pytest.mark.slow
def test_a_worker_that_is_killed_is_an_error_and_no_hang(tmp_path):
    big_input(tmp_path / "in")
    process = subprocess.Popen(
        [sys.executable, "-m", "mllm.cli", "corpora", "import", "text", str(tmp_path / "in")]
        + ["--out", str(tmp_path / "out"), "--unit-megabytes", "1", "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (writers := who_holds(tmp_path / "out/shard-")):
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(writers[0], signal.SIGKILL)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2
    assert re.fullmatch(r"mllm: error: a worker process died, .*\n", stderr)
    arguments = ("text", tmp_path / "in", "--out", tmp_path / "out", "--unit-megabytes", 1)
    assert run(*arguments, "--workers", 1) == 0
    assert len(Corpus(tmp_path / "out")) == 1800


def who_holds(prefix: Path) -> list[int]:
    """Processes that have a file open whose path begins like this."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link).startswith(str(prefix)):
                found.append(int(link.parts[2]))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_ray_writes_what_local_writes(tmp_path):
    write_text(tmp_path / "in")
    options = ("--samples-per-shard", "50", "--min-words", "3")
    for executor, out in (("local", "a"), ("ray", "b")):
        workers = ("--workers", "2", "--tasks", "3")
        result = command(
            "text", tmp_path / "in", "--out", tmp_path / out, "--executor", executor, *options,
            *workers, timeout=280,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
