"""`mllm export`: a training checkpoint as a folder that `transformers` loads by itself.

The folder holds safetensors, settings, tokenizer and the modelling code, copied flat: the loader
of `transformers` follows `from .x import` between the files of one folder and nothing else.
"""

import json
import os
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.command import Parser, print_json, stdout_is_json
from mllm.errors import UserError
from mllm.files import fsync_dir, sha256_file, write_json

if TYPE_CHECKING:
    from mllm.images import Resize
    from mllm.model.config import ModelConfig

REPOSITORY = Path(__file__).resolve().parent.parent
MARKER = "export.json"  # written last; an existing folder is replaced only if it has one
WEIGHTS = "model.safetensors"

# Which class each `Auto` class finds, by the settings file that says so.
AUTO_MAPS: dict[str, dict[str, Any]] = {
    "config.json": {
        "AutoConfig": "configuration_mllm.MllmConfig",
        "AutoModelForImageTextToText": "modeling_mllm.MllmForConditionalGeneration",
        "AutoModelForCausalLM": "modeling_mllm.MllmForConditionalGeneration",
    },
    "processor_config.json": {
        "AutoProcessor": "processing_mllm.MllmProcessor",
        "AutoImageProcessor": "image_processing_mllm.MllmImageProcessor",
    },
    "tokenizer_config.json": {"AutoTokenizer": ["tokenization_mllm.MllmTokenizer", None]},
}
ENTRY_MODULES = (
    "mllm.hf.configuration_mllm",
    "mllm.hf.modeling_mllm",
    "mllm.hf.processing_mllm",
    "mllm.hf.image_processing_mllm",
    "mllm.hf.tokenization_mllm",
)
OWN_IMPORT = re.compile(r"^( *)from ((?:mllm|tokenizer|corpora|evals)(?:\.\w+)*) import ", re.M)

CARD = """---
library_name: transformers
pipeline_tag: image-text-to-text
license: other
---

# {name}

A KOSMOS-1-style multimodal language model: text and pictures in any order in, text out.
{num_parameters:,} parameters, {steps} steps of training, written by `mllm` {version}.

```python
from pathlib import Path
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
inputs = processor(text="<image>An image of", images=[Path("picture.png")])
tokens = model.generate(**inputs, max_new_tokens=20)
print(processor.batch_decode(tokens, skip_special_tokens=True)[0])
```

Where the text is not your own, use `processor.from_segments([[picture, text]])` or
`processor.apply_chat_template(messages)`: text given to these can never become a special token.
GGUF and vLLM are not supported.

## Data

Fingerprint of the token stream: {fingerprint}. Corpora, with their shares:

{corpora}

{attribution}

## Recipe

```yaml
{recipe}
```
"""


def flat_modules(entries: tuple[str, ...] = ENTRY_MODULES) -> dict[str, str]:
    """File name to source of `entries` and of all modules of ours that they import.

    Each `from mllm.model.decoder import Decoder` has become `from .decoder import Decoder`.
    """
    files: dict[str, str] = {}
    origins: dict[str, str] = {}
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        name = f"{module.rpartition('.')[2]}.py"
        if origins.setdefault(name, module) != module:
            raise AssertionError(f"{module} and {origins[name]} would both be exported as {name}")
        if name in files:
            continue
        source = (REPOSITORY / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        waiting += [match[1] for match in OWN_IMPORT.findall(source)]
        files[name] = OWN_IMPORT.sub(
            lambda match: f"{match[1]}from .{match[2].rpartition('.')[2]} import ", source
        )
    return files


def write_model(
    out_dir: str | Path,
    state: dict[str, Any],
    model_config: "ModelConfig",
    tokenizer_path: str | Path,
    resize: "Resize",
) -> int:
    """Writes everything that `transformers` needs into `out_dir`; gives back the parameter count.

    Args:
        state: `MultimodalModel.state_dict()`, with or without the tied head.
        tokenizer_path: the SentencePiece file.
        resize: `crop` or `squash`, as in training.

    Raises:
        UserError: the weights, the sizes and the tokenizer do not belong together, or the weights
            cannot be written.
    """
    from safetensors import SafetensorError
    from transformers import GenerationConfig

    from mllm.hf.configuration_mllm import MllmConfig
    from mllm.hf.image_processing_mllm import MllmImageProcessor
    from mllm.hf.modeling_mllm import MllmForConditionalGeneration
    from mllm.hf.processing_mllm import MllmProcessor
    from mllm.hf.tokenization_mllm import MllmTokenizer
    from tokenizer.specials import BOS_ID, EOS_ID, PAD_ID, SPECIALS

    out_dir = Path(out_dir)
    tokenizer = MllmTokenizer(str(tokenizer_path), model_max_length=model_config.seq_len)
    if tokenizer.vocab_size != model_config.vocab_size:
        raise UserError(
            f"{tokenizer_path} has {tokenizer.vocab_size} pieces but the model was trained with "
            f"vocab_size {model_config.vocab_size}; name the run's own tokenizer"
        )
    model = MllmForConditionalGeneration(MllmConfig.from_model_config(model_config))
    state = {name: tensor for name, tensor in state.items() if name != "head.weight"}
    missing, unexpected = model.model.load_state_dict(state, strict=False)
    missing = [name for name in missing if name != "head.weight"]
    if missing or unexpected:
        raise UserError(
            f"the weights do not fit model_config.json: {len(missing)} tensors missing "
            f"{missing[:1]}, {len(unexpected)} unknown {unexpected[:1]}"
        )
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        # An answer is text: of the specials only `</s>` may follow, which ends it.
        suppress_tokens=[i for i in SPECIALS.values() if i != EOS_ID],
    )
    try:
        model.save_pretrained(out_dir)
    except SafetensorError as error:  # a full disk: the library hides its OSError
        raise UserError(f"{out_dir}: {error}; choose another place or free space") from None
    image_processor = MllmImageProcessor(model_config.vision.image_size, resize)
    MllmProcessor(image_processor, tokenizer, num_latents=model_config.num_latents).save_pretrained(
        out_dir
    )
    for name, auto_map in AUTO_MAPS.items():
        settings = json.loads((out_dir / name).read_text(encoding="utf-8"))
        settings["auto_map"] = auto_map
        if name == "processor_config.json":
            settings["image_processor"]["auto_map"] = {
                "AutoImageProcessor": auto_map["AutoImageProcessor"]
            }
        write_json(out_dir / name, settings)
    for name, source in flat_modules().items():
        (out_dir / name).write_text(source, encoding="utf-8")
    return model.num_parameters()


def export(run_or_checkpoint: str | Path, out_dir: str | Path) -> dict[str, Any]:
    """Writes the export aside and renames it; gives back what `export.json` holds.

    Raises:
        UserError: no checkpoint, an incomplete run, or `out_dir` exists and is no export.
    """
    from safetensors.torch import load_file

    from mllm.checkpoint import latest
    from mllm.config import load_config
    from mllm.model.config import ModelConfig
    from tokenizer.tokenizer import Tokenizer

    out_dir = Path(out_dir)
    if out_dir.name in ("", ".."):
        raise UserError(f"--out {out_dir} cannot be replaced as a whole; name a new folder")
    if out_dir.is_file():
        raise UserError(f"--out {out_dir} is a file; name a new folder")
    if out_dir.exists() and not (out_dir / MARKER).is_file() and any(out_dir.iterdir()):
        raise UserError(f"--out {out_dir} exists and is no export; name a new folder")
    checkpoint = latest(Path(run_or_checkpoint))
    run_dir = checkpoint.parent.parent
    config = load_config(run_dir / "config.yaml")
    fingerprint = stream_fingerprint(run_dir)
    tokenizer = Tokenizer(checkpoint)  # the one that trained, whatever lies at its old path
    model_config = ModelConfig.from_dict(
        json.loads((checkpoint / "model_config.json").read_text(encoding="utf-8"))
    )
    aside = out_dir.with_name(f"{out_dir.name}.tmp-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        num_parameters = write_model(
            aside,
            load_file(checkpoint / WEIGHTS),
            model_config,
            tokenizer.model_path,
            config.data.resize,
        )
        corpora = [(source.name, source.path, source.weight) for source in config.data.mixture]
        attributions = find_attributions([path for _, path, _ in corpora])
        if attributions:
            (aside / "ATTRIBUTION.md").write_text("\n".join(attributions), encoding="utf-8")
        record = {
            "checkpoint": checkpoint.name,
            "step": int(checkpoint.name.rpartition("-")[2]),
            "num_parameters": num_parameters,
            "stream_fingerprint": fingerprint,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "weights_sha256": sha256_file(checkpoint / WEIGHTS),
            "versions": {name: version(name) for name in ("mllm", "torch", "transformers")},
        }
        card = CARD.format(
            name=out_dir.name,
            num_parameters=num_parameters,
            steps=record["step"],
            version=version("mllm"),
            fingerprint=fingerprint,
            corpora="\n".join(f"* {name}: {weight:g}" for name, _, weight in corpora),
            attribution="Sources and their licences: [ATTRIBUTION.md](ATTRIBUTION.md)."
            if attributions
            else "The corpora came without a file of attributions.",
            recipe=(run_dir / "config.yaml").read_text(encoding="utf-8").strip(),
        )
        (aside / "README.md").write_text(card, encoding="utf-8")
        write_json(aside / MARKER, record)
        replace_folder(aside, out_dir)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return record


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


def find_attributions(corpus_dirs: list[str]) -> list[str]:
    """Texts of the corpora's ATTRIBUTION.md, each once: in a corpus or the nearest folder above."""
    texts: dict[str, None] = {}
    for corpus_dir in corpus_dirs:
        for folder in (Path(corpus_dir), *Path(corpus_dir).parents[:2]):
            if (folder / "ATTRIBUTION.md").is_file():
                texts[(folder / "ATTRIBUTION.md").read_text(encoding="utf-8")] = None
                break
    return list(texts)


def replace_folder(aside: Path, out_dir: Path) -> None:
    """Puts a finished folder in the place of `out_dir`, everything on disk first."""
    for path in aside.iterdir():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    fsync_dir(aside)
    old = out_dir.with_name(f"{out_dir.name}.old-{os.getpid()}")
    if out_dir.exists():
        os.rename(out_dir, old)
    os.rename(aside, out_dir)
    fsync_dir(out_dir.parent)
    shutil.rmtree(old, ignore_errors=True)


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="mllm export",
        description="Write a run's last checkpoint, or a given one, for transformers.",
        epilog="examples:\n"
        "  mllm export runs/demo/pretrain --out runs/demo/export\n"
        "  mllm export runs/demo/pretrain/checkpoints/step-00000400 --out /tmp/at-400",
    )
    parser.add_argument("run_or_checkpoint", help="a run folder or one of its checkpoints")
    parser.add_argument("--out", required=True, help="folder to write; an older export is replaced")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    args = parser.parse_args(argv)
    if args.json:
        with stdout_is_json():
            record = export(args.run_or_checkpoint, args.out)
        print_json({"out": args.out, **record})
        return 0
    record = export(args.run_or_checkpoint, args.out)
    print(
        f"{args.out}: {record['checkpoint']}, {record['num_parameters']:,} parameters; "
        f"try `mllm chat --model {args.out}`"
    )
    return 0
