"""Takedown lists: what they name is never read, nothing of it is scored, nothing else moves."""

import json

import numpy as np
import pytest
import torch

from corpora.document import Document, TextSegment
from corpora.index import build_index
from corpora.reader import Corpus
from mllm.config import parse_config
from mllm.errors import UserError
from mllm.stream.pairs import PairStream
from mllm.stream.source import Source
from mllm.stream.state import StreamState
from mllm.stream.takedown import Takedowns, read_takedowns
from tests.conftest import square, write_corpus
from tests.scenarios import vision_config

ALONE = dict(rank=0, world_size=1, micro_batch_size=8)


def test_the_three_kinds_of_entry_find_their_samples(tmp_path):
    documents = [
        Document(f"s{i}", (square("red"), TextSegment(f"text {i}")), {"url": f"http://x/{i}"})
        for i in range(9)
    ]
    corpus = Corpus(write_corpus(tmp_path / "c", documents))
    digest = corpus.content_hashes[5].tobytes().hex()
    path = tmp_path / "list.txt"
    path.write_text(f"# asked for\n\nkey s2\ns3\nurl http://x/4\nhash {digest.upper()}\nkey gone\n")
    lists = read_takedowns([path])
    samples = lists.samples(corpus)
    assert samples.tolist() == [2, 3, 4, 5]
    assert lists.unmatched([(corpus, samples)]) == ["key gone"]
    found = Takedowns(urls=frozenset({"http://x/4", "http://y"})).unmatched(
        [(corpus, np.array([4]))]
    )
    assert found == ["url http://y"]


def test_the_scan_of_the_index_is_done_once(tmp_path, monkeypatch):
    corpus = Corpus(write_corpus(tmp_path / "c", [Document("a", (TextSegment("text"),))]))
    lists = Takedowns(keys=frozenset({"a"}))
    assert lists.samples(corpus).tolist() == [0]
    monkeypatch.setattr(Corpus, "find", None)
    assert lists.samples(corpus).tolist() == [0]


def test_mistakes_name_file_and_line(tmp_path):
    path = tmp_path / "list.txt"
    for line in ("hash 12", "uri http://x", "hash " + "g" * 32):
        path.write_text(f"key fine\n{line}\n")
        with pytest.raises(UserError, match=r"list\.txt:2: .* is no entry"):
            read_takedowns([path])
    with pytest.raises(UserError, match=r"data\.exclude: cannot read .*absent"):
        read_takedowns([tmp_path / "absent"])


def test_the_hash_is_of_the_entries_whatever_files_they_are_in(tmp_path):
    one, two, both = (tmp_path / name for name in ("1", "2", "both"))
    one.write_text("key a\n")
    two.write_text("# more\nkey b\n")
    both.write_text("b\na\n")
    assert read_takedowns([one, two]).hash == read_takedowns([both]).hash
    assert read_takedowns([one]).hash != read_takedowns([both]).hash != Takedowns().hash


def test_a_listed_sample_is_never_read_and_masked_in_place(world, build, monkeypatch):
    sources = [Source("pairs", world.pairs, 1, 0.3), Source("text", world.text, 1)]
    sound = build(sources=sources)
    banned = {sound.batch(0, **ALONE).rows[0].samples[0], Corpus(world.text).key(7)}
    stream = build(sources=sources, takedowns=Takedowns(keys=frozenset(banned)))
    for source in stream.sources:
        read = source.corpus.document

        def checked(sample, read=read, corpus=source.corpus):
            assert corpus.key(sample) not in banned
            return read(sample)

        monkeypatch.setattr(source.corpus, "document", checked)
    num_excluded = 0
    for step in range(4):
        one, two = sound.batch(step, **ALONE), stream.batch(step, **ALONE)
        assert [r.samples for r in one.rows] == [r.samples for r in two.rows]
        assert torch.equal(one.document_ids, two.document_ids)
        assert torch.equal(one.positions, two.positions)
        is_gone = two.token_ids != one.token_ids
        assert not two.token_ids[is_gone].sub(1).any()  # PAD_ID
        assert not (two.loss_mask[:, :-1] & is_gone[:, 1:]).any()
        assert not two.bad_samples
        assert two.num_excluded == sum(key in banned for r in two.rows for key in r.samples)
        num_excluded += two.num_excluded
    assert num_excluded >= 2


def test_a_list_that_changes_at_resume_is_honoured_and_recorded(world, build):
    before = build(takedowns=Takedowns(keys=frozenset({"text0001"})))
    saved = StreamState.from_json(before.state.to_json(), "s")
    stream = build(takedowns=Takedowns(keys=frozenset({"text0001", "text0002"})))
    (note,) = stream.resume(saved, 6, "s")
    assert "data.exclude changed: 2 samples are left out from stream step 6 on" in note
    assert [(q.first_step, q.num_samples) for q in stream.state.quarantine] == [(0, 1), (6, 2)]
    assert stream.rows(9).order.rows.tolist() == before.rows(9).order.rows.tolist()


def test_pairs_on_a_list_are_unused(world, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("key pair0003\nkey pair0004\nkey nowhere\n")
    config = vision_config(world.root, tmp_path / "run", 12)
    values = json.loads(json.dumps(config.to_dict()))
    values["data"]["exclude"] = [str(path)]
    stream = PairStream(parse_config(values, "c"))
    assert stream.unmatched_takedowns() == ["key nowhere"]
    num_unused = 0
    for step in range(5):  # one epoch
        batch = stream.batch(step, rank=0, world_size=1, micro_batch_size=12)
        for b, row in enumerate(batch.rows):
            is_listed = row.samples[0] in ("pair0003", "pair0004")
            assert bool(batch.is_used[b]) != is_listed
            assert bool(batch.pixels[b].any()) != is_listed
        num_unused += batch.num_excluded
    assert num_unused == 2


def test_samples_without_a_picture_are_masked_and_counted_and_a_corpus_of_them_refused(
    world, tmp_path
):
    documents = [
        Document(f"s{i}", (square("red"), TextSegment("a")) if i % 2 else (TextSegment("a"),))
        for i in range(24)
    ]
    values = json.loads(json.dumps(vision_config(world.root, tmp_path / "r", 12).to_dict()))
    values["data"]["mixture"][0]["path"] = str(write_corpus(tmp_path / "c", documents))
    stream = PairStream(parse_config(values, "c"))
    batches = [stream.batch(s, rank=0, world_size=1, micro_batch_size=12) for s in range(2)]
    assert sum(int(batch.is_used.sum()) for batch in batches) == 12
    assert sum(len(batch.bad_samples) for batch in batches) == 12
    assert "0 pictures and 1 texts" in batches[0].bad_samples[0]["reason"]
    values["data"]["mixture"][0]["path"] = str(write_corpus(tmp_path / "d", documents[::2]))
    with pytest.raises(UserError, match="one picture"):
        PairStream(parse_config(values, "c"))


def test_an_index_apart_serves_mixture_and_validation_of_one_name(world, tmp_path):
    values = json.loads(json.dumps(vision_config(world.root, tmp_path / "r", 12).to_dict()))
    values["data"]["index_dir"] = str(tmp_path / "indexes")
    config = parse_config(values, "c")
    own, validation = config.data.index_of("a"), config.data.index_of("a", is_validation=True)
    assert own != validation
    build_index(world.pairs, config.data.index_of("pairs"))
    assert PairStream(config).batch(0, rank=0, world_size=1, micro_batch_size=12).is_used.all()
