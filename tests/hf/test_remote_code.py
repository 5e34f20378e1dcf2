"""An export stands alone: it loads where mllm, its neighbours and the GPU extras do not exist."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers.dynamic_module_utils import get_imports

from mllm.hf.write import flat_modules
from tests.hf.tiny import png

# Every module of ours is hidden from every finder, the editable install's included.
SCRIPT = """
import json, sys
from pathlib import Path
export, picture, out = sys.argv[1:]

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mllm", "tokenizer", "corpora", "evals", "flash_attn",
                                  "xformers", "deepspeed", "liger_kernel", "simplejpeg"):
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
try:
    import mllm
    raise SystemExit("mllm can still be imported: this test tests nothing")
except ModuleNotFoundError:
    pass
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
model = AutoModelForImageTextToText.from_pretrained(export, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(export, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(export, trust_remote_code=True)
inputs = processor(text="<image>An image of", images=[Path(picture)])
tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
model.save_pretrained(out)
processor.save_pretrained(out)
again = AutoModelForImageTextToText.from_pretrained(out, trust_remote_code=True)
twice = AutoProcessor.from_pretrained(out, trust_remote_code=True)
inputs_again = twice(text="<image>An image of", images=[Path(picture)])
from transformers import pipeline
pipe = pipeline("image-text-to-text", model=export, trust_remote_code=True)
messages = [{"role": "user", "content": [{"type": "image", "path": picture},
                                         {"type": "text", "text": "An image of"}]}]
settings = {"max_new_tokens": 8, "generate_kwargs": {"do_sample": False}}
answer = pipe(text=messages, return_full_text=False, **settings)[0]["generated_text"]
path = Path(out) / "processor_config.json"
path.write_text(json.dumps(json.loads(path.read_text()) | {"template": "instruction"}))
instructed = AutoProcessor.from_pretrained(out, trust_remote_code=True)
print(json.dumps({
    "module": type(model).__module__,
    "tied": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
    "logits": model(**inputs).logits[0, -1].tolist(),
    "again": again(**inputs_again).logits[0, -1].tolist(),
    "tokens": tokens[0].tolist(),
    "answer": answer,
    "text": processor.batch_decode(tokens, skip_special_tokens=True)[0],
    "ids": tokenizer("<image> </s> red")["input_ids"],
    "asked": instructed.apply_chat_template(messages)["input_ids"][0].tolist(),
    "ours": sorted(m for m in sys.modules if m.split(".")[0] in ("mllm", "tokenizer", "corpora")),
}))
"""


def test_loads_and_answers_alike_without_this_repository(tiny, tmp_path):
    (tmp_path / "picture.png").write_bytes(png(1))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        tiny.export,
        tmp_path / "picture.png",
        tmp_path / "out",
    ]
    run = subprocess.run(
        list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["module"].startswith("transformers_modules.")
    assert found["ours"] == []
    assert found["tied"]
    inputs = tiny.processor.from_segments([[png(1), "An image of"]])
    with torch.no_grad():
        logits = tiny.model(**inputs).logits[0, -1]
        tokens = tiny.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0]
    torch.testing.assert_close(torch.tensor(found["logits"]), logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(found["again"]), logits, atol=1e-5, rtol=0)
    assert found["tokens"] == tokens.tolist()
    assert found["text"] == tiny.processor.tokenizer.decode(tokens, skip_special_tokens=True)
    new = tokens[inputs["input_ids"].shape[1] :]
    assert found["answer"] == tiny.processor.tokenizer.decode(new, skip_special_tokens=True)
    assert found["ids"] == [0, *tiny.tokenizer.encode("<image> </s> red")]
    prompt = [[png(1), "Instruction: An image of", "\nOutput:"]]
    assert found["asked"] == tiny.processor.from_segments(prompt)["input_ids"][0].tolist()


def test_exported_files_import_each_other_and_what_every_user_has(tiny, tmp_path):
    """The loader demands every package that any file imports, inside functions too."""
    files = flat_modules()
    allowed = set(sys.stdlib_module_names) | {
        "numpy",
        "PIL",
        "sentencepiece",
        "torch",
        "transformers",
    }
    for name, source in files.items():
        path = tmp_path / name
        path.write_text(source)
        assert set(get_imports(path)) <= allowed, name
        for line in source.splitlines():
            if line.strip().startswith("from ."):
                assert f"{line.split()[1][1:]}.py" in files, (name, line)
            assert not line.strip().startswith("import mllm")


@pytest.mark.parametrize(
    "name", ["decoder.py", "attention.py", "images.py", "specials.py", "template.py"]
)
def test_the_trainers_own_files_travel(tiny, name):
    assert (tiny.export / name).is_file()
