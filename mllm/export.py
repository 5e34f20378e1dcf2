"""`mllm export`: a training checkpoint as a folder that `transformers` loads by itself.

The folder holds safetensors, settings, tokenizer, the code that runs them and a model card.
"""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.command import Parser, print_json, stdout_is_json
from mllm.errors import UserError
from mllm.files import sha256_file, write_json

if TYPE_CHECKING:
    from mllm.config import Config

WEIGHTS = "model.safetensors"
AVERAGE = "average.safetensors"
FORMATS = ("mllm", "kosmos2", "clip")
SHARD_SIZE = re.compile(r"[1-9]\d*(\.\d+)?[KMGT]B")


def export(
    run_or_checkpoint: str | Path,
    out_dir: str | Path,
    export_format: str = "mllm",
    max_shard_size: str = "5GB",
    *,
    is_average: bool = False,
) -> dict[str, Any]:
    """Writes the export aside and renames it; gives back what `export.json` holds.

    Args:
        export_format: `mllm`; `kosmos2` for `transformers`' own Kosmos-2 class; `clip`, for its
            CLIPModel, of a run of the vision stage.
        max_shard_size: largest safetensors file.
        is_average: the moving average of the weights (train.ema_decay) in place of the last ones.

    Raises:
        UserError: no checkpoint or, where it is asked for, no average in it; an incomplete run,
            `out_dir` exists and is no export, a run of another stage, or a model that Kosmos-2 or
            CLIP cannot compute.
    """
    from mllm.checkpoint import latest
    from mllm.config import load_config
    from mllm.hf.folder import MARKER, export_folder, model_fingerprint
    from mllm.model_card import (
        data_section,
        find_attributions,
        find_scores,
        model_card,
        recipe_section,
        score_sections,
    )
    from tokenizer.tokenizer import Tokenizer

    if not SHARD_SIZE.fullmatch(max_shard_size):
        raise UserError(f"--max-shard-size {max_shard_size}: a number and a unit, such as 500MB")
    with export_folder(out_dir) as aside:
        checkpoint = latest(Path(run_or_checkpoint))
        run_dir = checkpoint.parent.parent
        config = load_config(run_dir / "config.yaml")
        _check_stage(run_dir, config.stage, export_format)
        if is_average and not (checkpoint / AVERAGE).is_file():
            raise UserError(
                f"--average: {checkpoint} has no average of the weights; train with "
                "train.ema_decay, such as 0.999"
            )
        stream = stream_fingerprint(run_dir)
        tokenizer = Tokenizer(checkpoint)  # the one that trained, whatever lies at its old path
        num_parameters = _write(
            aside,
            checkpoint,
            config,
            tokenizer.model_path,
            export_format,
            max_shard_size,
            is_average,
        )
        mixture = config.data.mixture
        attributions = find_attributions([source.path for source in mixture])
        if attributions:
            (aside / "ATTRIBUTION.md").write_text("\n".join(attributions), encoding="utf-8")
        step = int(checkpoint.name.rpartition("-")[2])
        record = {
            "format": export_format,
            "checkpoint": checkpoint.name,
            "step": step,
            "num_parameters": num_parameters,
            "template": _template(config),
            "is_average": is_average,
            # Whether `</s>` between documents of one context was trained: evaluation asks.
            "has_joined_rows": any(source.join_documents > 0 for source in mixture),
            "stream_fingerprint": stream,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "weights_sha256": sha256_file(checkpoint / WEIGHTS),
            "versions": {name: version(name) for name in ("mllm", "torch", "transformers")},
        }
        card = model_card(
            Path(out_dir).name,
            export_format,
            num_parameters,
            f"{step} steps of training",
            version("mllm"),
            [
                data_section(stream, [(s.name, s.weight) for s in mixture], bool(attributions)),
                *score_sections(find_scores(run_dir, model_fingerprint(aside))),
                recipe_section(run_dir / "config.yaml"),
            ],
        )
        (aside / "README.md").write_text(card, encoding="utf-8")
        write_json(aside / MARKER, record)
    return record


def _check_stage(run_dir: Path, stage: str, export_format: str) -> None:
    if stage == "vision" and export_format != "clip":
        raise UserError(f"{run_dir} is a run of stage vision; export it with --format clip")
    if stage != "vision" and export_format == "clip":
        raise UserError(
            f"--format clip is for stage vision; {run_dir} is a run of stage {stage}: leave it out"
        )


def _write(
    out_dir: Path,
    checkpoint: Path,
    config: "Config",
    tokenizer_path: Path,
    export_format: str,
    max_shard_size: str,
    is_average: bool,
) -> int:
    """Weights, settings and tokenizer in that format; gives back the parameter count."""
    from safetensors.torch import load_file

    from mllm.hf.clip import write_clip
    from mllm.hf.write import write_kosmos2, write_model
    from mllm.model.config import ModelConfig

    state = load_file(checkpoint / WEIGHTS)
    if is_average:
        state |= load_file(checkpoint / AVERAGE)  # of what is trained; the rest is frozen
    if export_format == "clip":
        return write_clip(out_dir, state, config, tokenizer_path, max_shard_size)
    sizes = json.loads((checkpoint / "model_config.json").read_text(encoding="utf-8"))
    return (write_kosmos2 if export_format == "kosmos2" else write_model)(
        out_dir,
        state,
        ModelConfig.from_dict(sizes),
        tokenizer_path,
        config.data.resize,
        max_shard_size,
        _template(config),
    )


def _template(config: "Config") -> str:
    """How the export's processor writes a conversation down: as the run was taught to read it."""
    return "instruction" if config.stage == "instruct" else "completion"


def stream_fingerprint(run_dir: Path) -> str:
    """The fingerprint in a run's `stream.json`.

    Raises:
        UserError: there is none.
    """
    path = run_dir / "stream.json"
    if not path.is_file():
        raise UserError(f"{path} is missing; copy the whole run folder, or train again")
    state = json.loads(path.read_text(encoding="utf-8"))
    return state["fingerprint"]


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="mllm export",
        description="Write a run's last checkpoint, or a given one, for transformers.",
        epilog="examples:\n"
        "  mllm export runs/demo/pretrain --out runs/demo/export\n"
        "  mllm export runs/demo/pretrain/checkpoints/step-00000400 --out /tmp/at-400\n"
        "  mllm export runs/kosmos --out /tmp/kosmos2 --format kosmos2\n"
        "  mllm export runs/vision --out /tmp/clip --format clip\n\n"
        "GGUF (llama.cpp) and vLLM are out of scope: neither can run this architecture.",
    )
    parser.add_argument("run_or_checkpoint", help="a run folder or one of its checkpoints")
    parser.add_argument("--out", required=True, help="folder to write; an older export is replaced")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="mllm",
        help="mllm: with this model's code; kosmos2: for transformers' Kosmos2 class, which has "
        "sinusoidal positions and the attention resampler only; clip: a run of stage vision for "
        "transformers' CLIPModel (default: mllm)",
    )
    parser.add_argument(
        "--max-shard-size",
        default="5GB",
        metavar="SIZE",
        help="largest safetensors file, such as 500MB (default: 5GB)",
    )
    parser.add_argument(
        "--average",
        action="store_true",
        help="the moving average of the weights that train.ema_decay keeps",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    args = parser.parse_args(argv)
    settings = (args.run_or_checkpoint, args.out, args.format, args.max_shard_size)
    if args.json:
        with stdout_is_json():
            record = export(*settings, is_average=args.average)
        print_json({"out": args.out, **record})
        return 0
    record = export(*settings, is_average=args.average)
    advice = f"; try `mllm chat --model {args.out}`" if args.format == "mllm" else ""
    print(f"{args.out}: {record['checkpoint']}, {record['num_parameters']:,} parameters{advice}")
    return 0
