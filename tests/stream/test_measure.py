import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from corpora.reader import Corpus
from mllm.errors import BadSample, UserError
from mllm.stream import lengths, measure
from mllm.stream.encode import encode
from mllm.stream.measure import lengths_dir, open_lengths, part_ranges


@pytest.fixture
def corpus(world, tmp_path):
    """The interleaved corpus with an index of its own: nothing is measured yet."""
    shutil.copytree(world.interleaved, tmp_path / "corpus", ignore=ignore_tokens)
    return Corpus(tmp_path / "corpus")


@pytest.fixture
def small_parts(monkeypatch):
    """Five samples are a part."""
    parts = lambda n: [range(i, min(i + 5, n)) for i in range(0, n, 5)]  # noqa: E731
    monkeypatch.setattr(measure, "part_ranges", parts)


def ignore_tokens(folder, names):
    return [name for name in names if name.startswith("tokens-")]


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_lengths_equal_the_encoded_documents(world, corpus, small_parts):
    measured = open_lengths(corpus, world.tokenizer)
    scored = 0
    for sample in range(len(corpus)):
        sequence = encode(corpus.document(sample), world.tokenizer, 3)
        ids = sequence.token_ids.tolist()
        assert measured.length(sample, 3) == len(ids)
        boi_id = world.tokenizer._processor.piece_to_id("<image>")
        positions = [place for place, token_id in enumerate(ids) if token_id == boi_id]
        assert measured.image_positions(sample, 3).tolist() == positions
        scored += int(sequence.is_scored.sum())
    assert measured.total_scored_tokens == scored
    assert measured.total_text_tokens == measured.text_tokens.sum()
    assert measured.total_images == corpus.num_images.sum()
    assert measured.num_samples == len(corpus)
    assert measured.num_dropped == 0


def test_the_sidecar_is_small_and_memory_mapped(world, corpus):
    measured = open_lengths(corpus, world.tokenizer)
    assert measured.text_tokens.dtype == np.uint32
    assert measured.images.counts.dtype == np.uint16
    assert measured.image_offsets.dtype == np.uint32
    for array in (measured.text_tokens, measured.images.counts, measured.image_offsets):
        assert isinstance(array.base, np.memmap)


def test_any_number_of_workers_writes_the_same_files(world, corpus, small_parts):
    folder = lengths_dir(corpus, world.tokenizer)
    written = []
    for workers in (1, 2):
        open_lengths(corpus, world.tokenizer, workers)
        written.append(files_of(folder))
        shutil.rmtree(folder)
    assert written[0] == written[1]
    assert [path.name for path in corpus.index_dir.glob("tokens-*")] == []
    assert multiprocessing.active_children() == []


def test_parts_cover_every_sample_once():
    for n in (0, 1, 1023, 1024, 1025, 5_000_000, 10**9):
        parts = part_ranges(n)
        assert sum(map(len, parts)) == n
        assert all(a.stop == b.start for a, b in itertools.pairwise(parts))
        assert max(map(len, parts), default=0) <= 65_536


def test_a_measurement_goes_on_where_it_failed(world, corpus, small_parts, monkeypatch):
    text_layout = measure.text_layout
    calls = []

    def failing(document, tokenizer):
        calls.append(document.key)
        if len(calls) == 13:
            raise OSError("the disk is gone")
        return text_layout(document, tokenizer)

    monkeypatch.setattr(measure, "text_layout", failing)
    with pytest.raises(UserError, match="cannot read sample interleaved0012"):
        open_lengths(corpus, world.tokenizer)
    assert not lengths_dir(corpus, world.tokenizer).exists()
    open_lengths(corpus, world.tokenizer)
    # 5 + 5 were kept, the third part of 5 was measured again.
    assert len(calls) == 13 + len(corpus) - 10
    folder = lengths_dir(corpus, world.tokenizer)
    resumed = files_of(folder)
    shutil.rmtree(folder)
    open_lengths(corpus, world.tokenizer)
    assert files_of(folder) == resumed
    assert [path.name for path in corpus.index_dir.glob("tokens-*")] == [folder.name]


KILLED = """
    import os, signal, sys
    from corpora.reader import Corpus
    from mllm.stream import measure
    from tokenizer.tokenizer import Tokenizer

    measure.part_ranges = lambda n: [range(i, min(i + 5, n)) for i in range(0, n, 5)]
    write_part = measure._write_part
    def killed(part, path):
        write_part(part, path)
        if path.name.startswith("000000000010"):
            print("third part", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    measure._write_part = killed
    measure.open_lengths(Corpus(sys.argv[1]), Tokenizer(sys.argv[2]))
"""


def test_a_killed_measurement_goes_on_and_leaves_nothing(world, corpus, small_parts, monkeypatch):
    killed = run_script(KILLED, corpus, world)
    told, errors = killed.communicate(timeout=60)
    assert (killed.returncode, told) == (-signal.SIGKILL, "third part\n"), errors
    folder = lengths_dir(corpus, world.tokenizer)
    assert not folder.exists()
    parts = folder.with_name(f"{folder.name}.unfinished") / "parts"
    assert len(list(parts.iterdir())) == 3
    measured = []
    monkeypatch.setattr(
        measure, "measure", lambda *args, real=measure.measure: measured.append(args) or real(*args)
    )
    open_lengths(corpus, world.tokenizer)
    assert [samples.start for *_, samples in measured] == [15, 20]
    assert [path.name for path in corpus.index_dir.glob("tokens-*")] == [folder.name]


KILLED_WORKER = """
    import sys
    from corpora.reader import Corpus
    from mllm.errors import UserError
    from mllm.stream import measure
    from tokenizer.tokenizer import Tokenizer

    measure.part_ranges = lambda n: [range(i, min(i + 5, n)) for i in range(0, n, 5)]
    if __name__ == "__main__":
        try:
            measure.open_lengths(Corpus(sys.argv[1]), Tokenizer(sys.argv[2]), 2)
        except UserError as error:
            print(error)
    else:
        import os, signal
        measure.measure = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
"""


def run_script(script, corpus, world, **settings):
    """Runs a script from a file, as a worker imports it again."""
    path = corpus.corpus_dir.parent / "script.py"
    path.write_text(textwrap.dedent(script))
    command = [sys.executable, str(path), str(corpus.corpus_dir), str(world.tokenizer_dir)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings
    )


def test_a_killed_worker_is_told_in_one_line(world, corpus):
    told, errors = run_script(KILLED_WORKER, corpus, world).communicate(timeout=60)
    assert "a process that measured token lengths was killed (out of memory?); run again" in told
    assert not lengths_dir(corpus, world.tokenizer).exists(), errors


ORPHANS = """
    import os, sys, time
    from corpora.reader import Corpus
    from mllm.stream import measure
    from tokenizer.tokenizer import Tokenizer

    measure.part_ranges = lambda n: [range(i, min(i + 5, n)) for i in range(0, n, 5)]
    if __name__ == "__main__":
        measure.open_lengths(Corpus(sys.argv[1]), Tokenizer(sys.argv[2]), 2)
    else:
        def slow(*arguments):
            print(os.getpid(), flush=True)
            time.sleep(60)
        measure.measure = slow
"""


def test_workers_end_with_a_killed_parent(world, corpus):
    parent = run_script(ORPHANS, corpus, world)
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    parent.stderr.close()
    deadline = time.monotonic() + 20
    while any(is_alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.05)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().split(") ")[1][0] != "Z"


def test_dropped_samples_are_told_and_bounded(world, corpus, small_parts, monkeypatch):
    text_layout = measure.text_layout

    def picky(document, tokenizer):
        if int(document.key[-4:]) % 2:
            raise BadSample(f"{document.key} is odd")
        return text_layout(document, tokenizer)

    monkeypatch.setattr(measure, "text_layout", picky)
    monkeypatch.setattr(lengths, "MAX_DROPPED_SHOWN", 3)
    measured = open_lengths(corpus, world.tokenizer)
    odd = [key for key in corpus.keys if int(key[-4:]) % 2]
    assert measured.num_dropped == len(odd) > 3
    assert measured.dropped == {key: f"{key} is odd" for key in odd[:3]}
    lines = (lengths_dir(corpus, world.tokenizer) / "dropped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"key": key, "reason": f"{key} is odd"} for key in odd
    ]
    assert [i for i, n in enumerate(measured.text_tokens) if n == 0] == list(range(1, 24, 2))


def test_a_folder_that_takes_no_files_is_named_with_the_mend(world, corpus, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device", "somewhere/parts")

    monkeypatch.setattr(measure, "_write_part", full)
    with pytest.raises(UserError) as caught:
        open_lengths(corpus, world.tokenizer)
    message = str(caught.value)
    assert "somewhere/parts: cannot be written (No space left on device)" in message
    assert f"mllm corpora index {corpus.corpus_dir} --index-dir D/SOURCE" in message
    assert "data.index_dir=D" in message


def test_damaged_files_are_named(world, corpus):
    open_lengths(corpus, world.tokenizer)
    folder = lengths_dir(corpus, world.tokenizer)
    path = folder / "text_tokens.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=f"{folder.name}: damaged .*; delete it"):
        open_lengths(corpus, world.tokenizer)
