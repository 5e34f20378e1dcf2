"""`mllm export`: whole folder or none, and the weights, pictures and records that were trained."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import save_file

from corpora.document import Document, ImageSegment, TextSegment, Turn
from mllm import export as export_module
from mllm.checkpoint import init_from
from mllm.cli import main
from mllm.files import sha256_file, write_json
from mllm.hf import folder
from mllm.hf.load import load_export, load_processor
from mllm.model.init import build
from mllm.model_card import find_attributions
from mllm.stream.encode import encode
from tests.hf.tiny import TEXT, make_tiny, png
from tokenizer.specials import BOS_ID, EOS_ID
from tokenizer.train import train


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def run_dir(tiny, tmp_path):
    """A run folder as the trainer leaves it, without its optimizer states."""
    run_dir = tmp_path / "run"
    checkpoint = run_dir / "checkpoints" / "step-00000042"
    checkpoint.mkdir(parents=True)
    corpus = tmp_path / "corpus"
    (corpus / "pairs" / "train").mkdir(parents=True)
    (corpus / "ATTRIBUTION.md").write_text("Pictures: somebody, CC0.\n")
    state = {k: v for k, v in tiny.engine.state_dict().items() if k != "head.weight"}
    save_file(state, checkpoint / "model.safetensors")
    write_json(checkpoint / "model_config.json", tiny.config.to_dict())
    shutil.copyfile(tiny.root / "tokenizer.model", checkpoint / "tokenizer.model")
    files = ("model.safetensors", "model_config.json", "tokenizer.model", "state.json")
    write_json(checkpoint / "state.json", {"step": 42})
    manifest = {
        name: {
            "bytes": (checkpoint / name).stat().st_size,
            "sha256": sha256_file(checkpoint / name),
        }
        for name in files
    }
    write_json(checkpoint / "manifest.json", manifest)
    write_json(run_dir / "stream.json", {"fingerprint": "0123456789abcdef"})
    config = {
        "run_dir": str(run_dir),
        "tokenizer": str(tiny.root),
        "data": {
            "mixture": [{"name": "pairs", "path": str(corpus / "pairs" / "train"), "weight": 2}],
            "resize": "crop",
        },
        "model": tiny.config.to_dict(),
    }
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    return run_dir


def test_an_export_holds_the_trained_weights_and_says_where_they_come_from(
    tiny, run_dir, tmp_path, capsys
):
    out = tmp_path / "export"
    assert main(["export", str(run_dir), "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    record = json.loads((out / "export.json").read_text())
    assert printed == {"out": str(out), **record}
    assert (record["step"], record["stream_fingerprint"]) == (42, "0123456789abcdef")
    model, processor = load_export(out)
    for name, weight in tiny.engine.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], weight), name
    assert processor.image_processor.resize == "crop"
    assert (out / "ATTRIBUTION.md").read_text().startswith("Pictures: somebody")
    card = (out / "README.md").read_text()
    for part in ("0123456789abcdef", "* pairs: 2", "42 steps", "ATTRIBUTION.md", "model_dim: 32"):
        assert part in card
    assert not list(tmp_path.glob("export.*"))


def test_ids_of_the_export_equal_the_streams(tiny):
    """The trainer's encoder and the processor write one document alike, `</s>` apart."""
    document = Document(
        "key",
        (
            ImageSegment(png(1)),
            TextSegment("Question: is there a circle? Answer:", is_scored=False),
            TextSegment(" no, <image>"),
            ImageSegment(png(2)),
            TextSegment("\nAn owl é"),
        ),
    )
    trained = encode(document, tiny.tokenizer, tiny.config.num_latents)
    segments = [s.data if isinstance(s, ImageSegment) else s.text for s in document.segments]
    prompt = tiny.processor.encode(segments)
    assert prompt.token_ids == trained.token_ids[:-1].tolist()
    assert tuple(prompt.pictures) == trained.images


@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
@pytest.mark.parametrize("export_format", ["mllm", "kosmos2"])
def test_an_export_asks_as_its_stage_was_taught(tiny, run_dir, tmp_path, stage, export_format):
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config | {"stage": stage}))
    if export_format == "kosmos2":
        path = run_dir / "checkpoints" / "step-00000042" / "model_config.json"
        sizes = json.loads(path.read_text()) | {"position": "sinusoidal"}
        write_json(path, sizes)
        files = json.loads((path.parent / "manifest.json").read_text())
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        write_json(path.parent / "manifest.json", files)
    export_module.export(run_dir, tmp_path / "export", export_format)
    processor = load_processor(tmp_path / "export")
    asked = [{"role": "user", "content": "is it red?"}]
    ids = processor.apply_chat_template(asked)["input_ids"][0].tolist()
    encoded = tiny.tokenizer.encode
    if stage == "pretrain":
        assert ids == [BOS_ID, *encoded("Question: is it red? Answer:")]
        return
    said = (TextSegment("is it red?", is_scored=False), TextSegment("no"))
    document = Document("key", said, turns=(Turn("user", 1), Turn("assistant", 1)))
    trained = encode(document, tiny.tokenizer, tiny.config.num_latents)
    assert trained.token_ids.tolist() == [*ids, *encoded(" no"), EOS_ID]
    assert trained.is_scored.tolist() == [False] * len(ids) + [True] * (len(encoded(" no")) + 1)


def test_an_older_export_is_replaced_and_any_other_folder_is_not(tiny, run_dir, tmp_path, capsys):
    out = tmp_path / "export"
    for _ in range(2):
        assert (
            main(["export", str(run_dir / "checkpoints" / "step-00000042"), "--out", str(out)]) == 0
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "export", "run"]
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.txt").write_text("years of work")
    assert main(["export", str(run_dir), "--out", str(other)]) == 2
    assert "exists and is no export" in capsys.readouterr().err
    assert [path.name for path in other.iterdir()] == ["chapter1.txt"]


def test_a_failure_leaves_nothing_behind(tiny, run_dir, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "replace_folder", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_module.export(run_dir, tmp_path / "export")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "run"]


def test_a_run_without_checkpoint_is_one_clear_line(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "no checkpoint" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_place_or_run_that_cannot_do_is_one_line(run_dir, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out, reason in (
        (str(tmp_path / "file"), "is a file; name a new folder"),
        (".", "--out . cannot be replaced"),
        (f"{tmp_path}/run/..", "cannot be replaced"),
    ):
        assert main(["export", str(run_dir), "--out", out]) == 2
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1
    (run_dir / "stream.json").unlink()
    assert main(["export", str(run_dir), "--out", str(tmp_path / "export")]) == 2
    error = capsys.readouterr().err
    assert "stream.json is missing" in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "file", "run"]


def test_out_below_a_file_is_one_line_and_exit_code_2(run_dir, tmp_path):
    (tmp_path / "file").write_text("mine")
    out = str(tmp_path / "file" / "export")
    line = [sys.executable, "-m", "mllm.cli", "export", str(run_dir), "--out", out]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (error,) = done.stderr.splitlines()
    assert error.startswith(f"mllm: error: {out}")
    assert error.endswith(": Not a directory; choose another place or free space")


def test_a_disk_too_full_for_the_weights_is_one_line(run_dir, tmp_path):
    out = str(tmp_path / "export")
    line = [sys.executable, "-m", "mllm.cli", "export", str(run_dir), "--out", out]
    limit = 'ulimit -f 64; exec "$@"'  # KiB a file: less than the weights take
    done = subprocess.run(["bash", "-c", limit, "bash", *line], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith("mllm: error: ") and "File too large" in error
    assert error.endswith("choose another place or free space")
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "run"]


def test_attributions_of_all_corpora_are_kept_once_each(tmp_path):
    for name, text in (("one", "A.\n"), ("two", "B.\n"), ("copy", "A.\n")):
        (tmp_path / name / "pairs").mkdir(parents=True)
        (tmp_path / name / "ATTRIBUTION.md").write_text(text)
    paths = [str(tmp_path / name / "pairs") for name in ("one", "two", "copy", "one")]
    assert find_attributions(paths) == ["A.\n", "B.\n"]
    assert find_attributions([str(tmp_path / "absent" / "pairs" / "train")]) == []


def test_the_checkpoints_own_tokenizer_is_exported_whatever_lies_at_its_old_path(
    tiny, run_dir, tmp_path
):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.model").write_bytes(train(iter(TEXT * 4), 312))
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    config["tokenizer"] = str(tmp_path / "other")
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    export_module.export(run_dir, tmp_path / "export")
    exported = (tmp_path / "export" / "tokenizer.model").read_bytes()
    assert exported == (tiny.root / "tokenizer.model").read_bytes()


def test_weights_in_shards_load_and_begin_another_run(tiny, run_dir, tmp_path, capsys):
    out = tmp_path / "export"
    assert main(["export", str(run_dir), "--out", str(out), "--max-shard-size", "40KB"]) == 0
    shards = sorted(out.glob("model-*-of-*.safetensors"))
    assert len(shards) > 3 and not (out / "model.safetensors").exists()
    model, _ = load_export(out)
    fresh = build(tiny.config, seed=9)
    _, missing = init_from(fresh, out)
    assert missing == []
    for name, weight in tiny.engine.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], weight), name
        assert torch.equal(fresh.state_dict()[name], weight), name
    for size in ("0GB", "much", "5", "-1MB"):
        line = ["export", str(run_dir), "--out", str(out), f"--max-shard-size={size}"]
        assert main(line) == 2
        assert f"--max-shard-size {size}: a number and a unit" in capsys.readouterr().err


def test_the_card_has_the_scores_of_these_weights_and_of_no_others(tiny, run_dir, tmp_path):
    out = tmp_path / "export"
    export_module.export(run_dir, out)
    assert "## Scores" not in (out / "README.md").read_text()
    cell = {"suite": "naming", "split": "final", "num_shots": 4, "metric": "accuracy", "unit": "%"}
    cell |= {"score": 66.4321, "se": 2.1, "n": 500, "chance": 20.0, "blind": {"score": 20.61}}
    results = {"model_fingerprint": folder.model_fingerprint(out), "cells": [cell]}
    write_json(run_dir / "eval" / "demo" / "results.json", results)
    export_module.export(run_dir, out)
    card = (out / "README.md").read_text()
    assert "| naming (final) | 4 | accuracy % | 66.43 ± 2.1 | 500 | 20 | 20.61 |" in card
    assert card.index("## Data") < card.index("## Scores") < card.index("## Recipe")
    other = {"model_fingerprint": "0" * 16, "cells": [cell]}
    write_json(run_dir / "eval" / "demo" / "results.json", other)
    export_module.export(run_dir, out)
    assert "## Scores" not in (out / "README.md").read_text()


def test_a_kosmos2_export_of_an_xpos_run_is_refused_with_the_reason(run_dir, tmp_path, capsys):
    line = ["export", str(run_dir), "--out", str(tmp_path / "out"), "--format", "kosmos2"]
    assert main(line) == 2
    error = capsys.readouterr().err
    assert "model.position: xpos cannot be exported as kosmos2 (Kosmos-2 has no xPos)" in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_kosmos2_export_says_how_to_load_it(tiny, run_dir, tmp_path):
    path = run_dir / "checkpoints" / "step-00000042" / "model_config.json"
    write_json(path, {**tiny.config.to_dict(), "position": "sinusoidal"})
    manifest = json.loads((path.parent / "manifest.json").read_text())
    manifest[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_json(path.parent / "manifest.json", manifest)
    out = tmp_path / "out"
    assert main(["export", str(run_dir), "--out", str(out), "--format", "kosmos2"]) == 0
    card = (out / "README.md").read_text()
    assert "from transformers import Kosmos2ForConditionalGeneration, AutoProcessor" in card
    assert "vLLM are out of scope" in card
    assert json.loads((out / "config.json").read_text())["model_type"] == "kosmos-2"
    assert not (out / "modeling_mllm.py").exists()
    assert (out / "processing_mllm.py").is_file()


def test_help_says_what_is_out_of_scope(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "GGUF (llama.cpp) and vLLM are out of scope" in capsys.readouterr().out
