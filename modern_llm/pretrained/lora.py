"""Low-rank adapters through peft: which linear maps get one, and putting them on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modern_llm.models.kernels import compute_dtype
from modern_llm.models.linear import linear
from modern_llm.pretrained.four_bits import keep_in_four_bits
from modern_llm.pretrained.settings import LoRA

if TYPE_CHECKING:
    from peft import PeftModel

# Heads, and the routers of experts, whose choices adapters should not blur.
_NO_TARGETS = ("lm_head", "head", "score", "router", "gate", "embed_out")


def lora_targets(model: nn.Module) -> list[str]:
    """Names of the linear maps in a model's attention and feed-forward layers: `c_attn`, `c_proj`, `c_fc` in GPT-2,
    `q`, `k`, `v`, `o`, `wi`, `wo` in T5, `q_proj` to `down_proj` in Llama, `qkv_proj` to `down_proj` in ours."""
    return list({name: None for name, _ in _maps(model)})


def _maps(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The linear maps in a model's layers, each with the end of its name."""
    from transformers.pytorch_utils import Conv1D

    ends = [(name.rsplit(".", 1)[-1], module) for name, module in model.named_modules()]
    return [(end, m) for end, m in ends if isinstance(m, nn.Linear | Conv1D) and end not in _NO_TARGETS]


def add_lora(model: nn.Module, lora: LoRA, task: str | None, base_name: str) -> PeftModel:
    """Put adapters into a model, in place; everything else is frozen, but for a classification head.

    Args:
        model: a `transformers` model, a `ModernDecoderLM`, or a `Classifier` over one.
        lora: rank, scale and places, and bits of what is frozen.
        task: peft's name of the task, `CAUSAL_LM`, `SEQ_2_SEQ_LM` or `SEQ_CLS`; None for models of our own.
        base_name: what the saved adapter calls its base.

    Raises:
        ValueError: a target that the model does not have, or no linear map at all.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    from modern_llm.pretrained.adapted import compute_adapted

    known = lora_targets(model)
    if not known:
        raise ValueError("model/lora=on: the model's blocks have no linear map (model.block). Use model/lora=off.")
    unknown = [name for name in lora.targets or [] if name not in known]
    if unknown:
        raise ValueError(
            f"model.lora.targets={lora.targets}: the model has no linear map {unknown[0]!r}. "
            f"Choose among {', '.join(known)}."
        )
    settings: dict[str, Any] = {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": lora.targets or known,
        "fan_in_fan_out": any(isinstance(module, Conv1D) for module in model.modules()),
        "task_type": task,
    }
    if task is None and any(name == "score" for name, _ in model.named_children()):
        settings["modules_to_save"] = ["score"]
    # Frozen weights may be 16-bit; what is trained may not. peft copies the head as it finds it.
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] == "score":
            module.float()
    maps = [module for _, module in _maps(model)]
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*(fan_in_fan_out|tie_word_embeddings|tied|is_gradient_checkpointing).*"
        )
        adapted = get_peft_model(model, LoraConfig(**settings))
    adapted.peft_config["default"].base_model_name_or_path = base_name
    if lora.base_bits == 4:
        keep_in_four_bits(model, maps)
    compute_adapted(model)
    return adapted


@contextmanager
def decoded_quickly(model: nn.Module) -> Iterator[None]:
    """Within it adapted linear maps are computed with little besides their products, from weights that are made ready
    once: one product where products are in fp32, as W + s B A; else the three products of training, because a sum that
    is rounded to 16 bits would be another policy. For passes without gradients, in evaluation mode, in which no weight
    changes; holds a copy of the adapted weights in the precision of the products.
    """
    from modern_llm.pretrained.adapted import AdaptedLinear

    adapted = [module for module in model.modules() if type(module) is AdaptedLinear and not module.disable_adapters]
    try:
        with torch.no_grad():
            for module in adapted:
                vars(module)["forward"] = _ready(module)
        yield
    finally:
        for module in adapted:
            vars(module).pop("forward", None)


def _ready(module: Any) -> Callable[[Tensor], Tensor]:
    """The forward pass of one adapted linear map."""
    from modern_llm.pretrained.adapted import adapted_product

    base, (name,) = module.base_layer, module.active_adapters
    weight = module.weight_of_map  # read once: one in 4 bits is made for it
    dtype = compute_dtype(weight)
    if dtype.itemsize >= 4:
        change = module.get_delta_weight(name)
        whole = (weight + (change.T if module.fan_in_fan_out else change)).to(weight.dtype)
        return lambda x: linear(x, whole, base.bias)
    scale = module.scaling[name]
    into, out = (part[name].weight.to(dtype) for part in (module.lora_A, module.lora_B))
    weight, bias = weight.to(dtype), None if base.bias is None else base.bias.to(dtype)

    def forward(x: Tensor) -> Tensor:
        x = x.to(dtype)
        return adapted_product(x, x, weight, bias, into, out, scale)[0]

    return forward
