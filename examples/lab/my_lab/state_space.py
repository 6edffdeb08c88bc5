"""The block of Mamba-2 (Dao and Gu 2024, arXiv 2405.21060)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.models.parameter_kinds import MATRICES, VECTORS
from modern_llm.models.parts.part import BlockPart, Carried, Sizes, State, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from modern_llm.models.attention.plan import AttentionPlan


@dataclass(frozen=True)
class StateSpace(BlockPart):
    """x + W_out norm(y * silu(z)) with one state S (N, P) a head: S_t = a_t S_{t-1} + dt_t b_t u_t^T and
    y_t = c_t^T S_t + D u_t, where a_t = exp(-dt_t exp(A)); u, b and c pass a short convolution (section 7, figure 6,
    and eq. 16 for the masked product). Decoding needs the state, however long the text is; a pass over a text is
    computed as a masked product, which serves documents, padding and branches alike.

    Args:
        expand: width inside over d_model, in `model.n_heads` heads of P.
        state_size: N.
        width: tokens of the convolution, the own one included.
        every: every so manieth block stays ours, counted from the last; 0: none.
    """

    expand: int = 2
    state_size: int = 16
    width: int = 4
    every: int = 0

    def check(self, sizes: Sizes) -> None:
        require(self.expand * sizes.d_model % sizes.n_heads == 0, "model.n_heads", sizes.n_heads,
                f"must divide {self.expand} * model.d_model", "Change one of them")  # fmt: skip

    def stands_in(self, layer: int, n_layers: int) -> bool:
        return self.every == 0 or (n_layers - 1 - layer) % self.every != 0

    def weights(self, sizes: Sizes, layer: int) -> dict[str, Weight]:
        inside, heads = self.expand * sizes.d_model, sizes.n_heads
        mixed = inside + 2 * self.state_size
        return {
            "gain": Weight((sizes.d_model,), VECTORS, mean=1.0),
            "read": Weight((inside + mixed + heads, sizes.d_model), MATRICES, std=sizes.d_model**-0.5),
            "kernel": Weight((self.width, mixed), VECTORS),  # beside the token itself
            "step": Weight((heads,), VECTORS, mean=-3.0),  # dt is 0.05 at first
            "decay": Weight((heads,), VECTORS),
            "skip": Weight((heads,), VECTORS, mean=1.0),
            "inner_gain": Weight((inside,), VECTORS, mean=1.0),
            "write": Weight((sizes.d_model, inside), MATRICES),  # zero: the block begins as the identity
        }

    def mix(
        self, weights: Any, sizes: Sizes, x: Tensor, plan: AttentionPlan, carried: Carried, state: State | None
    ) -> Tensor:
        import torch
        from torch.nn import functional as F

        from modern_llm.models.short_convolution import short_convolution

        T, d, N, H = x.shape[1], sizes.d_model, self.state_size, sizes.n_heads
        inside = self.expand * d
        n = F.rms_norm(x, (d,), weights.gain.to(x.dtype), 1e-5)
        z, mixed, dt = F.linear(n, weights.read.to(n.dtype)).split([inside, inside + 2 * N, H], dim=-1)
        name = "state_space", 0 if state is None else state.layer
        mixed = F.silu(short_convolution(mixed, weights.kernel, carried["before"], name))
        u, b, c = mixed.split([inside, N, N], dim=-1)  # (B, T, H P), (B, T, N), (B, T, N)
        u = u.unflatten(-1, (H, -1))
        dt = F.softplus(dt + weights.step)  # (B, T, H)
        if plan.real is not None:
            dt = dt * plan.real[:, :, None]
        shrunk = -dt * weights.decay.exp()  # log a
        visible = torch.ones(1, T, T, dtype=torch.bool, device=x.device).tril()
        if plan.visible is not None:
            visible = plan.visible[:, :, -T:]  # among the new tokens; the state has the others
        total = visible.to(shrunk.dtype) @ shrunk  # (B, T, H) log of the product over all that a token sees
        between = (total[:, :, None] - total[:, None]).masked_fill(~visible[..., None], -torch.inf).exp()
        scores = torch.einsum("btn,bsn->bts", c, b)[..., None] * between * dt[:, None]  # (B, T, S, H)
        y = torch.einsum("btsh,bshp->bthp", scores.to(u.dtype), u)
        if state is not None:
            whole = shrunk.cumsum(1)
            left = (whole[:, -1:] - whole).exp() * dt
            held = torch.einsum("bsn,bsh,bshp->bhnp", b, left, u)
            before = state.get("state")
            if before is not None:
                y = y + torch.einsum("btn,bth,bhnp->bthp", c, whole.exp(), before)
                held = held + whole[:, -1].exp()[..., None, None] * before
            state.put("state", held)
        y = (y + weights.skip[:, None] * u).flatten(2) * F.silu(z)
        y = F.rms_norm(y, (inside,), weights.inner_gain.to(y.dtype), 1e-5)
        return x + F.linear(y, weights.write.to(y.dtype))
