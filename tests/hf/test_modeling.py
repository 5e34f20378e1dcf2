"""The exported class computes what the trainer's modules compute, in every way of calling it."""

import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import StaticCache, Trainer, TrainingArguments

from mllm.errors import UserError
from mllm.hf.configuration_mllm import MllmConfig
from mllm.hf.load import load_export
from mllm.hf.modeling_mllm import MllmForConditionalGeneration
from mllm.model.config import ModelConfig
from tests.hf.tiny import picture

ROWS = [
    ["An image of a red square"],
    [picture(1), "An image of"],
    [picture(2), "a red", picture(3), "Question: is there a circle? Answer:"],
    ["Question: what colour is it? Answer:"],
]


def engine_logits(tiny, row):
    """(T, V) of the trainer's modules on one row, without padding."""
    inputs = tiny.processor.from_segments([row])
    ids = inputs["input_ids"]
    with torch.no_grad():
        pixels = inputs.get("pixel_values")
        latents = None if pixels is None else tiny.engine.encode_images(pixels)
        embeddings = tiny.engine.embed(ids, inputs["image_slot_mask"], latents)
        hidden = tiny.engine.decoder(embeddings, torch.arange(ids.shape[1])[None])
        return tiny.engine.head(hidden)[0]


@pytest.mark.parametrize("row", ROWS, ids=["text", "1 image", "2 images", "question"])
def test_logits_equal_the_engine(tiny, row):
    with torch.no_grad():
        logits = tiny.model(**tiny.processor.from_segments([row])).logits[0]
    torch.testing.assert_close(logits, engine_logits(tiny, row), atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_logits(tiny, side):
    inputs = tiny.processor.from_segments(ROWS, padding_side=side)
    with torch.no_grad():
        logits = tiny.model(**inputs).logits
    for row, row_logits, mask in zip(ROWS, logits, inputs["attention_mask"], strict=True):
        torch.testing.assert_close(
            row_logits[mask.bool()], engine_logits(tiny, row), atol=1e-5, rtol=0
        )


def test_a_picture_changes_the_logits_after_it(tiny):
    one, other = (engine_logits(tiny, [picture(seed), "An image of"]) for seed in (1, 2))
    assert (one[-1] - other[-1]).abs().max() > 1e-3


def test_one_token_at_a_time_from_the_cache_equals_a_whole_forward(tiny):
    whole = engine_logits(tiny, ROWS[2])
    ids = tiny.processor.from_segments([ROWS[2]])["input_ids"]
    inputs = tiny.processor.from_segments([ROWS[2]])
    start = int(inputs["image_slot_mask"][0].nonzero().max()) + 2
    with torch.no_grad():
        output = tiny.model(
            input_ids=ids[:, :start], pixel_values=inputs["pixel_values"], use_cache=True
        )
        logits = [output.logits[0]]
        for t in range(start, ids.shape[1]):
            output = tiny.model(input_ids=ids[:, t : t + 1], past_key_values=output.past_key_values)
            logits.append(output.logits[0])
    torch.testing.assert_close(torch.cat(logits), whole, atol=1e-5, rtol=0)


def generate(tiny, rows, **settings):
    inputs = tiny.processor.from_segments(rows)
    settings = {"max_new_tokens": 12, "do_sample": False} | settings
    tokens = tiny.model.generate(**inputs, **settings)
    return tokens[:, inputs["input_ids"].shape[1] :]


def test_greedy_is_the_same_with_and_without_cache_and_is_the_argmax(tiny):
    cached = generate(tiny, ROWS)
    assert torch.equal(cached, generate(tiny, ROWS, use_cache=False))
    suppressed = tiny.model.generation_config.suppress_tokens
    logits = engine_logits(tiny, ROWS[1])[-1]
    logits[suppressed] = -torch.inf
    assert cached[1, 0] == logits.argmax()


def test_greedy_is_the_same_alone_in_a_batch_and_shuffled(tiny):
    batched = generate(tiny, ROWS)
    order = [2, 0, 3, 1]
    shuffled = generate(tiny, [ROWS[i] for i in order])
    for i, row in enumerate(ROWS):
        alone = generate(tiny, [row])[0]
        for other in (batched[i], shuffled[order.index(i)]):
            assert tiny.tokenizer.decode(other.tolist()) == tiny.tokenizer.decode(alone.tolist())


def test_beams_see_the_pictures_of_their_own_row(tiny):
    """Pictures are row-major: beams repeat a row's pictures together, not one by one. Ready-made
    embeddings of a single row, in which no pictures can be mixed up, are the reference."""
    settings = {"num_beams": 3, "max_new_tokens": 12, "do_sample": False}
    settings |= {"return_dict_in_generate": True, "output_scores": True}
    batched = tiny.model.generate(**tiny.processor.from_segments(ROWS), **settings)
    for row, score in zip(ROWS, batched.sequences_scores, strict=True):
        inputs = tiny.processor.from_segments([row])
        pixels = inputs.get("pixel_values")
        latents = None if pixels is None else tiny.model.get_image_features(pixels).pooler_output
        embeddings = tiny.engine.embed(inputs["input_ids"], inputs["image_slot_mask"], latents)
        alone = tiny.model.generate(
            inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], **settings
        )
        assert score.item() == pytest.approx(alone.sequences_scores.item(), abs=1e-5)


def test_a_static_cache_gives_the_same_greedy_tokens(tiny):
    dynamic = generate(tiny, ROWS[1:])
    cache = StaticCache(config=tiny.model.config, max_cache_len=100)
    assert torch.equal(generate(tiny, ROWS[1:], past_key_values=cache), dynamic)


def test_labels_give_the_trainers_sum_over_count(tiny):
    inputs = tiny.processor.from_segments([[picture(1), "An image of a red square"]])
    ids = inputs["input_ids"]
    is_scored = torch.zeros_like(ids, dtype=torch.bool)  # this token is a scored target
    is_scored[:, 7:] = True  # all text after <s>, <image>, 4 slots, </image>
    with torch.no_grad():
        output = tiny.model(**inputs, labels=ids.masked_fill(~is_scored, -100))
        hidden = tiny.engine.decoder(
            tiny.engine.embed(
                ids, inputs["image_slot_mask"], tiny.engine.encode_images(inputs["pixel_values"])
            ),
            torch.arange(ids.shape[1])[None],
        )
        # The trainer's side: shifted targets, a mask over them, a sum and a count.
        loss_mask = is_scored[:, 1:]
        total, _ = tiny.engine.head(hidden[:, :-1][loss_mask], ids[:, 1:][loss_mask])
    assert output.loss.item() == pytest.approx(total.item() / int(loss_mask.sum()), abs=1e-5)


def test_slots_without_pictures_are_refused_with_both_numbers(tiny):
    inputs = tiny.processor.from_segments([[picture(1), "An image of"]])
    del inputs["pixel_values"]
    with pytest.raises(ValueError, match=r"4 image slots .* but 0 pictures"):
        tiny.model(**inputs)


def test_pictures_given_again_on_a_cache_are_refused_by_what_to_do(tiny):
    inputs = tiny.processor.from_segments([[picture(1), "An image of"]])
    pixels = inputs["pixel_values"]
    with torch.no_grad():
        output = tiny.model(**inputs, use_cache=True)
        more = {"input_ids": inputs["input_ids"][:, -1:], "past_key_values": output.past_key_values}
        with pytest.raises(ValueError, match="pictures given before are in the cache; give pixel"):
            tiny.model(**more, pixel_values=pixels)
        # A further picture with its slots goes on.
        again = {"input_ids": inputs["input_ids"][:, 1:], "pixel_values": pixels}
        tiny.model(**again, past_key_values=output.past_key_values)


def test_specials_are_never_generated(tiny):
    tokens = generate(tiny, ROWS, do_sample=True, temperature=5.0, max_new_tokens=40)
    assert not set(tokens.flatten().tolist()) & {0, 3, 4, 5, 6, 7}
    assert set(range(16)) - set(tiny.model.generation_config.suppress_tokens) == {2}


def test_save_and_load_again_give_the_same_logits_and_stay_tied(tiny, tmp_path):
    tiny.model.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    model, processor = load_export(tmp_path)
    assert model.model.head.weight is model.model.decoder.embed_tokens.weight
    inputs = processor.from_segments([ROWS[2]])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, tiny.model(**inputs).logits)


def test_an_export_that_lacks_a_tensor_is_refused(tiny, tmp_path):
    shutil.copytree(tiny.export, tmp_path / "export")
    weights = load_file(tmp_path / "export" / "model.safetensors")
    del weights["model.decoder.layer_norm.weight"]
    save_file(weights, tmp_path / "export" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors missing, .*decoder.layer_norm.weight"):
        load_export(tmp_path / "export")
    with pytest.raises(UserError, match="no model here; write one with `mllm export"):
        load_export(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_an_export_with_a_file_cut_short_is_refused(tiny, tmp_path, name, kept):
    shutil.copytree(tiny.export, tmp_path / "export")
    data = (tiny.export / name).read_bytes()
    (tmp_path / "export" / name).write_bytes(data[: int(kept * len(data))])
    with pytest.raises(UserError, match=r"not a whole export \(.+\); export it again") as raised:
        load_export(tmp_path / "export")
    assert "\n" not in str(raised.value)


def test_an_export_whose_tensors_have_other_shapes_is_refused(tiny, tmp_path):
    shutil.copytree(tiny.export, tmp_path / "export")
    weights = load_file(tmp_path / "export" / "model.safetensors")
    weights["model.decoder.layer_norm.weight"] = torch.ones(3)
    save_file(weights, tmp_path / "export" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="not a whole export"):
        load_export(tmp_path / "export")


def test_a_new_model_is_initialised_as_the_trainer_does(tiny):
    torch.manual_seed(0)
    model = MllmForConditionalGeneration(tiny.model.config)
    # sqrt(ln 2M) on fc1, none on q_proj: Magneto's gain is there.
    layer = model.model.decoder.layers[0]
    gain = layer.ffn.fc1.weight.std().item() / (2 / (32 + 64)) ** 0.5
    assert gain == pytest.approx(1.386**0.5, rel=0.1)
    assert model.model.head.weight is model.model.decoder.embed_tokens.weight


def test_the_configuration_has_every_field_of_the_models_and_its_defaults():
    assert MllmConfig().to_model_config() == ModelConfig()
    assert MllmConfig().hidden_size == 2048


def gradients(model, inputs):
    model.zero_grad()
    torch.manual_seed(0)  # dropout is at work
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def test_activation_checkpointing_gives_equal_gradients_and_keeps_less(tiny):
    model, processor = load_export(tiny.export)
    model.double().train()
    inputs = processor.from_segments(ROWS)

    def kept_bytes():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.append(x.numel()) or x, lambda x: x
        ):
            model(**inputs)
        return sum(sizes)

    expected, all_kept = gradients(model, inputs), kept_bytes()
    assert not model.is_activation_checkpointing
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    assert model.model.decoder.activation_checkpointing == "full"
    assert all(layer.gradient_checkpointing for layer in vision_layers(model))
    assert kept_bytes() < all_kept / 2
    found = gradients(model, inputs)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-9, rtol=0)
    assert model(**inputs, use_cache=True).past_key_values is None
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]
    with pytest.raises(ValueError, match=r"no cache while gradients.*checkpointing_disable\(\)"):
        model(input_ids=inputs["input_ids"][:, -1:], past_key_values=cache)
    with pytest.warns(FutureWarning, match="activation_checkpointing_disable"):
        model.gradient_checkpointing_disable()
    assert model.model.decoder.activation_checkpointing == "none"
    assert not any(layer.gradient_checkpointing for layer in vision_layers(model))


def vision_layers(model):
    return model.model.vision.vision_model.encoder.layers


def test_the_trainer_of_transformers_trains_with_checkpointing(tiny, tmp_path):
    if find_spec("accelerate") is None:
        with pytest.raises(ImportError, match="accelerate"):
            TrainingArguments(str(tmp_path), activation_checkpointing=True)
        return
    model, processor = load_export(tiny.export)
    settings = {"max_steps": 2, "report_to": [], "use_cpu": True, "save_strategy": "no"}
    arguments = TrainingArguments(
        str(tmp_path), activation_checkpointing=True, remove_unused_columns=False, **settings
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=ROWS,
        data_collator=lambda rows: dict(processor.from_segments(rows, return_labels=True)),
    )
    assert trainer.train().training_loss > 0
    assert model.model.decoder.activation_checkpointing == "full"


def test_gradients_reach_every_parameter(tiny):
    model, processor = load_export(tiny.export)
    inputs = processor.from_segments([ROWS[1]])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    unused = {"post_layernorm"} if not tiny.config.vision.post_layer_norm else set()
    for name, weight in model.named_parameters():
        if not any(part in name for part in unused):
            assert weight.grad is not None, name
