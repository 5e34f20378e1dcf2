"""What users of transformers 5 do with a model: Auto classes, dtypes, devices, attention, sizes."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm.hf.load import load_export
from tests.hf.tiny import picture, png

REGISTERED = """
import json, sys
export, picture = sys.argv[1:]
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
import mllm
model = AutoModelForImageTextToText.from_pretrained(export)
processor = AutoProcessor.from_pretrained(export)
pipe = pipeline("image-text-to-text", model=export)
with open(picture, "rb") as file:
    messages = [{"role": "user", "content": [{"type": "image", "image": file.read()},
                                             {"type": "text", "text": "An image of"}]}]
settings = {"max_new_tokens": 6, "generate_kwargs": {"do_sample": False}}
print(json.dumps({
    "classes": [type(x).__module__ for x in (model, processor, processor.tokenizer,
                                             processor.image_processor, pipe.model)],
    "answer": pipe(text=messages, return_full_text=False, **settings)[0]["generated_text"],
}))
"""


def inputs_of(tiny):
    return tiny.processor.from_segments([[picture(1), "An image of"], ["a red apple"]])


def test_import_registers_the_classes_and_no_remote_code_is_needed(tiny, tmp_path):
    (tmp_path / "picture.png").write_bytes(png(1))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", REGISTERED, str(tiny.export), str(tmp_path / "picture.png")]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert all(name.startswith("mllm.hf.") for name in found["classes"]), found
    inputs = tiny.processor.from_segments([[png(1), "An image of"]])
    tokens = tiny.model.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
    new = tokens[inputs["input_ids"].shape[1] :]
    assert found["answer"] == tiny.processor.decode(new, skip_special_tokens=True)
    assert not (tmp_path / "hf" / "modules").exists()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_implementations_agree(tiny, implementation):
    model = AutoModelForImageTextToText.from_pretrained(
        tiny.export, attn_implementation=implementation
    )
    assert model.config._attn_implementation == implementation
    inputs = inputs_of(tiny)
    kept = inputs["attention_mask"].bool()
    with torch.no_grad():
        logits, expected = model(**inputs).logits, tiny.model(**inputs).logits
    torch.testing.assert_close(logits[kept], expected[kept], atol=1e-5, rtol=0)
    settings = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(
        model.generate(**inputs, **settings), tiny.model.generate(**inputs, **settings)
    )


def test_eager_computes_plain_products(tiny):
    model = AutoModelForImageTextToText.from_pretrained(tiny.export, attn_implementation="eager")
    for wanted, found in ((tiny.model, True), (model, False)):
        with torch.profiler.profile() as profile, torch.no_grad():
            wanted(**inputs_of(tiny))
        names = {event.key for event in profile.key_averages()}
        assert any("flash_attention_for_cpu" in name for name in names) == found


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
def test_attention_that_this_model_lacks_is_refused_by_what_to_use(tiny, implementation):
    with pytest.raises(ValueError, match=r"runs on torch's SDPA.*use 'sdpa', or 'eager'"):
        AutoModelForImageTextToText.from_pretrained(tiny.export, attn_implementation=implementation)


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states"])
def test_outputs_that_this_model_lacks_are_refused(tiny, name):
    with pytest.raises(ValueError, match=f"{name}=True is not offered"):
        tiny.model(**inputs_of(tiny), **{name: True})


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16, "auto"])
def test_dtypes(tiny, dtype):
    model = AutoModelForImageTextToText.from_pretrained(tiny.export, dtype=dtype)
    expected = {"bfloat16": torch.bfloat16, "auto": torch.float32}.get(dtype, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    inputs = inputs_of(tiny)
    with torch.no_grad():
        logits = model(**inputs).logits
        reference = tiny.model(**inputs).logits
    assert logits.dtype == expected
    kept = inputs["attention_mask"].bool()
    error = (logits.float() - reference)[kept].abs().mean() / reference[kept].std()
    assert error < 0.05
    assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_a_device_map_works_with_accelerate_and_names_it_without(tiny, device_map):
    if find_spec("accelerate") is None:
        with pytest.raises(ValueError, match="requires `accelerate`"):
            AutoModelForImageTextToText.from_pretrained(tiny.export, device_map=device_map)
        return
    model = AutoModelForImageTextToText.from_pretrained(tiny.export, device_map=device_map)
    inputs = inputs_of(tiny).to(model.device)
    settings = {"max_new_tokens": 6, "do_sample": False}
    tokens = model.generate(**inputs, **settings).cpu()
    assert torch.equal(tokens, tiny.model.generate(**inputs_of(tiny), **settings))


def test_embeddings_can_be_resized_and_stay_tied_through_a_round_trip(tiny, tmp_path):
    model, processor = load_export(tiny.export)
    inputs = inputs_of(tiny)
    with torch.no_grad():
        before = model(**inputs).logits
        model.resize_token_embeddings(400)
        after = model(**inputs, labels=inputs["input_ids"])
    assert after.logits.shape[-1] == model.config.vocab_size == 400
    torch.testing.assert_close(after.logits[..., :310], before, atol=1e-5, rtol=0)
    assert model.model.head.weight is model.model.decoder.embed_tokens.weight
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    twice = AutoProcessor.from_pretrained(tmp_path)
    assert again.model.config.vocab_size == 400
    with torch.no_grad():
        logits = again(**twice.from_segments([[picture(1), "An image of"], ["a red apple"]])).logits
    torch.testing.assert_close(logits, after.logits, atol=1e-5, rtol=0)
