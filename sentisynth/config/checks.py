"""What single values have to be, beyond types and bounds."""

from math import isfinite
from typing import Any


def as_weights(values: Any) -> Any:
    """Weights as they are. Raises ValueError unless they are finite, not negative, and one is not
    zero; anything but a tuple of numbers passes.
    """
    if isinstance(values, tuple):
        if not all(map(isfinite, values)) or min(values, default=0) < 0:
            raise ValueError(f"the weights are {[*values]}; each must be a number of 0 or more")
        if not any(values):
            raise ValueError(f"the weights are {[*values]}; one at least must be above 0")
    return values
