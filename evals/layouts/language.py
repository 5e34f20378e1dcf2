"""The eight language sets in their releases' files, questions with their labels as places from 0.

    storycloze   cloze_test_*_ALL_{test,val}.csv, or the hub's fields in {test,validation}.jsonl
    hellaswag    hellaswag_{val,train}.jsonl
    winograd     wsc273.jsonl or wsc285.jsonl: the hub's fields; there is no training part
    winogrande   dev.jsonl, train_xl.jsonl
    piqa         {valid,train}.jsonl with {valid,train}-labels.lst beside them
    boolq        val.jsonl (SuperGLUE) or dev.jsonl (the first release), train.jsonl
    cb, copa     {val,train}.jsonl (SuperGLUE)

A question is called by its line, since only some releases have ids; in a training part `train/`
stands before it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evals.layouts.files import (
    Record,
    find_file,
    json_records,
    read_csv,
    read_json,
    read_jsonl,
    read_text,
)
from mllm.errors import UserError

LanguagePart = Literal["evaluation", "training"]

PLACES = {"0": 0, "1": 1}
PLACES_FROM_1 = {"1": 0, "2": 1}
QUARTERS = {str(place): place for place in range(4)}
TRUTH = {"false": 0, "true": 1, "0": 0, "1": 1}
ENTAILMENT = {
    "entailment": 0,
    "contradiction": 1,
    "neutral": 2,
    "0": 0,
    "1": 1,
    "2": 2,
}


@dataclass(frozen=True, slots=True)
class StoryCloze:
    id: str
    sentences: tuple[str, str, str, str]
    endings: tuple[str, str]
    label: int


@dataclass(frozen=True, slots=True)
class HellaSwag:
    """`ctx` is `ctx_a` and `ctx_b` as released."""

    id: str
    activity: str
    ctx_a: str
    ctx_b: str
    ctx: str
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True, slots=True)
class Winograd:
    """`pronoun` begins at character `pronoun_loc` of `text`; `options` are who it may stand for."""

    id: str
    text: str
    pronoun: str
    pronoun_loc: int
    options: tuple[str, str]
    label: int


@dataclass(frozen=True, slots=True)
class Winogrande:
    """`sentence` has one `_`."""

    id: str
    sentence: str
    options: tuple[str, str]
    label: int


@dataclass(frozen=True, slots=True)
class Piqa:
    id: str
    goal: str
    solutions: tuple[str, str]
    label: int


@dataclass(frozen=True, slots=True)
class BoolQ:
    """`question` without its question mark; label 1 is yes."""

    id: str
    passage: str
    question: str
    label: int


@dataclass(frozen=True, slots=True)
class CommitmentBank:
    """Label 0 is entailment, 1 contradiction, 2 neutral."""

    id: str
    premise: str
    hypothesis: str
    label: int


@dataclass(frozen=True, slots=True)
class Copa:
    id: str
    premise: str
    choices: tuple[str, str]
    asks_for: str  # cause or effect
    label: int


Sample = StoryCloze | HellaSwag | Winograd | Winogrande | Piqa | BoolQ | CommitmentBank | Copa


@dataclass(frozen=True)
class Layout:
    """Where the parts of a set lie, and how one record of them is read.

    Args:
        title: As people call it.
        evaluation: Names that the file may have, the usual one first.
        training: The same of the file that shots come from; None where they come from the other
            rows of the evaluation itself.
        size: Questions of the release; None where copies differ.
        read: Sample from a record and its id.
    """

    title: str
    evaluation: tuple[str, ...]
    training: tuple[str, ...] | None
    size: int | None
    read: Callable[[Record, str], Sample]


def load(layout: Layout, folder: Path, part: LanguagePart) -> tuple[list[Sample], list[Path]]:
    """The questions of a part in the file's order, and the files they were read from."""
    is_training = part == "training" and layout.training is not None
    names = layout.training if is_training else layout.evaluation
    path = find_file(folder, names or (), layout.title)
    records = _records(path)
    prefix = "train/" if is_training else ""
    samples = [layout.read(record, f"{prefix}{record.number:05}") for record in records]
    if not samples:
        raise UserError(f"{path}: holds no question; download it again")
    extra = [_labels_path(path)] if layout is LAYOUTS["piqa"] else []
    return samples, [path, *extra]


def _records(path: Path) -> Iterator[Record]:
    match path.suffix:
        case ".csv":
            return read_csv(path, ())
        case ".json":
            return json_records(path, read_json(path))
    return _with_labels(path) if _labels_path(path).is_file() else read_jsonl(path)


# ----------------------------------------------------------------------------------------------
# One reader a set


def _story(row: Record, name: str) -> StoryCloze:
    is_hub = "input_sentence_1" in row.fields
    sentence, quiz, label = (
        ("input_sentence_{}", "sentence_quiz{}", "answer_right_ending")
        if is_hub
        else ("InputSentence{}", "RandomFifthSentenceQuiz{}", "AnswerRightEnding")
    )
    one, two, three, four = (filled(row, sentence.format(i)) for i in range(1, 5))
    endings = filled(row, quiz.format(1)), filled(row, quiz.format(2))
    return StoryCloze(name, (one, two, three, four), endings, labelled(row, label, PLACES_FROM_1))


def _hellaswag(row: Record, name: str) -> HellaSwag:
    endings = texts(row, "endings", 4)
    return HellaSwag(
        name,
        filled(row, "activity_label"),
        row.text("ctx_a"),
        row.text("ctx_b"),
        filled(row, "ctx"),
        endings,
        labelled(row, "label", QUARTERS),
    )


def _winograd(row: Record, name: str) -> Winograd:
    text, pronoun = filled(row, "text"), filled(row, "pronoun")
    place = row.get("pronoun_loc", int)
    if text[place : place + len(pronoun)] != pronoun:
        raise row.error(f'"pronoun_loc" is {place}, where "text" has no {pronoun!r}')
    if not text[place + len(pronoun) :].strip():
        raise row.error('"text" ends with its pronoun, and nothing after it could be scored')
    one, two = texts(row, "options", 2)
    return Winograd(name, text, pronoun, place, (one, two), labelled(row, "label", PLACES))


def _winogrande(row: Record, name: str) -> Winogrande:
    sentence = filled(row, "sentence")
    if sentence.count("_") != 1:
        raise row.error(f'"sentence" has {sentence.count("_")} times _, must have one')
    if not sentence.split("_")[1].strip():
        raise row.error('"sentence" ends with _, and nothing stands after it that could be scored')
    options = filled(row, "option1"), filled(row, "option2")
    return Winogrande(name, sentence, options, labelled(row, "answer", PLACES_FROM_1))


def _piqa(row: Record, name: str) -> Piqa:
    if "label" not in row.fields:
        labels = _labels_path(row.path)
        raise UserError(f"{labels}: no such file; the labels of {row.path.name} come with it")
    solutions = filled(row, "sol1"), filled(row, "sol2")
    return Piqa(name, filled(row, "goal"), solutions, labelled(row, "label", PLACES))


def _boolq(row: Record, name: str) -> BoolQ:
    key = "answer" if "answer" in row.fields else "label"
    return BoolQ(name, filled(row, "passage"), filled(row, "question"), labelled(row, key, TRUTH))


def _cb(row: Record, name: str) -> CommitmentBank:
    label = labelled(row, "label", ENTAILMENT)
    return CommitmentBank(name, filled(row, "premise"), filled(row, "hypothesis"), label)


def _copa(row: Record, name: str) -> Copa:
    asks_for = row.text("question")
    if asks_for not in ("cause", "effect"):
        raise row.error(f'"question" is {asks_for!r}, must be cause or effect')
    choices = filled(row, "choice1"), filled(row, "choice2")
    return Copa(name, filled(row, "premise"), choices, asks_for, labelled(row, "label", PLACES))


LAYOUTS: dict[str, Layout] = {
    "storycloze": Layout(
        "StoryCloze 2016",
        (
            "cloze_test_test__spring2016 - cloze_test_ALL_test.csv",
            "cloze_test_ALL_test.csv",
            "test.csv",
            "test.jsonl",
        ),
        (
            "cloze_test_val__spring2016 - cloze_test_ALL_val.csv",
            "cloze_test_ALL_val.csv",
            "validation.csv",
            "validation.jsonl",
        ),
        1871,
        _story,
    ),
    "hellaswag": Layout(
        "HellaSwag",
        ("hellaswag_val.jsonl", "validation.jsonl"),
        ("hellaswag_train.jsonl", "train.jsonl"),
        10042,
        _hellaswag,
    ),
    "winograd": Layout(
        "Winograd's",
        ("wsc273.jsonl", "wsc285.jsonl", "wsc273.json", "wsc285.json", "test.jsonl"),
        None,
        None,
        _winograd,
    ),
    "winogrande": Layout(
        "Winogrande",
        ("dev.jsonl", "validation.jsonl"),
        ("train_xl.jsonl", "train_l.jsonl", "train_m.jsonl", "train_s.jsonl", "train_xs.jsonl"),
        1267,
        _winogrande,
    ),
    "piqa": Layout("PIQA", ("valid.jsonl",), ("train.jsonl",), 1838, _piqa),
    "boolq": Layout("BoolQ", ("val.jsonl", "dev.jsonl"), ("train.jsonl",), 3270, _boolq),
    "cb": Layout("CommitmentBank", ("val.jsonl",), ("train.jsonl",), 56, _cb),
    "copa": Layout("COPA", ("val.jsonl",), ("train.jsonl",), 100, _copa),
}


# ----------------------------------------------------------------------------------------------
# Fields


def filled(row: Record, key: str) -> str:
    """A text that is not blank."""
    text = row.text(key)
    if not text.strip():
        raise row.error(f'"{key}" is blank')
    return text


def texts(row: Record, key: str, number: int) -> tuple[str, ...]:
    values = row.get(key, list)
    if len(values) != number or not all(type(v) is str and v.strip() for v in values):
        raise row.error(f'"{key}" must be a list of {number} texts')
    return tuple(values)


def labelled(row: Record, key: str, spellings: Mapping[str, int]) -> int:
    """The place that a label means, whether it is written as a word, a number or a truth value."""
    value = row.get(key, str, int, bool)
    place = spellings.get(str(value).strip().lower())
    if place is None:
        raise row.error(f'"{key}" is {value!r}, must be one of {", ".join(spellings)}')
    return place


def _labels_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}-labels.lst")


def _with_labels(path: Path) -> Iterator[Record]:
    """PIQA's records with the label that stands on the same line of the other file."""
    labels_path = _labels_path(path)
    labels = read_text(labels_path).split()
    records = list(read_jsonl(path))
    if len(labels) != len(records):
        raise UserError(
            f"{labels_path}: {len(labels)} labels for the {len(records)} questions of {path.name}; "
            f"download both again"
        )
    for record, label in zip(records, labels, strict=True):
        yield Record(path, record.place, record.number, record.fields | {"label": label})
