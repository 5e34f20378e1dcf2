"""Logits equal those of `transformers`' Kosmos-2 in both directions, and what cannot is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import sentencepiece
import torch
from transformers import AutoProcessor, Kosmos2Config, Kosmos2ForConditionalGeneration

from corpora.document import ImageSegment, TextSegment
from evals.api import Prompt, Query, RankRequest
from evals.exported import ExportedModel
from mllm.checkpoint import init_from
from mllm.cli import main
from mllm.errors import UserError
from mllm.hf.kosmos2 import from_kosmos2_config, to_kosmos2_config
from mllm.hf.kosmos2_tokenizer import convert
from mllm.hf.load import load_export, load_processor
from mllm.hf.write import write_kosmos2
from mllm.importing import import_kosmos2, licence_of
from mllm.model.attention import Documents
from mllm.model.init import build
from tests.hf.tiny import CONFIG, TEXT, make_tiny, picture, png
from tokenizer.specials import BOI_ID, BOS_ID, EOI_ID, EOS_ID, NUM_SPECIALS, PAD_ID, SLOT_ID

TOLERANCE = {"atol": 1e-4, "rtol": 0}
ROWS = [
    ["An image of a red square"],
    [picture(1), "An image of"],
    [picture(2), "a red", picture(3), "Question: is there a circle? Answer:"],
]
NAMES = ["text", "1 image", "2 images"]


@pytest.fixture(scope="module", params=[0, 60], ids=["random", "trained"])
def exported(request, tmp_path_factory):
    """A sinusoidal model of ours, and transformers' Kosmos-2 loaded from its export."""
    root = tmp_path_factory.mktemp("exported")
    tiny = make_tiny(root, num_steps=request.param, position="sinusoidal")
    folder = root / "kosmos2"
    arguments = (tiny.engine.state_dict(), tiny.config, root / "tokenizer.model")
    write_kosmos2(folder, *arguments, resize="squash")
    tiny.kosmos2 = folder
    tiny.theirs = Kosmos2ForConditionalGeneration.from_pretrained(folder).eval()
    return tiny


def kosmos2_logits(model, inputs):
    """(B, T, V); Kosmos-2 itself wants a picture in every batch."""
    with torch.no_grad():
        if "pixel_values" in inputs:
            return model(**inputs).logits
        kept = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        return model.text_model(**kept).logits


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_an_exports_logits_are_ours(exported, row):
    inputs = load_processor(exported.kosmos2).from_segments([row])
    theirs = kosmos2_logits(exported.theirs, inputs)
    with torch.no_grad():
        ours = exported.model(**exported.processor.from_segments([row])).logits
    torch.testing.assert_close(theirs, ours, **TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_exports_logits_are_ours_in_a_padded_batch(exported, side):
    processor = load_processor(exported.kosmos2)
    theirs = kosmos2_logits(exported.theirs, processor.from_segments(ROWS, padding_side=side))
    inputs = exported.processor.from_segments(ROWS, padding_side=side)
    with torch.no_grad():
        ours = exported.model(**inputs).logits
    kept = inputs["attention_mask"].bool()
    torch.testing.assert_close(theirs[kept], ours[kept], **TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_documents_packed_into_one_row_have_kosmos2s_logits_alone_and_padded(exported, side):
    prompts = [exported.processor.from_segments([row]) for row in ROWS]
    lengths = [prompt["input_ids"].shape[1] for prompt in prompts]
    ids = torch.cat([prompt["input_ids"] for prompt in prompts], 1)
    pixels = torch.cat([p["pixel_values"] for p in prompts if "pixel_values" in p])
    places = torch.cat([torch.arange(length) for length in lengths])[None]
    document_ids = torch.repeat_interleave(torch.arange(len(ROWS)), torch.tensor(lengths))[None]
    with torch.no_grad():
        hidden = exported.engine(
            ids, ids == SLOT_ID, pixels, places, documents=Documents(document_ids)
        )
        packed = exported.engine.head(hidden)[0].split(lengths)
    processor = load_processor(exported.kosmos2)
    inputs = processor.from_segments(ROWS, padding_side=side)
    padded = kosmos2_logits(exported.theirs, inputs)
    kept = inputs["attention_mask"].bool()
    for row, ours, in_batch, mask in zip(ROWS, packed, padded, kept, strict=True):
        theirs = kosmos2_logits(exported.theirs, processor.from_segments([row]))[0]
        torch.testing.assert_close(theirs, ours, **TOLERANCE)
        torch.testing.assert_close(in_batch[mask], ours, **TOLERANCE)


def test_kosmos2_generates_a_padded_batch_rightly_without_a_cache_as_the_card_says(exported):
    """Its cached `generate` counts padding among the positions; once it does not, the card may
    leave its sentence out."""
    inputs = load_processor(exported.kosmos2).from_segments(ROWS)
    settings = {"output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    settings |= {"max_new_tokens": 2, "min_new_tokens": 2}

    def second_logits(model, inputs, **more):
        output = model.generate(
            **inputs, generation_config=model.generation_config, **settings, **more
        )
        return output.logits[1]

    ours = second_logits(exported.model, exported.processor.from_segments(ROWS))
    theirs = second_logits(exported.theirs, inputs, use_cache=False)
    torch.testing.assert_close(theirs, ours, **TOLERANCE)
    is_padded = (inputs["attention_mask"] == 0).any(1)
    differs = (second_logits(exported.theirs, inputs) - theirs).abs().amax(-1) > 0.1
    assert torch.equal(differs, is_padded)


def test_an_export_generates_with_the_processor_that_auto_processor_finds(exported):
    processor = AutoProcessor.from_pretrained(exported.kosmos2, trust_remote_code=True)
    settings = {"max_new_tokens": 8, "do_sample": False}
    inputs = processor(text="<image>An image of", images=[picture(1)])
    theirs = exported.theirs.generate(
        **inputs, generation_config=exported.theirs.generation_config, **settings
    )
    ours = exported.model.generate(
        **exported.processor(text="<image>An image of", images=[picture(1)]), **settings
    )
    assert torch.equal(theirs, ours)


def test_an_export_comes_back_bit_by_bit(exported, tmp_path):
    import_kosmos2(exported.kosmos2, tmp_path / "back")
    model, processor = load_export(tmp_path / "back")
    assert model.config.to_model_config() == exported.config
    assert processor.image_processor.resize == "squash"
    for name, weight in exported.engine.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], weight), name


# --- Weights from elsewhere


@pytest.fixture(scope="module", params=[0, 12], ids=["random", "trained"])
def foreign(request, tmp_path_factory):
    """A Kosmos-2 folder as Microsoft's lies on the hub, small: sizes unlike any default."""
    folder = tmp_path_factory.mktemp("foreign") / "kosmos-2-small"
    return make_foreign(folder, request.param)


def make_foreign(folder, num_steps=0):
    folder.mkdir(exist_ok=True)
    (folder / "corpus.txt").write_text("".join(TEXT))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=60,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "sentencepiece.bpe.model"))
    vocab_size = pieces.vocab_size() + 1 + 12 + 9  # 12 tags, 9 places of a grid of 3 x 3
    torch.manual_seed(0)
    config = Kosmos2Config(
        text_config={
            "vocab_size": vocab_size,
            "max_position_embeddings": 96,
            "embed_dim": 48,
            "layers": 3,
            "ffn_dim": 80,
            "attention_heads": 6,
        },
        vision_config={
            "hidden_size": 40,
            "intermediate_size": 72,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 20,
            "patch_size": 5,
            "hidden_act": "gelu",
        },
        latent_query_num=5,
    )
    model = Kosmos2ForConditionalGeneration(config)
    with torch.no_grad():  # N(0, 0.02) hardly tells tokens apart
        model.text_model.model.embed_tokens.weight.normal_(std=0.3)
        model.image_to_text_projection.x_attn.out_proj.weight.mul_(30)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(num_steps):
        ids = torch.tensor([[0, 64003, *range(4, 9), 64004, *pieces.encode(TEXT[step % 4])]])
        ids[ids >= 64000] += pieces.vocab_size() - 64000
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[:, 2:7] = True
        arguments = {"input_ids": ids, "image_embeds_position_mask": mask, "labels": ids}
        model(pixel_values=torch.randn(1, 3, 20, 20), **arguments).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    return folder, model, pieces


def kosmos2_ids(pieces, row, num_latents):
    """A row as fairseq numbers it (kosmos-1.md 2.1), from SentencePiece's own ids."""
    mask_id = pieces.vocab_size() + 1
    ids, slots = [0], [False]
    for segment in row:
        if isinstance(segment, str):
            new = [i + 1 for i in pieces.encode(segment)]
            slots += [False] * len(new)
        else:
            new = [mask_id + 2, *range(4, 4 + num_latents), mask_id + 3]
            slots += [False, *[True] * num_latents, False]
        ids += new
    return torch.tensor([ids]), torch.tensor([slots])


def columns(pieces, our_vocab):
    """For each of our ids that Kosmos-2 has, its id: by the names of pieces, not by places."""
    theirs = {pieces.id_to_piece(i): i + 1 for i in range(3, pieces.vocab_size())}
    theirs |= {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    tags = "<mask> </doc> <image> </image> </chunk> </line> <phrase> </phrase> <object> </object>"
    tags += " </delimiter_of_multi_objects/> <grounding>"
    names = [*tags.split(), *(f"<patch_index_{i:04d}>" for i in range(9))]
    theirs |= {name: pieces.vocab_size() + 1 + i for i, name in enumerate(names)}
    found = {ours: theirs[piece] for piece, ours in our_vocab.items() if piece in theirs}
    assert sorted(found.values()) == list(range(len(theirs)))
    return list(found), list(found.values())


@pytest.fixture(scope="module")
def imported(foreign, tmp_path_factory):
    folder, theirs, pieces = foreign
    out = tmp_path_factory.mktemp("imported") / "model"
    assert main(["import", "kosmos2", str(folder), "--out", str(out)]) == 0
    model, processor = load_export(out)
    return out, model, processor, theirs, pieces


@pytest.mark.parametrize(
    ("readme", "config", "licence"),
    [
        ("---\ntags: [x]\nlicense: mit\n---\n# Kosmos-2\n---\n", {}, "mit"),
        ("---\ntags: [x]\n---\n", {"license": "apache-2.0"}, "apache-2.0"),
        ("---\nlicense: [a, b]\n---\n", {}, None),
        ("---\nlicense: {a\n---\n", {}, None),
        ("# no fields\n", {}, None),
        (None, {}, None),
    ],
)
def test_the_card_carries_the_sources_licence(tmp_path, readme, config, licence):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert licence_of(tmp_path) == licence


def test_a_card_without_a_known_licence_says_where_to_look(imported):
    card = (imported[0] / "README.md").read_text()
    assert "\nlicense: other\n" in card and "See source: `kosmos-2-small` names none" in card


def test_an_import_takes_all_sizes_from_the_config(imported):
    _, model, _, _, pieces = imported
    config = model.config.to_model_config()
    vision = config.vision
    assert (config.model_dim, config.num_layers, config.num_heads, config.ffn_dim) == (48, 3, 6, 80)
    assert (config.num_latents, config.seq_len, config.position) == (5, 96, "sinusoidal")
    assert (vision.width, vision.mlp_dim, vision.num_layers, vision.num_heads) == (40, 72, 2, 4)
    assert (vision.image_size, vision.patch_size, vision.activation) == (20, 5, "gelu")
    # Kosmos-2's rows, and our <slot> and eight reserved ones.
    assert config.vocab_size == pieces.vocab_size() + 1 + 12 + 9 + 9


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_an_imports_logits_are_kosmos2s(imported, row):
    _, model, processor, theirs, pieces = imported
    inputs = processor.from_segments([row])
    ids, slots = kosmos2_ids(pieces, row, 5)
    kept = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if inputs.get("pixel_values") is not None:
        kept |= {"pixel_values": inputs["pixel_values"], "image_embeds_position_mask": slots}
    our_columns, their_columns = columns(pieces, processor.tokenizer.get_vocab())
    with torch.no_grad():
        ours = model(**inputs).logits[..., our_columns]
    expected = kosmos2_logits(theirs, kept)[..., their_columns]
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, expected, **TOLERANCE)


def padded_kosmos2_logits(imported, side):
    """Kosmos-2's logits of ROWS as one batch padded on `side`, in our order of ids."""
    _, _, processor, theirs, pieces = imported
    _, their_columns = columns(pieces, processor.tokenizer.get_vocab())
    rows = [kosmos2_ids(pieces, row, 5) for row in ROWS]
    width = max(ids.shape[1] for ids, _ in rows)
    padded = torch.full((len(rows), width), 1)
    slots = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (row_ids, row_slots) in enumerate(rows):
        length = row_ids.shape[1]
        place = slice(width - length, width) if side == "left" else slice(0, length)
        padded[i, place] = row_ids
        slots[i, place] = row_slots
    inputs = {
        "input_ids": padded,
        "attention_mask": (padded != 1).long(),
        "pixel_values": processor.from_segments(ROWS)["pixel_values"],
        "image_embeds_position_mask": slots,
    }
    return kosmos2_logits(theirs, inputs)[..., their_columns]


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_imports_logits_are_kosmos2s_in_a_padded_batch_and_packed(imported, side):
    _, model, processor, _, pieces = imported
    our_columns, _ = columns(pieces, processor.tokenizer.get_vocab())
    inputs = processor.from_segments(ROWS, padding_side=side)
    alone = [processor.from_segments([row]) for row in ROWS]
    lengths = [prompt["input_ids"].shape[1] for prompt in alone]
    ids = torch.cat([prompt["input_ids"] for prompt in alone], 1)
    places = torch.cat([torch.arange(length) for length in lengths])[None]
    document_ids = torch.repeat_interleave(torch.arange(len(ROWS)), torch.tensor(lengths))[None]
    with torch.no_grad():
        ours = model(**inputs).logits[..., our_columns]
        hidden = model.model(
            ids,
            ids == SLOT_ID,
            inputs["pixel_values"],
            places,
            documents=Documents(document_ids),
        )
        packed = model.model.head(hidden)[0][:, our_columns].split(lengths)
    expected = padded_kosmos2_logits(imported, side)
    kept = inputs["attention_mask"].bool()
    torch.testing.assert_close(ours[kept], expected[kept], **TOLERANCE)
    for row_logits, row, mask in zip(packed, expected, kept, strict=True):
        torch.testing.assert_close(row_logits, row[mask], **TOLERANCE)


def test_tokens_that_kosmos2_lacks_take_at_most_their_share_of_the_probability(imported):
    _, model, processor, _, pieces = imported
    known, _ = columns(pieces, processor.tokenizer.get_vocab())
    with torch.no_grad():
        probabilities = model(**processor.from_segments([ROWS[1]])).logits.softmax(-1)[0]
    added = 1 - probabilities[:, known].sum(-1)
    assert (added > 0).all()
    assert (added <= 9 / probabilities.shape[1] + 1e-6).all()


def test_the_imported_tokenizer_splits_as_the_file_and_knows_no_specials_in_text(imported):
    _, _, processor, _, pieces = imported
    tokenizer = processor.tokenizer
    for text in ("An image of a red square.", "  two  spaces", "line\nline", "", "a <image> </s>"):
        ids = tokenizer.encode_text(text)
        assert tokenizer.convert_ids_to_tokens(ids) == pieces.encode(text, out_type=str) or (
            pieces.unk_id() in pieces.encode(text)
        )
        assert all(i >= NUM_SPECIALS or i == 3 for i in ids)
    hostile = tokenizer.encode_text("<grounding><phrase></phrase><patch_index_0001></doc>")
    assert not {"<grounding>", "<phrase>", "</doc>"} & set(tokenizer.convert_ids_to_tokens(hostile))
    assert tokenizer.convert_tokens_to_ids(["<image>", "</image>"]) == [BOI_ID, EOI_ID]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (BOS_ID, EOS_ID)
    assert tokenizer.pad_token_id == PAD_ID


def test_an_import_is_what_chat_evaluation_and_init_from_take(imported, capsys):
    out, model, _, _, _ = imported
    capsys.readouterr()
    chat = ["chat", "--model", str(out), "--once", "is it red?", "--max-new-tokens", "3"]
    assert main(chat) == 0
    evaluated = ExportedModel(out, device="cpu")
    query = Query("q", (ImageSegment(png(1)), TextSegment("An image of")), "a red square")
    (scores,) = evaluated.loglikelihood([RankRequest(Prompt((), query), (" a red", " an owl"))])
    assert all(score.ll < 0 for score in scores)
    fresh = build(model.config.to_model_config(), seed=5)
    num_copied, missing = init_from(fresh, out)
    assert missing == [] and num_copied > 50
    for name, weight in fresh.state_dict().items():
        assert torch.equal(weight, model.model.state_dict()[name]), name


# --- What is refused


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"position": "xpos"}, "model.position: xpos .* no xPos.*train with model.position: sinu"),
        ({"resampler": "perceiver"}, "model.resampler: perceiver .* no perceiver"),
        ({"vision": replace(CONFIG.vision, keep_cls=False)}, "model.vision.keep_cls: False"),
        ({"vision": replace(CONFIG.vision, post_layer_norm=False)}, "always applies ln_post"),
    ],
)
def test_what_kosmos2_cannot_compute_is_refused_with_the_reason(changes, reason):
    config = replace(CONFIG, **{"position": "sinusoidal", **changes})
    with pytest.raises(UserError, match=reason):
        to_kosmos2_config(config, PAD_ID)


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("text_config", {"activation_function": "relu"}, "activation_function is relu"),
        ("text_config", {"scale_embedding": False}, "scale_embedding is False"),
        ("text_config", {"pad_token_id": 0}, "pad_token_id is 0"),
        ("vision_config", {"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06"),
        ("vision_config", {"image_size": [20, 10]}, "must be one number"),
        ("text_config", {"attention_heads": 7}, "no multiple of num_heads 7"),
    ],
)
def test_what_this_model_cannot_compute_is_refused_by_its_key(part, changes, reason):
    with pytest.raises(UserError, match=reason):
        from_kosmos2_config(Kosmos2Config(**{part: changes}))


def test_a_folder_that_lacks_something_is_one_line_and_leaves_nothing(tmp_path, capsys):
    whole, _, _ = make_foreign(tmp_path / "whole")

    def refused(change, *reasons):
        folder, out = tmp_path / "broken", tmp_path / "out"
        shutil.copytree(whole, folder)
        change(folder)
        capsys.readouterr()
        assert main(["import", "kosmos2", str(folder), "--out", str(out)]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("mllm: error: ")
        for reason in reasons:
            assert reason in error
        shutil.rmtree(folder)
        assert [path.name for path in tmp_path.iterdir()] == ["whole"]

    def cut(name):
        def change(folder):
            (folder / name).write_bytes((folder / name).read_bytes()[:-1000])

        return change

    def other_type(folder):
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))

    def pickled(folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    def other_ids(folder):
        added = [{"content": "<image>", "id": 5}]
        (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))

    def smaller(folder):
        _, other, _ = make_foreign(folder)
        other.resize_token_embeddings(60)
        other.save_pretrained(folder)

    refused(lambda f: (f / "config.json").unlink(), "no config.json here")
    refused(lambda f: (f / "sentencepiece.bpe.model").unlink(), "has no sentencepiece.bpe.model")
    refused(cut("sentencepiece.bpe.model"), "sentencepiece.bpe.model")
    refused(cut("model.safetensors"), "not a whole Kosmos-2 folder")
    refused(cut("config.json"), "not JSON")
    refused(other_type, "model_type is llama")
    refused(pickled, "pickled weights are not read")
    refused(other_ids, "<image> is id 5")
    refused(smaller, "57 pieces leave -1 of vocab_size 60")


def test_a_tokenizer_of_another_layout_is_refused(exported):
    with pytest.raises(UserError, match="not with <unk> <s> </s>"):
        convert(exported.root / "tokenizer.model", 400)


def test_a_kosmos2_folder_is_no_export_for_chat(exported):
    with pytest.raises(UserError, match="a model of type kosmos-2"):
        load_export(exported.kosmos2)
