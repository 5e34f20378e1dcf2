"""lmms-eval 0.7.3: an export as its model `mllm`. NOT RUN by any test or command here.

lmms-eval replaces torch by another build, so it lives in an environment of its own and is never a
dependency here. There, with this package known to it (`pip install --no-deps -e .`), its own
command finds the model by the entry point `mllm` of the group `lmms_eval.models`:

    lmms-eval --model mllm --model_args model_dir=runs/demo/export --tasks TASKS --batch_size 8

Tests hold the adapter against stand-ins with the signatures of its source. Its 0.7.3 itself was
seen to register the class and to score a small local generation task; its multiple-choice tasks
fail there with any model, because its evaluator turns each pair that `loglikelihood` gives back
into a string. Zero-shot only: its few-shot examples have no pictures.

Pictures stand where the task's text says `<image>`, else before the text, as the model was trained.
"""

from collections import defaultdict
from typing import Any

from evals.exported import ExportedModel
from evals.harness.forward import Continuation, Decoding, continue_prompts, score_continuations
from mllm.errors import UserError
from mllm.hf.processing_mllm import IMAGE_PLACEHOLDER, EncodedPrompt, PromptSegment

try:
    from lmms_eval.api.model import lmms
except ModuleNotFoundError:  # importable without it; `manifest` then says what is missing
    lmms = object

MAX_NEW_TOKENS = 1024  # where a task names no cap, as the harness's own models have it
NOT_OURS = ("image_aspect_ratio",)  # settings of other models that tasks carry along


def manifest() -> Any:
    """What the entry point gives to lmms-eval."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="mllm", simple_class_path="evals.harness.lmms.MllmLmms")


class MllmLmms(lmms):
    """An export behind lmms-eval's questions, which come with pictures."""

    is_simple = True

    def __init__(
        self,
        model_dir: str,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.exported = ExportedModel(model_dir, device)
        self.batch_size = int(batch_size)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Of each continuation after the pictures and the context: sum, and whether greedy."""
        continuations = [self._continuation(*request.args) for request in requests]
        answers = [(0.0, False)] * len(requests)
        for i, ll, is_greedy in score_continuations(self.exported, continuations, self.batch_size):
            answers[i] = (ll, is_greedy)
        return answers

    def _continuation(
        self,
        context: str,
        target: Any,
        doc_to_visual: Any = None,
        doc_id: Any = None,
        task: str = "",
        split: str = "",
    ) -> Continuation:
        """A request's prompt and tokens; without pictures where a task asks for P(target) alone."""
        if callable(target):
            target = target(self.task_dict[task][split][doc_id])
        pictures = (
            [] if doc_to_visual is None else self._pictures(doc_to_visual, doc_id, task, split)
        )
        segments, last = _segments(context, pictures)
        bare = last.rstrip(" ")  # as in ranking: spaces at the prompt's end are the target's
        token_ids = self.exported.encode(last + target)[len(self.exported.encode(bare)) :]
        prompt = self.exported.processor.encode([*segments, bare])
        self._check(prompt, len(token_ids), task)
        return Continuation(prompt, list(token_ids))

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The text after each prompt; requests of equal settings share batches."""
        groups: dict[str, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            groups[repr(sorted(request.args[1].items()))].append(i)
        answers = [""] * len(requests)
        for numbers in groups.values():
            settings = {k: v for k, v in requests[numbers[0]].args[1].items() if k not in NOT_OURS}
            if settings.get("temperature"):
                settings.setdefault("do_sample", True)
            decoding = Decoding.from_kwargs({"max_new_tokens": MAX_NEW_TOKENS, **settings})
            for start in range(0, len(numbers), self.batch_size):
                batch = numbers[start : start + self.batch_size]
                prompts = [self._prompt(requests[i].args, decoding) for i in batch]
                texts = continue_prompts(self.exported, prompts, decoding)
                for i, text in zip(batch, texts, strict=True):
                    answers[i] = text
        return answers

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("the model answers one round; choose a task of one round")

    def _prompt(self, args: tuple[Any, ...], decoding: Decoding) -> EncodedPrompt:
        context, _, doc_to_visual, doc_id, task, split = args
        pictures = self._pictures(doc_to_visual, doc_id, task, split)
        segments, last = _segments(context, pictures)
        prompt = self.exported.processor.encode([*segments, last])
        self._check(prompt, decoding.max_new_tokens, task)
        return prompt

    def _pictures(self, doc_to_visual: Any, doc_id: Any, task: str, split: str) -> list[Any]:
        pictures = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        if any(isinstance(picture, (str, dict)) for picture in pictures):
            raise UserError(f"{task}: video or sound in document {doc_id}; only pictures are seen")
        return pictures

    def _check(self, prompt: EncodedPrompt, num_more: int, task: str) -> None:
        """Refuses what does not fit: a picture cannot be cut."""
        available = self.exported.max_positions
        if available is not None and len(prompt.token_ids) + num_more > available:
            raise UserError(
                f"{task}: a prompt of {len(prompt.token_ids)} positions and {num_more} more exceed "
                f"the model's {available}; lower max_new_tokens with --gen_kwargs"
            )


def _segments(context: str, pictures: list[Any]) -> tuple[list[PromptSegment], str]:
    """Pictures and text in order, and the text that comes last."""
    pieces = context.split(IMAGE_PLACEHOLDER)
    if len(pieces) - 1 != len(pictures):
        return list(pictures), context
    segments: list[PromptSegment] = []
    for piece, picture in zip(pieces[:-1], pictures, strict=True):
        segments += [piece, picture]
    return segments, pieces[-1]
