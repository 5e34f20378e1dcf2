"""The README.md of an export: how to use it, what it was trained on and how, what it scores."""

import json
from pathlib import Path
from typing import Any

CARD = """---
library_name: transformers
pipeline_tag: image-text-to-text
license: {licence}
---

# {name}

A KOSMOS-1-style multimodal language model: text and pictures in any order in, text out.
{num_parameters:,} parameters, {origin}, written by `mllm` {version}.

```python
from pathlib import Path
from transformers import {model_class}, AutoProcessor

model = {model_class}.from_pretrained("{name}"{trust})
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
inputs = processor(text="<image>An image of", images=[Path("picture.png")])
tokens = model.generate(**inputs, max_new_tokens=20{generation})
print(processor.batch_decode(tokens, skip_special_tokens=True)[0])
```

Where the text is not your own, use `processor.from_segments([[picture, text]])` or
`processor.apply_chat_template(messages)`: text given to these can never become a special token.
`return_labels=True` makes training batches. {notes}

GGUF (llama.cpp) and vLLM are out of scope: neither can run this architecture, and there is no
converter.
{sections}"""
MLLM_NOTES = """With `mllm` installed, `import mllm` registers the classes
and `trust_remote_code` is not needed. Attention is torch's SDPA (`attn_implementation="sdpa"`, or
`"eager"` for its plain products); `device_map` needs `accelerate`.

Inputs longer than `seq_len` (xPos only): `"blockwise_attention": true` in config.json, or
`from_pretrained(..., blockwise_attention=True)`."""
KOSMOS2_NOTES = """The model is `transformers`' own Kosmos-2 with
the tokenizer of this folder, not Microsoft's: token ids differ from those of Kosmos-2's vocabulary.
That class needs a picture in every batch; for text alone call `model.text_model`. Its cached
`generate` counts the padding among the positions of a row, so give it rows of one length, or
`use_cache=False`."""

CLIP_CARD = """---
library_name: transformers
pipeline_tag: zero-shot-image-classification
license: {licence}
---

# {name}

A CLIP: pictures and captions as vectors that lie close where they belong together.
{num_parameters:,} parameters, {origin}, written by `mllm` {version}.

```python
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained("{name}").eval()
processor = CLIPProcessor.from_pretrained("{name}")
texts = ["An image of a cat", "An image of a dog"]
images = [Image.open("picture.png")]
inputs = processor(
    text=texts, images=images, return_tensors="pt", padding=True, truncation=True
)
print(model(**inputs).logits_per_image.softmax(-1))
```

No code comes with it. Captions are read as in training: what the recipe's
`contrastive.caption_prefix` and `caption_end` name is left off by the tokenizer. `<pad>`, `<s>` and
`</s>` are the vocabulary's last ids, not those of tokenizer.model. With `data.resize: squash` the
processor's pixels are the trainer's; with `crop` they differ a little where a picture is no
square, and of a picture that is turned by EXIF or transparent they differ: turn it and put it on
white before. The vision half is what `vision_weights` of a pretrain config reads.
{sections}"""

MODEL_CLASSES = {
    "mllm": "AutoModelForImageTextToText",
    "kosmos2": "Kosmos2ForConditionalGeneration",
}

Section = tuple[str, str]  # heading, text


def model_card(
    name: str,
    export_format: str,
    num_parameters: int,
    origin: str,
    version: str,
    sections: list[Section],
    licence: str = "other",
) -> str:
    """
    Args:
        name: of the folder.
        export_format: `mllm`, `kosmos2` or `clip`.
        origin: where the weights come from, such as `400 steps of training`.
        sections: what follows the part on use.
        licence: as the hub names it.
    """
    is_ours = export_format == "mllm"
    common = {
        "name": name,
        "num_parameters": num_parameters,
        "origin": origin,
        "version": version,
        "licence": licence,
        "sections": "".join(f"\n## {heading}\n\n{text}\n" for heading, text in sections),
    }
    if export_format == "clip":
        return CLIP_CARD.format(**common)
    return CARD.format(
        **common,
        model_class=MODEL_CLASSES[export_format],
        trust=", trust_remote_code=True" if is_ours else "",
        # Kosmos-2's `generate` is its text model's, which does not see the file's settings.
        generation="" if is_ours else ", generation_config=model.generation_config",
        notes=MLLM_NOTES if is_ours else KOSMOS2_NOTES,
    )


def data_section(
    stream_fingerprint: str, corpora: list[tuple[str, float]], has_attributions: bool
) -> Section:
    """Fingerprint of the token stream, the corpora's weights, and where their licences stand."""
    shares = "\n".join(f"* {name}: {weight:g}" for name, weight in corpora)
    attribution = (
        "Sources and their licences: [ATTRIBUTION.md](ATTRIBUTION.md)."
        if has_attributions
        else "The corpora came without a file of attributions."
    )
    return "Data", (
        f"Fingerprint of the token stream: {stream_fingerprint}. Corpora, with their shares:\n\n"
        f"{shares}\n\n{attribution}"
    )


def recipe_section(config_path: Path) -> Section:
    """The run's effective configuration."""
    return "Recipe", f"```yaml\n{config_path.read_text(encoding='utf-8').strip()}\n```"


def score_sections(cells: list[dict[str, Any]]) -> list[Section]:
    """A table of cells of a `results.json`, or nothing."""
    if not cells:
        return []
    lines = [
        "| task | shots | metric | score | n | chance | blind |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        blind = cell["blind"] or {"score": None}
        metric = " ".join(filter(None, (cell["metric"], cell["unit"])))
        columns = (
            f"{cell['suite']} ({cell['split']})",
            str(cell.get("shots", cell["num_shots"])),
            metric,
            _number(cell["score"], cell["se"]),
            str(cell["n"]),
            _number(cell["chance"]),
            _number(blind["score"]),
        )
        lines.append(f"| {' | '.join(columns)} |")
    lines += ["", "± is one standard error; blind is the score with other samples' pictures."]
    return [("Scores", "\n".join(lines))]


def _number(value: float | None, se: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" + (f" ± {se:.2g}" if se is not None else "")


def find_scores(run_dir: Path, model_fingerprint: str) -> list[dict[str, Any]]:
    """Cells of the results of exactly this model, in the run's `eval` folder or beside the run."""
    for folder in (run_dir / "eval", run_dir.parent / "eval"):
        for path in sorted({*folder.glob("results.json"), *folder.glob("*/results.json")}):
            try:
                results = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:  # cut short: `mllm report` says so
                continue
            if results.get("model_fingerprint") == model_fingerprint:
                return results["cells"]
    return []


def find_attributions(corpus_dirs: list[str]) -> list[str]:
    """Texts of the corpora's ATTRIBUTION.md, each once: in a corpus or the nearest folder above."""
    texts: dict[str, None] = {}
    for corpus_dir in corpus_dirs:
        for folder in (Path(corpus_dir), *Path(corpus_dir).parents[:2]):
            if (folder / "ATTRIBUTION.md").is_file():
                texts[(folder / "ATTRIBUTION.md").read_text(encoding="utf-8")] = None
                break
    return list(texts)
