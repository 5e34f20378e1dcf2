"""Real DeepSpeed on one and two CPU ranks: equalities over stages, splits and resumes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from corpora.reader import Corpus
from mllm.checkpoint import init_from, latest
from mllm.config import load_config
from mllm.dist import free_port
from mllm.errors import UserError
from mllm.export import export
from mllm.hf.load import load_export
from mllm.images import normalise, open_picture, to_pixels
from mllm.launch import main as train_command
from mllm.model.config import ModelConfig
from mllm.model.flops import step_flops
from mllm.model.multimodal import MultimodalModel
from mllm.stages import build_stage
from mllm.stages.contrast import pair_flops
from mllm.stream.command import main as show_stream
from mllm.stream.pairs import PairStream
from mllm.stream.stream import TokenStream
from tests.conftest import World, square

SCENARIOS = Path(__file__).with_name("scenarios.py")


@pytest.fixture(scope="session")
def runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of finished runs: the scenarios on one rank and, by the launcher, on two."""
    out = tmp_path_factory.mktemp("runs")
    launcher = Path(sys.executable).with_name("deepspeed")
    port = str(free_port())
    for command in (
        [sys.executable],
        [str(launcher), "--master_port", port, "--num_accelerators", "2"],
    ):
        done = subprocess.run(
            [*command, str(SCENARIOS), str(world.root), str(out)],
            capture_output=True,
            text=True,
            timeout=1500,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in lines(run_dir) if "loss" in line]


def codes(runs: Path) -> dict[str, Any]:
    return json.loads((runs / "r1.json").read_text()) | json.loads((runs / "r2.json").read_text())


def final_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / "step-00000006" / "model.safetensors")


def test_losses_fall(runs: Path) -> None:
    values = losses(runs / "whole-1")
    assert len(values) == 6 and values[-1] < values[0] - 0.5


@pytest.mark.parametrize(
    "other",
    ["zero0-1", "zero2-1", "zero3-1", "one-micro-step", "resplit-1"]
    + ["zero0-2", "whole-2", "zero2-2", "zero3-2", "resplit-2"],
)
def test_zero_stages_and_splits_agree_in_fp32_with_dropout(runs: Path, other: str) -> None:
    """1 rank x 4 micro-steps = 1 x 1 = 2 x 2, ZeRO 0 = 1 = 2 = 3; resplit: other ones after step 3.

    Masks that follow from the rank and the micro-step move these losses by 4e-2.
    """
    model = load_config(runs / other / "config.yaml").model
    assert model.dropout == 0.1 and model.attention_dropout == 0
    ours, theirs = losses(runs / "whole-1"), losses(runs / other)
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-5


def moved(run_dir: Path) -> dict[str, Any]:
    """All that training computed, to the bit: weights, losses and gradient norms."""
    steps = [line for line in lines(run_dir) if "loss" in line]
    weights = load_file(latest(run_dir) / "model.safetensors")
    assert [line["step"] for line in steps] == [1, 2]
    numbers = {
        f"{key} {line['step']}": line[key] for line in steps for key in ("loss", "grad_norm")
    }
    return numbers | {name: weight.tolist() for name, weight in weights.items()}


def test_training_is_bit_equal_with_validation_and_generation_on_or_off(runs: Path) -> None:
    """ZeRO-3 on two ranks, with both kinds of dropout; a gradient left behind would be seen."""
    assert moved(runs / "validated") == moved(runs / "unvalidated")
    assert moved(runs / "leaking") != moved(runs / "unvalidated")
    assert [line["step"] for line in lines(runs / "validated") if "validation" in line] == [1, 2]
    assert [line["step"] for line in generations(runs / "validated")] == [1, 2]
    assert not any("validation" in line for line in lines(runs / "unvalidated"))


def generations(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "generations.jsonl").read_text().splitlines()]


def test_two_ranks_validate_like_one(runs: Path) -> None:
    """Five rows a source on four micro-batches of one rank, on three of two."""
    one, two = ([x for x in lines(runs / f"zero3-{n}") if "validation" in x] for n in (1, 2))
    assert len(one) == 1 and one[0].keys() == two[0].keys()
    for key in ("validation", "validation_bits_per_byte"):
        assert list(one[0][key]) == ["pairs", "text", "vqa"]
        assert one[0][key] == pytest.approx(two[0][key], rel=1e-5)
    assert generations(runs / "zero3-1") == generations(runs / "zero3-2")


def test_completions_in_training_are_those_of_the_exported_checkpoint(
    runs: Path, world: World, tmp_path: Path
) -> None:
    """ZeRO-3 on two ranks, against `generate` of the export, a prompt at a time."""
    export(runs / "zero3-2", tmp_path / "export")
    model, processor = load_export(tmp_path / "export")
    ((line, *others),) = [generations(runs / "zero3-2")]
    assert line["step"] == 6 and len(line["samples"]) == 4 and not others
    for sample in line["samples"]:
        corpus = Corpus(world.root / sample["source"])
        picture = corpus.document(corpus.keys.index(sample["key"])).images[0]
        before, after = sample["prompt"].split("<image>")
        inputs = processor.from_segments([[part for part in (before, picture, after) if part]])
        ids = model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(ids, skip_special_tokens=True) == sample["completion"]


def test_bf16_follows_fp32(runs: Path) -> None:
    """Its own stages and splits: test_equality.py."""
    bf16, fp32 = losses(runs / "bf16-whole-1"), losses(runs / "whole-1")
    assert all(abs(a / b - 1) < 1e-2 for a, b in zip(bf16, fp32, strict=True))


def test_bf16_with_stage_0_is_refused(runs: Path) -> None:
    assert "bf16 with zero.stage 0" in codes(runs)["bf16-zero0"]


@pytest.mark.parametrize(
    ("name", "other"),
    [(f"no-dry-pass-{s}-{size}", f"zero{s}-{size}") for s in (0, 2, 3) for size in (1, 2)]
    + [("no-dry-pass-1-1", "whole-1"), ("no-dry-pass-1-2", "whole-2")]
    + [("bf16-no-dry-pass-1", "bf16-whole-1")],
)
def test_the_dry_pass_leaves_nothing_behind(runs: Path, name: str, other: str) -> None:
    without, with_one = runs / name, runs / other
    assert losses(without) == losses(with_one)
    assert not load_config(without / "config.yaml").train.dry_pass
    assert load_config(with_one / "config.yaml").train.dry_pass
    grad_norms = [
        [line["grad_norm"] for line in lines(run) if "loss" in line] for run in (without, with_one)
    ]
    assert grad_norms[0] == grad_norms[1]


def test_gradients_of_a_dry_pass_that_stay_are_seen(runs: Path) -> None:
    assert losses(runs / "dirty-dry-pass") != losses(runs / "zero0-1")


def test_some_micro_batches_had_no_picture(runs: Path) -> None:
    """Else the equalities above would say nothing of text-only batches."""
    stream = TokenStream.from_config(load_config(runs / "zero3-2" / "config.yaml"))
    rows = [
        row for step in range(6) for row in stream.row_infos(step, world_size=2, micro_batch_size=1)
    ]
    images = {(row.step, row.micro_step, row.rank): row.images for row in rows}
    uneven = [
        place for place in images if images[place] == 0 and images[(*place[:2], 1 - place[2])] > 0
    ]
    assert uneven


def test_a_model_without_any_picture_trains_alike_under_zero_2_and_3(runs: Path) -> None:
    two, three = (lines(runs / f"text-only-zero{stage}") for stage in (2, 3))
    assert len(two) == 6 and not any(line["images"] for line in two)
    np.testing.assert_allclose(
        [line["loss"] for line in two], [line["loss"] for line in three], rtol=1e-5
    )
    assert two[-1]["loss"] < two[0]["loss"] and all(line["applied"] for line in two)


def test_two_ranks_contrast_like_one(runs: Path) -> None:
    one, two = losses(runs / "vision-1"), losses(runs / "vision-2")
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-4


def test_two_ranks_have_the_gradients_of_one_with_twice_the_pairs(runs: Path) -> None:
    """2 ranks x B = 1 rank x 2B for every parameter of both of CLIP's towers.

    Without what the other rank's losses want of this rank's features, a gradient is off by 1.25 of
    the largest.
    """
    one, two = (torch.load(runs / f"clip-gradients-{size}.pt") for size in (1, 2))
    assert one.keys() == two.keys() and any("text_model" in name for name in one)
    largest = max(gradient.abs().max() for gradient in one.values())
    for name in one:
        assert (one[name] - two[name]).abs().max() < 2e-6 * largest, name


def test_two_ranks_under_zero_3_train_clip_like_one(runs: Path) -> None:
    one, two = runs / "clip-validated-1", runs / "clip-validated-2"
    for a, b in zip(lines(one), lines(two), strict=True):
        if "loss" in a:
            assert abs(a["loss"] - b["loss"]) < 1e-4
        else:
            assert a["validation"] == b["validation"]
    weights, others = final_weights(one), final_weights(two)
    assert weights.keys() == others.keys()
    for name in weights:
        assert (weights[name] - others[name]).abs().max() < 2e-4, name


def test_naming_between_steps_changes_no_bit_of_the_training(runs: Path) -> None:
    plain, validated = runs / "clip-1", runs / "clip-validated-1"
    named = [
        line["validation"]["zero_shot_5way"] for line in lines(validated) if "loss" not in line
    ]
    assert len(named) == 3 and all(0 <= share <= 1 for share in named)
    trained = [line["loss"] for line in lines(validated) if "loss" in line]
    assert trained == losses(plain)
    a, b = final_weights(plain), final_weights(validated)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_vision_stage_in_bf16_follows_fp32(runs: Path) -> None:
    bf16, fp32 = losses(runs / "vision-bf16"), losses(runs / "vision-1")
    assert all(abs(a / b - 1) < 3e-2 for a, b in zip(bf16, fp32, strict=True))


@pytest.mark.parametrize(("world_size", "kind"), [(1, ""), (1, "bf16-"), (2, "")])
def test_a_resumed_run_is_bit_equal_to_the_uninterrupted_one(
    runs: Path, world_size: int, kind: str
) -> None:
    whole, resumed = runs / f"{kind}whole-{world_size}", runs / f"{kind}resumed-{world_size}"
    assert losses(resumed) == losses(whole)
    assert [line["step"] for line in lines(resumed)] == [1, 2, 3, 4, 5, 6]
    discarded = (resumed / "metrics.jsonl.discarded").read_text().splitlines()
    assert [json.loads(line)["step"] for line in discarded] == [4, 5, 6]
    a, b = final_weights(whole), final_weights(resumed)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_deterministic_runs_repeat_to_the_bit_on_kernels_that_were_chosen_for_it(
    runs: Path,
) -> None:
    first, again = runs / "deterministic", runs / "deterministic-again"
    assert losses(first) == losses(again)
    a, b = final_weights(first), final_weights(again)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert codes(runs)["deterministic-kernels"] and codes(runs)["deterministic-again-kernels"]
    assert not codes(runs)["whole-1-kernels"]  # and not left on for the next run


def test_worker_processes_train_to_the_same_bit(runs: Path) -> None:
    assert codes(runs)["workers-1"] == 0
    assert losses(runs / "workers-1") == losses(runs / "whole-1")


def test_another_mixture_goes_on_as_another_segment(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checkpoint of step 3, then two of four sources, stream steps 4 and 5 left out."""
    run_dir = runs / "changed-1"
    assert codes(runs)["changed-1"] == 0
    assert losses(run_dir)[:3] == losses(runs / "whole-1")[:3] and len(losses(run_dir)) == 6
    state = json.loads((run_dir / "stream.json").read_text())
    assert [segment["first_step"] for segment in state["segments"]] == [0, 3]
    assert state["excluded_steps"] == [[4, 6]]
    assert all(len(line["loss_by_source"]) <= 2 for line in lines(run_dir)[3:])
    # `show` of the run's folder tells what either segment read, after the sources changed.
    shown = []
    for folder, steps in ((run_dir, "0:6"), (runs / "whole-1", "0:3")):
        assert show_stream(["show", str(folder), "--steps", steps]) == 0
        shown.append([json.loads(row) for row in capsys.readouterr().out.splitlines()])
    changed, whole = shown
    assert changed[:12] == whole
    assert {row["source"] for row in changed[12:]} == {"pairs", "text"}
    for number, line in enumerate(lines(run_dir)):
        rows = changed[4 * number : 4 * number + 4]
        assert sum(row["scored_tokens"] for row in rows) == line["scored_tokens"]


@pytest.mark.parametrize("run", ["0-1", "2-1", "1-2", "3-2"])
def test_the_moving_average_is_that_of_the_weights_of_each_step(runs: Path, run: str) -> None:
    folder = runs / f"average-{run}" / "checkpoints"
    stage = build_stage(load_config(runs / f"average-{run}" / "config.yaml"))
    own = stage.objective.model.state_dict()
    expected: dict[str, torch.Tensor] = {}
    for step in range(1, 7):
        checkpoint = folder / f"step-{step:08d}"
        weights = load_file(checkpoint / "model.safetensors")
        average = load_file(checkpoint / "average.safetensors")
        if not expected:
            expected = {name: own[name].clone() for name in average}
        decay = min(0.4, (1 + step) / (10 + step))
        for name, value in average.items():
            expected[name] = decay * expected[name] + (1 - decay) * weights[name]
            assert (value - expected[name]).abs().max() < 1e-6, (step, name)
            assert not torch.equal(value, weights[name])
    trained = {n for n, p in stage.objective.model.named_parameters() if p.requires_grad}
    assert average.keys() == trained
    resumed = runs / f"average-resumed-{run}" / "checkpoints" / "step-00000006"
    again = load_file(resumed / "average.safetensors")
    assert all(torch.equal(again[name], average[name]) for name in average)
    if run.startswith(("0", "2")):  # and it changes nothing of the training
        assert losses(runs / f"average-{run}") == losses(runs / "whole-1")


def test_the_average_is_exported_on_request(runs: Path, tmp_path: Path) -> None:
    run_dir = runs / "average-0-1"
    export(run_dir, tmp_path / "last")
    export(run_dir, tmp_path / "average", is_average=True)
    average = load_file(latest(run_dir) / "average.safetensors")
    weights = load_file(latest(run_dir) / "model.safetensors")
    for name, expected in (("last", weights), ("average", weights | average)):
        stored = load_file(tmp_path / name / "model.safetensors")
        stored = {key.removeprefix("model."): value for key, value in stored.items()}
        assert all(torch.equal(stored[key], expected[key]) for key in expected)
    with pytest.raises(UserError, match=r"--average: .* has no average .*train.ema_decay"):
        export(runs / "whole-1", tmp_path / "none", is_average=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("run", ["0-1", "1-1", "3-2"])
def test_a_rollback_is_as_if_the_bad_data_had_been_left_out_from_the_start(
    runs: Path, run: str
) -> None:
    """Two steps of NaN, back to the checkpoint of step 3 within the process, and past them."""
    rolled, told = runs / f"rolled-back-{run}", runs / f"told-{run}"
    assert codes(runs)[rolled.name] == codes(runs)[f"{rolled.name}-again"] == 0
    assert losses(rolled) == losses(told) and all(line["applied"] for line in lines(rolled))
    assert [line["step"] for line in lines(rolled)] == [1, 2, 3, 4, 5, 6]
    a, b = final_weights(rolled), final_weights(told)
    assert all(torch.equal(a[name], b[name]) for name in a)
    (entry,) = json.loads((rolled / "rollbacks.json").read_text())
    assert (entry["back_to_step"], entry["left_out"]) == (3, "4:6")
    discarded = [json.loads(x) for x in (rolled / "metrics.jsonl.discarded").open()]
    assert [x["step"] for x in discarded] == [4, 5, 6]
    assert "problem" not in discarded[0]
    assert all("non-finite loss, step skipped" in x["problem"] for x in discarded[1:])
    line = [json.loads(x) for x in (rolled / "ledger.jsonl").open()][-1]
    assert line["step"] == 3 and "rolled back to step 3: 2 steps in a row" in line["reason"]


def test_the_samples_of_bad_steps_are_in_the_ledger_and_repeated_spikes_roll_back(
    runs: Path,
) -> None:
    run_dir = runs / "spikes"
    assert codes(runs)["spikes"] == 0
    (entry,) = json.loads((run_dir / "rollbacks.json").read_text())
    assert entry["left_out"] == "4:6" and "spiked for 2 steps" in entry["reason"]
    assert losses(run_dir) == losses(runs / "told-1-1")
    ledger = [json.loads(x) for x in (run_dir / "ledger.jsonl").open()]
    assert [entry["step"] for entry in ledger] == [5, 6, 3]
    assert all(entry["reason"].startswith("loss spike: ") for entry in ledger[:2])


def test_a_second_bad_stretch_stops_the_run(runs: Path) -> None:
    message = str(codes(runs)["twice-bad"])
    assert "after 1 rollbacks (train.max_rollbacks)" in message
    assert "ledger.jsonl names their samples" in message
    ledger = [json.loads(x) for x in (runs / "twice-bad" / "ledger.jsonl").open()]
    bad = [entry for entry in ledger if "non-finite loss" in entry["reason"]]
    stream = TokenStream.from_config(load_config(runs / "twice-bad" / "config.yaml"))
    for entry, step in zip(bad, (4, 5, 6, 7), strict=True):
        shown = stream.row_infos(step, world_size=1, micro_batch_size=1)
        assert sorted(entry["samples"]) == sorted(key for row in shown for key in row.samples)


def test_the_pairs_of_the_vision_stage_are_shown_as_they_were_trained(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for world_size in (1, 2):
        arguments = ["show", str(runs / f"vision-{world_size}"), "--steps", "2:4"]
        assert show_stream([*arguments, "--world-size", str(world_size)]) == 0
        shown.append([json.loads(row) for row in capsys.readouterr().out.splitlines()])
    assert [row["samples"] for row in shown[0]] == [row["samples"] for row in shown[1]]
    config = load_config(runs / "vision-2" / "config.yaml")
    stream = PairStream(config)
    for rank in (0, 1):
        batch = stream.batch(3, rank=rank, world_size=2, micro_batch_size=6)
        rows = [vars(row) for row in batch.rows]
        assert rows == [row for row in shown[1] if row["step"] == 3 and row["rank"] == rank]


@pytest.mark.parametrize("run", ["whole-1", "whole-2", "changed-1", "rolled-back-1-1", "vision-1"])
def test_a_replayed_step_has_its_loss_sample_by_sample(
    runs: Path, run: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of the step after a checkpoint: the same weights, data, dropout and augmentation."""
    before = sorted(runs.joinpath(run).rglob("*"))
    config = str(runs / run / "config.yaml")
    assert train_command([config, "--replay", "4", "--json"]) == 0
    samples = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    scored = [x for x in samples if x["scored_tokens"]]
    total = sum(x["loss"] * x["scored_tokens"] for x in scored)
    assert abs(total / sum(x["scored_tokens"] for x in scored) - losses(runs / run)[3]) < 1e-5
    assert scored[0]["loss"] == max(x["loss"] for x in scored)
    assert sorted(runs.joinpath(run).rglob("*")) == before
    assert train_command([config, "--replay", "5"]) == 0
    assert "weights of step-00000003, NOT of step 4" in capfd.readouterr().err


def test_metrics_say_how_fast_and_who_was_slow(runs: Path) -> None:
    config = load_config(runs / "whole-2" / "config.yaml")
    for line in lines(runs / "whole-2"):
        assert 0 < line["mfu"] < 1.5 and line["flops"] > 0
        assert line["slowest_rank"] in (0, 1) and 0.1 < line["memory_gib"] < 8
        assert 0 < line["median_rank_seconds"] <= line["slowest_rank_seconds"]
        assert line["slowest_rank_seconds"] <= line["step_seconds"] + line["data_wait_seconds"] + 1
        assert line["skipped_steps"] == 0 and "loss_scale" not in line
    for line in lines(runs / "vision-2"):
        flops = sum(pair_flops(load_config(runs / "vision-2" / "config.yaml"), 12).values())
        assert line["flops"] == flops and 0 < line["mfu"] < 1.5
    one = [line["flops"] for line in lines(runs / "whole-1")]
    assert one == [line["flops"] for line in lines(runs / "whole-2")]
    stream = TokenStream.from_config(config)
    for step, flops in enumerate(one):
        batch = stream.batch(step, rank=0, world_size=1, micro_batch_size=4)
        lengths = [int((row == n).sum()) for row in batch.document_ids for n in row.unique()]
        pads = [int((row < 0).sum()) for row in batch.document_ids]
        for pad in pads:
            if pad:
                lengths.remove(pad)
        known = step_flops(config.model, lengths, batch.num_images, int(batch.loss_mask.sum()), 1)
        assert flops == sum(known.values())


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_stop_request_saves_exits_75_and_the_rest_follows(runs: Path, world_size: int) -> None:
    name = f"stopped-{world_size}"
    assert codes(runs)[name] == 75
    assert codes(runs)[f"{name}-again"] == 0
    assert (runs / name / "checkpoints" / "step-00000001").is_dir()
    assert losses(runs / name) == losses(runs / f"whole-{world_size}")


def test_frozen_blocks_stay_and_the_last_one_moves(runs: Path) -> None:
    checkpoints = runs / "whole-1" / "checkpoints"
    early = load_file(checkpoints / "step-00000003" / "model.safetensors")
    late = load_file(checkpoints / "step-00000006" / "model.safetensors")
    blocks = "vision.vision_model.encoder.layers"
    for name in early:
        is_frozen = name.startswith("vision.") and not name.startswith(
            (f"{blocks}.1.", "vision.vision_model.post_layernorm")
        )
        assert torch.equal(early[name], late[name]) == is_frozen, name


@pytest.mark.parametrize("num_images", [0, 1, 2])
def test_an_export_of_a_trained_run_has_the_logits_of_its_modules(
    runs: Path, tmp_path: Path, num_images: int
) -> None:
    run_dir = runs / "whole-1"
    export(run_dir, tmp_path / "export")
    theirs, processor = load_export(tmp_path / "export")
    ours = MultimodalModel(
        ModelConfig.from_dict(json.loads((latest(run_dir) / "model_config.json").read_text()))
    ).eval()
    init_from(ours, run_dir)
    pictures = [square("red").data, square("blue", "left").data][:num_images]
    segments = [part for picture in pictures for part in (picture, "An image of a square.")]
    inputs = processor.from_segments([segments or ["the quick brown fox"]])
    size = ours.config.vision.image_size
    pixels = [to_pixels(open_picture(picture), size, "squash") for picture in pictures]
    stacked = np.stack(pixels or [np.zeros((3, size, size), np.uint8)])
    with torch.no_grad():
        hidden = ours(
            inputs["input_ids"],
            inputs["image_slot_mask"].bool(),
            normalise(torch.from_numpy(stacked)),
            torch.arange(inputs["input_ids"].shape[1])[None],
            num_images=num_images,
        )
        difference = theirs(**inputs).logits - ours.head(hidden)
    assert inputs["image_slot_mask"].sum() == num_images * ours.config.num_latents
    assert difference.abs().max() < 1e-5
