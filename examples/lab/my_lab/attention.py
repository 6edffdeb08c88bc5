"""Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modern_llm.models.parameter_kinds import MATRICES
from modern_llm.models.parts.part import AttentionPart, Carried, Sizes, State, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from modern_llm.models.attention.plan import AttentionPlan


@dataclass(frozen=True)
class LinearAttention(AttentionPart):
    """phi(q) sum phi(k) v^T / phi(q) sum phi(k) over what a token sees, phi(x) = elu(x) + 1 (eq. 5 and 7). Decoding
    needs one (D, D) matrix a head, however long the text is (eq. 18 to 20); a pass over a text is computed as a masked
    product, which serves documents, padding and branches alike.

    Args:
        every: softmax attention stays in every so manieth block, counted from the last; 0: in none.
    """

    every: int = 0

    def stands_in(self, layer: int, n_layers: int) -> bool:
        return self.every == 0 or (n_layers - 1 - layer) % self.every != 0

    def weights(self, sizes: Sizes, layer: int) -> dict[str, Weight]:
        width = sizes.n_heads * sizes.head_size
        return {
            "read": Weight((3 * width, sizes.d_model), MATRICES, std=sizes.d_model**-0.5),
            "write": Weight((sizes.d_model, width), MATRICES),  # zero: the block begins as nothing
        }

    def mix(
        self, weights: Any, sizes: Sizes, x: Tensor, plan: AttentionPlan, carried: Carried, state: State | None
    ) -> Tensor:
        import torch
        from torch.nn import functional as F

        B, T, _ = x.shape
        q, k, v = F.linear(x, weights.read.to(x.dtype)).view(B, T, 3, sizes.n_heads, -1).unbind(2)  # (B, T, H, D) each
        q, k = F.elu(q) + 1, F.elu(k) + 1
        if plan.real is not None:
            k = k * plan.real[:, :, None, None]
        if plan.visible is None:
            visible = torch.ones(1, T, T, dtype=torch.bool, device=x.device).tril()
        else:
            visible = plan.visible[:, :, -T:]  # among the new tokens; the state has the others
        scores = torch.einsum("bthd,bshd->bhts", q, k) * visible[:, None]
        attended = torch.einsum("bhts,bshd->bthd", scores, v)
        total = scores.sum(-1).transpose(1, 2)  # (B, T, H)
        if state is not None:
            outer, keys = torch.einsum("bshd,bshe->bhde", k, v), k.sum(1)
            before, keys_before = state.get("outer"), state.get("keys")
            if before is not None and keys_before is not None:
                attended = attended + torch.einsum("bthd,bhde->bthe", q, before)
                total = total + torch.einsum("bthd,bhd->bth", q, keys_before)
                outer, keys = outer + before, keys + keys_before
            state.put("outer", outer)
            state.put("keys", keys)
        attended = attended / (total + 1e-6)[..., None]
        return F.linear(attended.reshape(B, T, -1), weights.write.to(x.dtype))
