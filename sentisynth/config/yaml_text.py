"""YAML as recipes and overrides are written in."""

from typing import Any

import yaml

from sentisynth.errors import ConfigError

_MOST_WORDS = 600
# what a value that does not fit its tag, or brackets without end, raise in PyYAML beside its own
_NO_YAML = (yaml.YAMLError, ValueError, AttributeError, KeyError, RecursionError)


class _Loader(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys without a word; here they are an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is written twice", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node


def read_mapping(text: str, name: str) -> dict[str, Any]:
    """The keys of a text that is called `name`. Raises ConfigError."""
    try:
        values = _loaded(text)
    except _NO_YAML as error:
        reason = f"{type(error).__name__}, " + " ".join(str(error).split())[:_MOST_WORDS]
        raise ConfigError(f"{name} is not valid YAML: {reason}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name} holds no keys; a recipe is a YAML mapping such as `name: x`")
    return values


def parse_value(text: str) -> Any:
    """The value of an override: YAML, or the text itself."""
    try:
        return _loaded(text)
    except _NO_YAML:
        return text


def _loaded(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader
