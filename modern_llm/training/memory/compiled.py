"""How much more or less the blocks of a decoder keep for the backward pass once they are compiled.

The compiler decides what is kept and what is computed again (torch's min-cut partitioner; Chen et al. 2016, arXiv
1604.06174, is the idea). It says so for shapes alone, so a CPU can be asked, and nothing needs to be generated.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.transformer import ModernDecoderLM

_TOKENS = 251  # a prime: bytes that are a multiple of it are those that grow with the tokens
_LAYERS = 4  # blocks of all kinds, as a rule
_VOCABULARY = 8
_found: dict[str, tuple[float, float]] = {}


def kept_by_the_compiler(config: ModernLLMConfig, whole: bool, otherwise: float) -> float:
    """Activations of a compiled decoder as a multiple of those of a plain one.

    Args:
        config: of the decoder.
        whole: all blocks are one graph.
        otherwise: the answer where parts of the model cannot be compiled on a CPU.
    """
    key = repr((config, whole))
    if key not in _found:
        small = replace(config, n_layers=min(config.n_layers, _LAYERS), vocab_size=_VOCABULARY)
        try:
            _found[key] = _kept(small, None) / small.n_layers, _kept(small, whole) / small.n_layers
        except Exception:  # whatever a part of a user's own raises: the training will say it, where it matters
            return otherwise
        finally:
            # Or the compiler would remember the length, see another in training, and make slower code for all lengths.
            torch.compiler.reset()
    plain, compiled = _found[key]
    return compiled / plain


def _kept(config: ModernLLMConfig, whole: bool | None) -> float:
    """Bytes that the backward pass of a small decoder in bf16 needs for each token, beside weights and tables.

    Args:
        whole: as one graph, or block by block; None: not compiled.
    """
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        storage = tensor.untyped_storage()
        held[storage._cdata] = storage.nbytes()
        return tensor

    alive: list[Tensor] = []
    with torch.random.fork_rng(devices=[]):
        model = ModernDecoderLM(config).train()
        if whole is not None:
            _compile(model, whole)
        ids = torch.arange(_TOKENS)[None] % _VOCABULARY
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
            model.hidden_states(ids)
    return sum(size for size in held.values() if size % _TOKENS == 0) / _TOKENS


def _compile(model: ModernDecoderLM, whole: bool) -> None:
    """As `Runtime.prepare` does it, up to the code, which is not made."""
    from functorch.compile import min_cut_rematerialization_partition, nop
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.decomposition import select_decomp_table

    backend = aot_autograd(
        fw_compiler=nop,
        bw_compiler=nop,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table,
    )
    if whole:
        model.compile_states(dynamic=False, backend=backend)
        return
    blocks: list[nn.Module] = list(model.blocks)
    for block in blocks:
        block.compile(dynamic=False, backend=backend)
