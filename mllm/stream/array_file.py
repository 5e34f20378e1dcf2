"""Arrays that grow on disk: appended to part by part in bounded memory, read back memory-mapped."""

from pathlib import Path
from typing import Self

import numpy as np

from corpora.ragged import BLOCK


class ArrayFile:
    """An .npy file of one dimension that is appended to; whole once it is closed."""

    def __init__(self, path: Path, dtype: np.typing.DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self.length = 0
        self._file = open(path, "wb")  # noqa: SIM115 (closed by `close`)
        self._write_header()

    def _write_header(self) -> None:
        # numpy pads a header for any length of the first axis, so that it can be written again.
        header = np.lib.format.header_data_from_array_1_0(np.empty(0, self.dtype))
        np.lib.format.write_array_header_1_0(self._file, {**header, "shape": (self.length,)})

    def append(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self.length += len(values)

    def close(self) -> None:
        """Names the length in the header."""
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class RaggedFile:
    """A `corpora.ragged.Ragged` that is appended to, in the files that `Ragged.load` reads."""

    def __init__(self, folder: Path, name: str, dtype: np.typing.DTypeLike) -> None:
        self.total = 0
        self._counts = ArrayFile(folder / f"{name}_counts.npy", dtype)
        self._blocks = ArrayFile(folder / f"{name}_blocks.npy", np.int64)

    def append(self, counts: np.ndarray) -> None:
        starts = self.total + np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._blocks.append(starts[-self._counts.length % BLOCK : -1 : BLOCK])
        self._counts.append(counts)
        self.total = int(starts[-1])

    def close(self) -> None:
        self._blocks.append(np.array([self.total]))
        self._counts.close()
        self._blocks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
