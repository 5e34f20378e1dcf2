"""The whole recipe at a tiny size: vision, pretrain, instruct and export, by the installed verb."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from corpora.reader import Corpus
from mllm.hf.load import load_export
from mllm.stream.encode import encode
from tests.conftest import World, write_corpus
from tests.instructions import instruction_documents
from tests.scenarios import MODEL
from tokenizer.specials import EOS_ID
from tokenizer.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent.parent
TRAIN = {
    "num_steps": 6,
    "micro_batch_size": 2,
    "global_batch_size": 4,
    "precision": "fp32",
    "peak_lr": 3e-3,
    "warmup_steps": 2,
    "train_last_blocks": 2,
}


def write_stage(folder: Path, world: World, stage: str, sources: dict[str, float], **keys: Any):
    paths = {name: str(getattr(world, name, folder / name)) for name in sources}
    config = {
        "run_dir": f"runs/{stage}",
        "tokenizer": "runs/tokenizer",
        "stage": stage,
        "data": {
            "mixture": [
                {"name": name, "path": paths[name], "weight": weight}
                for name, weight in sources.items()
            ],
            "unit": "rows",
            "num_workers": 0,
        },
        "model": MODEL,
        "train": TRAIN | keys.pop("train", {}),
    }
    (folder / f"{stage}.yaml").write_text(yaml.safe_dump(config | keys))


def mllm(folder: Path, *words: str) -> subprocess.CompletedProcess:
    # The verb of this checkout, whatever is installed.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "mllm.cli", *words]
    return subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


def losses(folder: Path, stage: str) -> list[float]:
    lines = (folder / "runs" / stage / "metrics.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


@pytest.mark.slow
def test_vision_pretrain_instruct_and_export_in_one_recipe(world: World, tmp_path: Path) -> None:
    write_corpus(tmp_path / "instruct", instruction_documents(40))
    whole_batch = {"micro_batch_size": 12, "global_batch_size": 12}
    contrast = {"contrastive": {"embed_dim": 16}}
    write_stage(tmp_path, world, "vision", {"pairs": 1}, train=whole_batch, **contrast)
    mixture = {"pairs": 5, "text": 5, "interleaved": 2}
    write_stage(tmp_path, world, "pretrain", mixture, init_from="runs/vision")
    tuned = {"instruct": 3, "text": 1}
    longer = {"num_steps": 40}
    write_stage(tmp_path, world, "instruct", tuned, init_from="runs/pretrain", train=longer)
    corpora = [str(world.pairs), str(world.text), str(tmp_path / "instruct")]
    tokenizer = ["tokenizer", "train", *corpora, "--out", "runs/tokenizer", "--vocab-size", "360"]
    steps = [
        {"name": "tokenizer", "mllm": tokenizer, "writes": "runs/tokenizer"},
        *({"name": s, "train": f"{s}.yaml"} for s in ("vision", "pretrain", "instruct")),
        {
            "name": "export",
            "mllm": ["export", "runs/instruct", "--out", "runs/export"],
            "writes": "runs/export",
            "done": "config.json",
        },
    ]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"out": "runs", "steps": steps}))

    done = mllm(tmp_path, "recipe", "recipe.yaml")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert all(
        entry["is_done"]
        for entry in json.loads((tmp_path / "runs/times.json").read_text()).values()
    )
    for stage, source in (("pretrain", "vision"), ("instruct", "pretrain")):
        assert f"tensors from runs/{source}" in done.stdout
        assert (tmp_path / "runs" / stage / "checkpoints" / "latest").is_file()
    outputs = [
        entry["loss_by_source"]["instruct"]
        for entry in map(json.loads, (tmp_path / "runs/instruct/metrics.jsonl").open())
        if "loss" in entry
    ]
    assert len(outputs) == 40
    assert sum(outputs[-5:]) < 0.6 * sum(outputs[:5]), outputs

    # The export speaks as it was taught: a conversation of the corpus has the trainer's ids.
    model, processor = load_export(tmp_path / "runs/export")
    document = Corpus(tmp_path / "instruct").document(0)
    sequence = encode(document, Tokenizer(tmp_path / "runs/tokenizer"), model.config.num_latents)
    assert processor.template == "instruction"
    picture, question = document.segments[0].data, document.segments[1].text  # type: ignore
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    asked = processor.apply_chat_template([{"role": "user", "content": content}])
    ids = asked["input_ids"][0].tolist()
    assert sequence.token_ids.tolist()[: len(ids)] == ids
    assert sequence.is_scored[len(ids)]
    answered = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": document.segments[2].text},  # type: ignore
    ]
    said = processor.apply_chat_template(answered, continue_final_message=True)
    with torch.no_grad():
        ends = model(**said).logits[0, -1].softmax(-1)[EOS_ID]
    assert ends > 10 / model.config.vocab_size, float(ends)  # it has begun to learn where to stop

    # Again: nothing runs. A longer last stage: it goes on, and the export is stale.
    again = mllm(tmp_path, "recipe", "recipe.yaml")
    assert again.returncode == 0 and again.stdout.count("done before") == 5
    text = (tmp_path / "instruct.yaml").read_text()
    (tmp_path / "instruct.yaml").write_text(text.replace("num_steps: 40", "num_steps: 42"))
    refused = mllm(tmp_path, "recipe", "recipe.yaml")
    assert refused.returncode == 2 and "'export' in runs/export; --redo" in refused.stderr
    redone = mllm(tmp_path, "recipe", "recipe.yaml", "--redo")
    assert redone.returncode == 0, redone.stderr
    assert "resumed from runs/instruct/checkpoints/step-00000040" in redone.stdout
    assert len(losses(tmp_path, "instruct")) == 42
    assert json.loads((tmp_path / "runs/export/export.json").read_text())["step"] == 42
