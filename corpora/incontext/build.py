"""`mllm corpora incontext`: episodes to shards, and evaluation episodes with their shots.

    OUT/namings                   image-text pairs: training classes under names of their own
        train, validation         image-text pairs, EPISODE_SAMPLES in a row an episode
        train_text_only           the same texts without pictures: the control's corpus
        eval/incontext_test       one picture a trial, its answer and candidates in its JSON
        eval/incontext_support    the trials' shots

All pairs have as many tokens under a tokenizer of letters, so a joined row of
`1 + EPISODE_SAMPLES x (latents + 2 + 4)` positions holds one episode: one context with `</s>` after
each shot, which is what evaluations show.
"""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from corpora.document import Document, ImageSegment, TextSegment
from corpora.incontext import episodes
from corpora.incontext.episodes import Shown, Trial
from corpora.shards import ShardWriter
from mllm.command import progress
from mllm.errors import UserError
from mllm.files import fingerprint, fsync_dir, write_json

BUILDER_VERSION = 2  # counts up when equal settings give other shards
SAMPLES_PER_SHARD = 9000  # a multiple of an episode's


@dataclass(frozen=True)
class Sizes:
    """How much of everything is made."""

    train_episodes: int = 6000
    train_classes: int = 300
    validation_episodes: int = 100
    validation_classes: int = 100
    trials: int = 400
    test_classes: int = 100


SMALL = Sizes(
    train_episodes=120,
    train_classes=20,
    validation_episodes=8,
    validation_classes=8,
    trials=16,
    test_classes=8,
)


def build_incontext(out: Path, small: bool = False) -> bool:
    """Builds the corpus in `out`; False if it stood there already, whole and equal.

    Raises:
        UserError: `out` holds something else.
    """
    sizes = SMALL if small else Sizes()
    settings = {"builder_version": BUILDER_VERSION, "sizes": asdict(sizes)}
    if _is_whole(out, settings):
        return False
    building = out.with_name(f"{out.name}.building")
    if building.exists():
        shutil.rmtree(building)  # what an interrupted build left
    building.mkdir(parents=True)
    _write_namings(building / "namings", sizes.train_classes)
    train = list(episodes.training_episodes("train", sizes.train_episodes, sizes.train_classes))
    _write_episodes(building / "train", train)
    _write_episodes(building / "train_text_only", train, with_pictures=False)
    _write_episodes(
        building / "validation",
        episodes.training_episodes(
            "validation", sizes.validation_episodes, sizes.validation_classes
        ),
    )
    trials = list(episodes.trials("test", sizes.trials, sizes.test_classes))
    write_trials(building / "eval", trials)
    report = {
        "fingerprint": fingerprint(settings),
        "settings": settings,
        "words": {split: len(episodes.words(split)) for split in episodes.SPLITS},
        "counts": {
            "namings": sizes.train_classes * episodes.INSTANCES * episodes.NAMINGS,
            "train": sizes.train_episodes * episodes.EPISODE_SAMPLES,
            "validation": sizes.validation_episodes * episodes.EPISODE_SAMPLES,
            "eval/incontext_test": len(trials),
            "eval/incontext_support": sum(len(trial.shots) for trial in trials),
        },
    }
    write_json(building / "report.json", report)
    if out.exists():
        out.rmdir()  # _is_whole saw that it is empty
    os.replace(building, out)
    fsync_dir(out.parent)
    return True


def _is_whole(out: Path, settings: dict[str, Any]) -> bool:
    """True if `out` is this very corpus. UserError if it is anything else but an empty folder."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / "report.json").read_bytes())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != fingerprint(settings):
        raise UserError(
            f"{out}: holds something else than this in-context corpus (or one of another --small "
            "or version of mllm); give another --out or remove that folder"
        )
    return True


def _write_namings(out: Path, num_classes: int) -> None:
    with ShardWriter(out, SAMPLES_PER_SHARD) as writer:
        for place, (picture, text) in enumerate(episodes.namings(num_classes)):
            segments = (ImageSegment(picture.png), TextSegment(text))
            writer.write(Document(f"{place:06d}", segments))


def _write_episodes(out: Path, made: Iterable[list[Shown]], with_pictures: bool = True) -> None:
    with ShardWriter(out, SAMPLES_PER_SHARD) as writer:
        for number, episode in enumerate(progress(made, f"{out.name} episodes")):
            for place, shown in enumerate(episode):
                text = TextSegment(shown.label)
                segments = (ImageSegment(shown.png), text) if with_pictures else (text,)
                writer.write(Document(f"{number:06d}-{place}", segments))


def write_trials(out: Path, trials: Iterable[Trial]) -> None:
    with (
        ShardWriter(out / "incontext_test") as queries,
        ShardWriter(out / "incontext_support") as support,
    ):
        for trial in progress(trials, "trials"):
            meta = {
                "answer": trial.query.label,
                "labels": list(trial.labels),
                "class": trial.query.code,
            }
            queries.write(Document(trial.name, (ImageSegment(trial.query.png),), meta))
            for place, shown in enumerate(trial.shots):
                meta = {"answer": shown.label, "class": shown.code}
                key = f"{trial.name}-{place}"  # by it, a shot is found as its trial's
                support.write(Document(key, (ImageSegment(shown.png),), meta))
