"""The exported model class, and one way to load an export.

configuration_mllm.py, modeling_mllm.py, processing_mllm.py, image_processing_mllm.py and
tokenization_mllm.py are also copied flat into every export (`mllm.export`), where `transformers`
runs them. Here they are used directly: evaluation and chat read an export's weights and settings,
never its code.
"""
