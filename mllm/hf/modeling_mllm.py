"""The trained modules as a `transformers` model: `forward` with labels and cache, `generate`.

Nothing is computed here that `mllm.model` does not compute: this file translates arguments.

Letters: B rows, T new positions, S positions with those in the cache, D model_dim, V vocabulary,
I pictures, L latents.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

from mllm.hf.configuration_mllm import MllmConfig
from mllm.hf.decoding import DecoderStep, DecodingCache
from mllm.model.init import initialise
from mllm.model.multimodal import MultimodalModel


class MllmForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Interleaved text and pictures in, text out."""

    config_class = MllmConfig
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012
    base_model_prefix = ""
    _tied_weights_keys = {  # noqa: RUF012 (an attribute of the base class)
        "model.head.weight": "model.decoder.embed_tokens.weight"
    }
    _no_split_modules = [  # noqa: RUF012
        "DecoderLayer",
        "CLIPEncoderLayer",
        "CLIPVisionEmbeddings",
        "AttentionResampler",
        "PerceiverResampler",
    ]
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: MllmConfig) -> None:
        super().__init__(config)
        self.model = MultimodalModel(config.to_model_config())
        self.post_init()
        if not next(self.parameters()).is_meta:  # on meta, weights from a file follow
            initialise(self.model)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.model.decoder.embed_tokens

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.model.decoder.embed_tokens = value

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.model.head

    def set_output_embeddings(self, value: torch.nn.Module) -> None:
        self.model.head = value

    def _flash_attn_can_dispatch(self, *args: Any, **kwargs: Any) -> bool:
        raise ValueError(
            "attn_implementation: this model runs on torch's SDPA, which has flash attention of "
            "its own; use 'sdpa', or 'eager' for plain products"
        )

    _flex_attn_can_dispatch = _flash_attn_can_dispatch

    def _set_gradient_checkpointing(  # type: ignore[override]
        self, enable: bool = True, **settings: Any
    ) -> None:
        """Behind `activation_checkpointing_enable` (once `gradient_...`) and `..._disable`.

        The decoder keeps each block's inputs, or everything: `settings` reach the vision encoder
        alone.
        """
        super()._set_gradient_checkpointing(enable, **settings)
        self.model.decoder.activation_checkpointing = "full" if enable else "none"

    def _get_candidate_generator(self, *args: Any, **settings: Any) -> Any:
        """Refuses an assistant beside pictures: `transformers` gives it the slots without them."""
        encoded = settings["model_kwargs"].get("mm_encoder_outputs") or {}
        if settings.get("assistant_model") is not None and encoded.get("image") is not None:
            raise ValueError(
                "assistant_model: transformers hands no pictures to an assistant; leave it out, "
                "or use prompt_lookup_num_tokens, for prompts with pictures"
            )
        return super()._get_candidate_generator(*args, **settings)  # type: ignore[misc]

    def _new_cache(self) -> DecodingCache:
        return DecodingCache(self.config, self.model.decoder, self.model.head)

    def _kernels(self) -> AbstractContextManager:
        """`eager` is SDPA's own plain products; `sdpa` leaves the choice to torch."""
        if self.config._attn_implementation == "eager":
            return sdpa_kernel(SDPBackend.MATH)
        return nullcontext()

    def decode(
        self, inputs_embeds: torch.Tensor, positions: torch.Tensor, **settings: Any
    ) -> torch.Tensor:
        """Hidden states (B, T, D); see `Decoder.forward`. With any mask: for scoring trees."""
        with self._kernels():
            return self.model.decoder(inputs_embeds, positions, **settings)

    def get_image_features(
        self, pixel_values: torch.Tensor, **settings: Any
    ) -> BaseModelOutputWithPooling:
        """Latents of pictures (I, L, D) as `pooler_output`; `generate` calls this once a prompt."""
        with self._kernels():
            latents = self.model.encode_images(pixel_values.to(self.dtype))
        return BaseModelOutputWithPooling(pooler_output=latents)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_slot_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, Any] | None = None,
        return_dict: bool | None = None,
        **settings: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """
        Args:
            input_ids: int64 (B, T).
            pixel_values: float (I, 3, S, S), normalised, row by row in slot order.
            attention_mask: (B, S), 0 at padding on either side; or bool (B, 1, T, S).
            image_slot_mask: bool (B, T); left out, it is `input_ids == config.image_token_id`.
            position_ids: int64 (B, T); left out, positions count what `attention_mask` keeps.
            inputs_embeds: (B, T, D) instead of `input_ids`, pictures already in their slots.
            labels: int64 (B, T), not shifted, -100 where there is no loss. The loss is the mean
                over the others: the trainer's sum divided by its count.
            logits_to_keep: 0 for all positions, n for the last n, or a tensor of positions.
            mm_encoder_outputs: `{"image": get_image_features(...)}` instead of `pixel_values`.

        Raises:
            ValueError: slots and pictures differ in number, attentions or hidden states are asked
                for, or a cache while activation checkpointing computes blocks twice.
        """
        for name in ("output_attentions", "output_hidden_states"):
            if settings.pop(name, False):
                raise ValueError(f"{name}=True is not offered; only logits are returned")
        if input_ids is not None and inputs_embeds is None:
            inputs_embeds = self._embed(
                input_ids, image_slot_mask, pixel_values, mm_encoder_outputs or {}, past_key_values
            )
        elif input_ids is not None or inputs_embeds is None:
            raise ValueError("give either input_ids or inputs_embeds")
        is_checkpointed = self.model.decoder.activation_checkpointing != "none"
        if is_checkpointed and torch.is_grad_enabled():
            # The backward pass would put keys and values into the cache a second time.
            if past_key_values is not None:
                raise ValueError(
                    "past_key_values: no cache while gradients are computed with activation "
                    "checkpointing; call activation_checkpointing_disable(), or use torch.no_grad()"
                )
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = self._new_cache()
        step = _step_of(past_key_values, inputs_embeds, attention_mask)
        if step is not None and isinstance(past_key_values, DecodingCache):
            mask: Any = None
            if attention_mask is not None and not bool(attention_mask.all()):
                mask = attention_mask[:, None, None].bool()  # (B, 1, 1, S)
            _, position_ids = self._positions(
                inputs_embeds, attention_mask, past_key_values, position_ids
            )
            with self._kernels():
                logits = step(inputs_embeds, position_ids, mask, past_key_values)  # (B, 1, V)
        else:
            key_positions, position_ids = self._positions(
                inputs_embeds, attention_mask, past_key_values, position_ids
            )
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
            )
            if mask is not None and mask.is_floating_point():  # `eager`: what is added to scores
                mask = mask == 0
            hidden = self.decode(
                inputs_embeds,
                position_ids,
                mask=mask,
                cache=past_key_values,
                key_positions=key_positions,
            )  # (B, T, D)
            kept = (
                slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            )
            logits = self.model.head(hidden[:, kept])  # (B, kept, V)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **settings
            )
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
        return output.to_tuple() if return_dict is False else output

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Puts our cache in the place of the plain one that `generate` makes by default."""
        is_given = model_kwargs.get("past_key_values") is not None
        result = super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, *args, **kwargs
        )
        cache = model_kwargs.get("past_key_values")
        if not is_given and type(cache) is DynamicCache and not cache.offloading:
            model_kwargs["past_key_values"] = self._new_cache()
        return result

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        inputs_embeds: torch.Tensor | None = None,
        image_slot_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        # The mask does not grow with the text; `forward` finds the slots by their id. `generate`
        # reads this signature: it looks for `inputs_embeds`, and for a `**kwargs` of that name.
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        places = kwargs.get("position_ids")
        if kwargs.get("next_sequence_length") == 1 and isinstance(cache, DecodingCache):
            # One token on a cache of ours: what the base class makes of it, without its detours.
            return {
                "input_ids": input_ids[:, -1:],
                "attention_mask": mask,
                "position_ids": None if places is None else places[:, -1:],
                "past_key_values": cache,
                "use_cache": True,
            }
        return super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,  # type: ignore[arg-type]
            inputs_embeds=inputs_embeds,
            **kwargs,
        )

    def _embed(
        self,
        input_ids: torch.Tensor,
        image_slot_mask: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        mm_encoder_outputs: dict[str, Any],
        cache: Cache | None,
    ) -> torch.Tensor:
        if image_slot_mask is None:
            image_slot_mask = input_ids == self.config.image_token_id
        image = mm_encoder_outputs.get("image")
        has_pictures = image is not None or pixel_values is not None
        has_past = cache is not None and cache.get_seq_length() > 0
        if has_pictures and has_past and not bool(image_slot_mask.any()):
            raise ValueError(
                "pixel_values came with a cache and new tokens without image slots: pictures "
                "given before are in the cache; give pixel_values with their slots' tokens only"
            )
        if image is None and pixel_values is not None:
            image = self.get_image_features(pixel_values)
        latents = None if image is None else image.pooler_output
        return self.model.embed(input_ids, image_slot_mask, latents)

    def _positions(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        position_ids: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """int64 (B, S) of the keys there are, if padding is known, and (B, T) of the queries.

        Positions count what a mask keeps; `position_ids`, where they are given, go before.
        """
        num_rows, num_new = inputs_embeds.shape[:2]
        if attention_mask is not None and attention_mask.dim() == 2:
            places = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            return places, places[:, -num_new:] if position_ids is None else position_ids
        first = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            places = torch.arange(num_new, device=inputs_embeds.device) + first
            return None, places.expand(num_rows, -1)
        if attention_mask is None or not self.config.blockwise_attention:
            return None, position_ids
        # `generate` makes such a mask for a static cache, whose free room lies behind the last
        # query. Of the past, the last query sees all but padding.
        last = attention_mask[:, 0, -1, :first]
        seen = last if last.dtype == torch.bool else last == 0
        past = (seen.long().cumsum(-1) - 1).clamp(min=0)
        return torch.cat((past.expand(num_rows, -1), position_ids), 1), position_ids


def _step_of(
    cache: Cache | None, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None
) -> DecoderStep | None:
    """The decoder's fast step, where one new position a row follows on a cache of ours."""
    if (
        isinstance(cache, DecodingCache)
        and inputs_embeds.shape[1] == 1
        and (attention_mask is None or attention_mask.dim() == 2)
        and not torch.is_grad_enabled()
    ):
        return cache.step
    return None
