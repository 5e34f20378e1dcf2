"""`mllm doctor`: healthy code passes every check, and each check fails under a fault of its kind.

Faults are planted in the code that is examined, not in the checks.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mllm.doctor.command
from mllm.config import Config
from mllm.doctor import training
from mllm.doctor.attention import _beside_sdpa, check_attention
from mllm.doctor.check import Check
from mllm.doctor.logits import check_export
from mllm.doctor.stream import check_stream
from mllm.doctor.training import check_losses, check_resumed
from mllm.doctor.world import NUM_STEPS, SAVED_AT, make_world, world_config
from mllm.hf import modeling_mllm
from mllm.hf.decoding import GrowingLayer
from mllm.hf.load import load_export
from mllm.hf.write import write_model
from mllm.launch import run_ranks
from mllm.model import attention
from mllm.model.init import build
from mllm.model.multimodal import MultimodalModel
from mllm.objectives import LanguageModelling
from mllm.stream import stream as token_stream
from mllm.stream.stream import TokenStream

MLLM = Path(sys.executable).with_name("mllm")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("doctor")
    make_world(root)
    return root


@pytest.fixture(scope="module")
def config(root: Path) -> Config:
    return world_config(root, root / "run")


@pytest.fixture(scope="module")
def exported(root: Path, config: Config) -> Any:
    tokenizer = root / "tokenizer" / "tokenizer.model"
    state = build(config.model, seed=0).state_dict()
    write_model(root / "export", state, config.model, tokenizer, resize="squash")
    return load_export(root / "export")


def by_name(checks: Iterator[Check] | list[Check]) -> dict[str, str]:
    return {check.name: check.status for check in checks}


def logits_checks(config: Config, exported: Any) -> dict[str, str]:
    return by_name(mllm.doctor.command._logits(config, exported, ""))


ISOLATION = "documents in a row do not see each other"
CACHE = "cached decoding = uncached"
BATCHES = "batch of 1 = batch of N"


# ------------------------------------------------------------------------------------- attention
def test_sdpa_agrees_and_gpu_backends_say_why_they_did_not_run() -> None:
    sdpa, *others = check_attention(CPU)
    assert sdpa.status == "pass" and sdpa.value is not None and sdpa.value > 0
    assert [check.status for check in others] == ["not run", "not run"]
    assert all(check.note == "no CUDA GPU" for check in others)


@pytest.mark.parametrize("fault", ["boundary lost", "not causal", "wrong gradient"])
def test_wrong_attention_is_found(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    if fault == "boundary lost":
        _lose_boundaries(monkeypatch)
    elif fault == "not causal":
        sdpa = torch.nn.functional.scaled_dot_product_attention
        monkeypatch.setattr(
            attention.F,
            "scaled_dot_product_attention",
            lambda *args, **settings: sdpa(*args, **settings | {"is_causal": False}),
        )
    else:  # rectangles' padding, whose queries see real keys, has a gradient
        monkeypatch.setattr(
            attention._Reindexed,
            "backward",
            staticmethod(lambda ctx, grad: (grad.index_select(0, ctx.inverse), None, None, None)),
        )
    assert check_attention(CPU)[0].status == "FAIL"


def test_a_gpu_backend_is_held_against_sdpa_and_may_break() -> None:
    """With kernels of our own in the place of a GPU's."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return query + key * 0.5 + value

    def broken(*args: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel image is available")

    def off(*args: torch.Tensor) -> torch.Tensor:
        return attend(*args) * 1.05

    found = [_beside_sdpa("kernel", kernel, attend, CPU) for kernel in (attend, off, broken)]
    assert [check.status for check in found] == ["pass", "FAIL", "FAIL"]
    assert found[2].note == "RuntimeError: no kernel image is available"


def _lose_boundaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row is one document to attention."""
    init = attention.Documents.__init__

    def with_one_document(self: Any, document_ids: torch.Tensor) -> None:
        init(self, document_ids.clamp(max=0))

    monkeypatch.setattr(attention.Documents, "__init__", with_one_document)


# ---------------------------------------------------------------------------------------- logits
def test_healthy_logits_pass(config: Config, exported: Any) -> None:
    assert set(logits_checks(config, exported).values()) == {"pass"}


def test_documents_that_see_each_other_are_found(
    monkeypatch: pytest.MonkeyPatch, config: Config, exported: Any
) -> None:
    _lose_boundaries(monkeypatch)
    found = logits_checks(config, exported)
    assert found == {ISOLATION: "FAIL", CACHE: "pass", BATCHES: "pass"}


def test_logits_that_never_change_are_no_proof_of_isolation(
    monkeypatch: pytest.MonkeyPatch, config: Config, exported: Any
) -> None:
    forward = MultimodalModel.forward
    monkeypatch.setattr(
        MultimodalModel, "forward", lambda *args, **settings: forward(*args, **settings) * 0
    )
    assert logits_checks(config, exported)[ISOLATION] == "FAIL"


def test_a_stale_cache_is_found(
    monkeypatch: pytest.MonkeyPatch, config: Config, exported: Any
) -> None:
    update = GrowingLayer.update

    def keep_old(self: Any, key: torch.Tensor, value: torch.Tensor, *args: Any) -> Any:
        """A step's key and value are those of the step before."""
        if self.get_seq_length() and key.shape[2] == 1:
            key, value = self.keys[:, :, -1:], self.values[:, :, -1:]
        return update(self, key, value, *args)

    monkeypatch.setattr(GrowingLayer, "update", keep_old)
    found = logits_checks(config, exported)
    assert found == {ISOLATION: "pass", CACHE: "FAIL", BATCHES: "pass"}


def test_padding_that_is_seen_is_found(
    monkeypatch: pytest.MonkeyPatch, config: Config, exported: Any
) -> None:
    mask = modeling_mllm.create_causal_mask
    monkeypatch.setattr(
        modeling_mllm,
        "create_causal_mask",
        lambda **settings: mask(**settings | {"attention_mask": None}),
    )
    found = logits_checks(config, exported)
    assert found == {ISOLATION: "pass", CACHE: "pass", BATCHES: "FAIL"}


def test_an_export_of_rounded_weights_is_found(
    root: Path, config: Config, exported: Any, tmp_path: Path
) -> None:
    modules = build(config.model, seed=0)
    stream = TokenStream.from_config(config)
    batch = stream.batch(0, rank=0, world_size=1, micro_batch_size=4)
    with torch.no_grad():
        _, losses = LanguageModelling(modules).eval()(batch)
    assert check_export("export", losses, exported[0], batch).status == "pass"
    rounded = {name: x.bfloat16().float() for name, x in modules.state_dict().items()}
    tokenizer = root / "tokenizer" / "tokenizer.model"
    write_model(tmp_path / "export", rounded, config.model, tokenizer, resize="squash")
    model, _ = load_export(tmp_path / "export")
    assert check_export("export", losses, model, batch).status == "FAIL"
    fewer = check_export("export", losses[1:], exported[0], batch)
    assert fewer.status == "FAIL" and "scored positions" in fewer.note


# ---------------------------------------------------------------------------------------- stream
def test_the_stream_passes(config: Config) -> None:
    check = check_stream(config)
    assert check.status == "pass" and check.value == 0


@pytest.mark.parametrize("fault", ["a step for each rank", "a seed of the rank", "a row twice"])
def test_a_stream_that_depends_on_the_rank_is_found(
    monkeypatch: pytest.MonkeyPatch, config: Config, fault: str
) -> None:
    batch = TokenStream.batch

    def faulty(self: TokenStream, step: int, micro_step: int = 0, **split: int) -> Any:
        if fault == "a step for each rank":
            found = batch(self, step + split["rank"], micro_step, **split)
            return replace(found, rows=[replace(row, step=step) for row in found.rows])
        found = batch(self, step, micro_step, **split)
        return replace(found, row_seeds=found.row_seeds + split["rank"])

    if fault == "a row twice":

        def deal_twice(*args: Any) -> np.ndarray:
            cells = deal(*args)
            cells[-1] = cells[0]
            return cells

        deal = token_stream.deal
        monkeypatch.setattr(token_stream, "deal", deal_twice)
    else:
        monkeypatch.setattr(TokenStream, "batch", faulty)
    assert check_stream(config).status == "FAIL"


# --------------------------------------------------------------------------------------- losses
def write_run(run_dir: Path, losses: list[float], start: int = 0, time: float = 0.0) -> Path:
    """Appends steps from `start`, written at `time`."""
    run_dir.mkdir(exist_ok=True)
    with (run_dir / "metrics.jsonl").open("a") as file:
        for step, loss in enumerate(losses, start + 1):
            line = {"step": step, "loss": loss, "applied": True, "time": time}
            file.write(json.dumps(line) + "\n")
    return run_dir


@pytest.mark.parametrize(
    ("change", "status"), [(0.0, "pass"), (5e-6, "pass"), (5e-5, "FAIL"), (math.nan, "FAIL")]
)
def test_losses_are_compared_step_by_step(tmp_path: Path, change: float, status: str) -> None:
    losses = [5.0 - 0.1 * step for step in range(NUM_STEPS)]
    one = write_run(tmp_path / "one", losses)
    losses[3] += change
    other = write_run(tmp_path / "other", losses)
    assert check_losses("losses", one, [one, other]).status == status
    assert check_losses("losses", other, [one]).status == status
    short = write_run(tmp_path / "short", losses[:-1])
    assert "5 of 6 steps" in check_losses("losses", one, [short]).note


def test_a_run_that_began_anew_is_no_resumed_run(tmp_path: Path) -> None:
    losses = [5.0] * NUM_STEPS
    whole = write_run(tmp_path / "whole", losses)
    resumed = write_run(tmp_path / "resumed", losses[:SAVED_AT])
    write_run(resumed, losses[SAVED_AT:], SAVED_AT, time=1.0)
    assert check_resumed("resumed", whole, resumed, 0.0).status == "pass"
    anew = write_run(tmp_path / "anew", losses, time=1.0)
    assert "after step 0" in check_resumed("resumed", whole, anew, 0.0).note


# ------------------------------------------------------------------------------- command and ranks
def test_ranks_that_hang_are_ended_and_a_failing_rank_is_quoted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(TimeoutError):
        run_ranks(["-c", "import time; time.sleep(60)"], 2, seconds=0.5)
    monkeypatch.setattr(training, "RANKS", ["-c", "raise ValueError('no such kernel')"])
    problem = training.launch(tmp_path, tmp_path / "out", training.STAGES, 1, is_on_cpu=True)
    assert problem == "a rank ended with 1: ValueError: no such kernel"


def test_the_exit_code_and_the_report_follow_the_checks(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    root: Path,
    config: Config,
) -> None:
    """Without a launch: a rank that fails is the fault."""
    monkeypatch.setattr(training, "RANKS", ["-c", "raise ValueError('no such kernel')"])
    assert mllm.doctor.command.main(["--json", "--model", _export_of(root, config)]) == 1
    report = json.loads(capsys.readouterr().out)
    status = {check["name"]: check["status"] for check in report["checks"]}
    assert [name for name, said in status.items() if said == "FAIL"] == [
        "losses of ZeRO 1 = 2 = 3, 2 ranks",
        "losses of a resumed run = whole, 2 ranks",
        "export = engine logits",
        "losses of 1 rank x 4 micro-steps = 2 x 2",
    ]
    for name in (ISOLATION, CACHE, BATCHES):
        assert status[name] == status[f"{name} (--model)"] == "pass"
    assert not report["passed"] and report["environment"]["torch"]
    monkeypatch.setattr(mllm.doctor.command, "_training", lambda *args: [])
    assert mllm.doctor.command.main([]) == 0
    assert "5 passed, 0 failed, 2 not run" in capsys.readouterr().out


def _export_of(root: Path, config: Config) -> str:
    """Another model than doctor's own: more layers, other rows."""
    sizes = replace(config.model, num_layers=3, seq_len=96, num_latents=5, position="sinusoidal")
    state = build(sizes, seed=1).state_dict()
    path = root / "another"
    write_model(path, state, sizes, root / "tokenizer" / "tokenizer.model", resize="squash")
    return str(path)


# ------------------------------------------------------------------------------------- all of it
@pytest.mark.slow
def test_all_of_it_passes_as_the_installed_command(tmp_path: Path) -> None:
    done = subprocess.run([str(MLLM), "doctor", "--json"], capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["passed"], report
    assert [check["status"] for check in report["checks"]].count("pass") == 9


@pytest.mark.slow
def test_faults_in_training_are_found(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Of faulty_ranks.py, one in each leg; two launches."""
    script = Path(__file__).with_name("faulty_ranks.py")
    monkeypatch.setattr(training, "RANKS", [str(script)])
    for folder in ("two-ranks", "one-rank"):
        assert not (root / folder).exists()
    checks = list(mllm.doctor.command._training(root, CPU))
    assert len(checks) == 4
    for check in checks:
        assert check.status == "FAIL" and check.value is not None, check
