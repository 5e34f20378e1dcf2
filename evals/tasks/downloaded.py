"""Tasks on a data set as downloaded: queries of one part, exemplars of its training part."""

import gc
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from evals.api import Exemplar, Model, Prompt, Support, Task
from evals.layouts.images import HasImage, Part, existing_images
from evals.layouts.release import lacking, listing_fingerprint
from evals.options import TaskOptions
from evals.tasks.styles import Style
from mllm.files import fingerprint

R = TypeVar("R", bound=HasImage)


class Records(Generic[R]):
    """A part of a data set by id. No picture is opened.

    Args:
        folder: The data set's. Where it lies does not count, where pictures lie below it does.
        records: In the order of the files.
        key: A record's id.
        skip_missing: Leave out, and count, records whose picture is missing.

    Raises:
        UserError: Pictures are missing and `skip_missing` is not set, or all are.
    """

    def __init__(
        self, folder: Path, records: Sequence[R], key: Callable[[R], str], skip_missing: bool
    ) -> None:
        self.folder = folder
        kept, _ = existing_images(records, skip_missing)
        self.num_read = len(records)
        self.num_left_out = len(records) - len(kept)
        self.by_id = {key(record): record for record in kept}

    def __iter__(self):
        return iter(self.by_id.values())

    @cached_property
    def fingerprint(self) -> str:
        """Over all that the files say, and the pictures' names."""
        digest = hashlib.sha256()
        names: list[str] = []
        for record in self.by_id.values():
            names = names or [field.name for field in fields(record)]  # type: ignore[arg-type]
            digest.update(repr([self._content(getattr(record, name)) for name in names]).encode())
        return digest.hexdigest()[:16]

    def _content(self, value: Any) -> Any:
        return str(value).removeprefix(str(self.folder)) if isinstance(value, Path) else value

    def support(
        self, show: Callable[[R], Exemplar], label: Callable[[R], str] | None = None
    ) -> Support:
        """Every record as an exemplar; `label` is its class for `--select balanced`."""

        def read(sample_id: str) -> Exemplar:
            return show(self.by_id[sample_id])

        def label_of(sample_id: str) -> str:
            assert label is not None
            return label(self.by_id[sample_id])

        ids = tuple(sorted(self.by_id))
        return Support(ids, self.fingerprint, read, label_of if label else None)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Millions of new objects, none of them garbage, and Python's collector would look through all
    of them again and again: two thirds of the time of reading COCO's captions."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Downloaded(Task, Generic[R]):
    """Queries are the records of the part `evaluation`; the part `training` is read where shots
    are asked for.

    Args:
        size: Questions of the release, so that half a file is seen; None where that is not known.
    """

    size: int | None = None

    def read(self, folder: Path, options: TaskOptions) -> None:
        """
        Raises:
            UserError: A file or a picture is missing, or a file is not as it was released.
        """
        self.folder_path = folder
        self.skip_missing = options.skip_missing
        self.questions = self._part("evaluation")
        self.examples: Records[R] | None = None  # until shots are asked for
        self.corpus_name = self.name

    def _part(self, part: Part) -> Records[R]:
        with _no_collection():
            return Records(self.folder_path, self.load(part), self.key, self.skip_missing)

    def load(self, part: Part) -> list[R]:
        raise NotImplementedError

    def key(self, record: R) -> str:
        raise NotImplementedError

    def show(self, record: R) -> Exemplar:
        raise NotImplementedError

    def label(self, record: R) -> str:
        """The class that `--select balanced` evens out."""
        return self.show(record).answer

    def ids(self) -> list[str]:
        return list(self.questions.by_id)

    @cached_property
    def _support(self) -> Support:
        self.examples = self._part("training")
        return self.examples.support(self.show, self.label)

    def support(self) -> Support:
        return self._support

    @cached_property
    def data_fingerprint(self) -> str:
        pictures = {record.image_path for record in self.questions}
        return fingerprint(
            [self.questions.fingerprint, listing_fingerprint(self.folder_path, pictures)]
        )

    def problems(self) -> dict[str, int]:
        counts = {
            "whose picture is missing": self.questions.num_left_out,
            "exemplars whose picture is missing": self.examples.num_left_out
            if self.examples
            else 0,
        }
        return {why: count for why, count in counts.items() if count} | lacking(
            self.size, self.questions.num_read
        )


class Styled(Downloaded[R]):
    """One whose words around picture and answer are the user's choice."""

    style: Style

    def fitted(self, prompt: Prompt, model: Model) -> Prompt:
        """After the style's instruction, where it has one. Nothing is cut."""
        return self.style.instructed(prompt)

    def decode_as(self, style: Style) -> None:
        """Takes over what the style's authors chose about decoding."""
        for name, value in style.decoding.items():
            setattr(self, name, value)
        self.stops = style.stops
