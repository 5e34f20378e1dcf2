import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.ragged import Ragged
from corpora.reader import Corpus
from mllm.errors import UserError
from mllm.stream.array_file import ArrayFile, RaggedFile
from mllm.stream.build_once import build_once
from mllm.stream.lengths import LengthsPart, load_lengths, write_lengths
from mllm.stream.measure import lengths_dir
from mllm.stream.pack import pack
from mllm.stream.plan import load_plan, open_plan, write_plan
from tests.stream.documents import lengths_of, packed_rows

DOCUMENT = st.tuples(st.integers(0, 90), st.lists(st.integers(0, 100), max_size=4))
SIZES = dict(seq_len=96, num_latents=4, join_share=0.3)


@pytest.fixture
def corpus(world, tmp_path):
    """The interleaved corpus with an index of its own: nothing is planned yet."""
    shutil.copytree(
        world.interleaved, tmp_path / "corpus", ignore=shutil.ignore_patterns("tokens-*")
    )
    return Corpus(tmp_path / "corpus")


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@given(
    documents=st.lists(DOCUMENT, min_size=1, max_size=40),
    seq_len=st.sampled_from([20, 64, 70_000]),
    join_share=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(deadline=None, max_examples=40)
def test_a_plan_from_disk_equals_the_packed_rows(tmp_path_factory, documents, seq_len, join_share):
    documents = [(n, images if n > 1 else []) for n, images in documents]
    lengths = lengths_of(documents)
    sizes = dict(seq_len=seq_len, num_latents=4, join_share=join_share)
    folder = tmp_path_factory.mktemp("plan")
    write_plan(pack(lengths, **sizes), lengths, folder, seq_len=seq_len)
    plan = load_plan(folder, lengths, num_latents=4)
    rows = packed_rows(lengths, **sizes)
    assert plan.num_rows == len(rows)
    for row, (is_joined, images, tokens, pieces) in enumerate(rows):
        assert plan.pieces(row) == pieces
        assert plan.is_joined[row] == is_joined
        assert (plan.row_images[row], plan.row_tokens[row]) == (images, tokens)
    assert plan.num_joined == sum(is_joined for is_joined, *_ in rows)
    assert plan.total_images == sum(images for _, images, *_ in rows) == lengths.total_images
    assert plan.num_padding == sum(seq_len - tokens for _, _, tokens, _ in rows)
    samples = [sample for *_, pieces in rows for sample, *_ in pieces]
    assert plan.num_cuts == len(samples) - len(set(samples))


def test_opening_a_plan_imports_no_numba(world, corpus):
    open_plan(corpus, world.tokenizer, **SIZES)
    script = f"""
        import sys
        from corpora.reader import Corpus
        from mllm.stream import plan
        from tokenizer.tokenizer import Tokenizer

        lengths, opened = plan.open_plan(
            Corpus({str(corpus.corpus_dir)!r}), Tokenizer({str(world.tokenizer_dir)!r}), **{SIZES!r}
        )
        assert opened.pieces(0)
        assert "numba" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)


def test_a_plan_depends_on_its_sizes_and_stands_once_for_each(world, corpus):
    folder = lengths_dir(corpus, world.tokenizer)
    for changes in ({}, {"seq_len": 128}, {"num_latents": 5}, {"join_share": 0.5}, {}):
        open_plan(corpus, world.tokenizer, **{**SIZES, **changes})
    assert sorted(path.name for path in folder.glob("plan-*")) == [
        "plan-3-seq128-latents4-join0.3",
        "plan-3-seq96-latents4-join0.3",
        "plan-3-seq96-latents4-join0.5",
        "plan-3-seq96-latents5-join0.3",
    ]


def test_a_plan_killed_half_way_is_made_anew_and_leaves_nothing(world, corpus):
    script = f"""
        import os, signal
        from corpora.reader import Corpus
        from mllm.stream import plan
        from tokenizer.tokenizer import Tokenizer

        plan.write_json = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
        plan.open_plan(
            Corpus({str(corpus.corpus_dir)!r}), Tokenizer({str(world.tokenizer_dir)!r}), **{SIZES!r}
        )
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    folder = lengths_dir(corpus, world.tokenizer)
    assert [path.name for path in folder.glob("plan-*.unfinished")]
    open_plan(corpus, world.tokenizer, **SIZES)
    (plan_dir,) = folder.glob("plan-*")
    resumed = files_of(plan_dir)
    shutil.rmtree(plan_dir)
    open_plan(corpus, world.tokenizer, **SIZES)
    assert files_of(plan_dir) == resumed


def test_a_refused_plan_leaves_nothing(world, corpus):
    with pytest.raises(UserError, match=r"model.num_latents 64: .* model.seq_len 64"):
        open_plan(corpus, world.tokenizer, seq_len=64, num_latents=64, join_share=0.0)
    assert not list(lengths_dir(corpus, world.tokenizer).glob("plan-*.unfinished"))


def test_a_damaged_plan_is_named(world, corpus):
    open_plan(corpus, world.tokenizer, **SIZES)
    (folder,) = lengths_dir(corpus, world.tokenizer).glob("plan-*")
    for name in ("plan.json", "piece_samples.npy"):
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-20])
        with pytest.raises(UserError, match=f"{folder.name}: damaged .*; delete it"):
            open_plan(corpus, world.tokenizer, **SIZES)
        path.write_bytes(whole)


def test_of_processes_that_race_one_builds_and_the_others_wait(tmp_path):
    script = f"""
        import sys, time
        from pathlib import Path
        from mllm.stream.build_once import build_once

        def fill(folder):
            print("built", flush=True)
            time.sleep(0.2)
            (folder / "whole").write_text("whole")

        build_once(Path({str(tmp_path)!r}) / "sidecar", fill)
        assert (Path({str(tmp_path)!r}) / "sidecar" / "whole").read_text() == "whole"
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    told = [racer.communicate(timeout=60)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4
    assert sorted(told) == ["", "", "", "built\n"]
    assert os.listdir(tmp_path) == ["sidecar"]


def test_the_next_process_takes_over_from_a_dead_one(tmp_path):
    """The dead one's lock is free at once, though its file and folder are still there."""
    (tmp_path / "sidecar.lock").touch()
    (tmp_path / "sidecar.unfinished").mkdir()
    (tmp_path / "sidecar.unfinished" / "part").write_text("kept")
    seen = []
    threads = [
        threading.Thread(
            target=build_once,
            args=(tmp_path / "sidecar", lambda folder: seen.extend(os.listdir(folder))),
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert seen == ["part"]
    assert os.listdir(tmp_path) == ["sidecar"]


@given(parts=st.lists(st.lists(st.integers(0, 9), max_size=3000), max_size=5))
@settings(deadline=None, max_examples=30)
def test_a_ragged_array_appended_in_parts_equals_one_made_at_once(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("ragged")
    with RaggedFile(folder, "runs", np.uint16) as file:
        for part in parts:
            file.append(np.array(part, dtype=np.uint16))
    written = Ragged.load(folder, "runs")
    whole = Ragged.from_counts(np.array([n for part in parts for n in part], dtype=np.int64))
    assert np.array_equal(written.counts, whole.counts)
    assert np.array_equal(written.block_starts, whole.block_starts)


def test_an_array_appended_in_parts_is_an_npy_file(tmp_path):
    with ArrayFile(tmp_path / "a.npy", np.uint32) as file:
        for first in range(0, 1000, 7):
            file.append(np.arange(first, min(first + 7, 1000)))
    array = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert array.dtype == np.uint32
    assert array.tolist() == list(range(1000))


def synthetic_parts(num_samples):
    for first in range(0, num_samples, 50_000):
        draws = np.random.default_rng(first)
        tokens = draws.lognormal(4.5, 1, 50_000).astype(np.uint32) + 2
        images = draws.integers(0, 3, 50_000).astype(np.uint16)
        offsets = np.ones(int(images.sum()), dtype=np.uint32)
        yield LengthsPart(tokens, images, offsets, 0, [])


def test_a_plan_of_a_million_documents_takes_no_more_memory_than_one_of_a_tenth(tmp_path):
    peaks = []
    for number, num_samples in enumerate((100_000, 100_000, 1_000_000)):
        folder = tmp_path / str(number)
        folder.mkdir()
        tracemalloc.start()
        write_lengths(synthetic_parts(num_samples), folder)
        lengths = load_lengths(folder)
        rows = pack(lengths, seq_len=2048, num_latents=64, join_share=0.1)
        write_plan(rows, lengths, folder, seq_len=2048)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        plan = load_plan(folder, lengths, num_latents=64)
        assert plan.num_padding < 0.005 * plan.num_rows * 2048
        assert plan.total_images == lengths.total_images
    assert peaks[2] < 1.2 * peaks[1] < 20e6
