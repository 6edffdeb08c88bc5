"""T5 (Raffel et al. 2020, arXiv 1910.10683), encoder and decoder behind the protocols of the decoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from modern_llm.models.output_head import OutputHead
from modern_llm.pretrained.causal import HiddenStates, HuggingFaceBody, cache_argument
from modern_llm.pretrained.masks import masks_as_given

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from modern_llm.pretrained.kv_cache import Seq2SeqCache


class EncodedSource(NamedTuple):
    """What the encoder made of B texts."""

    hidden: Tensor  # (B, S, d)
    mask: Tensor  # (B, S) 0 at padding


class HuggingFaceSeq2Seq(HuggingFaceBody):
    """T5, mT5 or FLAN-T5.

    Args:
        model: with the language-modelling head; adapters may have been put into it.

    Raises:
        ValueError: another architecture.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        if model.config.model_type not in ("t5", "mt5"):
            raise ValueError(f"{model.config.model_type}: of the encoder-decoders, only the T5 family is supported.")

    @property
    def start_id(self) -> int:
        """Id that every decoded text starts with."""
        return self.model.config.decoder_start_token_id

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers of encoder and decoder."""
        return [*self.model.get_encoder().block, *self.model.get_decoder().block]

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> EncodedSource:
        """input_ids, attention_mask: (B, S), padding on either side."""
        with masks_as_given(input_ids.device):
            output = self.model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        return EncodedSource(output.last_hidden_state, attention_mask)

    def decoder_states(self, encoded: EncodedSource, input_ids: Tensor, cache: Seq2SeqCache | None = None) -> Tensor:
        """(B, T, d) states that the head reads, for decoder inputs (B, T)."""
        decoder = self.model.get_decoder()
        given = {} if cache is None else {cache_argument(type(decoder).forward): cache.states}
        with self.compiled_unless(cache is not None), masks_as_given(input_ids.device):
            output = decoder(
                input_ids=input_ids,
                encoder_hidden_states=encoded.hidden,
                encoder_attention_mask=encoded.mask,
                use_cache=cache is not None,
                return_dict=True,
                **given,
            )
        hidden = output.last_hidden_state
        # T5 v1.0 shares embedding and head, and scales between them.
        return hidden * self.model.config.d_model**-0.5 if self.model.config.scale_decoder_outputs else hidden

    def decoder(self, encoded: EncodedSource) -> Decoder:
        """The decoder over these texts, which meets `CausalLM`."""
        return Decoder(self, encoded)


class Decoder:
    """T5's decoder over encoded texts, as a `CausalLM`.

    Args:
        model: encoder and decoder.
        encoded: B texts.
    """

    def __init__(self, model: HuggingFaceSeq2Seq, encoded: EncodedSource) -> None:
        self.model, self.encoded, self.training = model, encoded, model.training

    def train(self, mode: bool = True) -> Any:
        self.training = mode
        return self.model.train(mode)

    @property
    def output_head(self) -> OutputHead:
        return self.model.output_head

    def new_cache(self, batch_size: int, max_tokens: int | None) -> Seq2SeqCache:
        from modern_llm.pretrained.kv_cache import Seq2SeqCache

        return Seq2SeqCache(self.model.model.config.num_decoder_layers, max_tokens)

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: Seq2SeqCache | None = None,
    ) -> HiddenStates:
        """input_ids (B, T) of the decoder; its texts are neither padded nor packed."""
        return HiddenStates(self.model.decoder_states(self.encoded, input_ids, cache))
