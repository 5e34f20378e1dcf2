"""The eight language sets: strings against lm-evaluation-harness 0.4.13 and evals.md, bad files."""

import json
from pathlib import Path

import pytest

from evals.api import Prompt, RankRequest, VariantRequest
from evals.evaluate import language_averages
from evals.exported import flatten
from evals.options import TaskOptions
from evals.run import CellOptions, run_cell
from evals.shots import build_prompts
from evals.tasks.language import macro_f1, make_language
from mllm.errors import UserError
from tests.evals.oracle import Oracle

ALL = ("storycloze", "hellaswag", "winograd", "winogrande", "piqa", "boolq", "cb", "copa")
STORY = "Tom was hot. He saw a pool. He ran. He jumped."
TROPHY = "The trophy doesn't fit in the suitcase because it is too large."
LIFTED = "The man lifted the boy onto his shoulders."
DOCS: dict[str, list[dict]] = {
    "storycloze": [
        {
            f"input_sentence_{i}": part
            for i, part in enumerate(STORY.replace(". ", ".|").split("|"), 1)
        }
        | {"sentence_quiz1": "He got wet.", "sentence_quiz2": "He got dry."}
        | {"answer_right_ending": 1}
    ],
    "hellaswag": [
        {
            "ind": 1,
            "activity_label": "Baking bread",
            "ctx_a": "[header] How to bake bread [title] Mix the dough. [step] Use flour.",
            "ctx_b": "the Baker",
            "ctx": "[header] How to bake bread the Baker",
            "endings": ["waits [substeps] an hour.", "  sings.", " eats it.", "sleeps."],
            "label": "0",
        },
        {
            "ind": 2,
            "activity_label": "Roof",
            "ctx_a": "A man sits on a roof.",
            "ctx_b": "he",
            "ctx": "A man sits on a roof. he",
            "endings": ["works.", "flies.", "swims.", "melts."],
            "label": 3,
        },
    ],
    "winograd": [
        {
            "text": TROPHY,
            "pronoun": "it",
            "pronoun_loc": TROPHY.index("it is"),
            "options": ["The trophy", "The suitcase"],
            "label": 0,
        },
        {
            "text": LIFTED,
            "pronoun": "his",
            "pronoun_loc": LIFTED.index("his"),
            "options": ["The man", "The boy"],
            "label": 0,
        },
        {
            "text": "Ann thanked Eve because she had helped.",
            "pronoun": "she",
            "pronoun_loc": 24,
            "options": ["Ann", "Eve"],
            "label": 1,
        },
    ],
    "winogrande": [
        {
            "qID": "a-1",
            "sentence": "The cup did not fit the box because the _ was too big.",
            "option1": "cup",
            "option2": "box",
            "answer": "1",
        },
        {
            "qID": "b-1",
            "sentence": "Ann thanked Eve, because _ had helped.",
            "option1": "Ann",
            "option2": "Eve",
            "answer": "2",
        },
    ],
    "piqa": [
        {"goal": "To boil an egg,", "sol1": "put it in hot water.", "sol2": "put it in the sun."},
        {"goal": "How do I dry a shirt? ", "sol1": "Hang it up.", "sol2": "Wet it."},
    ],
    "boolq": [
        {"passage": "The fox is red. Foxes bark.", "question": "is the fox red", "label": True},
        {"passage": "Snow is white.", "question": "is snow black", "label": False},
    ],
    "cb": [
        {
            "premise": "It rained. The street is wet.",
            "hypothesis": "the street is wet",
            "label": "entailment",
        },
        {"premise": "Ann smiled.", "hypothesis": "Ann wept", "label": "contradiction"},
        {"premise": "Ann smiled.", "hypothesis": "Ann slept", "label": "neutral"},
    ],
    "copa": [
        {
            "premise": "The man fell.",
            "choice1": "The floor was wet.",
            "choice2": "He sang.",
            "question": "cause",
            "label": 0,
        },
        {
            "premise": "The sun rose. ",
            "choice1": "It grew dark.",
            "choice2": "It grew light.",
            "question": "effect",
            "label": 1,
        },
    ],
}
FILES = {  # of the evaluation and of the shots
    "storycloze": ("test.jsonl", "validation.jsonl"),
    "hellaswag": ("hellaswag_val.jsonl", "hellaswag_train.jsonl"),
    "winograd": ("wsc273.jsonl", None),
    "winogrande": ("dev.jsonl", "train_xl.jsonl"),
    "piqa": ("valid.jsonl", "train.jsonl"),
    "boolq": ("val.jsonl", "train.jsonl"),
    "cb": ("val.jsonl", "train.jsonl"),
    "copa": ("val.jsonl", "train.jsonl"),
}


def write_lines(path: Path, docs: list[dict]) -> None:
    path.write_text("".join(json.dumps(doc) + "\n" for doc in docs))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every set in its layout; the training part holds the same questions and one more."""
    root = tmp_path_factory.mktemp("language")
    for name, (evaluation, training) in FILES.items():
        (root / name).mkdir()
        write_lines(root / name / evaluation, DOCS[name])
        if training:
            write_lines(root / name / training, [*DOCS[name], *other(name)])
    (root / "piqa/valid-labels.lst").write_text("0\r\n0\r\n")
    (root / "piqa/train-labels.lst").write_text("0\n0\n1\n1\n")
    return root


def other(name: str) -> list[dict]:
    """Two questions that only the training part has."""
    texts = {"premise": "P.", "passage": "P", "goal": "G", "ctx": "C", "input_sentence_1": "S."}
    texts |= {"sentence": "So _ ran."}
    return [
        {
            key: f"{number} {texts[key]}" if key in texts else value
            for key, value in DOCS[name][-1].items()
        }
        for number in (1, 2)
    ]


def asked(sets: Path, name: str, style: str) -> list[tuple[str, str]]:
    """(prompt, what is scored) of every candidate of every query, as the model gets them."""
    task = make_language(name, sets / name, TaskOptions(language_style=style))  # type: ignore[arg-type]
    pairs = []
    for query_id in task.ids():
        query = task.query(query_id)
        text = "".join(segment.text for segment in query.segments)  # type: ignore[union-attr]
        request = task.request(Prompt((), query))
        if isinstance(request, VariantRequest):
            endings = ("".join(s.text for s in ending) for ending in request.endings)  # type: ignore[union-attr]
            pairs += [(text + e, t) for e, t in zip(endings, request.texts, strict=True)]
        else:
            assert isinstance(request, RankRequest)
            pairs += [(text, candidate) for candidate in request.candidates]
    return pairs


# What `ConfigurableTask.construct_requests` of lm_eval 0.4.13 gave for DOCS with the YAMLs piqa,
# super_glue/{boolq,cb,copa}/default, hellaswag, winogrande/default, wsc273, storycloze_2016.
LM_EVAL = {
    "piqa": [
        ("Question: To boil an egg,\nAnswer:", " put it in hot water."),
        ("Question: To boil an egg,\nAnswer:", " put it in the sun."),
        ("Question: How do I dry a shirt? \nAnswer:", " Hang it up."),
        ("Question: How do I dry a shirt? \nAnswer:", " Wet it."),
    ],
    "boolq": [
        ("The fox is red. Foxes bark.\nQuestion: is the fox red?\nAnswer:", " no"),
        ("The fox is red. Foxes bark.\nQuestion: is the fox red?\nAnswer:", " yes"),
        ("Snow is white.\nQuestion: is snow black?\nAnswer:", " no"),
        ("Snow is white.\nQuestion: is snow black?\nAnswer:", " yes"),
    ],
    "cb": [
        (f"{before} True, False, or Neither?\nAnswer:", answer)
        for before in (
            "It rained. The street is wet.\nQuestion: the street is wet.",
            "Ann smiled.\nQuestion: Ann wept.",
            "Ann smiled.\nQuestion: Ann slept.",
        )
        for answer in (" True", " False", " Neither")
    ],
    "copa": [
        ("The man fell because", "  the floor was wet."),
        ("The man fell because", "  he sang."),
        ("The sun rose therefore", "  it grew dark."),
        ("The sun rose therefore", "  it grew light."),
    ],
    "winogrande": [
        ("The cup did not fit the box because the cup", " was too big."),
        ("The cup did not fit the box because the box", " was too big."),
        ("Ann thanked Eve, because Ann", " had helped."),
        ("Ann thanked Eve, because Eve", " had helped."),
    ],
    "hellaswag": [
        *(
            ("Baking bread: How to bake bread. Mix the dough. Use flour. The baker", ending)
            for ending in (" waits an hour.", " sings.", " eats it.", " sleeps.")
        ),
        *(
            ("Roof: A man sits on a roof. He", ending)
            for ending in (" works.", " flies.", " swims.", " melts.")
        ),
    ],
    "winograd": [
        ("The trophy doesn't fit in the suitcase because the trophy", "  is too large."),
        ("The trophy doesn't fit in the suitcase because the suitcase", "  is too large."),
        ("The man lifted the boy onto the man's", "  shoulders."),
        ("The man lifted the boy onto the boy's", "  shoulders."),
        ("Ann thanked Eve because Ann", "  had helped."),
        ("Ann thanked Eve because Eve", "  had helped."),
    ],
    "storycloze": [(STORY, " He got wet."), (STORY, " He got dry.")],
}
# evals.md, section 8.
KOSMOS = {
    "storycloze": LM_EVAL["storycloze"],
    "winogrande": LM_EVAL["winogrande"],
    "winograd": [(prompt, rest[1:]) for prompt, rest in LM_EVAL["winograd"]],
    "hellaswag": [
        *(
            ("[header] How to bake bread the Baker", ending)
            for ending in (" waits [substeps] an hour.", " sings.", " eats it.", " sleeps.")
        ),
        *(
            ("A man sits on a roof. he", ending)
            for ending in (" works.", " flies.", " swims.", " melts.")
        ),
    ],
    "piqa": [
        ("To boil an egg,", " put it in hot water."),
        ("To boil an egg,", " put it in the sun."),
        ("How do I dry a shirt?", " Hang it up."),
        ("How do I dry a shirt?", " Wet it."),
    ],
    "boolq": [
        (f"Passage: {passage}? Answer:", answer)
        for passage in (
            "The fox is red. Foxes bark. Question: is the fox red",
            "Snow is white. Question: is snow black",
        )
        for answer in (" No", " Yes")
    ],
    "cb": [(prompt.replace("\n", " "), answer) for prompt, answer in LM_EVAL["cb"]],
    "copa": [
        ("The man fell because", " the floor was wet."),
        ("The man fell because", " he sang."),
        ("The sun rose so", " it grew dark."),
        ("The sun rose so", " it grew light."),
    ],
}


@pytest.mark.parametrize("name", ALL)
def test_the_strings_are_those_of_lm_eval_and_of_the_kosmos_style(sets: Path, name: str):
    assert asked(sets, name, "lm_eval") == LM_EVAL[name]
    assert asked(sets, name, "kosmos") == KOSMOS[name]


def few_shot(sets: Path, name: str, style: str, num_shots: int = 1) -> list[Prompt]:
    task = make_language(name, sets / name, TaskOptions(language_style=style))  # type: ignore[arg-type]
    return build_prompts(
        [task.query(query_id) for query_id in task.ids()],
        task.support,
        seed=0,
        task=name,
        split=task.split,
        num_shots=num_shots,
        separator=task.separator,
    )


def test_shots_show_the_right_answer_and_end_as_their_style_has_it(sets: Path):
    def texts(prompt: Prompt) -> list[str]:
        return [getattr(segment, "text", "</s>") for segment in flatten(prompt)]

    shot, separator, query = texts(few_shot(sets, "copa", "lm_eval")[0])
    assert separator == "\n\n" and query == "The man fell because"
    assert shot in (
        "The sun rose therefore  it grew light.",
        "1 P therefore  it grew light.",
        "2 P therefore  it grew light.",
    )
    shot, separator, query = texts(few_shot(sets, "winogrande", "kosmos")[0])
    assert separator == "</s>" and query == "The cup did not fit the box because the "
    assert shot in ("Ann thanked Eve, because Eve had helped.", "1 So Eve ran.", "2 So Eve ran.")


def test_winograds_shots_are_its_other_rows(sets: Path):
    for prompt in few_shot(sets, "winograd", "kosmos", num_shots=2):
        shown = {shot.id for shot in prompt.shots}
        assert len(shown) == 2 and prompt.query.id not in shown
        assert prompt.query.segments not in [shot.question for shot in prompt.shots]
    with pytest.raises(UserError, match="only 2 usable exemplars"):
        few_shot(sets, "winograd", "kosmos", num_shots=3)


def test_a_training_row_of_the_same_line_can_be_shown_but_not_the_same_question(sets: Path):
    (prompt, *_) = few_shot(sets, "copa", "kosmos", num_shots=3)
    assert {shot.id for shot in prompt.shots} == {"train/00002", "train/00003", "train/00004"}


def test_permuted_shots_show_one_of_their_own_candidates(sets: Path):
    task = make_language("hellaswag", sets / "hellaswag", TaskOptions())
    (prompt, *_) = few_shot(sets, "hellaswag", "kosmos", num_shots=3)
    shown = {task.permuted(prompt, str(key)).shots[0].answer for key in range(40)}
    assert shown == {" works.", " flies.", " swims.", " melts."}
    cb = make_language("cb", sets / "cb", TaskOptions())
    (prompt, *_) = few_shot(sets, "cb", "kosmos")
    assert cb.permuted(prompt, "k").shots[0].answer in (" True", " False", " Neither")


@pytest.mark.parametrize("name", ["cb", "winogrande"])
def test_a_model_that_knows_scores_all_and_one_that_errs_none(
    sets: Path, name: str, tmp_path: Path
):
    task = make_language(name, sets / name, TaskOptions())
    options = CellOptions(num_shots=1, controls=("permuted",))
    cell = run_cell(task, Oracle(), options, tmp_path / "right")
    assert cell is not None and cell["score"] == 100.0 and cell["controls"]["permuted"]["n"] > 0
    assert cell["settings"]["style"] == "kosmos" and cell["settings"]["separator"] == "eos"
    wrong = run_cell(task, Oracle(is_right=False), options, tmp_path / "wrong")
    assert wrong is not None and wrong["score"] == 0.0
    # Of partial scoring no norm may be right for the scored texts' being equal.
    assert all(
        v == 0.0 for k, v in wrong["extra"].items() if k in ("accuracy_sum", "accuracy_char")
    )
    assert sum(cell["left_out"].values()) > 0  # the release has more
    if name == "cb":
        assert cell["extra"]["macro_f1"] == 100.0 and cell["chance"] == pytest.approx(
            100 / 3, abs=0.01
        )
    else:
        assert "accuracy_uncond" not in cell["extra"] and cell["chance"] == 50.0


def test_macro_f1_is_scikit_learns():
    """f1_score(gold, answers, average="macro", labels=[...]) of scikit-learn 1.7 gives these."""
    golds, answers = "TTTTFFN", "TTFFFTT"
    rows = [{"gold": g, "answer": a} for g, a in zip(golds, answers, strict=True)]
    assert macro_f1(rows, "TFN") == pytest.approx((0.5 + 0.4 + 0.0) / 3)


def test_norms_follow_the_style_and_what_cannot_be_meant_is_refused(sets: Path):
    assert make_language("piqa", sets / "piqa", TaskOptions()).norm == "token"
    lm_eval = TaskOptions(language_style="lm_eval")
    assert make_language("piqa", sets / "piqa", lm_eval).norm == "sum"
    with pytest.raises(UserError, match="--norm uncond: winogrande"):
        make_language("winogrande", sets / "winogrande", TaskOptions(norm="uncond"))


def test_the_average_needs_all_eight():
    cells = [{"suite": name, "shots": "0", "score": 10.0 * i} for i, name in enumerate(ALL)]
    assert language_averages(cells) == {"0": 35.0}
    assert language_averages(cells[1:]) == {}
    assert language_averages([*cells[1:], cells[0] | {"shots": "4"}]) == {}


# ----------------------------------------------------------------------------------------------
# Files as they come, and as they should not


def test_the_first_releases_are_read_too(tmp_path: Path):
    header = "InputStoryid," + ",".join(f"InputSentence{i}" for i in range(1, 5))
    header += ",RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding"
    row = 's1,Tom was hot.,"He saw, far off, a pool.",He ran.,He jumped.,Wet.,Dry.,2'
    path = tmp_path / "cloze_test_test__spring2016 - cloze_test_ALL_test.csv"
    path.write_bytes(b"\xef\xbb\xbf" + f"{header}\r\n{row}\r\n".encode())
    query = make_language("storycloze", tmp_path, TaskOptions()).query("00002")
    assert query.gold == "Dry." and "He saw, far off, a pool." in query.segments[0].text
    write_lines(tmp_path / "dev.jsonl", [{"question": "is it", "passage": "P", "answer": True}])
    boolq = make_language("boolq", tmp_path, TaskOptions())
    assert boolq.query("00001").gold == "Yes"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("cb", {"label": "entails"}, r"val\.jsonl: line 1: \"label\" is 'entails', must be one of"),
        ("cb", {"premise": None}, 'line 1: "premise" is null, must be a string'),
        ("copa", {"choice1": " "}, 'line 1: "choice1" is blank'),
        ("copa", {"question": "why"}, "'why', must be cause or effect"),
        ("hellaswag", {"endings": ["a", "b"]}, '"endings" must be a list of 4 texts'),
        ("hellaswag", {"label": 4}, '"label" is 4, must be one of 0, 1, 2, 3'),
        ("winograd", {"pronoun_loc": 3}, '"pronoun_loc" is 3, where "text" has no \'it\''),
        ("winogrande", {"sentence": "no gap."}, '"sentence" has 0 times _, must have one'),
        ("winogrande", {"answer": "0"}, "\"answer\" is '0', must be one of 1, 2"),
        ("boolq", {"label": "maybe"}, "must be one of false, true"),
        ("storycloze", {"answer_right_ending": 3}, "must be one of 1, 2"),
    ],
)
def test_a_wrong_record_is_named(tmp_path: Path, name: str, change: dict, message: str):
    write_lines(tmp_path / FILES[name][0], [DOCS[name][0] | change])  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as caught:
        make_language(name, tmp_path, TaskOptions())
    assert "\n" not in str(caught.value)


def test_renamed_columns_and_half_a_set_are_named(tmp_path: Path):
    renamed = {"premise": "P", "hypothesis": "H", "gold": "neutral"}
    write_lines(tmp_path / "val.jsonl", [renamed])
    with pytest.raises(UserError, match=r'line 1: no "label" \(found premise, hypothesis, gold\)'):
        make_language("cb", tmp_path, TaskOptions())
    write_lines(tmp_path / "valid.jsonl", DOCS["piqa"])
    with pytest.raises(UserError, match=r"valid-labels\.lst: no such file"):
        make_language("piqa", tmp_path, TaskOptions())
    (tmp_path / "valid-labels.lst").write_text("0\n")
    with pytest.raises(UserError, match=r"valid-labels\.lst: 1 labels for the 2 questions"):
        make_language("piqa", tmp_path, TaskOptions())
    (tmp_path / "dev.jsonl").write_text("")
    with pytest.raises(UserError, match=r"dev\.jsonl: holds no question"):
        make_language("winogrande", tmp_path, TaskOptions())
