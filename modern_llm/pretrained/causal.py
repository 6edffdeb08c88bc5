"""A `transformers` decoder behind the `CausalLM` protocol: loss, generation, prompting and perplexity are written
once, for it and for `ModernDecoderLM`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache as remembered
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modern_llm.models.attention.branching import Branches
from modern_llm.models.attention.plan import branch_positions, branches_seen
from modern_llm.models.kernels import compute_dtype, may_be_compiled
from modern_llm.models.output_head import OutputHead
from modern_llm.models.recomputing import HostMemory, recomputed
from modern_llm.pretrained.masks import attention_by, masks_as_given

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from modern_llm.pretrained.kv_cache import HuggingFaceCache

# transformers 5 renamed `past_key_values` on its way.
_CACHE_NAMES = ("cache", "past_key_values")


@dataclass
class HiddenStates:
    """What a body gives, in `ModelOutput`'s words.

    Attributes:
        hidden: (B, T, d) after the final norm.
        aux_losses, expert_load: as in `ModelOutput`; none here.
    """

    hidden: Tensor
    aux_losses: dict[str, Tensor] = field(default_factory=dict)
    expert_load: Tensor | None = None


@remembered
def cache_argument(forward: Callable[..., Any]) -> str:
    """What a model of `transformers` calls the cache that its class's `forward` is given."""
    known = inspect.signature(forward).parameters
    return next((name for name in _CACHE_NAMES if name in known), _CACHE_NAMES[-1])


class HuggingFaceBody(nn.Module):
    """What decoders and encoder-decoders of `transformers` share.

    Args:
        model: with its head; adapters may have been put into it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self._checkpointing = model, 0
        self._host_memory: HostMemory | None = None

    @property
    def output_head(self) -> OutputHead:
        """From hidden states to logits."""
        config = self.model.config
        softcap = getattr(config, "final_logit_softcapping", None)
        # A factor of Cohere, and a divisor of Granite.
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        return OutputHead(self.model.get_output_embeddings().weight, softcap, scale)

    def compiled_unless(self, decoding: bool) -> AbstractContextManager[Any]:
        """Within it compiled layers run uncompiled while decoding: every length of a cache would be compiled anew."""
        return torch.compiler.set_stance("force_eager") if decoding and may_be_compiled() else nullcontext()

    @property
    def activation_checkpointing(self) -> int:
        """Of how many layers one is computed again in the backward pass; 0: none is."""
        return self._checkpointing

    @activation_checkpointing.setter
    def activation_checkpointing(self, on: int) -> None:
        from transformers.modeling_layers import GradientCheckpointingLayer

        self._checkpointing = on
        # transformers 5 renamed these, too.
        name = "activation" if hasattr(self.model, "activation_checkpointing_enable") else "gradient"
        if on:
            getattr(self.model, f"{name}_checkpointing_enable")({"use_reentrant": False})
            layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
            for number, layer in enumerate(layers):
                layer.gradient_checkpointing = number % on == 0
        else:
            getattr(self.model, f"{name}_checkpointing_disable")()

    @property
    def host_memory(self) -> HostMemory | None:
        """Where inputs of layers that are computed again lie until then; None: they stay."""
        return self._host_memory

    @host_memory.setter
    def host_memory(self, memory: HostMemory | None) -> None:
        from transformers.modeling_layers import GradientCheckpointingLayer

        self._host_memory = memory
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                given: Any = module
                given._gradient_checkpointing_func = partial(recomputed, memory=memory)


class HuggingFaceCausalLM(HuggingFaceBody):
    """A decoder of `transformers`.

    Args:
        model: with a language-modelling or a classification head; adapters may have been put into it.

    Raises:
        ValueError: an encoder, or a head with a bias.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        config = model.config
        if config.is_encoder_decoder:
            raise ValueError(f"{config.model_type}: is an encoder-decoder, and no causal language model.")
        head = model.get_output_embeddings()
        if head is not None and getattr(head, "bias", None) is not None:
            raise ValueError(f"{config.model_type}: cannot be used, because its head has a bias.")

    @property
    def body(self) -> nn.Module:
        """The model without its head."""
        return self.model.base_model

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers. In some architectures, such as OPT, they are children of the body's decoder."""
        n_layers = self.model.config.num_hidden_layers
        return next(m for m in self.body.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers)

    def new_cache(self, batch_size: int, max_tokens: int | None) -> HuggingFaceCache:
        """An empty cache for B texts of at most `max_tokens` tokens.

        Raises:
            ValueError: unbounded.
        """
        from modern_llm.pretrained.kv_cache import HuggingFaceCache

        return HuggingFaceCache(self.model.config.num_hidden_layers, max_tokens)

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: HuggingFaceCache | None = None,
        branch_ids: Tensor | None = None,
        branch_lengths: Tensor | None = None,
    ) -> HiddenStates:
        """Everything but the head.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T) 0 at padding, on either side; None: no padding.
            document_ids: (B, T) number of the packed document of each token; not with a cache.
            cache: continue the texts it holds.
            branch_ids: (B, T) 0 for a text's trunk, other numbers for continuations of it, none of which sees
                another; not with a cache.
            branch_lengths: as in `plan_attention`.
        """
        B, T = input_ids.shape
        given: dict[str, Any] = {"attention_mask": attention_mask}
        if branch_ids is not None and document_ids is None:
            document_ids = torch.zeros_like(branch_ids)
        if document_ids is not None:
            if cache is not None:
                raise ValueError("document_ids cannot be combined with a cache. Prefill the documents one by one.")
            given = self._documents(document_ids, attention_mask, branch_ids)
        else:
            mask = attention_mask if cache is None else cache.extended_mask(attention_mask, B, T)
            if mask is not None:
                positions = (mask.long().cumsum(1) - 1).clamp(min=0)
                given = {"attention_mask": mask, "position_ids": positions[:, -T:]}
        if cache is not None:
            given |= {cache_argument(type(self.body).forward): cache.states}
        branches = None
        if branch_lengths is not None:
            branches = Branches.of(branch_lengths, T, input_ids.device, compute_dtype(self.output_head.weight))
        with (
            self.compiled_unless(cache is not None),
            masks_as_given(input_ids.device),
            attention_by(branches, cache, self.model.config),
        ):
            output = self.body(input_ids=input_ids, use_cache=cache is not None, return_dict=True, **given)
        return HiddenStates(output.last_hidden_state)

    def _documents(
        self, document_ids: Tensor, attention_mask: Tensor | None, branch_ids: Tensor | None
    ) -> dict[str, Any]:
        """Positions and mask (B, 1, T, T) with which every document stands alone, and every branch on its trunk."""
        T, device = document_ids.shape[1], document_ids.device
        branches = torch.zeros_like(document_ids) if branch_ids is None else branch_ids
        real = torch.ones_like(document_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        positions = branch_positions(document_ids, branches, real)
        visible = (document_ids[:, :, None] == document_ids[:, None]) & branches_seen(branches)
        visible &= torch.ones(T, T, dtype=torch.bool, device=device).tril()
        window = getattr(self.model.config, "sliding_window", None)
        if window is not None and getattr(self.model.config, "use_sliding_window", True):
            visible &= positions[:, :, None] - positions[:, None] < window
        if attention_mask is not None:
            # Padding sees itself, or its softmax would be empty.
            visible = visible & real[:, None] | torch.eye(T, dtype=torch.bool, device=device)
        return {"attention_mask": visible[:, None], "position_ids": positions}
