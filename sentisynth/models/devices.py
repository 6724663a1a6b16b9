"""Devices: which one a process has, its memory, and the arithmetic that is fast on it."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from sentisynth.errors import ModelError, PlacementError
from sentisynth.models.kernels import VERSION, library

# of control groups: version 2 and version 1, as a container sees its own
_MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
# of allocators and libraries that raise a plain RuntimeError
_MEMORY_WORDS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


def best_device() -> torch.device:
    """The accelerator that this process was given, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_gpu() -> None:
    """Of a process that was given a GPU: raises PlacementError where PyTorch sees none. It would do
    the work on a CPU, many times slower, and nobody would be told.
    """
    if not torch.cuda.is_available():
        raise PlacementError(
            f"a process on {platform.node()} was given a GPU and sees none: the NVIDIA driver of "
            f"the node is missing, or too old for PyTorch {torch.__version__} (CUDA "
            f"{torch.version.cuda or 'none'}; CUDA 13 needs driver 580 or later); update it, or "
            f"install PyTorch's build for CUDA 12.6 on the nodes"
        )


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What of a device decides the bytes of its results, and how much fits on it."""

    kind: str
    """`cuda`, or `cpu`."""
    name: str
    """The model of a GPU; of a CPU, the instructions that decide which kernels it is given."""
    memory: int
    """Bytes in all."""
    precision: str
    """What `auto` comes to in generation and verification: fp32, bf16 or fp16."""
    has_kernels: bool = False
    """Whether our own kernels for bytes are compiled there, and the CPU has what they need."""

    def named(self, precision: str) -> str:
        """What decides the bytes of what is computed on it in a precision."""
        name = self.name or self.kind
        is_own = precision == "int8" and self.has_kernels
        return f"{name} with kernels {VERSION} of our own" if is_own else name

    def verification(self, precision: str) -> str:
        """What a teacher computes in on it under `synthesis.precision`: int8 is of generation
        alone, with the teacher as under `auto`.
        """
        if precision in ("auto", "int8"):
            return self.precision
        return "fp32" if precision == "fp16" and self.kind == "cpu" else precision


def device_facts(device: torch.device | None = None) -> DeviceFacts:
    """Of a device; of the one that this process was given, if none is named."""
    device = device or best_device()
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    precision = names[inference_dtype("auto", device)]
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        name, memory = found.name, found.total_memory
    else:
        name, memory = _cpu_name(), _memory()
    has_kernels = device.type == "cpu" and library() is not None
    return DeviceFacts(
        kind=device.type, name=name, memory=memory, precision=precision, has_kernels=has_kernels
    )


def _memory() -> int:
    """Bytes of RAM that this process may have: the machine's, or those of its container."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _MEMORY_LIMITS:
        with suppress(OSError, ValueError):  # no such file; "max", which is no limit
            found.append(int(path.read_text()))
    return min(found)


def _cpu_name() -> str:
    """Kernels of one kind of CPU round otherwise than those of another."""
    parts = [torch.backends.cpu.get_cpu_capability()]
    parts += ["bf16"] * torch.cpu._is_avx512_bf16_supported()
    parts += ["AMX"] * torch.cpu._is_amx_tile_supported()
    return f"a CPU ({', '.join(parts)})"


def hardware() -> str:
    """Cores, processor and GPU of the machine, in a few words."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return f"{os.cpu_count()} cores, {model}, GPU: {gpu}"


@contextmanager
def memory_guarded(what: str, remedy: str) -> Iterator[None]:
    """Raise ModelError where the block runs out of memory on its device."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not is_memory and not any(word in reason for word in _MEMORY_WORDS):
            raise
        raise ModelError(f"{what} ran out of memory ({reason}); {remedy}") from None


def inference_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype that weights are laid out in for generation and verification.

    `auto` is bf16 on GPUs that have it and on CPUs that multiply it (AMX or AVX-512 BF16), where
    it is about twice as fast as fp32 or more; else fp16 on a GPU and fp32 on a CPU. Raises
    ModelError for int8 where it is not multiplied.
    """
    if precision == "int8":
        check_int8(device.type)
        return torch.int8
    if precision == "auto" and device.type == "cpu":
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return autocast_dtype(precision, device) or torch.float32


def multiplies_int8(kind: str) -> bool:
    """Whether such a device is a CPU that sums products of bytes in 32 bits (VNNI, AMX); on others
    the sum of two products may overflow its 16.
    """
    has_kernels = kind == "cpu" and torch.backends.mkldnn.is_available()
    return has_kernels and bool(torch.cpu._is_vnni_supported())


def check_int8(kind: str) -> None:
    """Raise ModelError where int8 is not multiplied."""
    if not multiplies_int8(kind):
        what, remedy = _cpu_name(), "take another precision, or auto"
        if kind == "cuda":
            what, remedy = "a GPU", f"{remedy}; or synthesis.generate_pool.gpus=0 where CPUs do"
        raise ModelError(
            f"synthesis.precision=int8 is for CPUs that multiply bytes (VNNI or AMX), and this is "
            f"{what}; {remedy}"
        )


def working_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of what weights in `dtype` are multiplied with: fp32 beside int8, and on a CPU
    beside fp16, which saves memory traffic alone there.
    """
    is_fp32 = dtype == torch.int8 or (device.type == "cpu" and dtype == torch.float16)
    return torch.float32 if is_fp32 else dtype


def _gpu_has_bf16() -> bool:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products in training under `precision`, or None for fp32.

    `auto` is bf16 on a GPU that has it and on a CPU with AMX tiles, where it is several times
    faster; on other CPUs the casts cost more than they bring.
    """
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if _gpu_has_bf16() else torch.float16
        fast = torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
