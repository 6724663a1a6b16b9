"""What the C library does with memory that is freed.

glibc maps a large block anew each time, and gives it back when it is freed. Every page of it has to
be faulted in again: of the logits of a training step, hundred thousands, on one core, while the
others wait. A process that keeps what it frees takes an eighth less time a step, and a sixth more
memory (`benchmarks/allocator.py`); for generation it is not worth its memory.
"""

_NO_BLOCKS, _ONE_HEAP = 0, 1  # mapped by themselves; for all threads
_KEPT, _AHEAD = 2**30, 2**26  # bytes that are free before the kernel gets some back; asked for more

VARIABLES = {
    "MALLOC_MMAP_MAX_": str(_NO_BLOCKS),
    "MALLOC_ARENA_MAX": str(_ONE_HEAP),
    "MALLOC_TRIM_THRESHOLD_": str(_KEPT),
    "MALLOC_TOP_PAD_": str(_AHEAD),
}
"""The environment of a process that keeps what it frees, up to 1 GiB (other libraries than glibc do
not read it).
"""
