# Every target makes .venv first. `make demo` and `make test` are all one needs to begin.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= runs/demo/export
DATA ?= runs/demo/corpus

.PHONY: setup demo smoke check test test-slow bench eval-zeroshot eval-fewshot incontext chat clean

setup: $(VENV)/.installed

# Torch goes first: deepspeed looks for it while it builds. Its pin is taken from pyproject.toml, the
# only place with pins.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)"
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/mllm demo

smoke: setup
	$(BIN)/mllm demo --smoke
	$(BIN)/mllm chat --model runs/smoke/export --image tests/data/red_circle.png --once "what colour is it?"

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# A worker a core, each file of tests on one of them: what a file's tests share is made once.
test: setup
	$(BIN)/pytest --numprocesses 2 --dist loadfile

test-slow: setup
	$(BIN)/pytest -m "slow and not gpu"

# ROWS="index seek" runs those alone.
bench: setup
	$(BIN)/pip install --quiet --editable ".[bench]"
	$(BIN)/python -m mllm.bench $(ROWS)

eval-zeroshot: setup
	$(BIN)/mllm eval zeroshot --model $(MODEL) --data $(DATA) --out $(MODEL)/../eval-zeroshot

eval-fewshot: setup
	$(BIN)/mllm eval fewshot --model $(MODEL) --data $(DATA) --out $(MODEL)/../eval-fewshot

incontext: setup
	$(BIN)/mllm recipe mllm/configs/recipe_incontext.yaml

chat: setup
	$(BIN)/mllm chat --model $(MODEL)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
