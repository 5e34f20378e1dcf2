"""Document to TokenSequence: ids, image slots and scored targets in one pass.

    <s> <image> L slots </image> text tokens ... </s>

Text segments are tokenised one by one, so an image never changes the tokens around it. A document
with turns is read by the instruction template (template.py), in every stage: there `</s>` also
ends each answer before the last.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from corpora.document import Document, TextSegment
from mllm.stream.template import END_OF_DOCUMENT, Part, Said, instruction_template
from tokenizer.specials import BOI_ID, BOS_ID, EOI_ID, EOS_ID, SLOT_ID
from tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenSequence:
    """One encoded document of N tokens."""

    key: str
    token_ids: np.ndarray  # int32 (N,)
    is_scored: np.ndarray  # bool (N,); this token counts as a target
    images: tuple[bytes, ...]  # encoded pictures, in slot order


class TextLayout(NamedTuple):
    """The lengths of a document without its images: enough to plan with any `num_latents`."""

    text_tokens: int  # <s>, text and </s>
    scored_tokens: int  # of these, how many are scored targets
    image_offsets: list[int]  # text tokens that stand before each image


def image_span(num_latents: int) -> int:
    """Positions of one image: `<image>`, its slots, `</image>`."""
    return num_latents + 2


def encode(
    document: Document, tokenizer: Tokenizer, num_latents: int, score_image_start: bool = False
) -> TokenSequence:
    """The tokens of a whole document.

    Scored are text tokens of scored segments, and `</s>` if the last text segment is scored; never
    `<s>`, slots or `</image>`. With `score_image_start`, `<image>` is scored where the text before
    it is; one with no text before it has nothing to be predicted from.
    """
    image_ids = [BOI_ID, *[SLOT_ID] * num_latents, EOI_ID]
    token_ids, is_scored, images = [BOS_ID], [False], []
    ends_scored = False
    for content, part_scored in parts_of(document):
        if content is END_OF_DOCUMENT:
            token_ids.append(EOS_ID)
            is_scored.append(part_scored)
            ends_scored = False
        elif isinstance(content, str):
            text_ids = tokenizer.encode(content)
            token_ids += text_ids
            is_scored += [part_scored] * len(text_ids)
            ends_scored = part_scored
        else:
            token_ids += image_ids
            is_scored += [score_image_start and ends_scored] + [False] * (len(image_ids) - 1)
            images.append(content)
    return TokenSequence(
        document.key,
        np.array(token_ids, dtype=np.int32),
        np.array(is_scored, dtype=bool),
        tuple(images),
    )


def text_layout(document: Document, tokenizer: Tokenizer) -> TextLayout:
    """Where text and images of a document stand, without reading a picture."""
    text_tokens, scored_tokens, image_offsets = 1, 0, []
    for content, is_scored in parts_of(document):
        if content is END_OF_DOCUMENT or isinstance(content, str):
            num_tokens = 1 if content is END_OF_DOCUMENT else len(tokenizer.encode(content))
            text_tokens += num_tokens
            scored_tokens += num_tokens * is_scored
        else:
            image_offsets.append(text_tokens)
    return TextLayout(text_tokens, scored_tokens, image_offsets)


def encoded_length(document: Document, tokenizer: Tokenizer, num_latents: int) -> int:
    """`len(encode(...).token_ids)`, without building it."""
    layout = text_layout(document, tokenizer)
    return layout.text_tokens + len(layout.image_offsets) * image_span(num_latents)


def parts_of(document: Document) -> Iterator[Part]:
    """Texts, pictures (their bytes) and ends of a document in order; the last part is an end."""
    segments = (
        Part(segment.text, segment.is_scored)
        if isinstance(segment, TextSegment)
        else Part(segment.data)
        for segment in document.segments
    )
    ends_scored, is_ended = False, False
    turns = [Said(role, list(islice(segments, number))) for role, number in document.turns]
    for part in instruction_template(turns) if turns else segments:
        if is_ended := part.content is END_OF_DOCUMENT:
            ends_scored = False
        elif isinstance(part.content, str):
            ends_scored = part.is_scored
        yield part
    if not is_ended:
        yield Part(END_OF_DOCUMENT, ends_scored)
