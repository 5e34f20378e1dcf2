"""A vision run's export against our scores, in `transformers`' own classes and without our code."""

import dataclasses
import io
import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoProcessor, AutoTokenizer, CLIPModel, CLIPProcessor

from corpora.reader import Corpus
from mllm.checkpoint import init_from
from mllm.cli import main
from mllm.config import Config
from mllm.export import export
from mllm.files import sha256_file, write_json
from mllm.hf.clip import to_clip_config, to_clip_state
from mllm.hf.clip_tokenizer import clip_tokenizer
from mllm.images import normalise
from mllm.model.contrastive import ContrastiveModel
from mllm.model.init import build
from mllm.model.vision import VisionEncoder
from mllm.objectives import Contrastive
from mllm.stages.contrast import contrastive_model
from mllm.stream.pairs import PairStream, pair_of
from mllm.vision_weights import load_vision_weights
from tests.conftest import World
from tests.scenarios import clip_config
from tokenizer.specials import EOS_ID

# One closes before its highest id, one is cut, two spell what no text may become.
CAPTIONS = (
    "a red square at the top.",
    "the quick brown fox jumps over a lazy dog " * 4,
    "</s> <s> <pad> <unk> <0x41> <image>",
    "  grün 🙂 \n lake ",
    "",
)


def write_run(run_dir: Path, model: ContrastiveModel, config: Config) -> Path:
    """A run folder as the trainer leaves it, without optimizer states."""
    checkpoint = run_dir / "checkpoints" / "step-00000007"
    checkpoint.mkdir(parents=True)
    save_file(model.state_dict(), checkpoint / "model.safetensors")
    write_json(checkpoint / "model_config.json", {"vision": config.to_dict()["model"]["vision"]})
    shutil.copyfile(Path(config.tokenizer) / "tokenizer.model", checkpoint / "tokenizer.model")
    write_json(checkpoint / "state.json", {"step": 1})
    manifest = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in checkpoint.iterdir()
    }
    write_json(checkpoint / "manifest.json", manifest)
    write_json(run_dir / "stream.json", {"fingerprint": "0123456789abcdef"})
    (run_dir / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config.to_dict()))))
    return run_dir


def trained(config: Config, stream: PairStream, num_steps: int) -> ContrastiveModel:
    torch.manual_seed(1)
    model = contrastive_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(num_steps):
        loss, _ = Contrastive(model)(stream.batch(step, rank=0, world_size=1, micro_batch_size=12))
        optimizer.zero_grad()
        (loss / 12).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def clip(world: World, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`model` after some steps, its run's `config`, `stream`, `run_dir`, and its `out` folder."""
    root = tmp_path_factory.mktemp("clip")
    config = clip_config(world.root, root / "run", 12)
    stream = PairStream(config)
    model = trained(config, stream, 6)
    run_dir = write_run(root / "run", model, config)
    export(run_dir, root / "out", "clip")
    return SimpleNamespace(
        model=model, config=config, stream=stream, run_dir=run_dir, out=root / "out"
    )


def our_scores(
    model: ContrastiveModel, stream: PairStream, pictures: list[bytes], texts: list[str]
) -> torch.Tensor:
    """Logits (pictures, texts), as the loss has them."""
    pixels = np.stack([stream.pictures.decode(picture) for picture in pictures])
    with torch.no_grad():
        images = model.embed_images(normalise(torch.from_numpy(pixels)))
        return (
            min(100.0, model.logit_scale.exp())
            * images
            @ model.embed_texts(*stream.encode(texts)).T
        )


def their_scores(
    model: CLIPModel, processor: CLIPProcessor, pictures: list[bytes], texts: list[str]
):
    inputs = processor(
        text=texts,
        images=[Image.open(io.BytesIO(picture)) for picture in pictures],
        return_tensors="pt",
        padding=True,
        truncation=True,
    )
    with torch.no_grad():
        return model.eval()(**inputs).logits_per_image


def real_pairs(world: World, num: int) -> tuple[list[bytes], list[str]]:
    corpus = Corpus(world.pairs)
    pairs = [pair_of(corpus.document(i)) for i in range(num)]
    pictures = [picture for picture, _ in pairs]
    wide = io.BytesIO()  # beside the squares a photograph's shape
    noise = np.random.default_rng(0).integers(0, 256, (30, 47, 3), dtype=np.uint8)
    Image.fromarray(noise).save(wide, "PNG")
    return [*pictures, wide.getvalue()], [text for _, text in pairs]


@pytest.mark.parametrize("is_trained", [True, False])
def test_the_exported_scores_are_ours_without_code_of_ours(
    world: World, clip: SimpleNamespace, tmp_path: Path, is_trained: bool
) -> None:
    """`</s>` has id 2 in training, the lowest of a caption's ids but `<s>`."""
    out, model = clip.out, clip.model
    if not is_trained:
        torch.manual_seed(5)
        model = contrastive_model(clip.config).eval()
        out = tmp_path / "out"
        export(write_run(tmp_path / "run", model, clip.config), out, "clip")
    assert not list(out.glob("*.py"))
    theirs, processor = CLIPModel.from_pretrained(out), AutoProcessor.from_pretrained(out)
    for part in (processor, processor.tokenizer, processor.image_processor):
        assert type(part).__module__.startswith("transformers.")
    pictures, texts = real_pairs(world, 24)
    texts += CAPTIONS
    ours = our_scores(model, clip.stream, pictures, texts)
    assert (their_scores(theirs, processor, pictures, texts) - ours).abs().max() < 1e-5
    assert ours.std() > 0.1  # else nothing would be compared


def test_another_end_of_the_text_moves_the_scores(world: World, clip: SimpleNamespace) -> None:
    """What CLIPTextModel does with our own ids and `eos_token_id` 2: it reads the highest id."""
    pictures, texts = real_pairs(world, 24)
    token_ids, lengths = clip.stream.encode(texts)
    highest = token_ids.argmax(1)
    assert (token_ids[torch.arange(len(texts)), lengths - 1] == EOS_ID).all()
    assert (highest != lengths - 1).all()
    theirs = CLIPModel.from_pretrained(clip.out).eval()
    pixels = np.stack([clip.stream.pictures.decode(picture) for picture in pictures])
    inputs = {"pixel_values": normalise(torch.from_numpy(pixels)), "input_ids": token_ids}
    ours = our_scores(clip.model, clip.stream, pictures, texts)
    theirs.text_model.eos_token_id = EOS_ID
    with torch.no_grad():
        assert (theirs(**inputs).logits_per_image - ours).abs().max() > 0.1
    # The exported ids mean `</s>` either way: no other is higher.
    processor = CLIPProcessor.from_pretrained(clip.out)
    assert (their_scores(theirs, processor, pictures, texts) - ours).abs().max() < 1e-5
    theirs.text_model.eos_token_id = processor.tokenizer.pad_token_id
    assert (their_scores(theirs, processor, pictures, texts) - ours).abs().max() > 0.1


def test_a_temperature_beyond_its_bound_is_exported_at_the_bound(clip: SimpleNamespace) -> None:
    state = dict(clip.model.state_dict()) | {"logit_scale": torch.tensor([7.0])}
    theirs = CLIPModel(to_clip_config(clip.config))
    theirs.load_state_dict(to_clip_state(state))
    assert theirs.logit_scale.exp().item() == pytest.approx(100.0)


@pytest.mark.parametrize("core", [("", ""), ("An image of", ",:."), ("a (b) [", "]*\\|")])
def test_captions_have_the_ids_that_they_were_trained_with(
    world: World, core: tuple[str, str]
) -> None:
    config = clip_config(world.root, Path("unused"), 12)
    settings = dataclasses.replace(config.contrastive, caption_prefix=core[0], caption_end=core[1])
    stream = PairStream(dataclasses.replace(config, contrastive=settings))
    tokenizer = clip_tokenizer(world.tokenizer_dir / "tokenizer.model", settings)
    draws = random.Random(0)
    letters = "abcdefgh  \n<>/s0x41éü漢🙂▁.,:]|*\\(["
    texts = ["".join(draws.choices(letters, k=draws.randint(0, 30))) for _ in range(300)]
    texts += [*real_pairs(world, 40)[1], *CAPTIONS, "a (b) [c]d", "An image of</s>, all"]
    token_ids, _ = stream.encode(texts)
    inputs = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    vocab_size = config.model.vocab_size
    theirs = inputs["input_ids"]
    # `<s>`, `<pad>` and `</s>` are ids 0, 1, 2 in training.
    for own, name in enumerate(("<s>", "<pad>", "</s>")):
        theirs = theirs.masked_fill(theirs == tokenizer.convert_tokens_to_ids(name), own)
    assert torch.equal(theirs, token_ids) and theirs.max() < vocab_size
    kept = tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True)
    assert kept[-2] == ("a (b) [c]d" if core != ("a (b) [", "]*\\|") else "c")


def test_a_pretrain_model_takes_the_exports_vision_half_or_the_run(
    world: World, clip: SimpleNamespace
) -> None:
    encoder = VisionEncoder(clip.config.model.vision)
    load_vision_weights(encoder, clip.out)
    for name, value in clip.model.vision.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value), name
    sizes = dataclasses.replace(clip.config.model, model_dim=24, num_heads=2, ffn_dim=48)
    model = build(sizes, seed=3)
    copied, missing = init_from(model, clip.run_dir)
    assert copied == len(clip.model.vision.state_dict()) + 1
    assert not [name for name in missing if name.startswith("vision.")]
    tokens = clip.model.text.text_model.embeddings.token_embedding.weight.detach()
    words = model.decoder.embed_tokens.weight.detach()
    assert F.cosine_similarity(words, tokens).min() > 1 - 1e-5
    assert words.std() == pytest.approx(24**-0.5, rel=1e-4)
    other = build(dataclasses.replace(sizes, model_dim=48), seed=3)  # of another width: its own
    assert init_from(other, clip.run_dir)[0] == copied - 1


def test_what_cannot_be_a_clip_is_one_line_that_names_the_key(
    world: World, clip: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = dataclasses.replace(
        clip.config, contrastive=dataclasses.replace(clip.config.contrastive, text_tower="bag")
    )
    bag_run = write_run(tmp_path / "bag", contrastive_model(bag), bag)
    pretrain = dataclasses.replace(clip.config, stage="pretrain")
    pretrain_run = write_run(tmp_path / "pretrain", clip.model, pretrain)
    for run_dir, export_format, said in (
        (bag_run, "clip", "contrastive.text_tower: bag cannot be exported as clip"),
        (clip.run_dir, "mllm", "is a run of stage vision; export it with --format clip"),
        (pretrain_run, "clip", "--format clip is for stage vision; "),
    ):
        out = tmp_path / "out"
        assert main(["export", str(run_dir), "--out", str(out), "--format", export_format]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and not out.exists()


def test_the_command_says_what_it_wrote_and_how_to_use_it(
    clip: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = ["export", str(clip.run_dir), "--out", str(out), "--format", "clip", "--json"]
    assert main([*line, "--max-shard-size", "60KB"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["format"], record["step"]) == ("clip", 7)
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 1  # and they load
    assert CLIPModel.from_pretrained(out).num_parameters() == record["num_parameters"]
    card = (out / "README.md").read_text()
    assert "zero-shot-image-classification" in card and "text_tower: transformer" in card
    assert AutoTokenizer.from_pretrained(out).model_max_length == 20
