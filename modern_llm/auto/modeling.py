"""A decoder as transformers knows models, with `generate` on the decoder's own cache."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from modern_llm.auto.configuration import ModernLLMAutoConfig
from modern_llm.experiment.auto_config import checkpoint_in
from modern_llm.models.attention.decoder_cache import DecoderCache
from modern_llm.models.attention.rotary import Rotary
from modern_llm.models.transformer import ModernDecoderLM

# transformers has changed its name for the cache.
_CACHE = "cache" if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters else (
    "past_key_values"
)  # fmt: skip


class GenerationCache:
    """A decoder's cache with the methods that `generate` calls.

    Args:
        held: of B texts.
    """

    is_compileable = False
    is_linear = (False,)  # it has a length

    def __init__(self, held: DecoderCache) -> None:
        self.held = held

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen so far, padding included."""
        return self.held.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let the texts be those of the rows `beam_idx` (B,), as beam search asks."""
        self.held.keep(beam_idx)


class ModernLLMForCausalLM(PreTrainedModel, GenerationMixin):
    """`ModernDecoderLM` for everything of transformers that takes a causal language model.

    Args:
        config: with the decoder's settings.
    """

    config_class = ModernLLMAutoConfig
    base_model_prefix = "decoder"
    _is_stateful = True  # what was read cannot be unread, as assisted generation would
    _no_split_modules = {"DecoderBlock"}  # noqa: RUF012
    _tied_weights_keys = {"decoder.head.weight": "decoder.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: ModernLLMAutoConfig) -> None:
        super().__init__(config)
        self.decoder = ModernDecoderLM(config.described())
        self.post_init()

    @classmethod
    def from_pretrained(cls, path: Any, *arguments: Any, **more: Any) -> Any:  # type: ignore[override]
        """As in transformers; a run's folder is read at its best checkpoint."""
        return super().from_pretrained(checkpoint_in(path) or path, *arguments, **more)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _init_weights(self, module: nn.Module) -> None:
        # Weights are drawn where the decoder is made; tables that no file holds are computed here.
        if isinstance(module, Rotary):
            module.restore()

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embedding

    def set_input_embeddings(self, value: Any) -> None:
        self.decoder.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder.head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.decoder.head = new_embeddings

    def _prepare_cache_for_generation(  # type: ignore[override]
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        if model_kwargs.get(_CACHE) is not None or generation_config.use_cache is False:
            return
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r}: this decoder has a cache of its "
                "own. Leave it out."
            )
        rows = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1) * batch_size
        model_kwargs[_CACHE] = GenerationCache(self.decoder.new_cache(rows, max_cache_length + 1))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: GenerationCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int = 0,
        cache: GenerationCache | None = None,
    ) -> CausalLMOutputWithPast:
        """As in transformers.

        Args:
            input_ids: (B, T).
            attention_mask: (B, n) 0 at padding, for all tokens that the cache holds and the new ones.
            past_key_values, cache: what the tokens continue, under the older and the newer name.
            labels: (B, T) of the same positions as `input_ids`; -100 carries no loss.
            use_cache, return_dict, cache_position: told by `generate`; nothing depends on them.
            output_attentions, output_hidden_states: not given.
            logits_to_keep: of so many last positions alone; 0: of all.

        Raises:
            ValueError: no ids, or something is asked for that is not given.
        """
        if input_ids is None:
            raise ValueError("input_ids: are missing. This decoder reads ids, and no embeddings.")
        for name, asked in (("output_attentions", output_attentions), ("output_hidden_states", output_hidden_states)):
            if asked:
                raise ValueError(f"{name}=True: this decoder does not give them. Leave it out.")
        given = cache if cache is not None else past_key_values
        if attention_mask is not None:
            padded = not bool(attention_mask.all())
            attention_mask = attention_mask[:, -input_ids.shape[1] :] if padded else None
        states = self.decoder.hidden_states(input_ids, attention_mask, cache=None if given is None else given.held)
        hidden = states.hidden if not logits_to_keep else states.hidden[:, -logits_to_keep:]
        logits = self.decoder.output_head.logits(hidden)
        loss = None
        if labels is not None:
            shifted = F.pad(labels[:, 1:], (0, 1), value=-100)[:, -logits.shape[1] :]
            loss = F.cross_entropy(logits.flatten(0, 1), shifted.flatten().to(logits.device), ignore_index=-100)
            loss = loss + sum(states.aux_losses.values(), torch.zeros((), device=loss.device))
        held: dict[str, Any] = {} if given is None else {_CACHE: given}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **held)
