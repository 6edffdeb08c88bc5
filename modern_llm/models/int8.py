"""Linear maps whose weights are held in 8 bits, for reading and writing texts: a quarter of what is read of them.

Each output has a scale of its own, and its largest weight is 127 (Dettmers et al. 2022, arXiv 2208.07339, section 2.1,
absmax by rows). Nothing is trained through them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modern_llm.models.kernels import compute_dtype, multiplies_int8
from modern_llm.models.linear import linear

_LARGEST = 127
_EXACT = ("wo",)  # T5 asks for the type of the weights of these


class Int8Linear(nn.Module):
    """A linear map.

    Args:
        weight: (N, K).
        bias: (N,), or None.

    Attributes:
        codes: (N, K) whole numbers from -127 to 127.
        scale, half_scale: (N,) what 1 stands for in each row, in fp32 and in bf16.
    """

    codes: Tensor
    scale: Tensor
    half_scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        exact = weight.detach().float()
        scale = exact.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST
        self.register_buffer("codes", (exact / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("half_scale", scale.to(torch.bfloat16))
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., K). Returns (..., N)."""
        dtype, K = compute_dtype(x), x.shape[-1]
        if multiplies_int8(x):
            rows = x.reshape(-1, K).to(torch.bfloat16)
            out = torch._weight_int8pack_mm(rows, self.codes, self.half_scale)
            out = out.to(dtype).view(*x.shape[:-1], -1)
            return out if self.bias is None else out + self.bias.to(dtype)
        weight = self.codes.to(dtype) * self.scale[:, None].to(dtype)
        return linear(x.to(dtype), weight, None if self.bias is None else self.bias.to(dtype))


def hold_in_int8(blocks: nn.Module) -> None:
    """Replace the linear maps inside the blocks of a model, in place."""
    for parent in list(blocks.modules()):
        for name, module in list(parent.named_children()):
            turned = type(module).__name__ == "Conv1D"  # as GPT-2 holds its weights
            if (isinstance(module, nn.Linear) or turned) and name not in _EXACT:
                weight: Tensor = module.weight  # type: ignore[assignment]
                bias: Tensor | None = module.bias  # type: ignore[assignment]
                setattr(parent, name, Int8Linear(weight.t() if turned else weight, bias))
