"""Keys that name data and models: as absolute paths for workers, by name alone for others."""

import os
from pathlib import Path
from typing import Any

from sentisynth.config.types import NamedConfig

_REFERENCES = {
    "data": ("source", "validation", "test"),
    "teacher": ("model",),
    "generator": ("model",),
    "student": ("model",),
    "text": ("source",),
    "tokenizer": ("model",),
    "masked": ("judge",),
    "start": ("model",),
}


def make_absolute(values: dict[str, Any]) -> None:
    """References to what is here become absolute paths: workers may run in another directory."""
    for part, key, reference in _references(values):
        path = os.path.expanduser(reference)  # as it is where there is no such user
        if os.path.exists(path):
            part[key] = str(Path(path).resolve())


def portable(config: NamedConfig) -> dict[str, Any]:
    """A configuration for others to read: without this machine's folders, and without where it was
    run and recorded.
    """
    values = config.model_dump(mode="json", exclude={"tracking", "cluster"})
    for part, key, reference in _references(values):
        if Path(reference).is_absolute():
            part[key] = Path(reference).name
    return values


def _references(values: dict[str, Any]) -> list[tuple[dict[str, Any], str, str]]:
    """Section, key and text of each that is given."""
    return [
        (part, key, part[key])
        for section, keys in _REFERENCES.items()
        if isinstance(part := values.get(section), dict)
        for key in keys
        if isinstance(part.get(key), str)
    ]
