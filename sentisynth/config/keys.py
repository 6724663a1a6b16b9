"""The keys of a configuration and what each means, which its classes alone say."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel

from sentisynth.config.base import Config


@dataclass(frozen=True, kw_only=True)
class Key:
    name: str
    """With dots."""
    value: str
    """As it is written on the command line, before the shell's quotes."""
    meaning: str
    choices: tuple[str, ...]
    """Where only some words are taken."""


def keys_of(config: BaseModel, prefix: str = "") -> Iterator[Key]:
    """All keys with a value of their own, in the order of their classes."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name in getattr(config, "without_meaning", ()):
            continue
        if isinstance(value, Config):
            yield from keys_of(value, f"{prefix}{name}.")
        else:
            plain = config.model_dump(mode="json", include={name})[name]
            text = yaml.safe_dump(plain, default_flow_style=True, width=2**30, allow_unicode=True)
            yield Key(
                name=f"{prefix}{name}",
                value=text.removesuffix("\n").removesuffix("\n..."),
                meaning=f"{_meaning(type(config), name)} {_parts(field.annotation, name)}".strip(),
                choices=tuple(_choices(field.annotation)),
            )


def _meaning(kind: type[BaseModel], name: str) -> str:
    """A class that only sets another default says no more than the class above it."""
    above = [c for c in kind.mro() if issubclass(c, BaseModel) and name in c.model_fields]
    told = [description for c in above if (description := c.model_fields[name].description)]
    return " ".join(told[0].split()) if told else ""


def _parts(annotation: Any, name: str) -> str:
    """Of a part that is left out: the keys that it would have."""
    for kind in get_args(annotation):
        if isinstance(kind, type) and issubclass(kind, Config):
            return f"Or with keys: {', '.join(f'{name}.{key}' for key in kind.model_fields)}."
    return ""


def _choices(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    else:
        for part in get_args(annotation):
            yield from _choices(part)
