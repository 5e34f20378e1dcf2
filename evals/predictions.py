"""Files of other people's predictions, matched with the ids that must be in them, each once."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from evals.layouts.files import (
    Record,
    json_records,
    named,
    read_csv,
    read_json,
    read_jsonl,
)
from mllm.errors import UserError


def result_records(path: Path, columns: Sequence[str] = ()) -> list[Record]:
    """The objects of a result file: a JSON list, JSON lines (`.jsonl`), or a CSV (`.csv`)."""
    if path.suffix == ".csv":
        return list(read_csv(path, columns))
    if path.suffix == ".jsonl":
        return list(read_jsonl(path))
    return list(json_records(path, read_json(path)))


def read_results(path: Path, id_key: str, value_key: str) -> dict[str, str]:
    """Texts by id of an official result list, such as `[{"image_id": 42, "caption": "..."}]`."""
    return unique(path, ((r.identifier(id_key), r.text(value_key)) for r in result_records(path)))


def read_answers_by_id(path: Path, id_key: str, value_key: str) -> dict[str, str]:
    """Texts by id: one object `{id: text}`, as SQuAD's evaluation reads, or a result list."""
    if path.suffix == ".json":
        value = read_json(path, lambda pairs: unique(path, pairs))
        if isinstance(value, dict):
            record = Record(path, "object", 1, value)
            return {name: record.text(name) for name in value}
    return read_results(path, id_key, value_key)


def unique(path: Path, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Pairs as a dictionary. An id that occurs twice is an error."""
    pairs = list(pairs)
    counts = Counter(name for name, _ in pairs)
    doubled = [name for name, count in counts.items() if count > 1]
    if doubled:
        raise UserError(
            f"{path}: {len(doubled)} ids occur more than once ({named(doubled)}); keep one of each"
        )
    return dict(pairs)


def check_ids(
    path: Path, predicted: Iterable[str], expected: Iterable[str], gold: str, what: str
) -> None:
    """Refuses predictions for other ids than those expected.

    Args:
        path: The predictions.
        predicted: Their ids, each once.
        expected: The annotations' ids.
        gold: The annotation files, for the message.
        what: Such as `images`.
    """
    predicted, expected = dict.fromkeys(predicted), dict.fromkeys(expected)
    missing = [name for name in expected if name not in predicted]
    unknown = [name for name in predicted if name not in expected]
    complaints = []
    if missing:
        complaints.append(f"{len(missing)} of {len(expected)} {what} missing ({named(missing)})")
    if unknown:
        complaints.append(f"{len(unknown)} {what} unknown ({named(unknown)})")
    if complaints:
        raise UserError(
            f"{path}: {' and '.join(complaints)}; it must hold each of {gold} once and no others"
        )


def matched(
    path: Path, predicted: dict[str, Any], expected: Sequence[str], gold: str, what: str
) -> list[Any]:
    """Predictions in the order of `expected`, which they must equal as sets."""
    check_ids(path, predicted, expected, gold, what)
    return [predicted[name] for name in expected]


def merged(paths: Sequence[Path], read: Callable[[Path], list[Any]], key: str) -> list[Any]:
    """The records of several annotation files. An id that two of them hold is an error."""
    records: dict[str, Any] = {}
    for path in paths:
        doubled = []
        for record in read(path):
            name = getattr(record, key)
            if name in records:
                doubled.append(name)
            records[name] = record
        if doubled:
            raise UserError(
                f"{path}: {len(doubled)} ids were in an earlier file ({named(doubled)}); "
                "give each file once"
            )
    return list(records.values())
