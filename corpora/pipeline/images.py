"""Filters on a record's pictures: by their headers, by their pixels, by their number.

A bad picture takes its document with it, or only leaves it (`on_bad_image`); each is counted.
"""

import hashlib
import io
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datatrove.data import Document as Record
from datatrove.pipeline.base import PipelineStep
from PIL import Image

from corpora.pipeline.judge import Judge
from corpora.pipeline.record import LAYOUT
from mllm.images import FORMATS, open_picture

if TYPE_CHECKING:
    from corpora.pipeline.filters import FilterOptions

Rule = Callable[[bytes], str | None]


class BadImages(Judge):
    """Judges each picture by rules that say what is wrong with it, or None."""

    def __init__(
        self, name: str, rules: list[Rule], drop_image_only: bool, drops_dir: str | Path
    ) -> None:
        super().__init__(drops_dir)
        self.name = name
        self.rules = rules
        self.drop_image_only = drop_image_only

    def judge(self, record: Record) -> str | None:
        bad: set[int] = set()
        for number, media in enumerate(record.media):
            data = media.media_bytes or b""
            reason = next((found for rule in self.rules if (found := rule(data))), None)
            if reason is None:
                continue
            if not self.drop_image_only:
                return f"image: {reason}"
            self.edited[f"image removed: {reason}"] += 1
            bad.add(number)
        if bad and len(bad) == len(record.media):
            return "no good image left"
        remove_images(record, bad)
        return None


class Layout(Judge):
    """Cuts a document right after its Nth image, and keeps a share of one-image documents.

    The text after the Nth image goes as well, as in the code nearest to the paper (kosmos-1.md
    2.5). Which one-image documents stay is drawn from their content and the seed: the same ones
    for any number of tasks, and duplicates share their fate.
    """

    name = "layout"

    def __init__(
        self, max_images: int, single_share: float, seed: int, drops_dir: str | Path
    ) -> None:
        super().__init__(drops_dir)
        self.max_images = max_images
        self.single_share = single_share
        self.seed = seed

    def judge(self, record: Record) -> str | None:
        if len(record.media) == 1 and _draw(record, self.seed) >= self.single_share:
            return "one image"
        if 0 < self.max_images < len(record.media):
            cut_after_image(record, self.max_images)
            self.edited[f"cut after image {self.max_images}"] += 1
        return None


def header_steps(options: "FilterOptions", drops_dir: str | Path) -> list[PipelineStep]:
    """What a picture's header tells."""
    low, high, aspect = options.min_image_side, options.max_image_pixels, options.max_image_aspect
    if not (low or high or aspect or options.drop_animated):
        return []
    rule = partial(
        _header, min_side=low, max_pixels=high, max_aspect=aspect, still=options.drop_animated
    )
    only = options.on_bad_image == "drop_image"
    return [BadImages("image_header", [rule], only, drops_dir)]


def pixel_steps(options: "FilterOptions", drops_dir: str | Path) -> list[PipelineStep]:
    """What only decoding tells."""
    if not (options.drop_broken or options.drop_single_colour):
        return []
    rule = partial(_pixels, single_colour=options.drop_single_colour)
    only = options.on_bad_image == "drop_image"
    return [BadImages("image_pixels", [rule], only, drops_dir)]


def layout_steps(options: "FilterOptions", drops_dir: str | Path) -> list[PipelineStep]:
    """The number of images."""
    if options.max_images == 0 and options.keep_single_image_share == 1:
        return []
    share = options.keep_single_image_share
    return [Layout(options.max_images, share, options.seed, drops_dir)]


def remove_images(record: Record, numbers: Collection[int]) -> None:
    """Takes images out of a record by their number in it; the texts around one become two lines."""
    if numbers:
        _keep_images(record, [n for n in range(len(record.media)) if n not in numbers])


def cut_after_image(record: Record, count: int) -> None:
    """Ends a record right after its image number `count`, counted from 1."""
    layout = record.metadata[LAYOUT]
    texts = [item for item in layout if "text" in item]
    if len(texts) == 1:
        texts[0]["text"] = record.text  # a filter may have rewritten it: see from_record
    places = [place for place, item in enumerate(layout) if "image" in item]
    record.metadata[LAYOUT] = layout[: places[count - 1] + 1]
    record.text = "\n".join(i["text"] for i in record.metadata[LAYOUT] if "text" in i)
    _keep_images(record, list(range(count)))


def _keep_images(record: Record, numbers: list[int]) -> None:
    renumbered = {old: new for new, old in enumerate(numbers)}
    layout: list[dict[str, Any]] = []
    is_gap = False  # whether an image went from here
    for item in record.metadata[LAYOUT]:
        if "image" in item and item["image"] not in renumbered:
            is_gap = True
            continue
        if "image" in item:
            layout.append(item | {"image": renumbered[item["image"]]})
        elif is_gap and layout and _goes_on(layout[-1], item):
            # As `record.text` has it; left apart, their words would touch.
            layout[-1] = item | {"text": f"{layout[-1]['text']}\n{item['text']}"}
        else:
            layout.append(item)
        is_gap = False
    record.metadata[LAYOUT] = layout
    record.media = [record.media[number] for number in numbers]
    for number, media in enumerate(record.media):
        media.id = str(number)


def _goes_on(before: dict[str, Any], item: dict[str, Any]) -> bool:
    """Whether `item` is text said by the same one, scored alike."""
    return "text" in before and all(before.get(n) == item.get(n) for n in ("scored", "turn"))


def _header(
    data: bytes, min_side: int, max_pixels: int, max_aspect: float, still: bool
) -> str | None:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            short, long = sorted(picture.size)
            is_animated = still and getattr(picture, "is_animated", False)
    except Image.DecompressionBombError:  # PIL's own bound, which is higher
        return f"over {max_pixels} pixels" if max_pixels else "too many pixels"
    except Exception:  # PIL's plugins raise many kinds on hostile bytes
        return "not a picture"
    if max_pixels and short * long > max_pixels:
        return f"over {max_pixels} pixels"
    if short < min_side:
        return f"side under {min_side} pixels"
    if max_aspect and long > max_aspect * short:
        return f"proportions over {max_aspect:g}"
    return "animated" if is_animated else None


def _pixels(data: bytes, single_colour: bool) -> str | None:
    try:
        picture = open_picture(data)
    except ValueError as error:
        # Without the numbers in it: the reason is counted.
        return "not a picture" if str(error).startswith("not a picture") else "broken or too large"
    low_high = picture.getextrema()  # ((low, high) of red, green, blue)
    if single_colour and all(low == high for low, high in low_high):  # type: ignore[misc]
        return "single colour"
    return None


def _draw(record: Record, seed: int) -> float:
    """A number from [0, 1) that only the content and the seed decide."""
    digest = hashlib.blake2b(record.text.encode("utf-8", "surrogatepass"), digest_size=8)
    digest.update(record.media[0].media_bytes or b"")
    digest.update(str(seed).encode())
    return int.from_bytes(digest.digest()[:7], "big") / 2**56
