"""`mllm corpora demo`: packages -> pictures and text -> shards, top to bottom.

Everything is written into `OUT.building`, and renamed to OUT when it is whole.
"""

import json
import os
import re
import shutil
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from corpora.demo import easy_vqa, naming, text
from corpora.demo.captions import caption
from corpora.demo.chance import share, shuffled
from corpora.demo.concepts import Concept, Names, default_held_out, read_concepts
from corpora.demo.evaluations import all_sets
from corpora.demo.evaluations.material import Material
from corpora.demo.interleave import Interleaver
from corpora.demo.packages import PACKAGES, Wheels, fetch
from corpora.demo.pictures import NOTO, TRAINING_VENDORS
from corpora.document import Document, ImageSegment, TextSegment
from corpora.shards import ShardWriter
from mllm.command import progress
from mllm.errors import UserError
from mllm.files import fingerprint, fsync_dir, write_aside, write_json

BUILDER_VERSION = 2  # counts up when equal settings give other shards
VALIDATION_SHARE = 0.02
EASY_VQA_SUPPORT = 2000  # exemplars for few-shot visual questions


@dataclass(frozen=True)
class Limits:
    """How much of everything goes in; None is all. The small corpus walks the same code."""

    concepts: int | None = None
    easy_vqa_train: int | None = None
    easy_vqa_test: int | None = None
    text_documents: int | None = None  # of each source
    interleaved_documents: int | None = None  # of each source
    evaluation_queries: int | None = None  # of each set in evaluations/

    def first(self, limit: int | None, items: Iterable[Any], key: str) -> list[Any]:
        """`limit` of the items, chosen by hash, in their old order."""
        items = list(items)
        if limit is None or limit >= len(items):
            return items
        chosen = {id(i) for i in shuffled(items, "small", key=lambda i: getattr(i, key))[:limit]}
        return [item for item in items if id(item) in chosen]


SMALL = Limits(
    concepts=220,
    easy_vqa_train=300,
    easy_vqa_test=30,
    text_documents=50,
    interleaved_documents=50,
    evaluation_queries=30,
)


@dataclass
class Report:
    """What went in and what did not, with reasons."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)  # corpus: source: samples
    dropped: Counter[str] = field(default_factory=Counter)  # reason: things
    captions: list[str] = field(default_factory=list)

    def caption_figures(self) -> dict[str, Any]:
        lengths = [len(c.split()) for c in self.captions]
        words = [word for c in self.captions for word in re.findall(r"\w+", c.lower())]
        return {
            "count": len(self.captions),
            "distinct": len(set(self.captions)),
            "words_mean": round(statistics.mean(lengths), 2),
            "words_median": statistics.median(lengths),
            "words_max": max(lengths),
            "distinct_words": len(set(words)),
        }


def build_demo(out: Path, cache: Path, exclude: Path | None = None, small: bool = False) -> bool:
    """Builds the demo corpus in `out`; False if it stood there already, whole and equal.

    Raises:
        UserError: `out` holds something else, no network, a wrong hash, an unknown excluded name.
    """
    excluded = read_names(exclude) if exclude else []
    settings = {
        "builder_version": BUILDER_VERSION,
        "small": small,
        "excluded": sorted(excluded),
        "packages": {package.name: package.sha256 for package in PACKAGES},
    }
    if is_whole(out, settings):
        return False
    wheels = fetch(cache)
    concepts = read_concepts(wheels)
    if exclude:
        check_names(exclude, excluded, concepts)
    building = out.with_name(f"{out.name}.building")
    if building.exists():
        shutil.rmtree(building)  # what an interrupted build left
    building.mkdir(parents=True)
    report = Report()
    builder = Builder(wheels, building, concepts, excluded, SMALL if small else Limits(), report)
    builder.build()
    write_attribution(building)
    write_json(
        building / "report.json",
        {
            "fingerprint": fingerprint(settings),
            "settings": settings,
            "counts": {name: dict(sorted(count.items())) for name, count in report.counts.items()},
            "captions": report.caption_figures(),
            "dropped": dict(sorted(report.dropped.items())),
            "concepts": builder.concept_counts(),
            "packages": [
                {"name": p.name, "version": p.version, "sha256": p.sha256, "licence": p.licence}
                for p in PACKAGES
            ],
        },
    )
    if out.exists():
        out.rmdir()  # is_whole saw that it is empty
    os.replace(building, out)
    fsync_dir(out.parent)
    return True


def is_whole(out: Path, settings: dict[str, Any]) -> bool:
    """True if `out` is this very corpus. UserError if it is anything else but an empty folder."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / "report.json").read_bytes())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{out}: holds something that is no demo corpus; give another --out"
        ) from None
    if found != fingerprint(settings):
        raise UserError(
            f"{out}: holds a demo corpus of other settings (--small, --exclude or another version "
            f"of mllm); give another --out or remove that folder"
        )
    return True


def read_names(path: Path) -> list[str]:
    """Concept names, one a line; empty lines and lines that begin with # are passed over."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--exclude {path}: cannot be read as UTF-8 text ({error})") from None
    names = [line.strip() for line in lines]
    return [name for name in names if name and not name.startswith("#")]


def check_names(path: Path, names: list[str], concepts: list[Concept]) -> None:
    import difflib

    known = {concept.name for concept in concepts} | easy_vqa.NAMES
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"--exclude {path}: no concept is named {name!r}{hint}")


class Builder:
    """One build: what is shared between its parts, and a method for each part in order."""

    def __init__(
        self,
        wheels: Wheels,
        out: Path,
        concepts: list[Concept],
        excluded: list[str],
        limits: Limits,
        report: Report,
    ) -> None:
        self.wheels = wheels
        self.out = out
        self.limits = limits
        self.report = report
        held_out = Names(default_held_out(concepts) | set(excluded))
        chosen = limits.first(limits.concepts, concepts, "id")
        self.held_out = held_out
        self.held_out_concepts = [c for c in chosen if c.name in held_out]
        self.trained_concepts = []
        for concept in chosen:
            if concept.name in held_out:
                report.dropped["concept held out"] += 1
            elif held_out.found_in(concept.name):
                report.dropped["concept whose name contains a held-out name"] += 1
            else:
                self.trained_concepts.append(concept)
        self.pictures: dict[tuple[str, str], bytes] = {}  # (vendor, concept id): PNG
        self.naming = naming.NamingSets((), (), ())
        self.training_pictures: dict[str, list[tuple[str, bytes]]] = {}
        self.training_words: set[str] = set()  # of every text outside eval/, in lower case

    def build(self) -> None:
        self.load_pictures()
        self.write_pairs()
        self.write_naming()
        self.write_vqa()
        self.write_text_and_interleaved()
        self.write_evaluations()
        self.write_concepts()

    # ---- pictures -------------------------------------------------------------------------------

    def load_pictures(self) -> None:
        for vendor in (*TRAINING_VENDORS, NOTO):
            paths = vendor.paths(self.wheels)
            wanted = self.trained_concepts + self.held_out_concepts
            for concept in progress(wanted, f"drawing {vendor.name}"):
                if concept.id in paths:
                    image = vendor.picture(self.wheels, paths[concept.id])
                    self.pictures[vendor.name, concept.id] = image
                else:
                    self.report.dropped[f"concept without a picture of {vendor.name}"] += 1
        self.drop_pictures_of_held_out_concepts()
        for concept in self.trained_concepts:
            found = {
                vendor.name: self.pictures[vendor.name, concept.id]
                for vendor in TRAINING_VENDORS
                if (vendor.name, concept.id) in self.pictures
            }
            validation = self.validation_vendor(concept, list(found))
            found.pop(validation, None)
            self.training_pictures[concept.id] = list(found.items())
        self.trained_concepts = [c for c in self.trained_concepts if self.training_pictures[c.id]]
        self.naming = naming.split(self.trained_concepts, self.held_out_concepts)

    def drop_pictures_of_held_out_concepts(self) -> None:
        """Drops trained concepts' pictures that show a held-out one: some share a drawing."""
        ids = {concept.id for concept in self.held_out_concepts}
        held_out = {image for (_, id_), image in self.pictures.items() if id_ in ids}
        for place, image in list(self.pictures.items()):
            if place[1] not in ids and image in held_out:
                del self.pictures[place]
                self.report.dropped["picture that is also a held-out concept's"] += 1

    def validation_vendor(self, concept: Concept, vendors: list[str]) -> str:
        """Whose picture of a concept is kept for validation, "" for none; one stays to train on."""
        is_validation = share("validation", concept.id) < VALIDATION_SHARE * len(vendors)
        if len(vendors) < 2 or not is_validation:
            return ""
        return shuffled(vendors, "validation vendor", concept.id)[0]

    # ---- pairs ----------------------------------------------------------------------------------

    def write_pairs(self) -> None:
        """Pictures of things, flags with what they look like, and drawn shapes.

        Each is a corpus of its own, so that a mixture can give them their shares. Flags are asked
        nowhere and need no validation.
        """
        emoji = list(self.emoji_pairs())
        flags = [pair for pair, _ in emoji if pair.meta["group"] == "Flags"]
        things = [entry for entry in emoji if entry[0].meta["group"] != "Flags"]
        shapes = list(self.easy_vqa_pairs())
        self.report.captions = [
            segment.text
            for document, _ in (*emoji, *shapes)
            for segment in document.segments
            if isinstance(segment, TextSegment)
        ]
        self.write("flags/train", flags, neighbours="concept")
        for name, pairs in (("pairs", things), ("shapes", shapes)):
            train = [document for document, is_train in pairs if is_train]
            self.write(f"{name}/train", train, neighbours="concept")
            self.write(f"{name}/validation", [pair for pair, is_train in pairs if not is_train])

    def emoji_pairs(self) -> Iterator[tuple[Document, bool]]:
        """(pair, whether it is trained on)."""
        for concept in self.trained_concepts:
            trained = {vendor for vendor, _ in self.training_pictures[concept.id]}
            for vendor in TRAINING_VENDORS:
                image = self.pictures.get((vendor.name, concept.id))
                if image is None:
                    continue
                words = caption(concept, vendor.name, self.held_out)
                if concept.name.startswith("flag: "):
                    words = self.flag_caption(concept)
                meta = {
                    "source": vendor.name,
                    "concept": concept.id,
                    "name": concept.name,
                    "group": concept.group,
                }
                segments = (ImageSegment(image), TextSegment(words))
                document = Document(f"{vendor.name}-{concept.id}", segments, meta)
                yield document, vendor.name in trained

    @cached_property
    def flag_descriptions(self) -> dict[str, str]:
        """Concept id to what the flag looks like, where the factbook says so."""
        found = text.flag_descriptions(self.wheels)
        by_country = {normal_country(name): words for name, words in found.items()}
        countries = {
            concept.id: normal_country(concept.name.removeprefix("flag: "))
            for concept in self.trained_concepts
            if concept.name.startswith("flag: ")
        }
        return {id_: by_country[name] for id_, name in countries.items() if name in by_country}

    def flag_caption(self, concept: Concept) -> str:
        """What the flag looks like, where the factbook says so."""
        words = self.flag_descriptions.get(concept.id)
        if words is None:
            self.report.dropped["flag without a description (short caption used)"] += 1
        elif self.held_out.found_in(words):
            self.report.dropped["flag description with a held-out name (short caption used)"] += 1
        else:
            return f"An image of {concept.answer}: {words}."
        return f"An image of {concept.answer}."

    def easy_vqa_train(self) -> Iterator[tuple[easy_vqa.ShapePicture, bool]]:
        """The official training pictures that may be seen: (picture, whether it is trained on)."""
        pictures = list(easy_vqa.read_pictures(self.wheels, "train"))
        chosen = [
            picture
            for picture in self.limits.first(self.limits.easy_vqa_train, pictures, "key")
            if not picture.possible_names & self.held_out.names
        ]
        kept = validation_keys([picture.key for picture in chosen])
        for picture in chosen:
            yield picture, picture.key not in kept

    def easy_vqa_pairs(self) -> Iterator[tuple[Document, bool]]:
        for picture, is_train in self.easy_vqa_train():
            if picture.name is None:
                self.report.dropped["easy-vqa picture whose questions do not tell its name"] += 1
            else:
                yield easy_vqa.pair(picture), is_train

    # ---- naming ---------------------------------------------------------------------------------

    def write_naming(self) -> None:
        sets = self.naming
        known = naming.Distractors(sets.trained)
        new = naming.Distractors(sets.new_concepts, sets.trained)
        noto = [NOTO.name]
        every = [vendor.name for vendor in (*TRAINING_VENDORS, NOTO)]
        plan = {
            "eval/naming_development": (sets.development, noto, known),
            "eval/naming_final": (sets.final, noto, known),
            "eval/naming_new_concepts": (sets.new_concepts, every, new),
        }
        for name, (concepts, vendors, distractors) in plan.items():
            queries = naming.queries(concepts, self.pictures, vendors, distractors, self.held_out)
            self.write(name, list(queries))
        trained = {
            (vendor, id_): image
            for id_, pictures in self.training_pictures.items()
            for vendor, image in pictures
        }
        vendors = [vendor.name for vendor in TRAINING_VENDORS]
        support = naming.queries(sets.trained, trained, vendors, known, self.held_out)
        self.write("eval/naming_support", list(support))

    # ---- questions ------------------------------------------------------------------------------

    def write_vqa(self) -> None:
        pictures = list(self.easy_vqa_train())
        for name, wanted in (("vqa/train", True), ("vqa/validation", False)):
            self.write(
                name,
                [
                    document
                    for picture, is_train in pictures
                    if is_train == wanted
                    for document in easy_vqa.dialogues(picture)
                ],
            )
        exemplars = [
            shuffled(easy_vqa.queries(picture), "exemplar", key=lambda d: d.key)[0]
            for picture, is_train in pictures
            if is_train
        ]
        self.write(
            "eval/easy_vqa_support",
            shuffled(exemplars, "support", key=lambda d: d.key)[:EASY_VQA_SUPPORT],
        )
        test = list(easy_vqa.read_pictures(self.wheels, "test"))
        self.write(
            "eval/easy_vqa_test",
            [
                document
                for picture in self.limits.first(self.limits.easy_vqa_test, test, "key")
                for document in easy_vqa.queries(picture)
            ],
        )

    # ---- text -----------------------------------------------------------------------------------

    def write_text_and_interleaved(self) -> None:
        """Each document goes into one corpus: interleaved where pictures fit, else text."""
        interleaver = Interleaver(self.trained_concepts, self.training_pictures, self.held_out)
        plain: list[Document] = []
        interleaved: list[Document] = []
        limit = self.limits.text_documents
        for source in (text.bible, text.factbook):
            plain += self.limits.first(limit, source(self.wheels), "key")
        for source in (text.wiki, text.recipes):
            with_pictures: list[Document] = []
            without: list[Document] = []
            for document in progress(list(source(self.wheels)), f"interleaving {source.__name__}"):
                found = interleaver.interleave(document)
                (without if found is None else with_pictures).append(found or document)
            plain += self.limits.first(limit, without, "key")
            interleaved += self.limits.first(
                self.limits.interleaved_documents, with_pictures, "key"
            )
        for corpus, documents in (("text", plain), ("interleaved", interleaved)):
            kept = validation_keys([document.key for document in documents])
            self.write(f"{corpus}/train", [d for d in documents if d.key not in kept])
            self.write(f"{corpus}/validation", [d for d in documents if d.key in kept])

    # ---- evaluations ----------------------------------------------------------------------------

    def write_evaluations(self) -> None:
        material = Material(
            wheels=self.wheels,
            pictures=self.pictures,
            training_pictures=self.training_pictures,
            trained=self.trained_concepts,
            naming=self.naming,
            held_out=self.held_out,
            flag_descriptions=self.flag_descriptions,
            training_words=frozenset(self.training_words),
            limit=self.limits.evaluation_queries,
        )
        for name, documents in all_sets(material):
            if documents:
                self.write(f"eval/{name}", documents)
            else:  # a long list of excluded names, or too few concepts for five ways
                self.report.dropped[f"evaluation set with nothing to ask: {name}"] += 1

    # ---- writing --------------------------------------------------------------------------------

    def write(self, corpus: str, documents: list[Document], neighbours: str = "") -> None:
        """Writes a corpus in an order by hash, so that no shard is all of one kind.

        Args:
            neighbours: a key of the meta; documents with equal values stand side by side, the
                larger groups first. So the vision stage can have two artists' pictures of one
                concept in a batch.
        """
        ordered = shuffled(documents, "order", corpus, key=lambda document: document.key)
        if neighbours:
            sizes = Counter(document.meta.get(neighbours) for document in ordered)
            first: dict[str | None, int] = {}
            for place, document in enumerate(ordered):
                first.setdefault(document.meta.get(neighbours), place)
            ordered.sort(
                key=lambda document: (
                    -sizes[document.meta.get(neighbours)],
                    first[document.meta.get(neighbours)],
                )
            )
        with ShardWriter(self.out / corpus) as writer:
            for document in progress(ordered, f"writing {corpus}"):
                writer.write(document)
                if not corpus.startswith("eval/"):
                    self.training_words |= words_of(document)
        self.report.counts[corpus] = Counter(
            document.meta.get("source") or document.meta.get("vendor") or "easy-vqa"
            for document in documents
        )

    def write_concepts(self) -> None:
        place = {c.name: "development" for c in self.naming.development}
        place |= {c.name: "final" for c in self.naming.final}
        place |= {c.name: "new" for c in self.naming.new_concepts}
        write_json(
            self.out / "concepts.json",
            {
                "held_out_names": sorted(self.held_out.names),
                "concepts": [
                    {
                        "concept": concept.id,
                        "name": concept.name,
                        "answer": concept.answer,
                        "group": concept.group,
                        "is_trained": concept.name not in self.held_out,
                        "evaluation": place.get(concept.name),
                    }
                    for concept in self.trained_concepts + self.held_out_concepts
                ],
            },
        )

    def concept_counts(self) -> dict[str, int]:
        return {
            "trained": len(self.trained_concepts),
            "held_out": len(self.held_out_concepts),
            "development": len(self.naming.development),
            "final": len(self.naming.final),
            "new": len(self.naming.new_concepts),
        }


def validation_keys(keys: list[str]) -> set[str]:
    """The fiftieth of the keys, by hash, that training never sees; at least two of them."""
    places = {key: share("validation", key) for key in keys}
    first = sorted(keys, key=places.__getitem__)
    count = max(2, sum(place < VALIDATION_SHARE for place in places.values()))
    return set(first[:count])


def words_of(document: Document) -> set[str]:
    texts = (s.text for s in document.segments if isinstance(s, TextSegment))
    return {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}


def normal_country(name: str) -> str:
    """One spelling for the two tables: "The Bahamas" and "Bahamas", "St." and "Saint"."""
    import unicodedata

    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    letters = letters.replace("&", "and").replace("st.", "saint").replace("u.s.", "us")
    letters = re.sub(r"\(.*?\)", " ", letters)
    words = [word for word in re.findall(r"[a-z]+", letters) if word not in ("the", "and")]
    return " ".join(sorted(words))


def write_attribution(out: Path) -> None:
    """What the licences ask for, beside the corpus."""
    lines = [
        "# Attribution",
        "",
        "This corpus was built from the packages below. Pictures and text keep the licences of",
        "their sources; whoever passes the corpus on passes these terms on with it. Leave out",
        "`eval/sentiment_*` then: its snippets are for research use, not for redistribution.",
        "",
        "| package | version | used for | licence of the content | by |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.name} | {p.version} | {p.used_for} | {p.licence} | {p.attribution} |"
        for p in PACKAGES
    ]
    with write_aside(out / "ATTRIBUTION.md") as file:
        file.write("\n".join(lines) + "\n")


def describe(out: Path) -> list[str]:
    """The counts of a built corpus as a few lines of text."""
    report = json.loads((out / "report.json").read_bytes())
    lines = [f"{out}"]
    for name, counts in report["counts"].items():
        detail = ", ".join(f"{source} {count:,}" for source, count in counts.items())
        lines.append(f"  {name:26} {sum(counts.values()):7,}  ({detail})")
    figures = report["captions"]
    lines.append(
        f"  captions: {figures['count']:,}, {figures['distinct']:,} distinct, "
        f"{figures['words_mean']} words on average, {figures['distinct_words']:,} distinct words"
    )
    return lines
