"""What all configuration classes share."""

from math import isfinite
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]


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


class Config(BaseModel):
    """Base of all: frozen, and a key that does not exist is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
