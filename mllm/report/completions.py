"""What the model said of the same held-out pictures while it trained, from `generations.jsonl`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from corpora.reader import Corpus
from mllm.errors import BadSample, UserError
from mllm.report.inputs import Run
from mllm.report.markup import Child, Markup, h, join, table
from mllm.report.pictures import data_url

MAX_SIDE = 96  # pixels of a picture on the page
MAX_STEPS = 8  # shown of each picture, the first and the last among them
MAX_PROMPT = 240  # characters, its last ones


class Prompt(NamedTuple):
    """What was asked: the same in all runs that validated on the same documents."""

    source: str
    key: str
    image: int
    text: str


@dataclass
class Told:
    """All that was said after one prompt."""

    reference: str
    by_run: dict[int, dict[int, str]] = field(default_factory=dict)  # run's place: step: text


def completion_section(runs: list[Run], num_pictures: int) -> Markup | None:
    """A table of steps for each picture; None where no run has completions."""
    told = gather(runs)
    if not told:
        return None
    shown = list(told.items())[:num_pictures]
    albums = {place: Album(run) for place, run in enumerate(runs)}
    cards = [card(prompt, one, runs, albums) for prompt, one in shown]
    lines = [
        "Pictures that are held out, the same at every validation; the most likely text (greedy), "
        f"cut at train.generation_tokens. {len(shown)} of {len(told)} pictures."
    ]
    problems = dict.fromkeys(p for album in albums.values() for p in album.problems)
    return join([h("p", lines), [h("p", p, class_="note") for p in problems], cards])


def gather(runs: list[Run]) -> dict[Prompt, Told]:
    """By prompt, in the order in which the runs have them."""
    told: dict[Prompt, Told] = {}
    for place, run in enumerate(runs):
        for line in run.generations:
            for sample in line["samples"]:
                prompt = prompt_of(sample)
                one = told.setdefault(prompt, Told(str(sample.get("reference", ""))))
                said = str(sample.get("completion", ""))
                one.by_run.setdefault(place, {})[line["step"]] = said
    return told


def prompt_of(sample: dict[str, Any]) -> Prompt:
    image = sample.get("image")
    return Prompt(
        str(sample.get("source", "")),
        str(sample.get("key", "")),
        image if isinstance(image, int) else 0,
        str(sample.get("prompt", "")),
    )


def card(prompt: Prompt, told: Told, runs: list[Run], albums: dict[int, "Album"]) -> Markup:
    """The picture with prompt and reference, and beside it a line a step, a column a run."""
    url = next(filter(None, (albums[place].url(prompt) for place in told.by_run)), None)
    picture: Child = h("div", "no picture", class_="no-picture")
    if url is not None:
        picture = h("img", src=url, alt=f"{prompt.source} {prompt.key}", loading="lazy")
    steps = sorted({step for texts in told.by_run.values() for step in texts})
    rows = [
        [
            f"{step:,}",
            *(saying(texts.get(step)) for texts in told.by_run.values()),
        ]
        for step in spread(steps, MAX_STEPS)
    ]
    names = [runs[place].label if len(runs) > 1 else "It said" for place in told.by_run]
    given = prompt.text if len(prompt.text) <= MAX_PROMPT else "… " + prompt.text[-MAX_PROMPT:]
    return h(
        "article",
        h(
            "div",
            picture,
            h("small", h("strong", prompt.source), " ", prompt.key),
            class_="shown",
        ),
        h(
            "div",
            h("p", "Given: ", h("span", given, class_="prompt")),
            h("p", "Reference: ", h("span", told.reference.strip(), class_="prompt")),
            table(["Step", *names], rows, numeric=(0,)),
        ),
        class_="card told",
    )


def saying(text: str | None) -> Child:
    """In quotes; None is a validation that the run does not have."""
    if text is None:
        return "–"
    return h("q", text.strip()) if text.strip() else h("span", "nothing", class_="note")


def spread(steps: list[int], count: int) -> list[int]:
    """At most `count` of them, evenly, with the first and the last."""
    if len(steps) <= count:
        return steps
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


class Album:
    """Pictures of a run's validation sources, where its config says their shards lie."""

    def __init__(self, run: Run) -> None:
        self.problems: list[str] = []
        self._run = run
        self._corpora: dict[str, Corpus | None] = {}

    def url(self, prompt: Prompt) -> str | None:
        """`data:` URL of a prompt's picture; None where it cannot be had, with a problem noted."""
        if prompt.source not in self._corpora:
            self._corpora[prompt.source] = self._open(prompt.source)
        corpus = self._corpora[prompt.source]
        if corpus is None:
            return None
        try:
            for number in corpus.find(keys=[prompt.key]).tolist():
                return data_url(corpus.document(number).images[prompt.image], MAX_SIDE, "JPEG")
            self.problems.append(f"{corpus.corpus_dir}: no sample {prompt.key} any more.")
            return None
        except (BadSample, UserError, ValueError, IndexError, OSError) as error:
            self.problems.append(f"{prompt.source} {prompt.key}: {error}")
            return None

    def _open(self, source: str) -> Corpus | None:
        entries = self._run.setting("data.validation") or []
        paths = [e.get("path") for e in entries if isinstance(e, dict) and e.get("name") == source]
        if not paths or not isinstance(paths[0], str):
            self.problems.append(f"{self._run.label}: its config names no validation {source}.")
            return None
        root = self._run.setting("data.index_dir")
        index_dir = Path(str(root)) / "validation" / source if root else None
        try:
            return Corpus(paths[0], index_dir)
        except (UserError, OSError) as error:
            self.problems.append(f"No pictures of {source}: {error}")
            return None
