"""Generation against transformers' Kosmos-2 with the same weights, and ranking by prefix reuse."""

import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Kosmos2ForConditionalGeneration

from corpora.document import ImageSegment, TextSegment
from mllm.bench import machine
from mllm.hf.configuration_mllm import MllmConfig
from mllm.hf.image_processing_mllm import MllmImageProcessor
from mllm.hf.kosmos2 import to_kosmos2_config, to_kosmos2_state
from mllm.hf.modeling_mllm import MllmForConditionalGeneration
from mllm.hf.processing_mllm import MllmProcessor, PromptSegment
from mllm.hf.tokenization_mllm import MllmTokenizer
from mllm.model.config import ModelConfig, VisionConfig
from mllm.ranking import Segment, rank_candidates
from tokenizer.specials import NUM_SPECIALS, PAD_ID, SLOT_ID
from tokenizer.train import train

CONFIG = ModelConfig(
    vocab_size=8192,
    seq_len=512,
    model_dim=256,
    num_layers=6,
    num_heads=8,
    ffn_dim=1024,
    position="sinusoidal",
    num_latents=16,
    vision=VisionConfig(
        image_size=64, patch_size=16, width=192, num_layers=3, num_heads=3, mlp_dim=768
    ),
)
PROMPT = 24  # text tokens after the picture
NEW_TOKENS = 64
WORDS = (
    *("apple", "owl", "fox", "dog", "circle", "square", "grapes", "house", "river", "bread"),
    *("school", "tree", "bird", "milk", "white", "red", "green", "blue", "black", "brown"),
)
WORDS_PER_CANDIDATE = (1, 3)  # each candidate begins with another word
NUM_CANDIDATES = len(WORDS)


def run(rounds: int = 7, batch_sizes: tuple[int, ...] = (1, 8)) -> dict[str, Any]:
    """
    Returns:
        `generate`: by batch size, tokens per second of both sides and their ratio; `ranking`: by
        words a candidate, candidates per second of the three ways, and how much faster prefix reuse
        is.
    """
    torch.manual_seed(0)
    ours = MllmForConditionalGeneration(MllmConfig.from_model_config(CONFIG)).eval()
    theirs = Kosmos2ForConditionalGeneration(to_kosmos2_config(CONFIG, PAD_ID)).eval()
    theirs.load_state_dict(to_kosmos2_state(ours.model.state_dict()))
    for settings in (ours.generation_config, theirs.text_model.generation_config):
        settings.eos_token_id = None  # neither stops early
    return {
        "machine": machine.describe("torch", "transformers"),
        "threads": torch.get_num_threads(),
        "config": CONFIG.to_dict(),
        "generate": {size: generation(ours, theirs, size, rounds) for size in batch_sizes},
        "ranking": {num: ranking(ours, num, rounds) for num in WORDS_PER_CANDIDATE},
    }


def generation(ours: Any, theirs: Any, batch_size: int, rounds: int) -> dict[str, Any]:
    """Greedy tokens per second, the prompt and its picture included."""
    span = CONFIG.num_latents + 2
    ids = torch.randint(NUM_SPECIALS, CONFIG.vocab_size, (batch_size, 1 + span + PROMPT))
    slots = torch.zeros_like(ids, dtype=torch.bool)
    slots[:, 2 : 2 + CONFIG.num_latents] = True
    ids[slots] = SLOT_ID
    arguments = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(
            batch_size, 3, CONFIG.vision.image_size, CONFIG.vision.image_size
        ),
        "max_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "pad_token_id": PAD_ID,
    }

    def us() -> torch.Tensor:
        return ours.generate(**arguments, image_slot_mask=slots)

    def them() -> torch.Tensor:
        return theirs.generate(**arguments, image_embeds_position_mask=slots)

    equal = (us() == them()).float().mean().item()  # and a warm-up
    num_tokens = batch_size * NEW_TOKENS
    rates = machine.interleaved(
        {"ours": _items(us, num_tokens), "kosmos2": _items(them, num_tokens)}, rounds
    )
    ratio = rates["ours"]["median"] / rates["kosmos2"]["median"]
    return {"tokens_per_second": rates, "ratio": ratio, "equal_tokens": equal}


def _items(work: Callable[[], Any], items: int) -> Callable[[], float]:
    def side() -> float:
        work()
        return items

    return side


def ranking(model: Any, num_words: int, rounds: int) -> dict[str, Any]:
    """20 candidates of so many words after one picture and a question, scored in three ways."""
    processor = make_processor()
    draws = np.random.default_rng(1)
    candidates = [f" {' '.join([word, *draws.choice(WORDS, num_words - 1)])}" for word in WORDS]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (224, 224, 3), np.uint8))
    question = "Question: what is in the image, and what colour is it? Answer:"
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = file.getvalue()
    encode = processor.tokenizer.encode_text
    num_prompt = len(encode(question))

    def reused() -> list[float]:
        prompt: list[Segment] = [ImageSegment(data), TextSegment(question)]
        (scores,) = rank_candidates(
            model, processor, [prompt], [candidates], batch_size=len(candidates)
        )
        return [score.ll for score in scores]

    def whole(texts: Sequence[str]) -> list[float]:
        """Prompt and candidate in one forward, a row each, padded on the right."""
        rows: list[list[PromptSegment]] = [[data, question + text] for text in texts]
        inputs = processor.from_segments(rows, padding_side="right")
        logits = model(**inputs).logits[:, :-1].log_softmax(-1)
        targets = inputs["input_ids"][:, 1:]
        log_probs = logits.gather(-1, targets[..., None])[..., 0]
        first = CONFIG.num_latents + 2 + num_prompt  # place of the candidate's first target
        lls = (log_probs * inputs["attention_mask"][:, 1:])[:, first:].sum(1)
        return lls.tolist()

    with torch.inference_mode():
        sides: dict[str, Callable[[], list[float]]] = {
            "prefix reuse": reused,
            "20 forwards": lambda: [whole([text])[0] for text in candidates],
            "a batch of 20": lambda: whole(candidates),
        }
        answers = {name: np.array(side()) for name, side in sides.items()}
        rates = machine.interleaved(
            {name: _items(side, len(candidates)) for name, side in sides.items()}, rounds
        )
    own = rates["prefix reuse"]["median"]
    return {
        "candidates_per_second": rates,
        "faster_than": {name: own / rates[name]["median"] for name in list(sides)[1:]},
        "max_difference": max(
            float(abs(answer - answers["prefix reuse"]).max()) for answer in answers.values()
        ),
    }


def make_processor() -> MllmProcessor:
    """A small tokenizer, trained on a few sentences; the model's table has room for its ids."""
    lines = [
        " ".join(WORDS) + "\n",
        "Question: what is in the image, and what colour? Answer: no\n",
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(train(iter(lines * 4), 320))
        tokenizer = MllmTokenizer(str(path))
    image_processor = MllmImageProcessor(CONFIG.vision.image_size)
    return MllmProcessor(image_processor, tokenizer, num_latents=CONFIG.num_latents)


def lines(result: dict[str, Any]) -> list[str]:
    """For people: a line a batch size, then ranking."""
    found = []
    for size, part in result["generate"].items():
        rates = part["tokens_per_second"]
        found.append(
            f"batch {size}: {rates['ours']['median']:.0f} tokens/s, Kosmos-2 "
            f"{rates['kosmos2']['median']:.0f}: {part['ratio']:.2f}x (target 1.5x); "
            f"{part['equal_tokens']:.1%} of the tokens equal"
        )
    for num_words, ranked in result["ranking"].items():
        for name, target in (("20 forwards", 5), ("a batch of 20", 2)):
            found.append(
                f"ranking {NUM_CANDIDATES} candidates of {num_words} words: "
                f"{ranked['faster_than'][name]:.1f}x as fast as {name} (target {target}x); "
                f"largest difference {ranked['max_difference']:.1e}"
            )
    return found
