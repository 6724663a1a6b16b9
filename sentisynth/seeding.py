"""Randomness keyed by names, never by worker, order or time.

A candidate's random numbers are a function of (run seed, label, index, step). They come from a
counter-based generator, Philox-4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as
easy as 1, 2, 3", SC 2011, section 3.3): the counter is the name, so any worker computes the same
number and nothing has to be handed over.
"""

import hashlib
import json

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the part of the run that `names` spell out."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def philox_4x32(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Ten Philox rounds over 32-bit words held in uint64: counters (..., 4) to words (..., 4)."""
    c0, c1, c2, c3 = np.moveaxis(counters.astype(np.uint64), -1, 0)
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT_32) ^ c1 ^ np.uint64(k0),
            p1 & _LOW_32,
            (p0 >> _SHIFT_32) ^ c3 ^ np.uint64(k1),
            p0 & _LOW_32,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), axis=-1)


def candidate_uniforms(
    seed: int, label: int, first_index: int, size: int, steps: int
) -> np.ndarray:
    """Uniforms in [0, 1) for candidates first_index … first_index + size − 1 of one label.

    Returns float64 (size, steps) with 53 random bits each; entry [i, s] depends on
    (seed, label, first_index + i, s) alone.
    """
    index = np.arange(first_index, first_index + size, dtype=np.uint64)[:, None]
    step = np.arange(steps, dtype=np.uint64)[None, :]
    counters = np.empty((size, steps, 4), dtype=np.uint64)
    counters[..., 0] = index & _LOW_32
    counters[..., 1] = index >> _SHIFT_32
    counters[..., 2] = step
    counters[..., 3] = label
    key = derive_seed(seed, "candidates")
    words = philox_4x32(counters, (key & 0xFFFFFFFF, key >> 32))
    bits = (words[..., 0] >> np.uint64(5)) << np.uint64(26) | (words[..., 1] >> np.uint64(6))
    return bits.astype(np.float64) * 2.0**-53


def fingerprint(parts: object) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
