"""Text and pictures in any order to `input_ids`, `pixel_values` and the slot mask.

Three ways in:

* `processor.from_segments([[picture, "An image of"]])`: what the other two end in. A string is text
  and nothing but text: `<image>` or `</s>` inside it stay characters.
* `processor.apply_chat_template(messages)`: `transformers`' messages with content lists; text in
  them is only text as well.
* `processor(text="<image>An image of", images=[picture])`: here, and only here, `<image>` in a
  string stands for the next picture, so the string must be the caller's own.

Every row is `<s>`, then for a picture `<image>`, `num_latents` slots and `</image>`, for a string
its tokens, for `END_OF_DOCUMENT` the token `</s>`.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from mllm.hf.image_processing_mllm import Picture
from tokenizer.specials import BOI_ID, BOS_ID, EOI_ID, EOS_ID, PAD_ID, SLOT_ID

IMAGE_PLACEHOLDER = "<image>"


class Mark(Enum):
    """A special token that a prompt may hold between its segments."""

    END_OF_DOCUMENT = EOS_ID  # `</s>`: divides exemplars, as it divides documents in joined rows


END_OF_DOCUMENT = Mark.END_OF_DOCUMENT

# text | picture (PIL, encoded bytes, local path, uint8 array) | END_OF_DOCUMENT.
# A plain `str` is always text; a path must be a `pathlib.Path`.
PromptSegment = str | Image.Image | bytes | Path | np.ndarray | Mark


@dataclass(frozen=True)
class EncodedPrompt:
    """One row before padding: its ids, and its pictures in slot order."""

    token_ids: list[int]
    pictures: list[Picture]


class MllmProcessor(ProcessorMixin):
    """Tokenizer and image processor together, for the model's `forward` and `generate`.

    Args:
        num_latents: slots that each picture takes between `<image>` and `</image>`.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_latents: int = 64,
        chat_template: str | None = None,
    ) -> None:
        self.num_latents = num_latents
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "image_slot_mask", "pixel_values"]

    def encode(self, segments: list[PromptSegment]) -> EncodedPrompt:
        """Ids of one row, `<s>` first. Each string is tokenised by itself, as in training."""
        token_ids: list[int] = [BOS_ID]
        pictures: list[Picture] = []
        for segment in segments:
            if isinstance(segment, str):
                token_ids += self.tokenizer.encode_text(segment)
            elif isinstance(segment, Mark):
                token_ids.append(segment.value)
            else:
                token_ids += [BOI_ID, *[SLOT_ID] * self.num_latents, EOI_ID]
                pictures.append(segment)
        return EncodedPrompt(token_ids, pictures)

    def collate(
        self,
        prompts: list[EncodedPrompt],
        padding_side: str | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """A padded batch of B rows of T positions with I pictures, row by row.

        Args:
            padding_side: `left` for generation (the default), `right` for training.

        Returns:
            `input_ids` int64 (B, T), `attention_mask` int64 (B, T), `image_slot_mask` bool (B, T);
            with pictures also `pixel_values` float32 (I, 3, S, S).
        """
        side = padding_side or self.tokenizer.padding_side
        longest = max(len(prompt.token_ids) for prompt in prompts)
        input_ids, attention_mask = [], []
        for prompt in prompts:
            padding = longest - len(prompt.token_ids)
            pads, ones = [PAD_ID] * padding, [1] * len(prompt.token_ids)
            if side == "left":
                input_ids.append(pads + prompt.token_ids)
                attention_mask.append([0] * padding + ones)
            else:
                input_ids.append(prompt.token_ids + pads)
                attention_mask.append(ones + [0] * padding)
        data: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "image_slot_mask": [[token_id == SLOT_ID for token_id in row] for row in input_ids],
        }
        pictures = [picture for prompt in prompts for picture in prompt.pictures]
        if pictures:
            data |= self.image_processor(pictures, return_tensors=return_tensors)
        return BatchFeature(data, tensor_type=return_tensors)

    def from_segments(
        self,
        rows: list[list[PromptSegment]],
        padding_side: str | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """A batch from segments in order; see `collate` for what comes back."""
        return self.collate([self.encode(row) for row in rows], padding_side, return_tensors)

    def __call__(  # type: ignore[override]
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        padding: bool | str = True,
        padding_side: str | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """A batch from strings in which `<image>` stands for the next of `images`.

        Args:
            images: one picture, a flat list for all rows in order, or one list a row.
            text: one string or one a row. Never put other people's text in it: use
                `apply_chat_template` or `from_segments` for that.
            padding: rows of a batch are always padded to the longest; False is only possible where
                all rows are equally long.

        Raises:
            ValueError: the number of `<image>` and of pictures differ (both are named).
        """
        if text is None:
            raise ValueError("MllmProcessor needs `text`: one string or a list of strings")
        texts = [text] if isinstance(text, str) else list(text)
        pictures = flat_pictures(images, texts)
        rows, used = [], 0
        for line in texts:
            row: list[PromptSegment] = []
            for i, piece in enumerate(line.split(IMAGE_PLACEHOLDER)):
                if i > 0:
                    row.append(pictures[used])
                    used += 1
                if piece:
                    row.append(piece)
            rows.append(row)
        return self._batch(rows, padding, padding_side, return_tensors)

    def _batch(
        self,
        rows: list[list[PromptSegment]],
        padding: bool | str,
        padding_side: str | None,
        return_tensors: str | None,
    ) -> BatchFeature:
        prompts = [self.encode(row) for row in rows]
        lengths = {len(prompt.token_ids) for prompt in prompts}
        if padding is False and len(lengths) > 1:
            raise ValueError(f"rows of {sorted(lengths)} tokens need padding=True to form a batch")
        return self.collate(prompts, padding_side, return_tensors)

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        padding: bool | str = True,
        padding_side: str | None = None,
        return_tensors: str | None = "pt",
        processor_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """A batch from messages; see `completion_prompt` for the form they take.

        Args:
            add_generation_prompt: False only where the assistant's words come last: a user's turn
                always ends by asking for an answer.
            continue_final_message: True only there too; the model goes on with those words.
            padding: as in `__call__`.
            processor_kwargs: more of `padding`, `padding_side`, `return_tensors`, as
                `transformers`' pipeline gives them.

        Raises:
            ValueError: `tokenize=False`. Segments become ids at once; a string in between could not
                tell a user's `<image>` from a picture. Or a user's turn is last and an answer is
                not asked for.
        """
        if not tokenize:
            raise ValueError("apply_chat_template makes token ids; tokenize=False is not offered")
        is_batch = bool(conversation) and isinstance(conversation[0], list)
        # Any: mypy does not follow `is_batch`.
        conversations: Any = conversation if is_batch else [conversation]
        ends_in_answer = all(
            messages and messages[-1]["role"] == "assistant" for messages in conversations
        )
        if not ends_in_answer and (continue_final_message or not add_generation_prompt):
            raise ValueError(
                "after a user's turn the template always asks for an answer: "
                "add_generation_prompt=True, continue_final_message=False"
            )
        settings = {
            "padding": padding,
            "padding_side": padding_side,
            "return_tensors": return_tensors,
        }
        batch = self._batch(
            [completion_prompt(messages) for messages in conversations],
            **settings | (processor_kwargs or {}),
        )
        return batch if return_dict else batch["input_ids"]


def flat_pictures(images: Any, texts: list[str]) -> list[Picture]:
    """`images` as one flat list, after checking its counts against `<image>` in `texts`."""
    counts = [line.count(IMAGE_PLACEHOLDER) for line in texts]
    if images is None:
        images = []
    elif not isinstance(images, (list, tuple)):
        images = [images]
    if images and all(isinstance(group, (list, tuple)) for group in images):
        if len(images) != len(texts):
            raise ValueError(f"{len(texts)} texts but {len(images)} lists of images")
        for i, (count, group) in enumerate(zip(counts, images, strict=True)):
            if count != len(group):
                raise ValueError(
                    f"text {i} has {count} {IMAGE_PLACEHOLDER} but {len(group)} images"
                )
        return [picture for group in images for picture in group]
    if sum(counts) != len(images):
        raise ValueError(
            f"the text has {sum(counts)} {IMAGE_PLACEHOLDER} but {len(images)} images were given"
        )
    return list(images)


def completion_prompt(messages: list[dict[str, Any]]) -> list[PromptSegment]:
    """The segments that a model trained on documents, not on instructions, is given to go on with.

    A user's text that ends in `?` becomes `Question: ... Answer:`; other text stands as it is; a
    turn of pictures alone ends in `An image of`. The assistant's words follow after a space, and
    the next turn's text begins on a new line: the form of the question-answer documents that such
    a model was trained on.

    Args:
        messages: `{"role": "user" | "assistant" | "system", "content": a text or a content list}`;
            a list holds `{"type": "text", "text": ...}` and `{"type": "image", "image": picture}`.
    """
    segments: list[PromptSegment] = []
    for message in messages:
        turn = content_segments(message["content"])
        if message["role"] == "assistant":
            segments += [" " + item if isinstance(item, str) else item for item in turn]
            continue
        places = [i for i, item in enumerate(turn) if isinstance(item, str)]
        if places:
            last = turn[places[-1]]
            if last.endswith("?"):
                turn[places[-1]] = f"Question: {last} Answer:"
        elif turn:
            places = [len(turn)]
            turn.append("An image of")
        if segments and places:
            turn[places[0]] = f"\n{turn[places[0]]}"
        segments += turn
    return segments


def content_segments(content: str | list[dict[str, Any]]) -> list[Any]:
    """Texts (stripped, empty ones dropped) and pictures of one message, in order."""
    items = [{"type": "text", "text": content}] if isinstance(content, str) else content
    segments: list[Any] = []
    for item in items:
        match item:
            case {"type": "text", "text": str(text)}:
                if text.strip():
                    segments.append(text.strip())
            case {"type": "image", "image": picture}:
                segments.append(Path(picture) if isinstance(picture, str) else picture)
            case {"type": "image", "path": path}:
                segments.append(Path(path))
            case _:
                raise ValueError(
                    f"content item with keys {sorted(item)} is neither a text nor a picture given "
                    "as `image` or `path`; nothing is fetched from the network"
                )
    return segments
