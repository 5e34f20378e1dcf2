"""Text and pictures in any order to `input_ids`, `pixel_values` and the slot mask.

Three ways in:

* `processor.from_segments([[picture, "An image of"]])`: what the other two end in. A string is text
  and nothing but text: `<image>` or `</s>` inside it stay characters.
* `processor.apply_chat_template(messages)`: `transformers`' messages with content lists; text in
  them is only text as well.
* `processor(text="<image>An image of", images=[picture])`: here, and only here, `<image>` in a
  string stands for the next picture, so the string must be the caller's own.

Every row is `<s>`, then for a picture `<image>`, `num_latents` slots and `</image>`, for a string
its tokens, for `END_OF_DOCUMENT` the token `</s>`. With `return_labels=True` a row is a training
document: `</s>` closes it, padding stands on the right, and `labels` mark what the trainer scores.

A row is never cut, because a picture could be: `truncation` and `max_length` only refuse.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from mllm.hf.image_processing_mllm import Picture, picture_path
from mllm.hf.messages import Turn, completion_turns, instruction_turns
from mllm.stream.template import END_OF_DOCUMENT, OUTPUT_ROLE, Mark
from tokenizer.specials import BOI_ID, BOS_ID, EOI_ID, PAD_ID, SLOT_ID

IMAGE_PLACEHOLDER = "<image>"
TEMPLATES = ("completion", "instruction")  # forms that messages take, by what a model was taught
IGNORED = -100  # a label without loss


# text | picture (PIL, encoded bytes, local path, uint8 array) | END_OF_DOCUMENT.
# A plain `str` is always text; a path must be a `pathlib.Path`.
PromptSegment = str | Image.Image | bytes | Path | np.ndarray | Mark


@dataclass(frozen=True)
class EncodedPrompt:
    """One row before padding."""

    token_ids: list[int]
    pictures: list[Picture]  # in slot order
    is_scored: list[bool]  # a token each: it counts as a target in training


class MllmProcessor(ProcessorMixin):
    """Tokenizer and image processor together, for the model's `forward` and `generate`.

    Args:
        num_latents: slots that each picture takes between `<image>` and `</image>`.
        slot_mask_name: the model's argument that takes the slot mask.
        template: the form that `apply_chat_template` gives to messages, one of TEMPLATES.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_latents: int = 64,
        slot_mask_name: str = "image_slot_mask",
        template: str = "completion",
        chat_template: str | None = None,
    ) -> None:
        if template not in TEMPLATES:
            raise ValueError(f"template {template!r}: one of {', '.join(TEMPLATES)}")
        self.template = template
        self.num_latents = num_latents
        self.slot_mask_name = slot_mask_name
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", self.slot_mask_name, "pixel_values"]

    def encode(
        self,
        segments: list[PromptSegment],
        is_answer: list[bool] | None = None,
        is_closed: bool = False,
    ) -> EncodedPrompt:
        """Ids of one row, `<s>` first. Each string is tokenised by itself, as in training.

        Args:
            is_answer: a segment each, whether its text is scored; None: all text is.
            is_closed: `</s>` follows at the end. `</s>` is scored where the text before it is.
        """
        token_ids, is_scored = [BOS_ID], [False]
        pictures: list[Picture] = []
        ends_scored = False
        items = [*segments, END_OF_DOCUMENT] if is_closed else segments
        for i, segment in enumerate(items):
            if isinstance(segment, str):
                ends_scored = is_answer is None or is_answer[i]
                ids, scored = self.tokenizer.encode_text(segment), ends_scored
            elif isinstance(segment, Mark):
                ids, scored, ends_scored = [segment.value], ends_scored, False
            else:
                ids, scored = [BOI_ID, *[SLOT_ID] * self.num_latents, EOI_ID], False
                pictures.append(segment)
            token_ids += ids
            is_scored += [scored] * len(ids)
        return EncodedPrompt(token_ids, pictures, is_scored)

    def collate(
        self,
        prompts: list[EncodedPrompt],
        padding_side: str | None = None,
        return_tensors: str | None = "pt",
        padding: bool | str = True,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_labels: bool = False,
    ) -> BatchFeature:
        """A padded batch of B rows of T positions with I pictures, row by row.

        Args:
            padding_side: left out, it is `left` for generation and `right` with labels.
            padding: True or `longest`; `max_length` for rows of that many positions; False where
                all rows are equally long.
            truncation: True refuses rows longer than `max_length`, or than the model's context.
            max_length: longest row that is taken.
            return_labels: adds `labels`.

        Returns:
            `input_ids` int64 (B, T), `attention_mask` int64 (B, T), `image_slot_mask` bool (B, T);
            with pictures also `pixel_values` float32 (I, 3, S, S); `labels` int64 (B, T), not
            shifted, -100 where nothing is scored.

        Raises:
            ValueError: a row is too long, or rows of several lengths are not to be padded.
        """
        lengths = [len(prompt.token_ids) for prompt in prompts]
        width = self._width(lengths, padding, truncation, max_length)
        side = padding_side or ("right" if return_labels else self.tokenizer.padding_side)

        def padded(row: list[Any], filler: Any) -> list[Any]:
            filling = [filler] * (width - len(row))
            return filling + row if side == "left" else row + filling

        input_ids = [padded(prompt.token_ids, PAD_ID) for prompt in prompts]
        data: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": [padded([1] * length, 0) for length in lengths],
            self.slot_mask_name: [[token_id == SLOT_ID for token_id in row] for row in input_ids],
        }
        if return_labels:
            data["labels"] = [
                padded(np.where(prompt.is_scored, prompt.token_ids, IGNORED).tolist(), IGNORED)
                for prompt in prompts
            ]
        pictures = [picture for prompt in prompts for picture in prompt.pictures]
        if pictures:
            data |= self.image_processor(pictures, return_tensors=return_tensors)
        return BatchFeature(data, tensor_type=return_tensors)

    def _width(
        self,
        lengths: list[int],
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
    ) -> int:
        """Positions of every row of a batch."""
        fills_up = padding == "max_length"
        if max_length is None and (fills_up or truncation not in (None, False, "do_not_truncate")):
            max_length = self.tokenizer.model_max_length
        for row, length in enumerate(lengths):
            if max_length is not None and length > max_length:
                raise ValueError(
                    f"row {row} has {length} tokens, max_length is {max_length}: a row is never "
                    "cut, because a picture could be; shorten its text"
                )
        if padding in (False, "do_not_pad") and len(set(lengths)) > 1:
            raise ValueError(
                f"rows of {sorted(set(lengths))} tokens need padding=True to form a batch"
            )
        if padding not in (True, False, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"padding {padding!r}: True, False, 'longest' or 'max_length'")
        return max_length if fills_up and max_length is not None else max(lengths)

    def from_segments(
        self, rows: list[list[PromptSegment]], return_labels: bool = False, **settings: Any
    ) -> BatchFeature:
        """A batch from segments in order; see `collate` for `settings` and what comes back."""
        prompts = [self.encode(row, is_closed=return_labels) for row in rows]
        return self.collate(prompts, return_labels=return_labels, **settings)

    def __call__(  # type: ignore[override]
        self, images: Any = None, text: str | list[str] | None = None, **settings: Any
    ) -> BatchFeature:
        """A batch from strings in which `<image>` stands for the next of `images`.

        Args:
            images: one picture, a flat list for all rows in order, or one list a row. Here a
                string is a picture's path.
            text: one string or one a row. Never put other people's text in it: use
                `apply_chat_template` or `from_segments` for that.
            settings: as of `collate`; also within `text_kwargs` or `common_kwargs`, as
                `transformers` sorts them.

        Raises:
            ValueError: the number of `<image>` and of pictures differ (both are named), or a
                picture is a URL.
            TypeError: a setting that this processor does not have.
        """
        if text is None:
            raise ValueError("MllmProcessor needs `text`: one string or a list of strings")
        texts = [text] if isinstance(text, str) else list(text)
        pictures = iter(flat_pictures(images, texts))
        rows = []
        for line in texts:
            first, *others = line.split(IMAGE_PLACEHOLDER)
            row: list[PromptSegment] = [first]
            for piece in others:
                row += [next(pictures), piece]
            rows.append([segment for segment in row if not _is_empty(segment)])
        return self.from_segments(rows, **flat_settings(settings))

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        return_labels: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Any:
        """A batch from messages, in the form of `self.template` (`mllm.hf.messages`).

        `completion` leaves the assistant's last words open and asks after every user's turn;
        `instruction` ends the assistant's words with `</s>`.

        Args:
            add_generation_prompt: after a user's turn, ask for an answer. `completion` cannot do
                without. After the assistant's turn it does nothing.
            continue_final_message: the assistant's words come last and the model goes on with them.
            return_labels: the conversation is a training document, of which the assistant's words
                are scored.
            processor_kwargs: more settings, as `transformers`' pipeline gives them.
            settings: as of `collate`.

        Raises:
            ValueError: `tokenize=False`. Segments become ids at once; a string in between could not
                tell a user's `<image>` from a picture. Or a user's turn is last and is to be
                continued, or under `completion` not answered.
        """
        if not tokenize:
            raise ValueError("apply_chat_template makes token ids; tokenize=False is not offered")
        is_batch = bool(conversation) and isinstance(conversation[0], list)
        # Any: mypy does not follow `is_batch`.
        conversations: Any = conversation if is_batch else [conversation]
        ends_in_answer = all(
            messages and messages[-1]["role"] == "assistant" for messages in conversations
        )
        is_completion = self.template == "completion"
        if not ends_in_answer and (
            continue_final_message or (is_completion and not add_generation_prompt)
        ):
            raise ValueError(
                "after a user's turn the template always asks for an answer: "
                "add_generation_prompt=True, continue_final_message=False"
            )
        settings = flat_settings(
            {"return_labels": return_labels, **settings, **(processor_kwargs or {})}
        )
        prompts = []
        for messages in conversations:
            turns = (
                completion_turns(messages)
                if is_completion
                else instruction_turns(
                    messages,
                    asks=add_generation_prompt
                    and not settings["return_labels"]
                    and messages[-1]["role"] != OUTPUT_ROLE,
                    is_open=continue_final_message,
                )
            )
            prompts.append(self._encode_turns(turns, is_closed=settings["return_labels"]))
        batch = self.collate(prompts, **settings)
        return batch if return_dict else batch["input_ids"]

    def _encode_turns(self, turns: list[Turn], is_closed: bool) -> EncodedPrompt:
        segments = [segment for turn in turns for segment in turn.segments]
        is_answer = [turn.is_answer for turn in turns for _ in turn.segments]
        is_ended = bool(segments) and segments[-1] is END_OF_DOCUMENT
        return self.encode(segments, is_answer, is_closed=is_closed and not is_ended)


def _is_empty(segment: PromptSegment) -> bool:
    return isinstance(segment, str) and not segment


def flat_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with those inside `text_kwargs` and its like beside the others.

    Pictures have no settings at a call: their size and how they are resized belong to the model.
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if key in ("text_kwargs", "common_kwargs"):
            flat |= value or {}
        elif key in ("images_kwargs", "videos_kwargs", "audio_kwargs"):
            refused = sorted(set(value or {}) - {"return_tensors"})
            if refused:
                raise TypeError(
                    f"{key}: {refused[0]} cannot be set at a call; pictures are resized as the "
                    "model was trained (processor.image_processor), and it takes nothing else"
                )
        else:
            flat[key] = value
    return flat


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
        images = [picture for group in images for picture in group]
    elif sum(counts) != len(images):
        raise ValueError(
            f"the text has {sum(counts)} {IMAGE_PLACEHOLDER} but {len(images)} images were given"
        )
    return [picture_path(item) if isinstance(item, str) else item for item in images]
