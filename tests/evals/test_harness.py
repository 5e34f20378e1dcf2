"""An export behind other people's harnesses, against our own ranking and the plain model.

lmms-eval itself is not installed: its part is tested against stand-ins with the signatures of its
0.7.3 source.
"""

import importlib
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from PIL import Image

from corpora.document import TextSegment
from evals.command import main
from evals.harness import lm_harness
from evals.harness.lm_harness import MllmLM
from mllm.errors import UserError
from mllm.ranking import rank_candidates
from tests.evals.conftest import COLOURS
from tests.evals.test_exported import export  # noqa: F401 (a fixture)
from tokenizer.specials import BOS_ID, EOS_ID

ROOT = Path(__file__).parents[2]
SENTENCE = "the quick brown fox jumps over a lazy dog while seven small birds sing"
WORDS = SENTENCE.split()


def words(first: int, count: int) -> str:
    return " ".join(WORDS[(first * 5 + i * i) % len(WORDS)] for i in range(count))


def write_task(folder: Path, name: str, docs: list[dict[str, Any]], **settings: Any) -> None:
    """A local task in lm_eval's YAML, its documents in one JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(data)},
            "cache_dir": str(folder.parent / "datasets"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "metric_list": [
            {"metric": m, "aggregation": "mean", "higher_is_better": True}
            for m in ("acc", "acc_norm")
        ],
        **settings,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks in the shapes of PIQA, BoolQ and HellaSwag."""
    folder = tmp_path_factory.mktemp("harness") / "tasks"
    write_task(
        folder,
        "goals",
        [
            {"goal": words(i, 5), "sol1": words(i + 1, 4), "sol2": words(i + 2, 9), "label": i % 2}
            for i in range(12)
        ],
        doc_to_text="Question: {{goal}}\nAnswer:",
        doc_to_target="label",
        doc_to_choice="{{[sol1, sol2]}}",
    )
    write_task(
        folder,
        "yes_no",
        [{"passage": words(i, 30), "question": words(i, 6), "label": i % 2} for i in range(7)],
        doc_to_text="{{passage}}\nQuestion: {{question}}?\nAnswer:",
        doc_to_target="label",
        doc_to_choice=["no", "yes"],
    )
    write_task(
        folder,
        "endings",
        [
            {"ctx": words(i, 8), "endings": [words(i + j, 3 + j) for j in range(4)], "label": i % 4}
            for i in range(9)
        ],
        doc_to_text="{{ctx}}",
        doc_to_target="label",
        doc_to_choice="endings",
    )
    return folder


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `--tasks-dir` sets is unset again; what the machine is made of takes seconds to ask."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")


def asked(*args: Any) -> Instance:
    return Instance("loglikelihood", {}, args, 0)


def test_log_likelihoods_and_accuracies_are_those_of_our_ranking(
    export: SimpleNamespace,  # noqa: F811
    tasks_dir: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
):
    command = ["--harness", "lm_eval", "goals,yes_no", "endings", "--tasks-dir", str(tasks_dir)]
    worst = 0.0
    for size, out in (("1", tmp_path / "one"), ("5", tmp_path / "five")):
        options = ["--model", str(export.folder), "--batch-size", size, "--out", str(out)]
        is_json = size == "5"
        assert main([*command, *options, *(["--json"] if is_json else [])]) == 0
        printed = capfd.readouterr().out
        results = json.loads((out / "results.json").read_text())
        if is_json:
            assert json.loads(printed) == results
        else:
            assert "|endings|" in printed and "acc_norm" in printed
        assert results["mllm"]["model_fingerprint"] == export.model.fingerprint
        assert results["mllm"]["notes"] == []
        for name, num in (("goals", 12), ("yes_no", 7), ("endings", 9)):
            rows = [json.loads(line) for line in (out / f"samples_{name}.jsonl").open()]
            assert len(rows) == num
            right = {"acc": 0, "acc_norm": 0}
            for row in rows:
                requests = row["arguments"]
                pairs = [list(pair) for pair in requests]
                (scores,) = rank_candidates(
                    export.model.model,
                    export.model.processor,
                    [[TextSegment(pairs[0][0])]],
                    [[continuation for _, continuation in pairs]],
                )
                found = [float(response[0][0]) for response in row["resps"]]
                worst = max(worst, *(abs(s.ll - ll) for s, ll in zip(scores, found, strict=True)))
                sums = [score.ll for score in scores]
                by_char = [score.ll / score.num_chars for score in scores]
                right["acc"] += sums.index(max(sums)) == row["target"]
                right["acc_norm"] += by_char.index(max(by_char)) == row["target"]
            for metric, count in right.items():
                assert results["results"][name][f"{metric},none"] == pytest.approx(count / num)
    print(f"largest difference of log-likelihoods: {worst:.2e}")
    assert worst < 1e-4


def plain_log_probs(model: Any, ids: list[int]) -> torch.Tensor:
    """(T, V) of one row by itself."""
    with torch.inference_mode():
        return model.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)


def test_greedy_continuations_are_told_from_others_in_request_order(
    export: SimpleNamespace,  # noqa: F811
):
    model = MllmLM(export.folder, batch_size=2)
    contexts = [[BOS_ID, *model.exported.encode(words(i, 3 + 4 * i))] for i in range(3)]
    requests, expected = [], []
    for context in contexts:
        greedy: list[int] = []
        for _ in range(3):
            log_probs = plain_log_probs(model.exported, context + greedy)
            greedy.append(int(log_probs[-1].argmax()))
        other = (greedy[-1] + 1) % model.exported.vocab_size
        for tail in (greedy, [*greedy[:-1], other], [other, *greedy[1:]], greedy[:1]):
            row = plain_log_probs(model.exported, context + tail)
            lls = [row[len(context) - 1 + t, token] for t, token in enumerate(tail)]
            requests.append((("", ""), context, tail))
            expected.append((sum(lls).item(), tail == greedy[: len(tail)]))
    answers = model._loglikelihood_tokens(requests)
    assert [is_greedy for _, is_greedy in answers] == [is_greedy for _, is_greedy in expected]
    assert [ll for ll, _ in answers] == pytest.approx([ll for ll, _ in expected], abs=1e-4)


def test_contexts_without_words_with_spaces_and_too_long(
    export: SimpleNamespace,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    model = MllmLM(export.folder, batch_size=3)
    long = words(1, 300)
    (bare, spaced, empty, cut) = model.loglikelihood(
        [asked("a lazy", " dog"), asked("a lazy ", "dog"), asked("", "dog"), asked(long, " dog")]
    )
    assert spaced == pytest.approx(bare)
    ids = model.exported.encode("dog")
    row = plain_log_probs(model.exported, [BOS_ID, *ids])
    assert empty[0] == pytest.approx(sum(row[t, i].item() for t, i in enumerate(ids)), abs=1e-4)
    # The row's last 128 tokens but one are what is seen, as the harness' own models have it.
    whole = [BOS_ID, *model.exported.encode(long + " dog")]
    num = len(whole) - 1 - len(model.exported.encode(long))
    row = plain_log_probs(model.exported, whole[-129:-1])
    expected = sum(row[-num + t, token].item() for t, token in enumerate(whole[-num:]))
    assert cut[0] == pytest.approx(expected, abs=1e-4)
    assert model.losses == {"truncated_contexts": 1, "merged_borders": 0}
    # Planted: contexts without `<s>`.
    monkeypatch.setattr(model, "tok_encode", lambda text, **_: list(model.exported.encode(text)))
    (faulty,) = model.loglikelihood([asked("a lazy", " dog")])
    assert abs(faulty[0] - bare[0]) > 1e-3


def test_rolling_scores_every_token_once_and_fills_the_last_window(
    export: SimpleNamespace,  # noqa: F811
):
    model = MllmLM(export.folder, batch_size=2)
    texts = [words(1, 300), words(2, 5)]
    for text, total in zip(
        texts, model.loglikelihood_rolling([asked(text) for text in texts]), strict=True
    ):
        ids = model.exported.encode(text)
        expected = 0.0
        for start in range(0, len(ids), 128):
            end = min(start + 128, len(ids))
            given = ([BOS_ID, *ids])[max(0, end - 128) : end]
            row = plain_log_probs(model.exported, given)
            expected += sum(row[t - end, ids[t]].item() for t in range(start, end))
        assert total == pytest.approx(expected, rel=1e-5)
    assert len(model.exported.encode(texts[0])) > 128


def test_generation_ends_at_a_stop_string_and_at_the_cap(export: SimpleNamespace):  # noqa: F811
    model = MllmLM(export.folder, batch_size=2)
    contexts = [words(i, 4 + 3 * i) for i in range(3)]

    def written(**settings: Any) -> list[str]:
        return model.generate_until([asked(text, {"until": [], **settings}) for text in contexts])

    whole = written(max_gen_toks=12)
    assert whole == [model.generate_until([asked(c, {"max_gen_toks": 12})])[0] for c in contexts]
    for context, text in zip(contexts, whole, strict=True):
        ids = [BOS_ID, *model.exported.encode(context)]
        for _ in range(12):
            ids.append(int(plain_log_probs(model.exported, ids)[-1].argmax()))
        tail = ids[-12:]
        tail = tail[: tail.index(EOS_ID)] if EOS_ID in tail else tail
        assert text == model.tokenizer.decode(tail, skip_special_tokens=True)
    stop = whole[0][len(whole[0]) // 2 :][:2]
    num_calls = 0

    def counted(*_: Any) -> None:
        nonlocal num_calls
        num_calls += 1

    hook = model.exported.model.register_forward_pre_hook(counted)
    (stopped,) = model.generate_until([asked(contexts[0], {"until": stop, "max_gen_toks": 100})])
    hook.remove()
    assert stopped == whole[0].split(stop)[0] and num_calls <= 12
    torch.manual_seed(0)
    assert written(max_gen_toks=12, do_sample=True, temperature=5.0) != whole
    assert written(max_gen_toks=12, temperature=0.0) == whole
    with pytest.raises(UserError, match="max_gen_toks 256 leaves no room"):
        model.generate_until([asked("a", {"until": ["\n"]})])
    with pytest.raises(UserError, match="no setting 'num_beam'"):
        model.generate_until([asked("a", {"num_beam": 2, "max_gen_toks": 4})])


def test_shots_that_may_hold_the_query_are_refused(
    export: SimpleNamespace,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    docs = [{"q": f"{words(i, 2)} {i}", "label": i % 2} for i in range(6)]
    shape = {"doc_to_text": "Q: {{q}}", "doc_to_target": "label", "doc_to_choice": ["no", "yes"]}
    write_task(tmp_path / "tasks", "leaks", docs, **shape)
    write_task(tmp_path / "tasks", "mended", docs, **shape, fewshot_split="test")
    command = ["--harness=lm_eval", "--tasks-dir", str(tmp_path / "tasks"), "--shots", "4"]
    command += ["--model", str(export.folder), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"leaks: its shots .*`fewshot_split: test`"):
        main([*command, "leaks"])
    assert not (tmp_path / "out").exists()

    def own_counts(name: str) -> list[int]:
        """How often each query stands in its own prompt, which holds 4 shots and itself."""
        assert main([*command, name]) == 0
        counts = []
        for line in (tmp_path / "out" / f"samples_{name}.jsonl").open():
            row = json.loads(line)
            (context, _), *_ = row["arguments"]
            assert context.count("Q: ") == 5
            counts.append(context.count(f"Q: {row['doc']['q']}"))
        return counts

    assert own_counts("mended") == [1] * 6
    # What is refused: unchecked, the harness does show queries their own answers.
    monkeypatch.setattr(lm_harness, "check_leak", lambda name, task: None)
    assert max(own_counts("leaks")) == 2


def test_mistakes_are_named_with_their_mend(
    export: SimpleNamespace,  # noqa: F811
    tasks_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    command = ["--harness", "lm_eval", "--model", str(export.folder), "--out", str(tmp_path / "o")]
    local = [*command, "--tasks-dir", str(tasks_dir)]
    with pytest.raises(UserError, match=r"no task 'goal' .*; there: endings, goals, yes_no"):
        main([*local, "goal"])
    with pytest.raises(UserError, match="--tasks-dir nowhere: no such folder"):
        main([*command, "goals", "--tasks-dir", "nowhere"])
    with pytest.raises(UserError, match="lmms-eval --model mllm"):
        main(["--harness", "lmms_eval", "mme"])
    write_task(
        tmp_path / "bad",
        "bad",
        [{"q": "a", "label": 0}],
        doc_to_text="{{question}}",
        doc_to_target="label",
        doc_to_choice=["no", "yes"],
    )
    (tmp_path / "bad" / "bad.jsonl").unlink()
    with pytest.raises(UserError, match="bad: lm_eval cannot load it"):
        main([*command, "bad", "--tasks-dir", str(tmp_path / "bad")])
    assert not (tmp_path / "o").exists()
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "results.json").write_text('{"cells": []}')
    with pytest.raises(UserError, match="of another `mllm eval` command"):
        main([*local, "goals"])
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    (tmp_path / "o" / "results.json").unlink()
    with pytest.raises(UserError, match=r"lm_eval is not installed; pip install -e '.\[eval\]'"):
        main([*local, "goals"])


@pytest.fixture
def lmms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Our adapter over stand-ins for the two modules of lmms-eval that it imports."""

    class Base:  # lmms_eval/api/model.py: `lmms`
        is_simple = True

        def __init__(self) -> None:
            self._rank, self._world_size = 0, 1
            self.task_dict: dict[str, Any] = {}

    def model_manifest(
        model_id: str,
        simple_class_path: str | None = None,
        chat_class_path: str | None = None,
        aliases: tuple[str, ...] = (),
    ) -> SimpleNamespace:  # lmms_eval/models/registry_v2.py: `ModelManifest`
        return SimpleNamespace(model_id=model_id, simple_class_path=simple_class_path)

    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, member, value in (
        ("lmms_eval.api.model", "lmms", Base),
        ("lmms_eval.models.registry_v2", "ModelManifest", model_manifest),
    ):
        module = ModuleType(name)
        setattr(module, member, value)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "evals.harness.lmms", raising=False)
    module = importlib.import_module("evals.harness.lmms")
    monkeypatch.delitem(sys.modules, "evals.harness.lmms")  # the next import is without stand-ins
    return module


def test_lmms_eval_finds_the_adapter_which_sees_the_pictures(
    export: SimpleNamespace,  # noqa: F811
    lmms: ModuleType,
):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (target,) = settings["project"]["entry-points"]["lmms_eval.models"].values()
    assert target == "evals.harness.lmms:manifest"
    assert lmms.manifest().simple_class_path == "evals.harness.lmms.MllmLmms"
    model = lmms.MllmLmms(model_dir=str(export.folder), batch_size="2")  # as from --model_args
    docs = [{"picture": Image.new("RGB", (20, 16), COLOURS[name])} for name in ("red", "blue")]
    model.task_dict = {"task": {"test": docs}}

    def visual(doc: dict[str, Any]) -> list[Image.Image]:
        return [doc["picture"]]

    def request(text: str, second: Any, doc_id: int) -> SimpleNamespace:
        return SimpleNamespace(args=(text, second, visual, doc_id, "task", "test"))

    candidates = (" a red square", " no")
    requests = [request("An image of", c, i) for i in (0, 1) for c in candidates]
    answers = iter(model.loglikelihood(requests))
    for doc in docs:
        inputs = [doc["picture"], "An image of"]
        for candidate in candidates:
            row = export.model.processor.from_segments([[inputs[0], inputs[1] + candidate]])
            ids = row["input_ids"][0].tolist()
            num = len(ids) - len(export.model.processor.encode(inputs).token_ids)
            with torch.inference_mode():
                log_probs = export.model.model(**row).logits[0].float().log_softmax(-1)
            tail = range(len(ids) - num, len(ids))
            expected = sum(log_probs[t - 1, ids[t]].item() for t in tail)
            assert next(answers)[0] == pytest.approx(expected, abs=1e-4)
    settings = {"until": ["\n\n"], "max_new_tokens": 6, "temperature": 0}
    texts = model.generate_until([request("An image of", settings, i) for i in (0, 1)])
    assert texts == model.generate_until(
        [request("<image>An image of", settings, i) for i in (0, 1)]
    )
    with pytest.raises(UserError, match="exceed the model's 128"):
        model.generate_until([request("An image of", {"until": []}, 0)])
    assert set(lmms.MllmLmms.__dict__) >= {
        "loglikelihood",
        "generate_until",
        "generate_until_multi_round",
    }  # its abstract methods


def test_the_package_imports_without_lmms_eval():
    module = importlib.import_module("evals.harness.lmms")
    with pytest.raises(ModuleNotFoundError, match="lmms_eval"):
        module.manifest()
