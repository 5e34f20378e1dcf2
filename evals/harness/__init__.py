"""Other people's harnesses over an export: their tasks and metrics, our model.

forward.py      continuations scored and written by plain forward passes, for both adapters
lm_harness.py   lm-evaluation-harness: the adapter, and its tasks loaded without leaks
lmms.py         lmms-eval: an adapter that its own command finds
command.py      `mllm eval --harness lm_eval TASKS`
"""
