"""`mllm import kosmos2`: weights of `Kosmos2ForConditionalGeneration` as an export of this trainer.

The folder that it writes is what `mllm chat`, `mllm eval` and `init_from` take. Its ids follow this
trainer's table of specials (`mllm.hf.kosmos2_tokenizer`); logits are those of Kosmos-2.
"""

import json
import re
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.command import Parser, print_json, stdout_is_json
from mllm.errors import UserError
from mllm.files import write_json

if TYPE_CHECKING:
    import torch

    from mllm.images import Resize
    from mllm.model.config import ModelConfig

NAME = re.compile(r"[\w.+-]+")  # of a licence, as the hub has them: mit, apache-2.0


def import_kosmos2(source: str | Path, out_dir: str | Path) -> dict[str, Any]:
    """Writes the export aside and renames it; gives back what `export.json` holds.

    Args:
        source: a folder with `config.json`, safetensors, and `sentencepiece.bpe.model`, or the
            `tokenizer.model` of an export of ours.

    Raises:
        UserError: a file is missing or damaged, or the model is none that this trainer computes.
    """
    from mllm.hf.folder import MARKER, export_folder
    from mllm.hf.kosmos2 import EMBEDDING
    from mllm.hf.kosmos2_tokenizer import FILE_NAME, convert, permute_rows
    from mllm.hf.write import write_model
    from mllm.model_card import model_card
    from tokenizer.tokenizer import MODEL_NAME, Tokenizer

    source = Path(source)
    with export_folder(out_dir) as aside:
        model_config, state = read_kosmos2(source)
        if (source / MODEL_NAME).is_file():
            tokenizer_path = Tokenizer(source).model_path  # ids are in our order already
        elif (source / FILE_NAME).is_file():
            tokenizer_path = aside / MODEL_NAME
            data, rows = convert(source / FILE_NAME, model_config.vocab_size)
            check_tags(source, rows)
            tokenizer_path.write_bytes(data)
            state[EMBEDDING] = permute_rows(state[EMBEDDING], rows)
            model_config = replace(model_config, vocab_size=len(rows))
        else:
            raise UserError(
                f"{source} has no {FILE_NAME}; copy the one that belongs to these weights there"
            )
        num_parameters = write_model(aside, state, model_config, tokenizer_path, resize_of(source))
        record = {
            "format": "mllm",
            "imported_from": source.resolve().name,
            "num_parameters": num_parameters,
            "tokenizer_fingerprint": Tokenizer(aside).fingerprint,
            "versions": {name: version(name) for name in ("mllm", "torch", "transformers")},
        }
        licence = licence_of(source)
        origin = f"imported from the Kosmos-2 model `{record['imported_from']}`"
        card = model_card(
            Path(out_dir).name,
            "mllm",
            num_parameters,
            origin,
            version("mllm"),
            [("Licence", licence or f"See source: `{record['imported_from']}` names none.")],
            licence or "other",
        )
        (aside / "README.md").write_text(card, encoding="utf-8")
        write_json(aside / MARKER, record)
    return record


def read_kosmos2(source: Path) -> "tuple[ModelConfig, dict[str, torch.Tensor]]":
    """Sizes and float32 weights of a Kosmos-2 folder, under this model's names."""
    import torch
    from safetensors import SafetensorError
    from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration

    from mllm.hf.kosmos2 import from_kosmos2_config, from_kosmos2_state

    try:
        settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{source}: no config.json here; name a Kosmos-2 folder") from None
    except ValueError as error:
        raise UserError(f"{source}/config.json: not JSON ({error}); copy it again") from None
    if settings.get("model_type") != "kosmos-2":
        raise UserError(
            f"{source}/config.json: model_type is {settings.get('model_type')}, not kosmos-2"
        )
    if not any(source.glob("*.safetensors")):
        raise UserError(
            f"{source} has no safetensors; pickled weights are not read: save them anew with "
            "transformers' save_pretrained"
        )
    try:
        config = Kosmos2Config.from_dict(settings)
        model_config = from_kosmos2_config(config)
        loaded: Any = Kosmos2ForConditionalGeneration.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{source}: not a whole Kosmos-2 folder ({reason}); copy it again"
        ) from None
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{source}: {len(missing)} tensors missing, among them {missing[0]}")
    return model_config, from_kosmos2_state(model.state_dict())


def check_tags(source: Path, rows: list[int | None]) -> None:
    """Compares the ids of `<image>` and `</image>` with those in `tokenizer.json`, if it is there.

    Raises:
        UserError: they differ: the embedding is in another order than Kosmos-2's.
    """
    from tokenizer.specials import BOI_ID, EOI_ID, SPECIALS

    path = source / "tokenizer.json"
    if not path.is_file():
        return
    added = json.loads(path.read_text(encoding="utf-8"))["added_tokens"]
    theirs = {token["content"]: token["id"] for token in added}
    names = {i: name for name, i in SPECIALS.items()}
    for ours in (BOI_ID, EOI_ID):
        name = names[ours]
        if theirs.get(name, rows[ours]) != rows[ours]:
            raise UserError(
                f"{path}: {name} is id {theirs[name]}, Kosmos-2's order has {rows[ours]}; "
                "this vocabulary cannot be imported"
            )


def licence_of(source: Path) -> str | None:
    """The `license` at the top of the source's README.md or in its config.json."""
    import yaml

    readme, config = source / "README.md", source / "config.json"
    fields: list[Any] = [json.loads(config.read_text(encoding="utf-8"))]
    if readme.is_file():
        _, *parts = readme.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
        with suppress(yaml.YAMLError):
            fields.insert(0, yaml.safe_load(parts[0]) if len(parts) == 2 else None)
    names = [field.get("license") for field in fields if isinstance(field, dict)]
    return next((name for name in names if isinstance(name, str) and NAME.fullmatch(name)), None)


def resize_of(source: Path) -> "Resize":
    """`crop` if an export of ours says so. Kosmos-2 itself squashes (kosmos-1.md 3)."""
    path = source / "processor_config.json"
    if not path.is_file():
        return "squash"
    settings = json.loads(path.read_text(encoding="utf-8"))
    return settings.get("image_processor", {}).get("resize", "squash")


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="mllm import",
        description="Take over the weights of another trainer's model: write them as an export, "
        "which `mllm chat`, `mllm eval` and a config's `init_from` take.",
        epilog="example:\n  mllm import kosmos2 models/kosmos-2-patch14-224 --out runs/kosmos2",
    )
    parser.add_argument("kind", choices=("kosmos2",), help="transformers' Kosmos2 classes")
    parser.add_argument("source", help="folder with config.json, safetensors and the tokenizer")
    parser.add_argument("--out", required=True, help="folder to write; an older export is replaced")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    args = parser.parse_args(argv)
    if args.json:
        with stdout_is_json():
            record = import_kosmos2(args.source, args.out)
        print_json({"out": args.out, **record})
        return 0
    record = import_kosmos2(args.source, args.out)
    print(
        f"{args.out}: {record['num_parameters']:,} parameters; try `mllm chat --model {args.out}`"
    )
    return 0
