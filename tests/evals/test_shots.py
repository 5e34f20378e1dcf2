import io
import random
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from corpora.document import ImageSegment, TextSegment
from evals.api import Exemplar, Prompt, Query, Support
from evals.shots import build_prompts, check_budget, draw_order, draw_shots, num_positions
from evals.tasks.naming import Naming
from mllm.errors import UserError
from tests.evals.conftest import COLOURS, FakeModel, png


def draw(naming: Naming, query: Query, num_shots: int, seed: int = 0) -> list[str]:
    shots = draw_shots(
        query, naming.support(), seed=seed, task="naming", split="final", num_shots=num_shots
    )
    return [shot.id for shot in shots]


def test_shots_do_not_depend_on_the_order_or_company_of_queries(data_dir: Path):
    naming = Naming(data_dir)
    queries = [naming.query(query_id) for query_id in naming.ids()]
    alone = {query.id: draw(naming, query, 4) for query in queries}
    random.Random(0).shuffle(queries)
    prompts = build_prompts(
        queries[:7],
        naming.support,
        seed=0,
        task="naming",
        split="final",
        num_shots=4,
        separator="eos",
    )
    assert {p.query.id: [s.id for s in p.shots] for p in prompts} == {
        query.id: alone[query.id] for query in queries[:7]
    }


def test_shots_are_nested_in_k_and_never_repeat(data_dir: Path):
    naming = Naming(data_dir)
    for query_id in naming.ids():
        four = draw(naming, naming.query(query_id), 4)
        assert len(set(four)) == 4
        assert draw(naming, naming.query(query_id), 2) == four[:2]


def test_shots_change_with_seed_query_and_support(data_dir: Path):
    naming = Naming(data_dir)
    first, second = (naming.query(query_id) for query_id in naming.ids()[:2])
    other_support = replace(naming.support(), fingerprint="other")
    assert draw(naming, first, 4) != draw(naming, first, 4, seed=1)
    assert draw(naming, first, 4) != draw(naming, second, 4)
    assert draw(naming, first, 4) != [
        shot.id
        for shot in draw_shots(
            first, other_support, seed=0, task="naming", split="final", num_shots=4
        )
    ]


def test_the_literal_draw_is_the_same_on_every_machine():
    assert list(draw_order("key", 6)) == [4, 1, 2, 3, 0, 5]
    assert sorted(draw_order("other key", 1000)) == list(range(1000))


def test_every_exemplar_is_drawn_equally_often():
    counts = [0] * 10
    for i in range(5000):
        counts[next(draw_order(f"{i}", 10))] += 1
    assert min(counts) > 400 and max(counts) < 600


def test_no_shot_is_the_query_or_has_its_picture():
    """By content: the query's picture stands in the support under another key and encoding."""
    picture = png(COLOURS["red"])
    webp = reencoded(picture)
    assert webp != picture
    exemplars = {
        "query": Exemplar("query", (ImageSegment(png(COLOURS["blue"])), TextSegment("itself"))),
        "twin": Exemplar("twin", (ImageSegment(webp), TextSegment("the same picture"))),
        "other": Exemplar("other", (ImageSegment(png(COLOURS["green"])), TextSegment("fine"))),
    }
    support = Support(tuple(sorted(exemplars)), "f", exemplars.__getitem__)
    query = Query("query", (ImageSegment(picture),), gold="red")
    for seed in range(10):
        shots = draw_shots(query, support, seed=seed, task="t", split="s", num_shots=1)
        assert [shot.id for shot in shots] == ["other"]
    with pytest.raises(UserError, match="only 1 usable exemplars among 3"):
        draw_shots(query, support, seed=0, task="t", split="s", num_shots=2)


def reencoded(picture: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(picture)).save(file, "WEBP", lossless=True)
    return file.getvalue()


def test_prompts_that_do_not_fit_are_refused_with_the_arithmetic(fake: FakeModel):
    image, text = ImageSegment(png(COLOURS["red"])), TextSegment("abcdefghij")
    query = Query("q", (image, text), gold="")
    shots = tuple(Exemplar(f"e{i}", (image, text)) for i in range(11))
    prompt = Prompt(shots[:10], query)
    # <s> + 11 x (4 latents + 2) + 11 x 10 bytes + 10 separators
    assert num_positions(prompt, fake) == 1 + 11 * 6 + 110 + 10
    check_budget([prompt], [13], fake)
    with pytest.raises(UserError, match=r"11 images x \(4 \+ 2\) \+ 120 text .* 201 .* has 200"):
        check_budget([prompt], [14], fake)
    assert num_positions(replace(prompt, separator="none"), fake) == 1 + 11 * 6 + 110


def test_the_hash_of_a_prompt_sees_text_picture_order_and_separator():
    red, blue = ImageSegment(png(COLOURS["red"])), ImageSegment(png(COLOURS["blue"]))
    base = Prompt((), Query("q", (red, TextSegment("a")), gold=""))
    others = [
        Prompt((), Query("q", (blue, TextSegment("a")), gold="")),
        Prompt((), Query("q", (red, TextSegment("b")), gold="")),
        Prompt((), Query("q", (TextSegment("a"), red), gold="")),
        Prompt((Exemplar("e", (red,)),), Query("q", (TextSegment("a"),), gold="")),
        replace(base, separator="none"),
    ]
    assert len({prompt.sha() for prompt in (base, *others)}) == 6
