"""The words around picture and answer: the paper's, and peers' whose published scores depend on
theirs (`--prompt-style`)."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from corpora.document import Segment, TextSegment
from evals.api import Exemplar, ImageFile, Prompt, with_text
from evals.options import PromptStyle
from mllm.errors import UserError


@dataclass(frozen=True)
class Style:
    """A template around one picture.

    Args:
        question: After the picture; `{words}` in braces are filled in.
        before: Before the picture.
        joint: Between the question and the answer.
        after: After the answer of an exemplar, before the separator.
        instruction: Before everything, once a prompt.
        stops: Strings that end an answer.
        decoding: Attributes of an `AnswerTask` that the peer chose otherwise.
    """

    question: str
    before: str = ""
    joint: str = " "
    after: str = ""
    instruction: str = ""
    stops: tuple[str, ...] = ()
    decoding: dict[str, Any] = field(default_factory=dict)

    @property
    def template(self) -> str:
        """All of it on one line, for results.json."""
        return f"{self.instruction}{self.before}<image>{self.question}{self.joint}{{answer}}"

    def ask(self, image_path: Path, **words: str) -> tuple[Segment, ...]:
        picture = (*with_text((), self.before), ImageFile(image_path))
        return with_text(picture, self.question.format(**words))

    def show(self, sample_id: str, image_path: Path, answer: str, **words: str) -> Exemplar:
        return Exemplar(sample_id, self.ask(image_path, **words), self.joint + answer + self.after)

    def instructed(self, prompt: Prompt) -> Prompt:
        """The prompt after the instruction."""
        if not self.instruction:
            return prompt
        if not prompt.shots:
            return prompt.with_query(_after(self.instruction, prompt.query.segments))
        first, *others = prompt.shots
        first = replace(first, question=_after(self.instruction, first.question))
        return replace(prompt, shots=(first, *others))


def _after(text: str, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    if isinstance(segments[0], TextSegment):
        return (TextSegment(text + segments[0].text), *segments[1:])
    return (TextSegment(text), *segments)


Styles = dict[PromptStyle, Style]

# OpenFlamingo joins without a space and asks with three beams (open_flamingo/eval/evaluate.py).
CAPTION_STYLES: Styles = {
    "kosmos": Style("An image of"),
    "openflamingo": Style(
        "Output:",
        joint="",
        stops=("Output",),
        decoding={"num_beams": 3, "max_new_tokens": 20, "length_penalty": 0.0},
    ),
    "idefics": Style(
        "Image description:",
        before="Image:",
        after="\n",
        instruction="Instruction: provide a short caption of the input image.\n",
        stops=("\n",),
    ),
}
VQA_STYLES: Styles = {
    "kosmos": Style("Question: {question} Answer:"),
    "openflamingo": Style(
        "Question:{question} Short answer:",
        joint="",
        stops=("Question", "Answer", "Short", ", "),
        decoding={"num_beams": 3, "max_new_tokens": 5, "length_penalty": 0.0},
    ),
    "idefics": Style(
        "Question: {question} Answer:",
        before="Image:",
        after="\n",
        instruction="Instruction: provide an answer to the question. Use the image to answer.\n",
        stops=("\n",),
    ),
}
# OpenFlamingo tells the model what is written on the picture; KOSMOS-1 does not.
MEME_STYLES: Styles = {
    "kosmos": Style("Question: does this picture contain real hate speech? Answer:"),
    "openflamingo": Style(
        "is an image with: '{text}' written on it. Is it hateful? Answer:", joint=""
    ),
}


def style_of(styles: Styles, name: PromptStyle, task: str) -> Style:
    """
    Raises:
        UserError: The peer has no template for this task here.
    """
    if name not in styles:
        raise UserError(
            f"--prompt-style {name}: there is none for {task}; one of {', '.join(styles)}"
        )
    return styles[name]
