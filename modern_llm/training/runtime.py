"""What the hardware settings come to on the machine at hand: device, precision, threads, peak rate, memory used."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from modern_llm.models.attention.flexible import SMALLEST_HEAD
from modern_llm.models.kernels import compile_passes, has_content
from modern_llm.models.recomputing import HostMemory
from modern_llm.models.transformer import ModernDecoderLM
from modern_llm.processes import ProcessesError, join, world
from modern_llm.training.optimization.muon import MuonWithAdamW
from modern_llm.training.optimization.narrow import narrow_trained_weights
from modern_llm.training.optimization.optimizers import OptimizerSettings
from modern_llm.training.optimization.parameters import is_linear_map
from modern_llm.training.parallel.replicated import Replicated, ShardedOptimizer
from modern_llm.training.settings import Hardware

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_WORTHWHILE = 1.3  # 16-bit products must be this much faster: casting costs time as well


def _keep_freed_memory() -> None:
    """Have glibc keep freed blocks of up to 32 MB for the next step, up to 2 GB of them. To give blocks back and to get
    them anew, page by page, takes a tenth to a third of a step; to keep them takes up to two fifths more memory."""
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # other C libraries have none
            m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
            mallopt(m_mmap_threshold, 2**25)  # the most that it takes
            mallopt(m_trim_threshold, 2**31 - 1)  # likewise


class _HeapFacts(ctypes.Structure):
    """glibc's `struct mallinfo2`; of its ten numbers of bytes, `fordblks` are freed and kept."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks",
                                                          "fsmblks", "uordblks", "fordblks", "keepcost"))  # fmt: skip


def give_back_freed_memory() -> None:
    """Undo what `_keep_freed_memory` has gathered where that is more than 1 GB: between phases that need blocks of
    other sizes."""
    if sys.platform.startswith("linux"):
        library = ctypes.CDLL(None)
        trim, facts_of_heap = getattr(library, "malloc_trim", None), getattr(library, "mallinfo2", None)
        if facts_of_heap is not None:  # since glibc 2.33
            facts_of_heap.restype = _HeapFacts
            if facts_of_heap().fordblks <= 2**30:
                return
        if trim is not None:
            trim(0)


def peak_resident_bytes() -> float:
    """Most memory that this process ever held."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    # Linux hands a parent's peak on to getrusage of its children, so the process's own mark is read where it is.
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def narrow_frozen_maps(model: nn.Module, dtype: torch.dtype) -> None:
    """Hold the linear maps that are not trained in the type that autocast computes their products in, to which it
    would cast them at every use: the same products from half the memory. Tables that are looked up stay as they are,
    heads that share their weights among them."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if is_linear_map(module) and id(module.weight) not in tables:
            for p in (module.weight, module.bias):
                if isinstance(p, nn.Parameter) and not p.requires_grad and p.dtype == torch.float32:
                    p.data = p.data.to(dtype)


def has_cpp_compiler() -> bool:
    """Whether torch.compile finds what it makes code for a CPU with."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError:
        return False
    return True


@contextmanager
def collecting_little() -> Iterator[None]:
    """Within it the garbage collector looks at what is new alone: to go through all that was there before, the
    libraries themselves, takes longer than many a step. Whoever has frozen it before keeps it as it is."""
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def attend_flexibly(model: nn.Module) -> None:
    """Have FlexAttention compute what has a mask, in place.

    Raises:
        ValueError: it cannot take all that the model has.
    """
    found = ""
    if not isinstance(model, ModernDecoderLM):
        found = f"is for decoders of this project, not for {type(model).__name__}. Use"
    elif model.config.attention or model.config.block:
        key = "model.attention" if model.config.attention else "model.block"
        found = f"what {key} puts in the place of attention reads masks. Leave it, or use"
    elif model.config.head_size < SMALLEST_HEAD:
        found = (
            f"heads have {model.config.head_size} columns, and its kernels need {SMALLEST_HEAD}. Set "
            f"model.head_dim={SMALLEST_HEAD} or more, or use"
        )
    elif rate := max(getattr(module, "attention_dropout", 0.0) for module in model.modules()):
        found = f"has no dropout, and model.attention_dropout={rate}. Set it to 0, or use"
    if found:
        raise ValueError(f"hardware.attention='flex': {found} hardware.attention=sdpa.")
    setattr(model, "flexible_attention", True)  # noqa: B010 - a Module types its attributes narrowly


class Runtime:
    """The machine, set up once.

    Args:
        hardware: the settings.

    Attributes:
        device: where tensors live.
        precision: fp32, bf16 or fp16.

    Raises:
        ValueError: a device, a precision or a kind of attention that this machine does not have.
    """

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        if hardware.num_threads is not None:
            torch.set_num_threads(hardware.num_threads)
        self.device = torch.device(self._choose_device())
        if self.device.type == "cuda":
            self.device = self._own_gpu()
            torch.set_float32_matmul_precision("high")  # TF32 for what stays in fp32
        elif self.device.type == "cpu":
            _keep_freed_memory()
        if hardware.attention == "flex" and self.device.type != "cuda":
            raise ValueError(
                f"hardware.attention='flex': has a backward pass on CUDA alone, and hardware.device={hardware.device} "
                f"came to {self.device.type}. Use hardware.attention=sdpa."
            )
        self.precision = self._choose_precision()

    def _choose_device(self) -> str:
        there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if self.hardware.device == "auto":
            return next(name for name in ("cuda", "mps", "cpu") if there[name])
        if not there[self.hardware.device]:
            raise ValueError(
                f"hardware.device={self.hardware.device!r}: this machine has none that torch can use. "
                "Use hardware=cpu or hardware.device=auto."
            )
        return self.hardware.device

    def _own_gpu(self) -> torch.device:
        """The GPU of this process: each has one to itself."""
        here = world()
        if here.local_count > torch.cuda.device_count():
            raise ProcessesError(
                f"--nproc-per-node={here.local_count}: this machine has {torch.cuda.device_count()} GPUs that torch "
                "sees, and every process needs its own. Start fewer."
            )
        torch.cuda.set_device(here.local_rank)
        return torch.device("cuda", here.local_rank)

    def _choose_precision(self) -> str:
        asked = self.hardware.precision
        if self.device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            if asked == "bf16" and not native:
                raise ValueError("hardware.precision='bf16': this GPU computes fp16 only. Use hardware.precision=fp16.")
            return ("bf16" if native else "fp16") if asked == "auto" else asked
        if asked == "auto":
            if self.device.type == "mps":
                return "fp32"
            fast = self._product_seconds(torch.float32, 512) > _WORTHWHILE * self._product_seconds(torch.bfloat16, 512)
            return "bf16" if fast else "fp32"
        return asked

    def _product_seconds(self, dtype: torch.dtype, size: int) -> float:
        """Seconds of one (size x size) product, the best of a few."""
        a = torch.ones(size, size, dtype=dtype, device=self.device)
        best = float("inf")
        for attempt in range(4):
            self.synchronise()
            start = time.perf_counter()
            a @ a
            self.synchronise()
            if attempt:  # the first one loads the kernel
                best = min(best, time.perf_counter() - start)
            elif time.perf_counter() - start > 0.5:
                return time.perf_counter() - start
        return best

    def precision_speeds(self) -> dict[str, float]:
        """Operations per second of a square product in each precision, the yardstick of `hardware.precision=auto`."""
        size = 4096 if self.device.type == "cuda" else 512
        dtypes = {"fp32": torch.float32, **_DTYPES}
        return {name: 2 * size**3 / self._product_seconds(dtype, size) for name, dtype in dtypes.items()}

    def peak_flops(self) -> tuple[float, str]:
        """Operations per second that count as full use, and where the figure is from."""
        if self.hardware.peak_tflops is not None:
            return self.hardware.peak_tflops * 1e12, "hardware.peak_tflops"
        size = 8192 if self.device.type == "cuda" else 1024
        dtype = _DTYPES.get(self.precision, torch.float32)
        return 2 * size**3 / self._product_seconds(dtype, size), f"a measured {size} x {size} {self.precision} product"

    def synchronise(self) -> None:
        """Wait for the device, so that a clock tells the truth."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        elif self.device.type == "mps":
            torch.mps.synchronize()

    @property
    def runs_ahead(self) -> bool:
        """Whether the host can launch work while the device is busy with what was launched before."""
        return self.device.type == "cuda"

    @property
    def overlaps(self) -> bool:
        """Whether batches are read and checkpoints written beside the training."""
        return self.runs_ahead if self.hardware.overlap == "auto" else self.hardware.overlap == "on"

    def autocast(self) -> AbstractContextManager[Any]:
        """Computing in the chosen precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Loss scaling for fp16, where small gradients vanish (Micikevicius et al. 2018, arXiv 1710.03740)."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def prepare(self, model: nn.Module, same_shape: bool = False) -> nn.Module:
        """Move a model here; switch on activation checkpointing and compilation as the settings say, of the loss as
        well.

        Args:
            model: in place.
            same_shape: all batches of the training have the same shape, which compiled code then knows. Other code
                takes every shape, or it would be compiled anew for the second length and for the first smaller batch.

        Raises:
            ValueError: activation checkpointing or FlexAttention for a model that has none; weights in bf16 without
                products in it.
        """
        model.to(self.device)
        if self.precision in _DTYPES:
            narrow_frozen_maps(model, _DTYPES[self.precision])
        if self.hardware.weights == "bf16":
            if self.precision != "bf16":
                raise ValueError(
                    f"hardware.weights='bf16': hardware.precision=auto found {self.precision} faster here. Use "
                    "hardware.precision=bf16 or hardware.weights=fp32."
                )
            narrow_trained_weights(model)
        every = int(self.hardware.activation_checkpointing)
        if every:
            if not hasattr(model, "activation_checkpointing"):
                raise ValueError(
                    f"hardware.activation_checkpointing={self.hardware.activation_checkpointing}: "
                    f"{type(model).__name__} has none. Set it to false."
                )
            setattr(model, "activation_checkpointing", every)  # noqa: B010 - a Module types its attributes narrowly
        if self.hardware.activation_offloading:
            self._offload(model)
        compiles = self.hardware.compile and self._can_compile()
        compile_passes(compiles)
        if self.hardware.attention == "flex":
            attend_flexibly(model)
            torch._dynamo.config.specialize_float = True  # its kernels take the factor of the scores as a constant
        dynamic = None if same_shape else True
        if compiles and self.hardware.compile == "whole" and isinstance(model, ModernDecoderLM):
            model.compile_states(dynamic=dynamic)
        elif compiles:
            # Block by block: equal blocks compile once. Models call them uncompiled where they read a cache.
            parts = getattr(model, "blocks", [model])
            # Some parts make every block unlike the others: torch would leave what comes behind eight uncompiled.
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(parts))
            for part in parts:
                part.compile(dynamic=dynamic)
        return model

    def _offload(self, model: nn.Module) -> None:
        """Have the inputs of recomputed blocks held by the host."""
        if self.device.type != "cuda" and has_content():
            raise ValueError(
                "hardware.activation_offloading=true: it moves from a GPU to the host, and this is "
                f"{self.device.type}. Set it to false."
            )
        setattr(model, "host_memory", HostMemory(self.device))  # noqa: B010 - a Module types its attributes narrowly

    def _can_compile(self) -> bool:
        """Whether there is a compiler; where there is none, the run goes on uncompiled and says so."""
        if self.device.type != "cpu" or has_cpp_compiler():
            return True
        warnings.warn(
            "hardware.compile=True: torch found no C++ compiler (g++, or what CXX names), so nothing is compiled. "
            "Install one, or set hardware.compile=false.",
            stacklevel=3,
        )
        return False

    def parallel(self, model: nn.Module, optimizer: OptimizerSettings) -> Replicated:
        """How a model that is trained lies on the processes."""
        join(self.device.type)
        if world().count > 1 and self.hardware.weights == "bf16":
            raise ProcessesError(
                "hardware.weights='bf16': every process would round at random on its own, and their models differ. "
                "Use hardware.weights=fp32, or one process."
            )
        kind: type[Replicated] = Replicated
        if world().count > 1 and self.hardware.sharding == "optimizer":
            kind = ShardedOptimizer
        elif world().count > 1 and self.hardware.sharding == "full":
            from modern_llm.training.parallel.fully_sharded import FullySharded

            kind = FullySharded
        parallel = kind(model, optimizer)
        if isinstance(parallel.optimizer, MuonWithAdamW):
            parallel.optimizer.half = self.precision == "bf16"
        return parallel

    def peak_memory_gb(self) -> float:
        """Most memory used so far, in GB (10^9 bytes): of the device on a GPU, of the process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        return peak_resident_bytes() / 1e9

    def describe(self) -> dict[str, Any]:
        """Device, precision and versions, for the run record."""
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else None
        return {
            "device": str(self.device),
            "device_name": name,
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "processes": world().count,
        }
