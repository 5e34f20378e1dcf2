"""`import mllm` makes `transformers`' Auto classes know an export's classes; see `registration`."""

from mllm.registration import register_when_used

register_when_used()
