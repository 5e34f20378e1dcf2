"""Document to TokenSequence: ids, image slots and scored targets in one pass.

    <s> <image> L slots </image> text tokens ... </s>

Text segments are tokenised one by one, so an image never changes the tokens around it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from corpora.document import Document, ImageSegment, TextSegment
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
    for segment in document.segments:
        if isinstance(segment, TextSegment):
            text_ids = tokenizer.encode(segment.text)
            token_ids += text_ids
            is_scored += [segment.is_scored] * len(text_ids)
            ends_scored = segment.is_scored
        else:
            token_ids += image_ids
            is_scored += [score_image_start and ends_scored] + [False] * (len(image_ids) - 1)
            images.append(segment.data)
    token_ids.append(EOS_ID)
    is_scored.append(ends_scored)
    return TokenSequence(
        document.key,
        np.array(token_ids, dtype=np.int32),
        np.array(is_scored, dtype=bool),
        tuple(images),
    )


def text_layout(document: Document, tokenizer: Tokenizer) -> TextLayout:
    """Where text and images of a document stand, without reading a picture."""
    text_tokens, scored_tokens, image_offsets = 1, 0, []
    ends_scored = False
    for segment in document.segments:
        if isinstance(segment, ImageSegment):
            image_offsets.append(text_tokens)
        else:
            num_tokens = len(tokenizer.encode(segment.text))
            text_tokens += num_tokens
            scored_tokens += num_tokens * segment.is_scored
            ends_scored = segment.is_scored
    return TextLayout(text_tokens + 1, scored_tokens + ends_scored, image_offsets)


def encoded_length(document: Document, tokenizer: Tokenizer, num_latents: int) -> int:
    """`len(encode(...).token_ids)`, without building it."""
    layout = text_layout(document, tokenizer)
    return layout.text_tokens + len(layout.image_offsets) * image_span(num_latents)
