"""What all configuration classes share."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]


class Config(BaseModel):
    """Base of all: frozen, and a key that does not exist is an error. A section that is given in
    part takes the rest from the default of that section, not from its class: `student.train` has
    other defaults than `teacher.train`, and naming one of its keys changes none of the others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        sections = {
            name: _over(field.default.model_dump(exclude_unset=True), values[name])
            for name, field in cls.model_fields.items()
            if isinstance(field.default, Config) and isinstance(values.get(name), dict)
        }
        return {**values, **sections}


def _over(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values that were given over those that were not."""
    both = {
        key: _over(defaults[key], value)
        for key, value in given.items()
        if isinstance(value, dict) and isinstance(defaults.get(key), dict)
    }
    return {**defaults, **given, **both}
