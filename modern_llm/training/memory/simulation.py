"""Computing without numbers: every tensor has its shape, type and life, and no memory, as on a device that need not be
there.

Floating-point tensors are torch's fake ones. Whole numbers and truth values (ids, labels, masks) are few, so they stay
real: what depends on them, such as how many labels count, comes out as it will be. What depends on fake numbers is made
up: a number that is read is 0, and experts are chosen evenly.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from modern_llm.models.attention.flexible import flexible_attention
from modern_llm.models.kernels import Device, attention_route, compute_dtype, computing_as
from modern_llm.training.memory.ledger import Ledger, note_result

_REAL = 2**22  # elements up to which whole numbers are real
_HALF = (torch.float16, torch.bfloat16)
_CPU = torch.device("cpu")
_ATTENTION = F.scaled_dot_product_attention  # `dropout_by_row` puts another in its place
_aten = torch.ops.aten

# What autocast computes in fp32 on CUDA and leaves in 16 bits on a CPU (torch's autocast_mode.h), as far as models and
# losses use it.
_IN_FP32 = frozenset(
    (
        *("layer_norm", "group_norm", "softmax", "log_softmax", "softmin", "norm", "sum", "prod", "cumsum", "cumprod"),
        *("pow", "__pow__", "rsqrt", "exp", "expm1", "log", "log2", "log10", "log1p", "softplus", "sinh", "cosh"),
        *("tan", "acos", "asin", "reciprocal", "nll_loss", "cosine_similarity", "mse_loss", "l1_loss", "kl_div"),
        *("smooth_l1_loss", "binary_cross_entropy_with_logits", "cross_entropy"),
    )
)


class _Fake(TorchDispatchMode):
    """What is computed on floating-point numbers is not, but entered into a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._slow: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].fake_device if isinstance(args[0], FakeTensor) else args[0].device
        out = self._computed(func, args, kwargs or {})
        note_result(self.ledger, func, args, out)
        return out

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(isinstance(tensor, FakeTensor) for tensor in given):
            return self._of_real(func, args, kwargs)
        if func is _aten._local_scalar_dense.default:
            return 0.0 if args[0].is_floating_point() else 0
        if func is _aten.addmm.dtype_out:  # which a CPU does not have
            return kwargs["out"]
        if func is _aten.nonzero.default:  # all of them, which is the most
            return torch.zeros(args[0].numel(), args[0].dim(), dtype=torch.long)
        if func is _aten.index.Tensor:
            args = (args[0], _numbered(args[1]))
        out = self._hollow(func, args, kwargs, given)
        if func is _aten.topk.default:
            values, chosen = out
            even = torch.arange(chosen.numel()) % args[0].shape[-1]
            return values, even.view(chosen.shape)
        return out

    def _hollow(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        """What the operation gives, without content."""
        if func not in self._slow and all(isinstance(tensor, FakeTensor) for tensor in given):
            # Straight to the kernel of torch's meta device, ten times as fast as through the fake mode, which looks
            # for a device first: here there is one alone.
            if kwargs.get("device") is not None:
                kwargs = kwargs | {"device": torch.device("meta")}
            try:
                with in_kernel_invocation_manager(self.fake):
                    out = func(*args, **kwargs)
            except (NotImplementedError, RuntimeError):  # it has no such kernel, or asks for content
                self._slow.add(func)
            else:
                if all(t.is_meta or isinstance(t, FakeTensor) for t in tree_leaves(out) if isinstance(t, Tensor)):
                    return tree_map_only(Tensor, self._wrapped, out)
                self._slow.add(func)
        with self.fake:
            return func(*args, **kwargs)

    def _wrapped(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, FakeTensor) else FakeTensor(self.fake, tensor, _CPU)

    def _of_real(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is _aten._local_scalar_dense.default or func is _aten.lift_fresh.default:
            return func(*args, **kwargs)
        try:
            with self.fake:
                out = func(*args, **kwargs)
        except RuntimeError:  # what depends on content can only be known by computing it
            return func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if any(tensor.is_floating_point() or tensor.numel() > _REAL for tensor in made):
            return out
        return func(*args, **kwargs)


def _numbered(indices: Any) -> list[Any]:
    """Indices with real masks as the places that they choose."""
    found: list[Any] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            found += index.nonzero().unbind(1)
        else:
            found.append(index)
    return found


class _Functions(TorchFunctionMode):
    """What depends on the device above the operations, and what reads numbers.

    Args:
        ledger: that kernels' own needs are entered into.
        device: that is computed as.
    """

    def __init__(self, ledger: Ledger, device: Device) -> None:
        super().__init__()
        self.ledger, self.device = ledger, device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is flexible_attention:
            return _Attention.apply(*args[:3], None, None)
        if args and isinstance(args[0], FakeTensor):
            if func is Tensor.tolist:
                return np.zeros(args[0].shape).tolist()
            if func is Tensor.numpy:
                return np.zeros(args[0].shape, np.uint8 if args[0].dtype == torch.uint8 else np.float32)
        if self.device.type == "cuda":
            if func is _ATTENTION:
                return self._attention(*args, **kwargs)
            if func is F.rms_norm:
                return _rms_norm(*args, **kwargs)
            name = getattr(func, "__name__", "")
            if name in _IN_FP32 and torch.is_autocast_enabled("cpu") and args:
                first = args[0]
                if isinstance(first, Tensor) and first.dtype in _HALF:
                    args = (first.float(), *args[1:])
        return func(*args, **kwargs)

    @contextmanager
    def in_recomputed_blocks(self) -> Iterator[None]:
        """Blocks that are computed again in the backward pass, where torch knows no modes of this kind, have it too."""
        entered: list[bool] = []

        def enter(*_: Any) -> None:
            entered.append(not _get_current_function_mode_stack())
            if entered[-1]:
                self.__enter__()

        def leave(*_: Any) -> None:
            if entered.pop():
                self.__exit__(None, None, None)

        hooks = [
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        """As CUDA's kernels do it; the one that needs the whole softmax is torch's own composition."""
        dtype = compute_dtype(query)
        q, k, v = (tensor.to(dtype) for tensor in (query, key, value))
        grouped = q.shape[1] != k.shape[1]
        route = attention_route(attn_mask is not None, grouped, dtype, self.device)
        if route.kernel == "math" or (route.repeat_heads and grouped):
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                return _ATTENTION(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros(attn_mask.shape, dtype=dtype)
        return _Attention.apply(q, k, v, attn_mask, self.ledger if route.kernel == "flash" else None)


class _Attention(torch.autograd.Function):
    """What FlashAttention, FlexAttention and the memory-efficient kernel keep: queries, keys, values, the mask, what
    they gave and one number per query and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, ledger: Ledger | None) -> Tensor:
        B, H, T, _ = q.shape
        out = q.new_empty(B, T, H, v.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(q, k, v, mask, out, q.new_empty(B, H, T, dtype=torch.float32))
        ctx.ledger = ledger
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *_ = ctx.saved_tensors
        found = tuple(torch.empty_like(tensor) for tensor in (q, k, v))
        if ctx.ledger is not None:  # FlashAttention adds the gradient of queries up in fp32
            every_head = 2 * q.shape[1] // k.shape[1] if q.shape[1] != k.shape[1] else 0
            ctx.ledger.passing(4 * q.numel() + every_head * k.numel() * k.element_size())
        return (*found, None, None)


class _RMSNorm(torch.autograd.Function):
    """What CUDA's fused kernel keeps: the input, the gain and one number per row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(*x.shape[:-1], 1, dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight)


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    return _RMSNorm.apply(input, weight)


def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which would exchange what is inside of fake tensors and cannot."""
    known: dict[Tensor, Tensor] = {}  # weights that several modules share stay one

    def applied(tensor: Tensor) -> Tensor:
        if tensor not in known:
            with torch.no_grad():
                found = fn(tensor)
            if found is not tensor and isinstance(tensor, nn.Parameter):
                found = nn.Parameter(found, tensor.requires_grad)
            known[tensor] = found
        return known[tensor]

    for module in self.modules():
        for named in (module._parameters, module._buffers):
            for name, tensor in named.items():
                if tensor is not None:
                    named[name] = applied(tensor)  # type: ignore[assignment]
    return self


@contextmanager
def _applied_as_fake() -> Iterator[None]:
    before = nn.Module._apply
    nn.Module._apply = _apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = before  # type: ignore[method-assign]


@contextmanager
def simulated(ledger: Ledger, device: Device) -> Iterator[None]:
    """Within it tensors have no content, models that are made have no weights in memory, and what a device of a kind
    would hold is entered into the ledger. Tensors say that they lie on the CPU; kernels are chosen as on the device.

    Args:
        ledger: is filled.
        device: that is computed as.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # by copies of modules
        stack.enter_context(computing_as(device))
        stack.enter_context(_applied_as_fake())
        stack.enter_context(_Fake(ledger))
        functions = stack.enter_context(_Functions(ledger, device))
        stack.enter_context(functions.in_recomputed_blocks())
        yield
