import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from mllm.errors import UserError
from mllm.stream.command import main, parse_steps

ROW_KEYS = {
    *("step", "rank", "micro_step", "row", "source"),
    *("samples", "tokens", "scored_tokens", "images"),
}


@pytest.fixture
def config(world, tmp_path):
    values = {
        "run_dir": str(tmp_path / "run"),
        "tokenizer": str(world.tokenizer_dir),
        "seed": 3,
        "data": {
            "mixture": [
                {"name": "pairs", "path": str(world.pairs), "weight": 0.6, "join_documents": 0.5},
                {"name": "text", "path": str(world.text), "weight": 0.4},
            ]
        },
        "model": {"seq_len": 192, "num_latents": 4, "vision": {"image_size": 16, "patch_size": 8}},
        "train": {"micro_batch_size": 2, "global_batch_size": 8},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def show(capsys, *arguments):
    assert main(["show", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_show_prints_the_same_samples_at_any_world_size(config, capsys):
    by_world = {
        world_size: show(capsys, config, "--steps", "3:5", "--world-size", world_size)
        for world_size in (1, 2, 4)
    }
    assert all(len(rows) == 16 and set(rows[0]) == ROW_KEYS for rows in by_world.values())
    for rows in by_world.values():
        assert [(r["step"], r["row"]) for r in rows] == [(s, n) for s in (3, 4) for n in range(8)]
        assert [r["samples"] for r in rows] == [r["samples"] for r in by_world[1]]
    assert {r["rank"] for r in by_world[4]} == {0, 1, 2, 3}


def test_step_ten_million_is_as_near_as_step_nought(config, capsys):
    began = time.perf_counter()
    rows = show(capsys, config, "--steps", "10000000:10000001", "seed=4")
    assert rows[0]["step"] == 10_000_000
    assert time.perf_counter() - began < 5


def test_describe_tells_padding_cuts_and_shares(config, capsys):
    (found,) = show(capsys, config, "--describe")
    assert found["sources"]["pairs"]["token_share"] == pytest.approx(0.6, abs=0.01)
    assert 0 <= found["padding"] < 0.2


def test_mistakes_name_the_flag(config):
    for text in ("", "a:b", "3:3", "5:2", "-1:2"):
        with pytest.raises(UserError, match="--steps"):
            parse_steps(text)
    with pytest.raises(UserError, match="3 ranks x"):
        main(["show", str(config), "--steps", "0:1", "--world-size", "3"])


def test_ctrl_c_in_a_prefetching_loop_ends_the_process_at_once(config):
    code = f"""
import time
from mllm.config import load_config
from mllm.stream.loader import Loader
from mllm.stream.stream import TokenStream
stream = TokenStream.from_config(load_config({str(config)!r}))
with Loader(stream, rank=0, world_size=1, micro_batch_size=2, num_workers=2) as loader:
    for step, _ in loader:
        print(step, flush=True)
        time.sleep(0.05)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert "KeyboardInterrupt" in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
