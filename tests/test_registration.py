"""`import mllm` alone is light, and an export loads after it without `trust_remote_code`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hf.tiny import make_tiny

ROOT = Path(__file__).parent.parent

LOAD = """
import sys
config = AutoConfig.from_pretrained(sys.argv[1])
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
processor = AutoProcessor.from_pretrained(sys.argv[1])
assert type(model).__module__ == "mllm.hf.modeling_mllm", type(model)
assert type(processor).__module__ == "mllm.hf.processing_mllm", type(processor)
"""
AUTO = "from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor"
ORDERS = {
    "mllm first": f"import mllm\n{AUTO}",
    "a module of ours between": f"import mllm.model.vision\n{AUTO}",
}
ODD_ORDERS = {  # transformers first: tests/hf/test_ecosystem.py
    "transformers begun": f"import transformers\nimport mllm\n{AUTO}",
    "found before it is loaded": "import mllm, importlib.util\n"
    f"assert importlib.util.find_spec('transformers')\n{AUTO}",
    "by attribute": "import mllm, transformers\n"
    "AutoConfig, AutoProcessor = transformers.AutoConfig, transformers.AutoProcessor\n"
    "AutoModelForImageTextToText = transformers.AutoModelForImageTextToText",
    "another part first": f"import mllm, transformers.processing_utils\n{AUTO}",
}


def python(code: str, *arguments: object) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny")).export


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_import_mllm_registers_the_classes(export: Path, order: str) -> None:
    python(order + LOAD, export)


@pytest.mark.slow
@pytest.mark.parametrize("order", ODD_ORDERS.values(), ids=ODD_ORDERS)
def test_import_mllm_registers_the_classes_in_odd_orders_too(export: Path, order: str) -> None:
    python(order + LOAD, export)


@pytest.mark.slow
def test_without_import_mllm_the_export_wants_to_be_trusted(export: Path) -> None:
    """Else the tests above would pass whatever `import mllm` does."""
    code = f"{AUTO}\ntry:\n    AutoConfig.from_pretrained({str(export)!r})\n"
    code += "except ValueError as error:\n    print(error)"
    assert "trust_remote_code" in python(code)


@pytest.mark.parametrize("code", ["import mllm", "from mllm.cli import main; main(['--help'])"])
def test_import_mllm_and_its_help_load_nothing_heavy(code: str) -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'mllm.hf'}"
    found = python(f"{code}\nimport sys\nprint(sorted(set(sys.modules) & {heavy}))")
    assert found.splitlines()[-1] == "[]"


def test_transformers_used_for_something_else_loads_none_of_the_classes() -> None:
    code = "import sys, mllm.model.vision\nprint('mllm.hf' in sys.modules)"
    code += "\nimport transformers\nassert not hasattr(transformers, 'AutoNothing')"
    code += "\nfrom transformers import AutoConfig\nprint('mllm.hf' in sys.modules)"
    assert python(code).splitlines()[-2:] == ["False", "True"]
