"""`mllm eval score`: other people's predictions in official result files, without a model."""

import argparse
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals import official_scores
from evals.api import CandidateScore
from evals.layouts import captions, hateful_memes, vizwiz, vqa, websrc
from evals.layouts.files import Record, by_id
from evals.official_scores import Scores
from evals.predictions import (
    matched,
    merged,
    read_answers_by_id,
    read_results,
    result_records,
    unique,
)
from mllm.command import Parser, print_json
from mllm.errors import UserError
from mllm.files import sha256_file, write_json

EXAMPLES = """predictions of each task; annotations as downloaded, a file or the data's folder:
{tasks}

examples:
  mllm eval score --task coco_caption --predictions captions.json --annotations dataset_coco.json
  mllm eval score --task vqav2 --predictions answers.json --json \\
      --annotations v2_mscoco_val2014_annotations.json
  mllm eval score --task okvqa --predictions answers.json --okvqa-match raw \\
      --questions OpenEnded_mscoco_val2014_questions.json \\
      --annotations mscoco_val2014_annotations.json
  mllm eval score --task vizwiz --predictions answers.json --annotations val.json --out scores.json
  mllm eval score --task websrc --predictions answers.json --annotations WebSRC
  mllm eval score --task hateful_memes --predictions proba.csv --annotations dev_seen.jsonl
  mllm eval score --task ranking --predictions runs/demo/eval/naming/k0/seed0/samples.jsonl

Every id of the annotations must be in the predictions once, and no other."""


@dataclass(frozen=True)
class ScoreTask:
    """How one task's files are read and scored."""

    about: str
    score: Callable[[argparse.Namespace], Scores]
    has_questions: bool = False
    has_annotations: bool = True


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="mllm eval score",
        description="Official metrics of a file of predictions. Needs no model.",
        epilog=EXAMPLES.format(
            tasks="\n".join(f"  {name:18} {task.about}" for name, task in TASKS.items())
        ),
    )
    parser.add_argument("--task", required=True, choices=TASKS, metavar="NAME", help="see below")
    parser.add_argument("--predictions", required=True, type=Path, metavar="FILE")
    parser.add_argument("--annotations", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument(
        "--questions", type=Path, metavar="FILE", help="VQA: must hold the same ids as annotations"
    )
    parser.add_argument(
        "--okvqa-match",
        choices=("raw", "stem"),
        help="OK-VQA: compare answers as typed (default), or stemmed (needs NLTK's data)",
    )
    parser.add_argument(
        "--no-java-scores", action="store_true", help="captions: leave METEOR and SPICE out"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the scores as JSON")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON on stdout")
    args = parser.parse_args(argv)
    _check(args)
    results = evaluate(args)
    if args.out:
        write_json(args.out, results)
    if args.json:
        print_json(results)
    else:
        from evals.score_table import print_results

        print_results(results)
    return 0


def _check(args: argparse.Namespace) -> None:
    task = TASKS[args.task]
    if task.has_annotations and not args.annotations:
        raise UserError(f"--annotations is missing; {args.task} needs {task.about}")
    if not task.has_annotations and args.annotations:
        raise UserError(f"--annotations: {args.task} has its gold in its predictions; leave it out")
    if args.questions and not task.has_questions:
        raise UserError(f"--questions: {args.task} needs none; leave it out")
    if args.questions and (len(args.annotations) > 1 or args.annotations[0].is_dir()):
        raise UserError("--questions goes with one file of --annotations; name the one it is for")
    if args.okvqa_match and args.task != "okvqa":
        raise UserError(f"--okvqa-match: is for okvqa, not for {args.task}; leave it out")
    if args.out and args.out.is_dir():
        raise UserError(f"--out {args.out}: is a folder; name the JSON file to write")


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """The scores, and the files that they belong to with their hashes."""
    scores = TASKS[args.task].score(args)
    paths = [args.predictions, *args.annotations, *([args.questions] if args.questions else [])]
    files = {str(path): sha256_file(path) for path in paths if path.is_file()}
    return {"task": args.task, **scores.row(), "sha256": files}


def _gold_name(args: argparse.Namespace) -> str:
    more = f" and {len(args.annotations) - 1} more" if len(args.annotations) > 1 else ""
    return f"{args.annotations[0]}{more}"


def _gold(
    args: argparse.Namespace,
    load: Callable[[Path], list[Any]],
    read: Callable[[Path], list[Any]],
    key: str,
) -> list[Any]:
    """Annotation files, or the evaluation part of a data set's folder."""
    gold = merged(args.annotations, lambda path: load(path) if path.is_dir() else read(path), key)
    if not gold:
        raise UserError(f"{_gold_name(args)}: holds nothing to score against; download it again")
    return gold


# ----------------------------------------------------------------------------------------------
# Captions


def _captions(args: argparse.Namespace) -> Scores:
    is_flickr = args.task == "flickr30k_caption"
    load = captions.load_flickr30k if is_flickr else captions.load_coco
    gold = _gold(args, lambda path: load(path, "evaluation"), captions.read_captions, "image_id")
    given = read_results(args.predictions, "image_id", "caption")
    if is_flickr:  # named by number, or by file
        given = unique(args.predictions, ((k.removesuffix(".jpg"), v) for k, v in given.items()))
    ids = [record.image_id for record in gold]
    texts = matched(args.predictions, given, ids, _gold_name(args), "images")
    return official_scores.caption_scores(gold, texts, not args.no_java_scores)


# ----------------------------------------------------------------------------------------------
# Visual questions


def _vqa(
    load: Callable[[Path, Any], list[vqa.VqaRecord]], read: Callable[[Path], list[vqa.VqaRecord]]
) -> Callable[[argparse.Namespace], Scores]:
    def score(args: argparse.Namespace) -> Scores:
        if args.questions:
            gold = vqa.read_vqa(args.questions, args.annotations[0])
        else:
            gold = _gold(args, lambda path: load(path, "evaluation"), read, "question_id")
        given = read_results(args.predictions, "question_id", "answer")
        ids = [record.question_id for record in gold]
        answers = matched(args.predictions, given, ids, _gold_name(args), "questions")
        match = args.okvqa_match or "raw" if args.task == "okvqa" else None
        return official_scores.vqa_scores(gold, answers, okvqa_match=match)

    return score


def _vizwiz(args: argparse.Namespace) -> Scores:
    load = functools.partial(vizwiz.load, part="evaluation")
    gold = _gold(args, load, vizwiz.read_vizwiz, "question_id")
    given = read_results(args.predictions, "image", "answer")
    ids = [record.question_id for record in gold]
    answers = matched(args.predictions, given, ids, _gold_name(args), "images")
    return official_scores.vqa_scores(gold, answers, constant="unanswerable")


# ----------------------------------------------------------------------------------------------
# Web pages and memes


def _websrc(args: argparse.Namespace) -> Scores:
    load = functools.partial(websrc.load, part="evaluation")
    gold = _gold(args, load, websrc.read_websrc, "id")
    given = read_answers_by_id(args.predictions, "id", "answer")
    ids = [record.id for record in gold]
    answers = matched(args.predictions, given, ids, _gold_name(args), "questions")
    return official_scores.websrc_scores(gold, answers)


def _memes(args: argparse.Namespace) -> Scores:
    load = functools.partial(hateful_memes.load, part="evaluation")
    gold = _gold(args, load, hateful_memes.read_memes, "id")
    rows = result_records(args.predictions, ("id",))
    key = "score" if rows and "score" in rows[0].fields else "proba"
    given = unique(
        args.predictions, ((_meme_id(r.identifier("id")), _number(r, key)) for r in rows)
    )
    ids = [_meme_id(meme.id) for meme in gold]
    scores = matched(args.predictions, given, ids, _gold_name(args), "memes")
    return official_scores.meme_scores(gold, scores, 0.5 if key == "proba" else 0.0)


def _meme_id(name: str) -> str:
    """Without leading zeros, which some copies and most spreadsheets lose."""
    return name.strip().lstrip("0") or "0"


def _number(record: Record, key: str) -> float:
    value = record.get(key, int, float, str)
    try:
        number = float(value)
    except ValueError:
        raise record.error(f'"{key}" is {value!r}, must be a number') from None
    if math.isnan(number):
        raise record.error(
            f'"{key}" is not a number (NaN); a meme without a score cannot be ranked'
        )
    if key == "proba" and not 0 <= number <= 1:
        raise record.error(f'"{key}" is {value}, must be from 0 to 1; call a difference "score"')
    return number


# ----------------------------------------------------------------------------------------------
# Ranked candidates and labels


def _ranking(args: argparse.Namespace) -> Scores:
    rows = by_id(result_records(args.predictions), "id")
    if not rows:
        raise UserError(f"{args.predictions}: holds no row; give a samples.jsonl of a ranking task")
    answers, golds = [], []
    for row in rows.values():
        candidates = [_candidate(candidate) for candidate in row.objects("candidates")]
        answers.append(candidates)
        golds.append(_gold_index(row, candidates))
    return official_scores.ranking_scores(answers, golds)


def _candidate(row: Record) -> CandidateScore:
    lengths = {key: row.get(key, int) for key in ("n_tok", "n_char", "n_byte")}
    for key, length in lengths.items():
        if length < 1:
            raise row.error(f'"{key}" is {length}, must be at least 1')
    uncond = row.fields.get("ll_uncond")
    return CandidateScore(
        row.text("text"),
        float(row.get("ll", float, int)),
        lengths["n_tok"],
        lengths["n_char"],
        lengths["n_byte"],
        None if uncond is None else float(row.get("ll_uncond", float, int)),
    )


def _gold_index(row: Record, candidates: Sequence[CandidateScore]) -> int:
    """Of the gold, which is a candidate's text or its index from 0."""
    gold = row.get("gold", int, str)
    if isinstance(gold, int) and 0 <= gold < len(candidates):
        return gold
    texts = [candidate.text.strip() for candidate in candidates]
    if isinstance(gold, str) and gold.strip() in texts:
        return texts.index(gold.strip())
    raise row.error(f'"gold" is {gold!r}, which is none of its {len(candidates)} candidates')


def _labels(args: argparse.Namespace) -> Scores:
    gold = _label_file(args.annotations[0])
    for path in args.annotations[1:]:
        gold = unique(path, [*gold.items(), *_label_file(path).items()])
    if not gold:
        raise UserError(f"{args.annotations[0]}: holds no label")
    given = _label_file(args.predictions)
    answers = matched(args.predictions, given, list(gold), _gold_name(args), "ids")
    return official_scores.label_scores(list(gold.values()), answers)


def _label_file(path: Path) -> dict[str, str]:
    rows = result_records(path, ("id", "label"))
    return unique(path, ((row.identifier("id"), row.identifier("label")) for row in rows))


VQA_FILES = '[{"question_id", "answer"}]; annotations (and questions) in VQA\'s format'
TASKS: dict[str, ScoreTask] = {
    "coco_caption": ScoreTask(
        '[{"image_id", "caption"}]; dataset_coco.json (its test split) or captions_*.json',
        _captions,
    ),
    "flickr30k_caption": ScoreTask(
        '[{"image_id", "caption"}]; dataset_flickr30k.json (its test split)', _captions
    ),
    "vqav2": ScoreTask(VQA_FILES, _vqa(vqa.load_vqav2, vqa.read_annotations), has_questions=True),
    "okvqa": ScoreTask(VQA_FILES, _vqa(vqa.load_okvqa, vqa.read_annotations), has_questions=True),
    "textvqa": ScoreTask(
        '[{"question_id", "answer"}]; TextVQA_0.5.1_val.json, or VQA\'s format',
        _vqa(vqa.load_textvqa, vqa.read_textvqa),
        has_questions=True,
    ),
    "vizwiz": ScoreTask('[{"image", "answer"}]; val.json', _vizwiz),
    "websrc": ScoreTask(
        '{id: answer} or [{"id", "answer"}]; WebSRC\'s folder or dataset.csv', _websrc
    ),
    "hateful_memes": ScoreTask(
        "CSV or JSON lines of id and proba (or score = LL(yes) - LL(no)); dev_seen.jsonl", _memes
    ),
    "ranking": ScoreTask(
        "samples.jsonl with candidates and gold; no annotations", _ranking, has_annotations=False
    ),
    "labels": ScoreTask(
        "CSV, JSON list or JSON lines of id and label, such as ImageNet's; the same", _labels
    ),
}
