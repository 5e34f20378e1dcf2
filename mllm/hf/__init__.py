"""The exported model class, one way to load an export, and ways in from Kosmos-2.

Importing this registers the classes, so that `AutoModelForImageTextToText`, `AutoProcessor` and
`pipeline` load an export without `trust_remote_code`. `import mllm` is enough: it has this imported
as soon as `transformers` is asked for an Auto class (`mllm.registration`).

configuration_mllm.py, modeling_mllm.py and the other files that they import are also copied flat
into every export (`mllm.hf.write`), where `transformers` runs them. Here they are used directly:
evaluation and chat read an export's weights and settings, never its code.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from mllm.hf.configuration_mllm import MllmConfig
from mllm.hf.image_processing_mllm import MllmImageProcessor
from mllm.hf.modeling_mllm import MllmForConditionalGeneration
from mllm.hf.processing_mllm import MllmProcessor
from mllm.hf.tokenization_mllm import MllmTokenizer

AutoConfig.register(MllmConfig.model_type, MllmConfig)
AutoModelForImageTextToText.register(MllmConfig, MllmForConditionalGeneration)
AutoModelForCausalLM.register(MllmConfig, MllmForConditionalGeneration)
AutoTokenizer.register(MllmConfig, MllmTokenizer)
AutoImageProcessor.register(MllmConfig, image_processor_classes={"pil": MllmImageProcessor})
AutoProcessor.register(MllmConfig, MllmProcessor)

__all__ = [
    "MllmConfig",
    "MllmForConditionalGeneration",
    "MllmImageProcessor",
    "MllmProcessor",
    "MllmTokenizer",
]
