"""A model that loads while the user types: importing transformers takes longer than a prompt may.

Half of the seven seconds that a small export takes to load are imports.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mllm.errors import UserError

if TYPE_CHECKING:
    from mllm.chat.engine import Engine


def check_export(model_dir: str | Path) -> None:
    """What can be told at once, without torch.

    Raises:
        UserError: there is no export.
    """
    if not (Path(model_dir) / "config.json").is_file():
        raise UserError(
            f"{model_dir}: no model here; write one with `mllm export RUN --out {model_dir}`"
        )


class LoadingEngine:
    """Loads an engine in a thread of its own.

    Args:
        on_failure: told of the error, from that thread.
    """

    def __init__(
        self, model_dir: str | Path, on_failure: Callable[[BaseException], None] | None = None
    ) -> None:
        check_export(model_dir)
        self._model_dir = model_dir
        self._on_failure = on_failure
        self._engine: Engine | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._load, daemon=True)
        self._thread.start()

    def _load(self) -> None:
        try:
            from mllm.chat.engine import Engine

            self._engine = Engine(self._model_dir)
        except BaseException as error:
            self._error = error
            if self._on_failure is not None:
                self._on_failure(error)

    @property
    def is_ready(self) -> bool:
        return self._engine is not None

    def check(self) -> None:
        """
        Raises:
            UserError: it is known by now that it cannot be loaded.
        """
        if self._error is not None:
            raise self._error

    def get(self) -> "Engine":
        """The engine, waited for.

        Raises:
            UserError: it did not load.
        """
        while self._thread.is_alive():
            self._thread.join(0.1)  # short, so that Ctrl-C is heard
        self.check()
        assert self._engine is not None
        return self._engine
