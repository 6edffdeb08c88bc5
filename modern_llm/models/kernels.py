"""Which kernel computes what on which device: every question of the models about the hardware is answered here.

The rules are functions of plain facts, so that a table of expected answers tests them without the card.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_FEW_ROWS = 8  # up to this many rows, a product on a CPU of AMD takes as long as its weights take to be read
_FEW_ROWS_WIDE = 2  # the same for each thread, where a weight has more inputs than outputs (measured)
_MOST_FEW_ROWS = 12  # beyond, there is no other way than the ordinary one
_LARGE_FOR_ONEDNN = 3 * 2**19  # elements for each thread
_FEW_ROWS_INT8 = 16  # up to this many rows, 8-bit weights are multiplied as they are
_LARGE_WEIGHT = 2**16  # elements; below, the call itself takes longer than the product
_SHARE_OF_LOGITS = 128  # the fused loss's logits take one part in so many of a GPU's memory
_FEWEST_SHARED, _FEWEST_SHARED_ON_CARD = 3 * 2**17, 2**22  # numbers of a layer's keys that copies would hold
_HALF = (torch.float16, torch.bfloat16)


class Device(NamedTuple):
    """What decides which kernels there are."""

    type: str  # cpu, cuda, mps
    capability: tuple[int, int] | None = None  # of a CUDA device: (9, 0) is sm90
    memory: int = 12 * 2**30  # bytes of a CUDA device


_instead: Device | None = None


@contextmanager
def computing_as(device: Device) -> Iterator[None]:
    """Within it everything is computed as on another device, where tensors have no content."""
    global _instead
    before, _instead = _instead, device
    try:
        yield
    finally:
        _instead = before


def has_content() -> bool:
    """Whether tensors hold numbers; else nothing needs to be read from files."""
    return _instead is None


def device_of(x: Tensor) -> Device:
    """The device that x lies on."""
    if _instead is not None:
        return _instead
    if not x.is_cuda or not torch.cuda.is_available():
        return Device(x.device.type)
    facts = torch.cuda.get_device_properties(x.device)  # which the compiler takes for a constant
    return Device("cuda", (facts.major, facts.minor), facts.total_memory)


@cache
def cpu_vendor() -> str:
    """`GenuineIntel`, `AuthenticAMD` and so on; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor().split(", ")[-1]  # on Windows: Intel64 Family 6 Model 167 Stepping 1, GenuineIntel
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")


def may_be_compiled() -> bool:
    """Whether anything can be: the compiler is imported by the first use, because that takes as long as torch."""
    return "torch._dynamo" in sys.modules


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products with x are computed in: autocast's type where it is on, else that of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


# -- attention -------------------------------------------------------------------------------------------------------


class AttentionRoute(NamedTuple):
    """How `scaled_dot_product_attention` has to be called for a fused kernel to take the call."""

    kernel: str  # flash, efficient or math: what torch then chooses
    repeat_heads: bool  # keys and values are repeated for every query head before the call
    mask_multiple: int = 1  # rows of the mask lie in memory this many elements apart, or a multiple of it


def attention_route(masked: bool, grouped: bool, dtype: torch.dtype, device: Device) -> AttentionRoute:
    """The one decision on how attention is computed.

    CUDA has two fused kernels. FlashAttention takes grouped heads but no mask, 16-bit numbers alone, and needs sm80.
    The memory-efficient kernel takes masks and fp32 on any card but no grouped heads, and copies a mask whose rows are
    not aligned. A call that suits neither goes to the math kernel, which keeps the whole fp32 softmax for the backward
    pass; repeating keys and values costs far less. The CPU's kernel takes everything.

    Args:
        masked: there is a mask beyond plain causality.
        grouped: fewer key/value heads than query heads.
        dtype: that is computed in.
        device: that computes.
    """
    if device.type == "cpu":
        return AttentionRoute("flash" if dtype != torch.float64 else "math", False)
    if device.type != "cuda":
        return AttentionRoute("math", grouped)
    if not masked and dtype in _HALF and device.capability is not None and device.capability >= (8, 0):
        return AttentionRoute("flash", False)
    if dtype == torch.float64:
        return AttentionRoute("math", False)
    return AttentionRoute("efficient", grouped, mask_multiple=8)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `visible` (..., n) is True and -inf elsewhere, in `dtype`, its rows aligned for the kernel."""
    multiple = attention_route(True, True, dtype, device_of(visible)).mask_multiple
    n = visible.shape[-1]
    rows = torch.zeros(*visible.shape[:-1], -(-n // multiple) * multiple, dtype=dtype, device=visible.device)
    return rows[..., :n].masked_fill_(~visible, -torch.inf)


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float, dropout: float = 0.0
) -> Tensor:
    """softmax(scale q k^T + mask) v (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

    Args:
        q: (B, T, H, D).
        k, v: (B, n, Hkv, D), Hkv a divisor of H.
        mask: additive, broadcast against (B, H, T, n), the same for all heads; None: none.
        causal: query i sees keys 0 to i alone; not with a mask.
        dropout: on the softmax.

    Returns:
        (B, T, H, D).
    """
    H, grouped = q.shape[2], q.shape[2] != k.shape[2]
    if grouped and not causal and q.shape[1] == 1:
        out = fused_attention(_heads_as_tokens(q, k.shape[2]), k, v, mask, False, scale, dropout)
        return _tokens_as_heads(out, 1)
    if grouped and attention_route(mask is not None, True, compute_dtype(q), device_of(q)).repeat_heads:
        k, v = (t.repeat_interleave(H // t.shape[2], dim=2) for t in (k, v))
        grouped = False
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    mask = None if mask is None else mask.to(q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """`fused_attention` of queries that all see the same keys, and the logarithm of the sum under each softmax.

    Without gradients. A CPU's fused kernel gives both, in 0.6 to 1.3 of the time of two products (measured in fp32 and
    bf16); elsewhere it is two products, with the scores in memory.

    Args:
        q: (B, T, H, D).
        k, v: (B, n, Hkv, D), Hkv a divisor of H.
        mask: (1 or B, 1, 1, n) additive, or None; some key of each row is seen.
        scale: of the scores.

    Returns:
        (B, T, H, D), and (B, T, H) in fp32 at least.
    """
    T = q.shape[1]
    q, k, v = (t.transpose(1, 2) for t in (_heads_as_tokens(q, k.shape[2]), k, v))  # (B, Hkv, T G, D)
    if device_of(q).type == "cpu":
        mask = None if mask is None else mask.to(q.dtype)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask, scale=scale)
    else:
        scores = torch.matmul(q, k.transpose(2, 3))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).mul_(scale)
        scores = scores if mask is None else scores.add_(mask)
        lse = scores.logsumexp(-1)
        out = torch.matmul(scores.sub_(lse[..., None]).exp_().to(v.dtype), v)
    return _tokens_as_heads(out.transpose(1, 2), T), _tokens_as_heads(lse.transpose(1, 2), T)


def shares_keys(copies: int, device: Device) -> bool:
    """Whether keys and values that several texts have in common are held and read once: where copies of them for each
    text would hold so many numbers in each layer's keys beyond the first copy.

    Two softmaxes and putting them together take a CPU 0.1 ms more than one, and more with the rows; reading the copies
    takes as long at 2000 keys of three heads of 64 (measured in fp32 and bf16, 2 to 64 rows, 8 to 512 tokens). A card
    launches many kernels instead of one, so more has to be spared there; its bound is an estimate.
    """
    return copies >= (_FEWEST_SHARED if device.type == "cpu" else _FEWEST_SHARED_ON_CARD)


def _heads_as_tokens(q: Tensor, groups: int) -> Tensor:
    """(B, T, H, D) queries as (B, T G, Hkv, D): the G heads that share keys are so many queries to them, where all T
    tokens see the same keys. A kernel then reads each key once, and multiplies it with G T queries at a time."""
    return q.unflatten(2, (groups, -1)).transpose(2, 3).flatten(1, 2)


def _tokens_as_heads(x: Tensor, tokens: int) -> Tensor:
    """(B, T G, Hkv, ...) as (B, T, H, ...): what `_heads_as_tokens` does, undone."""
    return x.unflatten(1, (tokens, -1)).transpose(2, 3).flatten(2, 3)


# -- products and norms ----------------------------------------------------------------------------------------------


def takes_grouped_products(dtype: torch.dtype, widths: tuple[int, ...], device: Device) -> bool:
    """Whether `grouped_mm` is one kernel: bf16 in rows of whole 16 bytes, on sm90 and sm100. Elsewhere it is a loop
    inside torch that reads the sizes on the host, slower than a loop of our own."""
    on_card = device.type == "cuda" and device.capability in ((9, 0), (10, 0))
    return on_card and hasattr(F, "grouped_mm") and dtype == torch.bfloat16 and all(w % 8 == 0 for w in widths)


def few_rows_route(x: Tensor, weight: Tensor) -> str:
    """How x (..., K) is multiplied with weight (N, K): `plain`, by `F.linear`; `pieces`, in the way of
    `models/linear.py`; or `onednn`. All but the first are for decoding steps on the CPU, without gradients."""
    if (
        not 0 < x.numel() <= _MOST_FEW_ROWS * x.shape[-1]
        or weight.numel() < _LARGE_WEIGHT
        or not x.dtype == weight.dtype == torch.float32
        or device_of(x).type != "cpu"
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or not weight.is_contiguous()
    ):
        return "plain"
    N, K = weight.shape
    return few_rows_kernel(x.numel() // K, N, K, cpu_vendor(), torch.get_num_threads())


def few_rows_kernel(rows: int, N: int, K: int, vendor: str, threads: int) -> str:
    """The measured rule of `few_rows_route`, in fp32.

    MKL knows its maker's processors: there its ordinary product of up to three rows reads the weight at full speed on
    all threads, where `pieces` took 2.8 times as long; but four to twelve rows of a large weight take oneDNN half to
    nine tenths of MKL's time.
    """
    if vendor == "GenuineIntel":
        large = _LARGE_FOR_ONEDNN * threads <= N * K and torch.backends.mkldnn.is_available()
        return "onednn" if 4 <= rows <= 12 and large else "plain"
    if vendor == "AuthenticAMD" and rows <= _FEW_ROWS and (K <= N or rows <= _FEW_ROWS_WIDE * threads):
        return "pieces"
    return "plain"


def multiplies_int8(x: Tensor) -> bool:
    """Whether x (..., K) is so few rows on a CPU that torch's product of bf16 with 8-bit weights pays: beyond, weights
    are spread out first."""
    return 0 < x.numel() <= _FEW_ROWS_INT8 * x.shape[-1] and device_of(x).type == "cpu"


def sums_in_fp32(total: Tensor, dtype: torch.dtype) -> bool:
    """Whether the product of two matrices of `dtype` can be added to an fp32 `total` in one kernel."""
    return device_of(total).type == "cuda" and dtype in _HALF and total.dtype == torch.float32


def places_of(marked: Tensor, count: int) -> Tensor:
    """(count,) where marked (N,) is True. Told how often that is, a GPU need not be waited for."""
    if marked.device.type in ("cpu", "mps"):  # MPS has no such kernel
        return marked.nonzero()[:, 0]
    return torch.nonzero_static(marked, size=count)[:, 0]


def tokens_per_read(device: Device) -> int:
    """How many tokens of a text are computed before the host reads them: waiting for each would leave a device without
    work, and those behind the end of a text are computed in vain."""
    return 1 if device.type == "cpu" else 8


_compile = False


def compile_passes(on: bool) -> None:
    """From here on, whether the loss's passes over logits are compiled on a GPU, as `hardware.compile` compiles
    blocks."""
    global _compile
    _compile = on


def compiles_passes(x: Tensor) -> bool:
    """Whether passes over x are compiled into kernels of their own."""
    return _compile and x.is_cuda


def loss_chunk_elements(x: Tensor, held: torch.dtype) -> int:
    """Logits that the fused loss holds at once in a type. On a CPU 64 MiB in fp32, where its products run at full rate;
    in 16 bit more, because a product is added to an fp32 sum in a pass over the whole head for every chunk: there
    should be few. On a GPU what a small share of its memory holds, with the fp32 copy that a compiler leaves out."""
    device = device_of(x)
    if device.type != "cuda":
        return 2**26 if held in _HALF and device.type == "cpu" else 2**24
    copies = 0 if compiles_passes(x) or held not in _HALF else 4
    return device.memory // _SHARE_OF_LOGITS // (held.itemsize + copies)


def loss_chunk_multiple(x: Tensor) -> int:
    """Rows of the fused loss's chunks come in multiples of this: of the tiles that a GPU's products are made of."""
    return 128 if device_of(x).type == "cuda" else 16


def padded_vocabulary(weight: Tensor, dtype: torch.dtype) -> int:
    """Rows that a head (V, d) should have in products of a type: on a GPU in 16 bit a multiple of 64, because rows of
    logits that are not aligned take slow kernels (a vocabulary of 50257 as one of 50304)."""
    V = len(weight)
    return -(-V // 64) * 64 if device_of(weight).type == "cuda" and dtype in _HALF else V


def pass_elements(x: Tensor) -> int:
    """How many numbers the passes of one computation take at a time: a CPU's cache holds them in fp32 from the first to
    the last of these passes; on a GPU, every pass is a call, and all numbers are taken."""
    return 2**18 if device_of(x).type == "cpu" else 2**62


def has_fused_rms_norm(x: Tensor) -> bool:
    """Whether torch normalises x in one kernel: not on the CPU, unless it compiles one."""
    return device_of(x).type != "cpu" or torch.compiler.is_compiling()
