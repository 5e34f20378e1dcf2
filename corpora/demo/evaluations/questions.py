"""Social IQa and QuaRTz: questions in words alone.

Folders: `socialiqa_test`, `socialiqa_development`, `socialiqa_support` (three answers) and
`quartz_test`, `quartz_development`, `quartz_support` (two). Social IQa asks several questions about
one situation: a situation is in one set only. QuaRTz asks most things twice with the words turned
about: what shares most of its words with a question of the test set is in neither other set.

A document: one text segment, the situation and the question, and no picture. Its meta, which holds
the same words:

    source       "socialiqa" or "quartz"
    context      the situation; "" for QuaRTz, whose questions stand alone
    question     Social IQa: "What will Quinn want to do next?"; QuaRTz: a question, or the
                 beginning of a sentence that the answer ends
    candidates   the answers, in the order of the source
    answer       index of the right one, from 0
"""

import json
import re
from collections.abc import Callable, Iterator

from corpora.demo.chance import share
from corpora.demo.evaluations.material import Material, Sets
from corpora.demo.packages import Wheels
from corpora.document import Document, TextSegment

SOCIALIQA_PATH = "evals/registry/data/theory_of_mind/socialiqa/test.jsonl"
QUARTZ_PATH = "evals/registry/data/quartz/samples.jsonl"
SOCIALIQA = re.compile(
    r"(?P<context>.*) (?P<question>(?:What|How|Why|Who|Where|When|Which)\b[^?]*\?) "
    r"A: (?P<a>.*); B: (?P<b>.*); C: (?P<c>.*)\.",
    re.DOTALL,
)
QUARTZ = re.compile(r"(?P<question>.*)\n\n A: (?P<a>.*)\n B: (?P<b>.*)", re.DOTALL)
TEST_SHARE, DEVELOPMENT_SHARE = 0.45, 0.2
NUM_TEST, NUM_DEVELOPMENT, NUM_SUPPORT = 1000, 400, 800
TWIN_SHARE = 0.7  # of two questions' words that both have


def sets(material: Material) -> Sets:
    found: Sets = {}
    for source, path, pattern in (
        ("socialiqa", SOCIALIQA_PATH, SOCIALIQA),
        ("quartz", QUARTZ_PATH, QUARTZ),
    ):
        documents = list(read(material.wheels, source, path, pattern))
        parts: Sets = {"test": [], "development": [], "support": []}
        for document in documents:
            parts[part(document)].append(document)
        numbers = {"test": NUM_TEST, "development": NUM_DEVELOPMENT, "support": NUM_SUPPORT}
        is_twin = twin_finder(parts["test"])
        for name, own in parts.items():
            if name != "test":
                own = [document for document in own if not is_twin(document)]
            found[f"{source}_{name}"] = material.choose(
                own, numbers[name], source, lambda document: document.key
            )
    return found


def part(document: Document) -> str:
    """ "test", "development" or "support", by a hash of the situation."""
    meta = document.meta
    place = share("questions", meta["source"], meta["context"] or meta["question"])
    if place < TEST_SHARE:
        return "test"
    return "development" if place < TEST_SHARE + DEVELOPMENT_SHARE else "support"


def read(wheels: Wheels, source: str, path: str, pattern: re.Pattern[str]) -> Iterator[Document]:
    """The questions of a file; of equal ones the first."""
    seen = set()
    for number, line in enumerate(wheels.read("evals", path).decode().splitlines()):
        entry = json.loads(line)
        asked = entry["input"][-1]["content"]
        match = pattern.fullmatch(asked.strip())
        assert match is not None, f"{path}, line {number + 1}: {asked!r}"
        parts = {name: " ".join(value.split()) for name, value in match.groupdict().items()}
        answers = [parts[letter] for letter in "abc" if letter in parts]
        if asked in seen or len(set(answers)) < len(answers):
            continue
        seen.add(asked)
        meta = {
            "source": source,
            "context": parts.get("context", ""),
            "question": parts["question"],
            "candidates": answers,
            "answer": "ABC".index(entry["ideal"]),
        }
        words = f"{parts.get('context', '')} {parts['question']}".strip()
        yield Document(f"{source}-{number:04d}", (TextSegment(words),), meta)


def twin_finder(test: list[Document]) -> Callable[[Document], bool]:
    """Tells whether a document shares most of its words with one of `test`."""
    words = [_words(document) for document in test]
    holders: dict[str, list[int]] = {}  # word: places in `test`
    for place, own in enumerate(words):
        for word in own:
            holders.setdefault(word, []).append(place)

    def is_twin(document: Document) -> bool:
        own = _words(document)
        # A twin lacks few of these words, so it holds one of the rarest: few need comparing.
        rarest = sorted(own, key=lambda word: (len(holders.get(word, ())), word))
        rarest = rarest[: int((1 - TWIN_SHARE) * len(own)) + 1]
        near = {place for word in rarest for place in holders.get(word, ())}
        return any(_likeness(own, words[place]) >= TWIN_SHARE for place in near)

    return is_twin


def _likeness(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)


def _words(document: Document) -> frozenset[str]:
    meta = document.meta
    return frozenset(re.findall(r"\w+", f"{meta['context']} {meta['question']}".lower()))
