"""Image-text pairs from parquet, TSV, and folders with a metadata file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corpora.document import Document, ImageSegment, TextSegment
from corpora.pipeline.readers.base import BadRecord, Format, ReadLog, picture
from corpora.pipeline.readers.pictures import decoded, open_pictures
from corpora.pipeline.readers.rows import column, first_row, row_parts, rows
from corpora.pipeline.readers.streams import line_parts, lines
from corpora.pipeline.readers.tables import RowFormat, meta_of, text_of
from corpora.pipeline.units import Part, files_under
from mllm.errors import UserError

CAPTION = ("caption", "text", "TEXT", "captions", "alt_text", "alt")
IMAGE = ("image", "jpg", "img", "png", "image_bytes", "bytes", "picture", "webp")
METADATA = ("metadata.jsonl", "metadata.csv")


def captions_of(row: dict[str, Any], name: str, which: str) -> list[str]:
    """The captions of a row: a text, or the texts of a list. BadRecord when there is none."""
    value = row.get(name)
    if not isinstance(value, list):
        return [text_of(row, name, "no caption")]
    found = [item for item in value if isinstance(item, str) and item.strip()]
    if not found:
        raise BadRecord("no caption")
    return found[:1] if which == "first" else found


def named(row: dict[str, Any], wanted: str, usual: tuple[str, ...]) -> str:
    """The column of this row; rows of one JSON file need not hold the same ones."""
    return wanted or next((name for name in usual if name in row), usual[0])


class ParquetPairs(RowFormat):
    name = "parquet"
    summary = "parquet with pictures as bytes or {bytes, path} and a caption column"
    suffixes = (".parquet",)

    def check(self, row: dict[str, Any], path: Path) -> None:
        column(row, self.options.image_column, IMAGE, "--image-column", path)
        column(row, self.options.text_column, CAPTION, "--text-column", path)

    def documents(self, row: dict[str, Any], part: Part) -> Iterator[Document]:
        image = named(row, self.options.image_column, IMAGE)
        caption = named(row, self.options.text_column, CAPTION)
        texts = captions_of(row, caption, self.options.captions)
        shown = self._picture(row.get(image), part)
        meta = meta_of(row, image, caption)
        for text in texts:
            yield Document("", (shown, TextSegment(text)), meta)

    def _picture(self, value: Any, part: Part) -> ImageSegment:
        if isinstance(value, dict):
            name, value = value.get("path"), value.get("bytes")
            if value is None and isinstance(name, str):
                return open_pictures(self.options.image_dir or part.root).get(name)
        return decoded(value) if isinstance(value, str) else picture(value)


class Tsv(Format):
    name = "tsv"
    summary = "TSV with base64 pictures (LAION, COYO, OFA); --columns id,_,caption,image"

    def claims(self, source: Path) -> bool:
        path = next(files_under(source, _TSV), None)
        return path is not None and path.name.lower().endswith(_TSV)

    def parts(self, source: Path, unit_bytes: int) -> Iterator[Part]:
        root = source if source.is_dir() else source.parent
        is_checked = False
        for path in files_under(source, _TSV):
            if path.stat().st_size == 0:
                continue
            if not is_checked:
                self._layout(path)
                is_checked = True
            yield from line_parts(path, unit_bytes, root)

    def read(self, part: Part, log: ReadLog) -> Iterator[Document]:
        try:
            names, has_header = self._layout(Path(part.path))
        except UserError as error:  # the first file's is told before anything is read
            log.breaks_off(part.path, error)
            return
        for number, (where, line) in enumerate(lines(part, log)):
            if (number == 0 and part.start == 0 and has_header) or not line.strip():
                continue
            try:
                yield self._document(names, line)
            except BadRecord as bad:
                log.drop(bad.reason, where, bad.excerpt)

    def _document(self, names: list[str], line: bytes) -> Document:
        cells = line.split(b"\t")
        if len(cells) != len(names):
            shown = line[:200].decode(errors="replace")
            raise BadRecord(f"not {len(names)} columns", shown)
        row = dict(zip(names, cells, strict=True))
        image, caption = decoded(row["image"]), text_of(row, "caption", "no caption")
        others = {name: cell.decode(errors="replace") for name, cell in row.items()}
        meta = meta_of(others, "image", "caption", "_")
        return Document("", (image, TextSegment(caption)), meta)

    def _layout(self, path: Path) -> tuple[list[str], bool]:
        """Names of the columns, and whether the first line is a header.

        Raises:
            UserError: They cannot be told from the first line.
        """
        first = next((line for _, line in lines(Part(str(path), 0), ReadLog())), b"")
        cells = first.decode(errors="replace").split("\t")
        if self.options.columns:
            names = self.options.columns.split(",")
            if not {"caption", "image"} <= set(names):
                raise UserError("--columns: name one column `caption` and one `image`")
            return names, False
        images = [number for number, cell in enumerate(cells) if _is_coded(cell)]
        if not images:  # then it should be a header
            row = dict.fromkeys(cells)
            image = column(row, self.options.image_column, IMAGE, "--columns", path)
            caption = column(row, self.options.text_column, CAPTION, "--columns", path)
            return [{image: "image", caption: "caption"}.get(c, c) for c in cells], True
        if len(cells) != 2 or len(images) != 1:
            raise UserError(
                f"{path}: {len(cells)} columns without header, the picture in number "
                f"{images[0] + 1}; name them in order with --columns, as in id,_,caption,image"
            )
        return (["image", "caption"] if images == [0] else ["caption", "image"]), False


class ImageFolder(Format):
    name = "imagefolder"
    summary = "folders with metadata.jsonl or metadata.csv: file_name and a caption column"
    weight = 256  # about 64 KB of picture for 256 bytes of metadata

    def claims(self, source: Path) -> bool:
        return any(files_under(source, METADATA)) and (source.is_dir() or source.name in METADATA)

    def parts(self, source: Path, unit_bytes: int) -> Iterator[Part]:
        for path in files_under(source, METADATA):
            if row := first_row(path):
                column(row, "", ("file_name",), "a `file_name` column", path)
                column(row, self.options.text_column, CAPTION, "--text-column", path)
            yield from row_parts(path, unit_bytes, path.parent)

    def read(self, part: Part, log: ReadLog) -> Iterator[Document]:
        pictures = open_pictures(self.options.image_dir or part.root)
        for where, row in rows(part, log):
            try:
                caption = named(row, self.options.text_column, CAPTION)
                texts = captions_of(row, caption, self.options.captions)
                shown = pictures.get(text_of(row, "file_name", "no file_name"))
                meta = meta_of(row, caption)
            except BadRecord as bad:
                log.drop(bad.reason, where, bad.excerpt)
                continue
            for text in texts:
                yield Document("", (shown, TextSegment(text)), meta)


_TSV = (".tsv", ".tsv.gz", ".tsv.zst", ".tsv.bz2", ".tsv.xz")


def _is_coded(cell: str) -> bool:
    try:
        decoded(cell)
    except BadRecord:
        return False
    return True
