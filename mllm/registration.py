"""Registers the exported classes with `transformers` once somebody asks it for an Auto class.

`import mllm` stands at the start of every command and every loader worker, so it must load neither
torch nor `transformers`. And importing `mllm.hf` while `transformers` is being imported would go in
a circle where the importer is one of our own modules. So the first look at `transformers.Auto...`
or `transformers.pipeline` is what loads `mllm.hf`: `transformers` is a module that imports its
names when they are looked at, and by then whoever looks has imported what it needs.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

LIBRARY = "transformers"
AUTO_CLASSES = "transformers.models.auto.auto_factory"  # loaded: somebody may hold one already


def register_when_used() -> None:
    """Imports `mllm.hf` when it is needed: now, at the first look at an Auto class, or never."""
    if AUTO_CLASSES in sys.modules:
        importlib.import_module("mllm.hf")
    elif LIBRARY in sys.modules:
        _watch(type(sys.modules[LIBRARY]))
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds `transformers` as the other finders do, and watches it once it is loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != LIBRARY:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_watch(module: ModuleType) -> None:
            del loader.exec_module  # the class's own again
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _watch(type(sys.modules[LIBRARY]))  # not `module`: it puts another in its place

        loader.exec_module = execute_and_watch
        return spec


def _watch(lazy: Any) -> None:
    """Has the first look at an Auto class on `transformers` import `mllm.hf`.

    The class is watched and not the module, because `transformers.processing_utils` puts a second
    such module in the place of the first.

    Args:
        lazy: the class of the module `transformers`, whose attributes are imported when looked at.
    """
    look_up = lazy.__getattr__

    def __getattr__(self: ModuleType, name: str) -> Any:
        value = look_up(self, name)
        if self.__name__ == LIBRARY and (name.startswith("Auto") or name == "pipeline"):
            lazy.__getattr__ = look_up
            importlib.import_module("mllm.hf")
        return value

    lazy.__getattr__ = __getattr__
