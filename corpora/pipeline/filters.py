"""Filters on single records: `FilterOptions` in, datatrove steps out, cheap ones first.

    texts      length, placeholder tags, language, spam       counting characters and words
    headers    sides, proportions, animations                 a few bytes of each picture
    quality    Gopher, FineWeb, fastText                      every word, datatrove's own filters
    pixels     broken and single-coloured pictures            decoding
    layout     at most so many images, a share of one-image documents
    c4         drops lines, so it comes when nothing else will look at the text

Each step counts what it drops by reason (`Judge`). Nothing depends on other records or on the
number of tasks.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from datatrove.pipeline.base import PipelineStep

from corpora.pipeline import images, quality, texts
from corpora.pipeline.options import option
from mllm.errors import UserError

Kind = Literal["text", "pairs", "interleaved", "instruct"]


@dataclass(frozen=True)
class FilterOptions:
    """What a record must be like to be kept. As it stands, every record is."""

    min_image_side: int = option(0, "pixels of a picture's shorter side, at least; 0: any")
    max_image_pixels: int = option(0, "width x height of a picture, at most; 0: any")
    max_image_aspect: float = option(0.0, "longer side over shorter, at most; 0: any")
    drop_animated: bool = option(False, "take an animation for a bad picture")
    drop_broken: bool = option(False, "take what cannot be decoded (SVG too) for a bad picture")
    drop_single_colour: bool = option(False, "take a picture of one colour for a bad one")
    on_bad_image: Literal["drop_document", "drop_image"] = option(
        "drop_document", "what goes: the document, or only the image"
    )
    max_images: int = option(0, "cut a document right after its Nth image; 0: never")
    keep_single_image_share: float = option(
        1.0, "share of documents with exactly one image to keep"
    )
    seed: int = option(0, "of the choice among documents with one image")

    min_chars: int = option(0, "characters of a document's text, at least")
    max_chars: int = option(0, "characters of a document's text, at most; 0: any")
    min_words: int = option(0, "words between spaces in a document's text, at least")
    max_words: int = option(0, "words between spaces in a document's text, at most; 0: any")
    drop_tags: bool = option(False, "drop texts with placeholders such as <PERSON> (CC12M)")
    script: str = option("Latin", "Unicode's name of the script of min_script_share")
    min_script_share: float = option(0.0, "share of letters that are of `script`, at least")
    min_stop_words: float = option(0.0, "share of words that are frequent English ones, at least")
    language_words: int = option(20, "texts under so many words are not judged by stop words")
    fasttext_model: str = option("", "path of a fastText language model (lid.176.bin); empty: none")
    fasttext_language: str = option("en", "language that fasttext_model must find")
    fasttext_score: float = option(0.65, "probability of fasttext_language, above")
    max_emoji: float = option(0.0, "emoji per word, at most; 0: any")
    max_hashtags: float = option(0.0, "#hashtags per word, at most; 0: any")
    max_urls: float = option(0.0, "URLs per word, at most; 0: any")
    max_run: int = option(0, "the same character in a row, at most; 0: any")
    max_repeated_lines: float = option(0.0, "share of lines that stood before, at most; 0: any")

    gopher_quality: bool = option(False, "datatrove's Gopher quality rules (50 words and more)")
    gopher_repetition: bool = option(False, "datatrove's Gopher repetition rules")
    fineweb_quality: bool = option(False, "datatrove's FineWeb rules on lines")
    c4: bool = option(False, "datatrove's C4 rules: drop bad lines, then texts under 5 sentences")

    def __post_init__(self) -> None:
        shares = ("keep_single_image_share", "min_script_share", "min_stop_words", "fasttext_score")
        for name in (*shares, "max_repeated_lines"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; give a share from 0 to 1")
        if self.on_bad_image not in ("drop_document", "drop_image"):
            raise UserError(f"on_bad_image is {self.on_bad_image!r}; drop_document or drop_image")
        if self.max_image_aspect and self.max_image_aspect < 1:
            raise UserError(f"max_image_aspect is {self.max_image_aspect}; give 1 or more")
        if self.fasttext_model and not Path(self.fasttext_model).is_file():
            raise UserError(f"fasttext_model: no file at {self.fasttext_model}")
        texts.script_pattern(self.script)

    @classmethod
    def kosmos1(cls, kind: Kind = "interleaved") -> "FilterOptions":
        """The paper's rules for one kind of corpus (K1 3.1, appendix B.1).

        Where the paper names a heuristic without its numbers (language, spam), they are ours. The
        200 pixels of pairs are the code's rule for LAION only; COYO and CC have none.
        """
        base = cls(drop_broken=True, max_image_pixels=64_000_000)
        match kind:
            case "pairs":
                return replace(base, min_image_side=200, drop_tags=True)
            case "interleaved":
                base = replace(
                    base, min_image_side=64, drop_single_colour=True, on_bad_image="drop_image"
                )
                english = replace(base, min_script_share=0.8, min_stop_words=0.15)
                clean = replace(english, max_emoji=0.1, max_hashtags=0.1, max_urls=0.1, max_run=20)
                return replace(clean, max_images=5, keep_single_image_share=0.5)
            case "text":
                return cls(min_script_share=0.8, min_stop_words=0.15, gopher_repetition=True)
            case "instruct":
                return base
        raise UserError(
            f"no rules for corpora of kind {kind!r}; one of {', '.join(get_args(Kind))}"
        )


def filter_steps(options: FilterOptions, drops_dir: str | Path) -> list[PipelineStep]:
    """The steps that `options` asks for, in the order in which they run."""
    return [
        *texts.steps(options, drops_dir),
        *images.header_steps(options, drops_dir),
        *quality.steps(options, drops_dir),
        *images.pixel_steps(options, drops_dir),
        *images.layout_steps(options, drops_dir),
        *quality.rewriting_steps(options, drops_dir),
    ]
