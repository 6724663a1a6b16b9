"""A recipe, a file or a run directory, plus `key=value` overrides, to a checked `RunConfig`."""

import copy
import difflib
import itertools
import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sentisynth.config.pretrain import PretrainConfig
from sentisynth.config.references import make_absolute
from sentisynth.config.types import NamedConfig, RunConfig
from sentisynth.config.yaml_text import parse_value, read_mapping
from sentisynth.errors import ConfigError

_RECIPES: dict[type[NamedConfig], Any] = {
    RunConfig: resources.files("sentisynth.config") / "recipes",
    PretrainConfig: resources.files("sentisynth.config") / "recipes" / "pretrain",
}
AnyConfig = TypeVar("AnyConfig", bound=NamedConfig)
_NOTES = ("fingerprint", "versions")  # what config.yaml of a run says beside the configuration
_DEEPEST, _MOST_VALUES, _MOST_WORDS = 32, 100_000, 600
_TYPE_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "string": "a text",
    "bool": "true or false",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping of keys",
}


def recipe_names(kind: type[NamedConfig] = RunConfig) -> list[str]:
    """Names of the built-in recipes of a kind."""
    found = (p.name for p in _RECIPES[kind].iterdir())
    return sorted(name[: -len(".yaml")] for name in found if name.endswith(".yaml"))


def load_config(recipe: str, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a built-in recipe or a YAML file, apply `a.b=value` overrides, check everything.

    Raises ConfigError with one sentence for the first mistake found.
    """
    return _load(RunConfig, recipe, overrides)


def load_pretrain_config(
    recipe: str, overrides: list[str] | tuple[str, ...] = ()
) -> PretrainConfig:
    """The same for a recipe of a base model."""
    return _load(PretrainConfig, recipe, overrides)


def _load(kind: type[AnyConfig], recipe: str, overrides: list[str] | tuple[str, ...]) -> AnyConfig:
    values = _read_recipe(recipe, kind)
    _refuse_places(recipe, values)
    for override in overrides:
        _apply(values, override, kind)
    make_absolute(values)
    _read_deepspeed(values)
    return _parse(kind, values)


def load_any_config(recipe: str) -> NamedConfig:
    """A recipe of either kind, without overrides. Raises ConfigError."""
    is_base = recipe in recipe_names(PretrainConfig)
    if not is_base and recipe not in recipe_names():
        is_base = "kind" in _read_recipe(recipe, RunConfig)
    return load_pretrain_config(recipe) if is_base else load_config(recipe)


def parse_config(values: dict[str, Any]) -> RunConfig:
    """Check a mapping of nested keys. Raises ConfigError."""
    return _parse(RunConfig, values)


def _parse(kind: type[AnyConfig], values: dict[str, Any]) -> AnyConfig:
    _refuse_endless(values)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        told, half = _sentence(error.errors(), kind), _MOST_WORDS // 2
        if len(told) > _MOST_WORDS:
            told = f"{told[:half]} … {told[-half:]}"
        raise ConfigError(told) from None


def _refuse_endless(values: dict[str, Any]) -> None:
    """Anchors may hold themselves, or unfold to more than any memory. Raises ConfigError."""
    left: list[tuple[Any, int]] = [(values, 0)]
    seen = 0
    while left:
        part, depth = left.pop()
        seen += 1
        if depth > _DEEPEST or seen > _MOST_VALUES:
            raise ConfigError(
                f"the configuration has more than {_MOST_VALUES:,} values, or nests them deeper "
                f"than {_DEEPEST}; write each value once, without anchors"
            )
        if isinstance(part, dict):
            left += [(child, depth + 1) for child in part.values()]
        elif isinstance(part, list | tuple | set):
            left += [(child, depth + 1) for child in part]


def with_values(values: dict[str, Any], dotted: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested values with some dotted keys set."""
    copied = copy.deepcopy(values)
    for key, value in dotted.items():
        part = copied
        *parents, last = key.split(".")
        for parent in parents:
            part = part.setdefault(parent, {})
        part[last] = value
    return copied


def read_run_config(run: Path) -> RunConfig:
    """The configuration that a run directory was last used with. Raises ConfigError."""
    return _read_config(RunConfig, run)


def read_pretrain_config(run: Path) -> PretrainConfig:
    """The same of the directory of a pretraining."""
    return _read_config(PretrainConfig, run)


def read_any_config(run: Path) -> NamedConfig:
    """The same of either."""
    return _read_config(PretrainConfig if is_base_model(run) else RunConfig, run)


def is_base_model(run: Path) -> bool:
    """Whether a run directory is that of a pretraining. Raises ConfigError."""
    return "kind" in _config_of(run)


def is_ours(run: Path) -> bool:
    """Whether the config.yaml of a directory is that of a run. Raises ConfigError."""
    return "fingerprint" in _config_of(run)


def _config_of(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run} has no config.yaml; it is not a run directory")
    try:
        return _mapping(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; remove it") from None


def _read_config(kind: type[AnyConfig], run: Path) -> AnyConfig:
    return _parse(kind, _config_of(run))


def known_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """All dotted keys of the configuration, leaves and branches."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _read_recipe(recipe: str, kind: type[NamedConfig]) -> dict[str, Any]:
    if recipe in recipe_names(kind):
        text = (_RECIPES[kind] / f"{recipe}.yaml").read_text(encoding="utf-8")
    elif os.path.isfile(recipe):  # no error where a name is too long
        try:
            text = Path(recipe).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{recipe} cannot be read as UTF-8 text: {error}") from None
    else:
        hint = _nearest(recipe, recipe_names(kind))
        raise ConfigError(
            f"there is no recipe or file {recipe[:_MOST_WORDS]!r}; "
            f"{hint or 'built-in recipes are ' + ', '.join(recipe_names(kind))}"
        )
    return _mapping(text, recipe)


def _mapping(text: str, name: str) -> dict[str, Any]:
    values = read_mapping(text, name)
    return {key: value for key, value in values.items() if key not in _NOTES}


def _apply(values: dict[str, Any], override: str, kind: type[NamedConfig]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not an override; write key=value")
    value = parse_value(text)
    *parents, last = key.split(".")
    for parent in parents:
        child = values.get(parent)
        if child is None:
            child = values[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(_unknown_key(key, kind))
        values = child
    values[last] = value


def _read_deepspeed(values: dict[str, Any]) -> None:
    """A path to DeepSpeed's JSON becomes what the file says: it is part of the fingerprint."""
    for section in ("teacher", "generator", "student"):
        part = values.get(section)
        train = part.get("train") if isinstance(part, dict) else None
        path = train.get("deepspeed") if isinstance(train, dict) else None
        if not isinstance(path, str):
            continue
        assert isinstance(train, dict)
        try:
            train["deepspeed"] = json.loads(
                Path(os.path.expanduser(path)).read_text(encoding="utf-8")
            )
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"{section}.train.deepspeed is {path!r}, which cannot be read as JSON: {error}"
            ) from None


def _refuse_places(recipe: str, values: dict[str, Any]) -> None:
    """A recipe may be a stranger's: it does not choose where records are written, nor to whom the
    tracking credentials of this environment are sent. Raises ConfigError.
    """
    tracking = values.get("tracking")
    if isinstance(tracking, dict) and tracking.get("uri") is not None:
        raise ConfigError(
            f"{recipe} sets tracking.uri, and a recipe does not choose where records and "
            f"credentials go; remove it there, and give tracking.uri=URI on the command line or "
            f"set MLFLOW_TRACKING_URI"
        )


def _unknown_key(key: str, model: type[NamedConfig]) -> str:
    hint = _nearest(key, known_keys(model))
    return f"unknown key {key!r}; {hint or '`sentisynth keys RECIPE` lists all'}"


def _nearest(word: str, words: list[str]) -> str:
    """A sentence part that names the nearest of `words`, or an empty one."""
    by_tail = {w.rsplit(".", 1)[-1]: w for w in words}
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if not near:
        tails = difflib.get_close_matches(word.rsplit(".", 1)[-1], list(by_tail), n=1, cutoff=0.6)
        near = [by_tail[t] for t in tails]
    return f"did you mean {near[0]!r}?" if near else ""


def _sentence(errors: list[ErrorDetails], model: type[NamedConfig]) -> str:
    """The first mistake as one sentence with the key, the value and what is allowed."""
    error = errors[0]
    key, kind, context = _key(error), error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(key, model)
    if kind == "missing":
        return f"the key {key!r} is missing; give it in the recipe or as {key}=VALUE"
    if kind == "value_error":
        message = str(context["error"])
        return f"{key}: {message}" if key and not message.startswith(key.split(".")[0]) else message
    forms = dict.fromkeys(_form(e) for e in errors if _key(e) == key)  # each that may stand there
    allowed = " or ".join(filter(None, forms))
    quote = "; put it in quotes" if allowed == "a text" else ""
    return f"{key} is {error['input']!r}; it must be {allowed or error['msg']}{quote}"


def _key(error: ErrorDetails) -> str:
    """The key with dots, without what pydantic says of the form that it tried."""
    path = [str(part) for part in error["loc"] if part not in ("int", "str", "float")]
    path = [p for p in path if not p.startswith(("constrained", "nullable", "function"))]
    return ".".join(itertools.takewhile(lambda part: "[" not in part, path))


def _form(error: ErrorDetails) -> str:
    allowed = _allowed(error["type"], error.get("ctx", {}))
    in_list = any(str(part).startswith("tuple[") for part in error["loc"])
    is_item = in_list and isinstance(error["loc"][-1], int)
    return f"a list, each {allowed}" if is_item else allowed


def _allowed(kind: str, context: dict[str, Any]) -> str:
    bounds = {
        "greater_than": ("gt", "greater than"),
        "greater_than_equal": ("ge", "at least"),
        "less_than": ("lt", "less than"),
        "less_than_equal": ("le", "at most"),
    }
    if kind in bounds:
        name, words = bounds[kind]
        return f"{words} {context[name]:g}"
    if kind == "literal_error":
        return str(context["expected"])
    if kind == "too_short":
        return f"a list of at least {context['min_length']}"
    if kind == "string_pattern_mismatch":
        return f"a text that matches {context['pattern']}"
    return _TYPE_WORDS.get(kind.split("_")[0], "")
