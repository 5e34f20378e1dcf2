import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from mllm.chat.engine import Engine
from tests.hf.tiny import make_tiny, picture, png


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A model that has learnt a few lines, so that its answers are words and its logits apart."""
    return make_tiny(tmp_path_factory.mktemp("tiny"), num_steps=80, seq_len=256)


@pytest.fixture(scope="session")
def instructed(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights under the template of the instruct stage."""
    import json
    import shutil

    path = tmp_path_factory.mktemp("instructed") / "export"
    shutil.copytree(tiny.export, path)
    file = path / "processor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"template": "instruction"}))
    return path


@pytest.fixture(scope="module")
def engine(tiny: SimpleNamespace) -> Engine:
    return Engine(tiny.export)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with pictures in it and what is none."""
    (tmp_path / "cat.png").write_bytes(png(1))
    (tmp_path / "two words.png").write_bytes(png(2))
    (tmp_path / "bad.png").write_bytes(b"not a picture at all")
    (tmp_path / "drawn.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    animation = io.BytesIO()
    picture(3).save(animation, "GIF", save_all=True, append_images=[picture(4)])
    (tmp_path / "moving.gif").write_bytes(animation.getvalue())
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path
