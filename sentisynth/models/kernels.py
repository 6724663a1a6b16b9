"""Kernels of our own, in C++ (gpt2_int8.cpp): they are given addresses, and check nothing.

They are compiled when the package is installed, where there is a compiler, as a module beside it:
what a job brings along finds that of its node. `library` is None where there was none, or on CPUs
without AVX-512 VNNI, and torch does the work then.
"""

import ctypes
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

VERSION = 1  # of what kernels are given, and of what they give; it stands in gpt2_int8.cpp, too
BLOCK = 64  # rows of a weight in one piece
ACTIVATIONS = {None: 0, "relu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2, "gelu_fast": 2}


class LinearArguments(ctypes.Structure):
    """`Linear` of int8.h."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("n_in", ctypes.c_int64),
        ("n_out", ctypes.c_int64),
        ("activation", ctypes.c_int64),
    )


@cache
def library() -> Any:
    """The compiled kernels, if this process can use them."""
    if not torch.cpu._is_vnni_supported():
        return None
    found = find_spec("sentisynth_kernels")
    if found is None or found.origin is None:
        return None
    try:
        kernels = ctypes.CDLL(found.origin)
    except OSError:  # compiled for another system
        return None
    return kernels if kernels.sentisynth_version() == VERSION else None


def called(name: str, *arguments: Any) -> None:
    """Call a function of `library`. Raises MemoryError."""
    if getattr(library(), name)(*arguments):
        raise MemoryError(name)


def address(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    """Of the first element; null of none."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
