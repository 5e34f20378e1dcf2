"""The whole stream against a walk that knows no closed form, over random runs.

A run is a list of sessions: each goes on from a checkpoint, perhaps an early one, perhaps with
another mixture, seed, windows or takedown lists, on another world size, and is killed somewhere.
`Walk` goes through the same run row by row with counters. `pytest -s` prints how much was checked.
"""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.document import Document, ImageSegment, TextSegment
from corpora.reader import Corpus
from mllm.stream.deal import deal
from mllm.stream.loader import Loader
from mllm.stream.permute import epoch_row, hash_key, mix
from mllm.stream.source import Source
from mllm.stream.state import StreamState
from mllm.stream.stream import TokenStream
from mllm.stream.takedown import Takedowns
from tests.conftest import WORDS, square, write_corpus
from tokenizer.specials import BOI_ID, BOS_ID, EOI_ID, EOS_ID, PAD_ID, SLOT_ID

NAMES = ("one", "few", "prose", "pictures", "mixed")
LATENTS, IMAGE_SIZE = 3, 8
checked: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def report_counts():
    yield
    print("\nchecked:", dict(checked))


# ------------------------------------------------------------------------------------- the world
@pytest.fixture(scope="module")
def places(world, tmp_path_factory):
    """Five corpora from one to 40 documents: no, one or many pictures, short and long texts."""
    root = tmp_path_factory.mktemp("sources")
    draws = np.random.default_rng(7)

    def words(low, high):
        return " ".join(draws.choice(WORDS, int(draws.integers(low, high))))

    def document(name, i):
        picture = square(["red", "green", "blue"][i % 3])
        if name in ("one", "prose"):
            segments = (TextSegment(words(1, 70)),)
        elif name == "pictures":
            segments = (picture, TextSegment(words(1, 12)))
        else:
            segments = tuple(
                part
                for n in range(int(draws.integers(1, 6)))
                for part in (TextSegment(words(1, 15), is_scored=n % 2 == 0), picture)
            )
        return Document(f"{name}-{i:03d}", segments)

    sizes = {"one": 1, "few": 3, "prose": 25, "pictures": 40, "mixed": 15}
    return {
        name: write_corpus(root / name, [document(name, i) for i in range(sizes[name])], 16)
        for name in NAMES
    }


@pytest.fixture(scope="module")
def encoded(world, places):
    """`encoded(name)`: key to (token ids, scored targets, picture count), by an own encoder."""

    @cache
    def of(name):
        found = {}
        corpus = Corpus(places[name])
        for i in range(len(corpus)):
            ids, scored, pictures, last = [BOS_ID], [False], 0, False
            for segment in corpus.document(i).segments:
                if isinstance(segment, ImageSegment):
                    part = [BOI_ID] + [SLOT_ID] * LATENTS + [EOI_ID]
                    scored += [False] * len(part)
                    pictures += 1
                else:
                    part = world.tokenizer.encode(segment.text)
                    last = segment.is_scored
                    scored += [last] * len(part)
                ids += part
            found[corpus.key(i)] = (ids + [EOS_ID], scored + [last], pictures)
        return found

    return of


# --------------------------------------------------------------------------------------- the runs
@dataclass(frozen=True)
class Session:
    """What the user gave at one start of a run."""

    mixture: tuple[tuple[str, str], ...]  # name, weight
    seed: int
    unit: str
    windows: tuple[tuple[int, int], ...]
    banned: frozenset[str]  # keys on the takedown list
    resumes_at: int  # training step
    num_steps: int  # composed before it is killed
    split: tuple[int, int]  # world size, micro-batch size


@dataclass(frozen=True)
class Run:
    seq_len: int
    global_batch_size: int
    joins: dict[str, float]
    sessions: tuple[Session, ...]


def reached_by(step, windows):
    """The first stream step that `step` training steps have not passed, by counting."""
    place, trained = 0, 0
    while trained < step:
        trained += not any(a <= place < b for a, b in windows)
        place += 1
    return place


@st.composite
def runs(draw):
    size = draw(st.sampled_from([2, 4, 6, 8]))
    joins = {name: draw(st.sampled_from([0.0, 0.5, 1.0])) for name in NAMES}
    splits = [(w, m) for w in range(1, size + 1) for m in range(1, size + 1) if size % (w * m) == 0]
    sessions, at, windows, mixture, seed = [], 0, (), None, 0
    for number in range(draw(st.integers(1, 3))):
        if number:
            last = sessions[-1]
            at = draw(st.integers(0, last.resumes_at + last.num_steps))
        if mixture is None or draw(st.booleans()):
            names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
            weights = st.sampled_from(["0.1", "1", "2", "0.35", "7"])
            mixture = tuple((name, draw(weights)) for name in names)
        if draw(st.booleans()):
            seed = draw(st.integers(0, 3))
        # Windows before the place that the run has reached stay as they were.
        reached = reached_by(at, windows)
        past = tuple((a, min(b, reached)) for a, b in windows if a < reached)
        firsts = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), max_size=2)
        windows = past + tuple((reached + a, reached + a + b) for a, b in draw(firsts))
        names = [name for name, _ in mixture]
        keys = [f"{name}-{i:03d}" for name in names for i in range(0, 20, 3)]
        sessions.append(
            Session(
                mixture,
                seed,
                draw(st.sampled_from(["tokens", "rows"])),
                windows,
                frozenset(draw(st.lists(st.sampled_from(keys), max_size=4))),
                at,
                draw(st.integers(1, 10)),
                draw(st.sampled_from(splits)),
            )
        )
    return Run(draw(st.sampled_from([40, 64, 160])), size, joins, tuple(sessions))


def merge(windows):
    steps = sorted({step for a, b in windows for step in range(a, b)})
    starts = [s for s in steps if s - 1 not in steps]
    return tuple((s, next(e for e in range(s, s + 99) if e not in steps)) for s in starts)


def open_stream(world, places, run, session, **changes):
    return TokenStream(
        [Source(name, places[name], float(w), run.joins[name]) for name, w in session.mixture],
        world.tokenizer,
        seq_len=run.seq_len,
        num_latents=LATENTS,
        global_batch_size=run.global_batch_size,
        seed=session.seed,
        image_size=IMAGE_SIZE,
        unit=session.unit,
        excluded_steps=merge(session.windows),
        takedowns=Takedowns(keys=session.banned),
        **changes,
    )


def play(world, places, run, num_workers=0):
    """Trains all sessions as train.py does. Step to its rows, as the last session to do it saw."""
    state, seen = None, {}
    for session in run.sessions:
        stream = open_stream(world, places, run, session)
        if state is not None and session.resumes_at:
            before = StreamState.from_json(json.loads(json.dumps(state)), "stream.json")
            stream.resume(before, session.resumes_at, "stream.json")
        state = stream.state.to_json()
        seen = {step: rows for step, rows in seen.items() if step < session.resumes_at}
        world_size, micro_batch_size = session.split
        loaders = [
            Loader(
                stream,
                rank=rank,
                world_size=world_size,
                micro_batch_size=micro_batch_size,
                start_step=session.resumes_at,
                end_step=session.resumes_at + session.num_steps,
                num_workers=num_workers,
            )
            for rank in range(world_size)
        ]
        for parts in zip(*loaders, strict=True):
            step = parts[0][0]
            seen[step] = sorted(
                (
                    row_of(batch, b)
                    for _, batches in parts
                    for batch in batches
                    for b in rows(batch)
                ),
                key=lambda row: row["info"].row,
            )
            seen[step][0]["session"] = session
    return seen, StreamState.from_json(state, "stream.json")


def rows(batch):
    return range(len(batch.rows))


def row_of(batch, b):
    first = sum(info.images for info in batch.rows[:b])
    return {
        "info": batch.rows[b],
        "ids": batch.token_ids[b].tolist(),
        "mask": batch.loss_mask[b].tolist(),
        "targets": batch.target_ids[b].tolist(),
        "documents": batch.document_ids[b].tolist(),
        "row_seed": batch.row_seeds[b].item(),
        "seeds": batch.image_seeds[first : first + batch.rows[b].images],
    }


# --------------------------------------------------------------------------------------- the walk
class Walk:
    """Goes through stream steps from 0 with a counter for each source."""

    def __init__(self, stream):
        self.sources = {source.name: source for source in stream.sources}
        self.counts = Counter()
        self.epoch_seeds = {}
        self.seen_rows = defaultdict(Counter)  # (source, epoch) -> rows

    def go(self, names, seed_now):
        """Yields (source, epoch, plan row, seed of the epoch) for rows of the sources `names`.

        The stream chose these; that it keeps to the shares is checked apart.
        """
        for name in names:
            num_rows = self.sources[name].plan.num_rows
            epoch, position = divmod(self.counts[name], num_rows)
            self.counts[name] += 1
            seed = self.epoch_seeds.setdefault((name, epoch), seed_now)
            row = permutation(name, seed, epoch, num_rows)[position]
            self.seen_rows[name, epoch][row] += 1
            assert self.seen_rows[name, epoch][row] == 1
            yield name, epoch, row, seed


@cache
def permutation(name, seed, epoch, num_rows):
    """One position at a time; every row once."""
    key = mix(np.uint64(hash_key("order", seed, name)) ^ mix(np.array([epoch], dtype=np.uint64)))
    found = [int(epoch_row(np.array([p]), np.array([num_rows]), key)[0]) for p in range(num_rows)]
    assert sorted(found) == list(range(num_rows))
    return found


def row_shares(session, sources, encoded):
    shares = {}
    for name, weight in session.mixture:
        shares[name] = Fraction(weight)
        if session.unit == "tokens":
            counted = sum(
                sum(scored) + pictures * LATENTS for _, scored, pictures in encoded(name).values()
            )
            shares[name] *= Fraction(sources[name].plan.num_rows, counted)
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def check_shares(names, shares):
    """`names`: the source of each row since the segment began."""
    given_rows = Counter()
    for number, name in enumerate(names, start=1):
        given_rows[name] += 1
        for other, share in shares.items():
            # A period of 10,000 rows rounds shares to 1 / 10,000.
            assert abs(given_rows[other] - number * share) < 1 + number / 10_000


def check_row(row, source, plan_row, encoded, banned, seed, epoch):
    """Own placement of a planned row, token by token."""
    pieces = source.plan.pieces(plan_row)
    keys = [source.corpus.key(sample) for sample, _, _ in pieces]
    assert row["info"].samples == keys
    joined = bool(source.plan.is_joined[plan_row])
    ids, scored, documents, seeds = [], [], [], []
    if joined:
        ids, scored, documents = [BOS_ID], [False], [0]
    for number, ((_, start, stop), key) in enumerate(zip(pieces, keys, strict=True)):
        tokens, is_scored, _ = encoded(source.name)[key]
        assert tokens[start:stop].count(BOI_ID) == tokens[start:stop].count(EOI_ID)
        assert tokens[start:stop].count(SLOT_ID) == LATENTS * tokens[start:stop].count(BOI_ID)
        part = list(zip(tokens[start:stop], is_scored[start:stop], strict=True))
        if start:
            part[0] = (part[0][0], False)
        if joined and start == 0:
            part = part[1:]
        if key in banned:
            part = [(PAD_ID, False)] * len(part)
            checked["pieces left out"] += 1
        else:
            first = tokens[:start].count(BOI_ID)
            seeds += [
                hash_key("image", seed, key, epoch, first + n) >> 1
                for n in range(tokens[start:stop].count(BOI_ID))
            ]
        if joined and stop < len(tokens) and number + 1 < len(pieces):
            part.append((EOS_ID, False))
        ids += [token for token, _ in part]
        scored += [flag for _, flag in part]
        documents += [0 if joined else number] * len(part)
    padding = len(row["ids"]) - len(ids)
    assert padding >= 0
    ids, scored = ids + [PAD_ID] * padding, scored + [False] * padding
    documents += [-1] * padding
    assert row["ids"] == ids and row["documents"] == documents and row["seeds"] == seeds
    for t in range(len(ids)):
        inside = t + 1 < len(ids) and documents[t] == documents[t + 1]
        assert row["mask"][t] == (inside and scored[t + 1])
        if inside:
            assert row["targets"][t] == ids[t + 1]
    checked["rows"] += 1


def check_epochs_hold_every_sample(walk, encoded):
    """Over the rows of each whole epoch, every token of every document stands once."""
    for (name, _), found in walk.seen_rows.items():
        source = walk.sources[name]
        if len(found) < source.plan.num_rows:
            continue
        spans = defaultdict(list)
        for plan_row in found:
            for sample, start, stop in source.plan.pieces(plan_row):
                spans[source.corpus.key(sample)].append((start, stop))
        assert spans.keys() == encoded(name).keys()
        for key, parts in spans.items():
            ends = [0] + [stop for _, stop in sorted(parts)]
            assert [start for start, _ in sorted(parts)] == ends[:-1]
            assert ends[-1] == len(encoded(name)[key][0])
        checked["whole epochs"] += 1


def check_run(world, places, encoded, run, num_workers=0):
    run = first_at_zero(run)
    seen, state = play(world, places, run, num_workers)
    names = sorted({name for session in run.sessions for name, _ in session.mixture})
    everything = replace(run.sessions[-1], mixture=tuple((name, "1") for name in names))
    whole = open_stream(world, places, run, everything, state=state)
    walk = Walk(whole)
    num_steps = max(seen) + 1
    sessions = [seen[step][0]["session"] for step in range(num_steps)]
    place, since_change, shown = 0, [], None
    for step in range(num_steps):
        session = sessions[step]
        asked = (session.mixture, session.seed, session.unit)
        while True:  # excluded stream steps before this one, then this one
            if shown != asked and (shown is None or is_start(sessions, step)):
                since_change, shown = [], asked
            is_out = any(a <= place < b for a, b in session.windows)
            chosen = names_at(whole, place)
            since_change += chosen
            expected = list(walk.go(chosen, session.seed))
            place += 1
            if not is_out:
                break
            checked["excluded steps"] += 1
        check_shares(since_change, row_shares(session, walk.sources, encoded))
        infos = whole.row_infos(step, world_size=1, micro_batch_size=run.global_batch_size)
        for row, info, (name, epoch, plan_row, seed) in zip(
            seen[step], infos, expected, strict=True
        ):
            assert row["info"].samples == info.samples
            assert (row["info"].source, row["info"].row) == (info.source, info.row)
            assert row["info"].source == name
            check_row(row, walk.sources[name], plan_row, encoded, session.banned, seed, epoch)
    check_epochs_hold_every_sample(walk, encoded)
    checked["runs"] += 1
    checked["segments"] += len(state.segments)
    checked["sessions"] += len(run.sessions)


def first_at_zero(run):
    return replace(run, sessions=(replace(run.sessions[0], resumes_at=0), *run.sessions[1:]))


def is_start(sessions, step):
    return step == 0 or sessions[step] is not sessions[step - 1]


def names_at(stream, place):
    """Sources of the rows of a stream step, windows aside."""
    order = stream.order
    segment = max(i for i, s in enumerate(order.segments) if s.first_step <= place)
    first = (place - order.segments[segment].first_step) * stream.global_batch_size
    ids, _ = order.mixtures[segment].rows(first, stream.global_batch_size)
    return [list(order.segments[segment].counts)[i] for i in ids.tolist()]


# -------------------------------------------------------------------------------------- the tests
@given(run=runs())
@settings(deadline=None, max_examples=60, derandomize=True)
def test_any_run_is_the_walk_and_the_uninterrupted_stream(world, places, encoded, run):
    check_run(world, places, encoded, run)


@pytest.mark.slow
@given(run=runs())
@settings(deadline=None, max_examples=400)
def test_many_runs_are_the_walk_and_the_uninterrupted_stream(world, places, encoded, run):
    check_run(world, places, encoded, run)


@pytest.mark.slow
@given(run=runs(), num_workers=st.integers(1, 3))
@settings(deadline=None, max_examples=8)
def test_runs_with_worker_processes_are_the_walk_too(world, places, encoded, run, num_workers):
    check_run(world, places, encoded, run, num_workers)


@given(
    num_images=st.lists(st.integers(0, 12), min_size=8, max_size=8),
    micro_batch_size=st.sampled_from([1, 2, 4]),
)
@settings(deadline=None, max_examples=150)
def test_the_fullest_rank_is_at_most_an_image_above_the_best_deal(num_images, micro_batch_size):
    """Brute force over all deals. Greedy alone was up to six images above it."""
    images = np.array(num_images)
    cells = deal(images, np.zeros(8, dtype=np.int64), micro_batch_size)
    assert sorted(cells.ravel().tolist()) == list(range(8))
    assert (
        images[cells].sum(axis=1).max()
        <= best_deal(tuple(range(8)), num_images, micro_batch_size) + 1
    )


def best_deal(left, images, size):
    if not left:
        return 0
    return min(
        max(
            images[left[0]] + sum(images[i] for i in rest),
            best_deal(tuple(i for i in left[1:] if i not in rest), images, size),
        )
        for rest in combinations(left[1:], size - 1)
    )
