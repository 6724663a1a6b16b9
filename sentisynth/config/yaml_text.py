"""YAML as recipes and overrides are written in."""

from typing import Any

import yaml

from sentisynth.errors import ConfigError

_MOST_WORDS = 600
# what a value that does not fit its tag, or brackets without end, raise in PyYAML beside its own
_NO_YAML = (yaml.YAMLError, ValueError, AttributeError, KeyError, RecursionError)


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
    """PyYAML takes the last of two equal keys without a word; here they are an error."""
    left, seen = [yaml.compose(text, Loader=yaml.SafeLoader)], set[int]()
    while left:
        node = left.pop()
        if id(node) in seen:  # an anchor may hold itself
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated([key for key, _ in node.value])
            left += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            left += node.value
    return yaml.safe_load(text)


def _refuse_repeated(keys: list[yaml.Node]) -> None:
    known = set[str]()
    for key in keys:
        if isinstance(key, yaml.ScalarNode):
            if key.value in known:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is written twice", problem_mark=key.start_mark
                )
            known.add(key.value)
