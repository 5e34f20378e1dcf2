"""lm-evaluation-harness 0.4.13: an export as its model, and its tasks loaded without leaks.

Importing this file registers the model as `mllm`, so that Python code can also say
`lm_eval.simple_evaluate(model="mllm", model_args="model_dir=runs/demo/export", ...)`; the harness's
own command does not look for models of other packages.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from evals.exported import ExportedModel
from evals.harness.forward import Continuation, Decoding, continue_prompts, score_continuations
from mllm.command import progress
from mllm.errors import UserError
from mllm.hf.processing_mllm import EncodedPrompt
from tokenizer.specials import BOS_ID, EOS_ID

MAX_NEW_TOKENS = 256  # where a task names no cap, as the harness's own Hugging Face model has it


@register_model("mllm")
class MllmLM(TemplateLM):
    """An export behind the harness's three questions. Every row begins with `<s>`.

    What does not fit the context loses its beginning, `<s>` included, as with the harness's Hugging
    Face model, so that scores compare. `losses` counts it; our own ranking refuses instead.
    """

    def __init__(
        self,
        model_dir: str | Path,
        batch_size: int | str = 8,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """
        Args:
            batch_size: rows of one forward pass.
            max_batch_size: of the harness's search for a batch size; not used.

        Raises:
            UserError: `model_dir` is no export, or `batch_size` no number.
        """
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"batch_size {batch_size}: must be a number of at least 1")
        self.exported = ExportedModel(model_dir, device)
        self.tokenizer = self.exported.processor.tokenizer
        self.batch_size = int(batch_size)
        self.max_length = self.exported.max_positions  # None: no limit
        self._device = self.exported.model.device
        self.losses = {"truncated_contexts": 0, "merged_borders": 0}

    @property
    def eot_token_id(self) -> int:
        return EOS_ID

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context is conditioned on."""
        return BOS_ID

    def get_model_info(self) -> dict[str, Any]:
        """What results.json says of the model."""
        return {
            "model_num_parameters": self.exported.model.num_parameters(),
            "model_dtype": self.exported.dtype,
            "model_revision": None,
            "model_sha": self.exported.fingerprint,
        }

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **settings: Any
    ) -> list[int]:
        """`<s>` and the tokens, or the tokens alone; text never makes a special token."""
        ids = self.exported.encode(string)
        return list(ids) if add_special_tokens is False else [BOS_ID, *ids]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        context_ids, continuation_ids = super()._encode_pair(context, continuation)
        if context_ids + continuation_ids != self.tok_encode(context + continuation):
            self.losses["merged_borders"] += 1
        return context_ids, continuation_ids

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **settings: Any
    ) -> list[tuple[float, bool]]:
        fitted = [self._fitted(*request) for request in requests]
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        scores = score_continuations(self.exported, fitted, self.batch_size)
        for i, ll, is_greedy in progress(scores, "log-likelihoods", total=len(requests)):
            answers[i] = (ll, is_greedy)
            self.cache_hook.add_partial("loglikelihood", requests[i][0], answers[i])
        return answers

    def _fitted(
        self, texts: tuple[str, str], context_ids: list[int], continuation_ids: list[int]
    ) -> Continuation:
        """The request, its context cut from the left where the row is too long.

        The last token is only predicted and takes no position.
        """
        if not continuation_ids:
            raise UserError(f"candidate {texts[1]!r} after {texts[0][-40:]!r} has no tokens")
        if self.max_length is not None:
            room = self.max_length + 1 - len(continuation_ids)
            if room < 1:
                raise UserError(
                    f"candidate {texts[1][:40]!r}... has {len(continuation_ids)} tokens; the model "
                    f"has {self.max_length} positions"
                )
            if len(context_ids) > room:
                context_ids = context_ids[-room:]
                self.losses["truncated_contexts"] += 1
        return Continuation(EncodedPrompt(context_ids, [], []), continuation_ids)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Every token once, the first after `<s>`; the last window is full as well.

        A model without a limit of positions takes each text as one window.
        """
        texts = [request.args[0] for request in requests]
        if self.max_length is None:
            totals = [score.ll for score in self.exported.loglikelihood_rolling(texts)]
        else:
            totals = [0.0] * len(texts)
            windows, owners = [], []
            for i, text in enumerate(texts):
                for window in get_rolling_token_windows(
                    self.tok_encode(text, add_special_tokens=False),
                    prefix_token=BOS_ID,
                    max_seq_len=self.max_length,
                    context_len=1,
                ):
                    given, targets = make_disjoint_window(window)
                    windows.append(Continuation(EncodedPrompt(given, [], []), targets))
                    owners.append(i)
            scores = score_continuations(self.exported, windows, self.batch_size)
            for i, ll, _ in progress(scores, "rolling log-likelihoods", total=len(windows)):
                totals[owners[i]] += ll
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continues each context until a stop string, `</s>` or `max_gen_toks`.

        Requests of equal settings share batches, the longest first.
        """
        groups: dict[str, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True)].append(i)
        batches = []
        for settings, numbers in groups.items():
            decoding = self._decoding(json.loads(settings))
            prompts = {i: self._prompt(requests[i].args[0], decoding) for i in numbers}
            numbers.sort(key=lambda i: -len(prompts[i].token_ids))
            for start in range(0, len(numbers), self.batch_size):
                batch = numbers[start : start + self.batch_size]
                batches.append((batch, [prompts[i] for i in batch], decoding))
        answers = [""] * len(requests)
        for batch, rows, decoding in progress(batches, "generation"):
            for i, text in zip(batch, continue_prompts(self.exported, rows, decoding), strict=True):
                answers[i] = text
                self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return answers

    def _decoding(self, gen_kwargs: dict[str, Any]) -> Decoding:
        """A task's `generation_kwargs` under the harness's rules for their many names."""
        kwargs = dict(normalize_gen_kwargs(gen_kwargs, MAX_NEW_TOKENS))
        decoding = Decoding.from_kwargs({"max_new_tokens": kwargs.pop("max_gen_toks"), **kwargs})
        if self.max_length is not None and decoding.max_new_tokens >= self.max_length:
            raise UserError(
                f"max_gen_toks {decoding.max_new_tokens} leaves no room for a prompt in the "
                f"model's {self.max_length} positions; set generation_kwargs.max_gen_toks in the "
                "task's YAML"
            )
        return decoding

    def _prompt(self, context: str, decoding: Decoding) -> EncodedPrompt:
        token_ids = self.tok_encode(context)
        if self.max_length is not None:
            room = self.max_length - decoding.max_new_tokens
            if len(token_ids) > room:
                token_ids = token_ids[-room:]
                self.losses["truncated_contexts"] += 1
        return EncodedPrompt(token_ids, [], [])


class CheckedTaskManager(TaskManager):
    """Loads tasks, and refuses those whose few-shot examples would hold the query itself.

    Args:
        tasks_dir: folder of the YAML files; None: the tasks that the harness brings.
        num_shots: few-shot examples; None: as each task says.
    """

    def __init__(self, tasks_dir: Path | None, num_shots: int | None) -> None:
        super().__init__(
            include_path=None if tasks_dir is None else str(tasks_dir),
            include_defaults=tasks_dir is None,
        )
        self.place = "lm_eval's own tasks" if tasks_dir is None else str(tasks_dir)
        self.num_shots = num_shots
        self._loaded: dict[tuple[str, ...], Any] = {}

    def load(self, task_list: Any) -> Any:
        """The tasks by name; asked for the same names again, the same tasks."""
        names = tuple(task_list)
        if names not in self._loaded:
            self._loaded[names] = self._load(task_list)
        return self._loaded[names]

    def _load(self, task_list: list[str]) -> Any:
        for name in task_list:
            if name not in self.all_tasks:
                known = ", ".join(self.all_tasks[:20]) or "none"
                raise UserError(f"no task {name!r} in {self.place}; there: {known}")
        try:
            loaded = super().load(task_list)
        # The YAML is the user's, and may call any loader or Python file: any mistake in it is named
        # with the task that has it.
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            names = ", ".join(task_list)
            raise UserError(
                f"{names}: lm_eval cannot load it from {self.place}: {reason}"
            ) from error
        for name, task in loaded["tasks"].items():
            self._check(name, task)
        return loaded

    def _check(self, name: str, task: Any) -> None:
        if getattr(task, "MULTIMODAL", False):
            raise UserError(
                f"{name}: has pictures; lm_eval tasks are text here, see `mllm eval list`"
            )
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(f"{name}: runs code that the model writes; that is not offered")
        own_shots = task.get_config("num_fewshot")
        if own_shots == 0 and self.num_shots:
            print(
                f"{name}: its YAML has num_fewshot: 0, which lm_eval keeps; --shots "
                f"{self.num_shots} is not used",
                file=sys.stderr,
            )
        num_shots = own_shots if self.num_shots is None or own_shots == 0 else self.num_shots
        if num_shots and isinstance(task, ConfigurableTask):
            check_leak(name, task)


def check_leak(name: str, task: ConfigurableTask) -> None:
    """Refuses a task that shows every query its own answer, and counts copies of queries.

    lm_eval leaves the query out of its shots only where `fewshot_split` equals `test_split`.
    """
    if task.fewshot_cfg.split == task.config.test_split:
        return
    pool = {_content(doc) for doc in task.fewshot_docs()}
    queries = [_content(doc) for doc in task.eval_docs]
    num_leaked = sum(query in pool for query in queries)
    if num_leaked == len(queries):
        split = task.config.test_split or task.config.validation_split
        raise UserError(
            f"{name}: its shots are drawn from the split that is scored and may hold the query "
            f"itself; set `fewshot_split` in its YAML to another split, or `test_split: {split}` "
            f"and `fewshot_split: {split}`, with which lm_eval leaves the query out"
        )
    if num_leaked:
        print(
            f"{name}: {num_leaked} of {len(queries)} queries also stand among the documents that "
            "its shots are drawn from",
            file=sys.stderr,
        )


def _content(doc: Any) -> str:
    return json.dumps(doc, sort_keys=True, default=str)
