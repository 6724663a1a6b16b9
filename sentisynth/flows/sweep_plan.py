"""What a sweep tries: the dimensions of each kind, changed and joined on the command line."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from sentisynth.config.load import parse_config, with_values
from sentisynth.config.types import RunConfig, SweepKind
from sentisynth.errors import ConfigError
from sentisynth.models.classifier import starts_from_teacher
from sentisynth.runtime.tune import Stopping
from sentisynth.training.trials import (
    HARD,
    SOFT,
    UNVERIFIED,
)

_TENTHS = tuple(round(0.1 * i, 1) for i in range(1, 11))
_GRIDS: dict[SweepKind, dict[str, tuple[Any, ...]]] = {
    "alpha-beta": {"alpha": _TENTHS, "beta": _TENTHS},
    "alpha": {"alpha": _TENTHS},
    "beta": {"beta": _TENTHS},
    "tau": {"tau": (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)},
    "temperature": {"temperature": (1.0, 2.0, 4.0, 8.0)},
    "size": {"n_per_class": ()},  # shares of the pool
    "arms": {"arm": (SOFT, HARD, UNVERIFIED)},
}
_SHARES = (0.0, 0.125, 0.25, 0.5, 1.0)
_KEYS = {  # what people call the fields of a trial
    "alpha": "alpha",
    "beta": "beta",
    "tau": "tau",
    "temperature": "temperature",
    "size": "n_per_class",
    "arm": "arm",
    "distil.alpha": "alpha",
    "distil.beta": "beta",
    "synthesis.tau": "tau",
    "distil.temperature": "temperature",
    "synthesis.n_per_class": "n_per_class",
}
_OTHER_KEYS = (
    "student.model",
    *(f"student.train.{key}" for key in ("learning_rate", "schedule", "warmup_ratio")),
    *(f"student.train.{key}" for key in ("weight_decay", "max_grad_norm", "early_stopping")),
)
_RANGES = ("alpha", "beta", "temperature", _OTHER_KEYS[1], *_OTHER_KEYS[3:6])
_BOUNDS = {"alpha": (0, 1), "beta": (0, 1), "tau": (0, 1), "temperature": (1e-3, 100)}
_EXPONENT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")  # YAML reads 1e-4 as text
_REGISTERED = re.compile(r"[^\W_][\w. -]*")
_RANGE = re.compile(r"^(uniform|loguniform)\(([^,]+),([^,]+)\)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What a sweep tries."""

    kind: SweepKind
    grid: Mapping[str, tuple[Any, ...]]
    ranges: Mapping[str, tuple[str, float, float]]
    """Of a search: uniform or loguniform, and the bounds."""
    seeds: tuple[int, ...]
    search: Literal["grid", "optuna"]
    samples: int
    stopping: Stopping
    register: str
    """Name of a registered model whose alias `best` the best student gets; empty: none."""


def refuse_store(out: str | None) -> None:
    """Raise ConfigError where a sweep would lie in an object store: its trials map files."""
    if out is not None and "://" in out:
        raise ConfigError(
            f"--out is {out}; a sweep needs a directory that all nodes share: give a path"
        )


def plan_sweep(
    kind: SweepKind,
    config: RunConfig,
    dims: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    search: Literal["grid", "optuna"],
    samples: int,
    stopping: Stopping,
    register: str = "",
) -> SweepPlan:
    """The dimensions of a kind, changed and joined by `dims`. Raises ConfigError."""
    _check_choices(seeds, search, samples, stopping, register)
    grid, ranges = _dimensions(config, kind, dims)
    if search == "grid" and ranges:
        raise ConfigError(
            f"dim.{next(iter(ranges))} is a range; a grid needs a list, or search=optuna"
        )
    for key, values in grid.items():
        _check_values(config, key, values)
    if search == "optuna":
        given = {_KEYS.get(name, name) for name in dims}
        lists = [key for key in grid if key in given or key not in _RANGES]
        if lists:
            way = "give it as uniform(a,b), or " if lists[0] in _RANGES else ""
            raise ConfigError(
                f"search=optuna searches ranges, and {lists[0]} is a list; {way}leave out "
                f"search=optuna"
            )
        ranges |= {key: ("uniform", min(values), max(values)) for key, values in grid.items()}
        grid = {}
    return SweepPlan(
        kind=kind,
        grid=grid,
        ranges=ranges,
        seeds=tuple(dict.fromkeys(seeds)),
        search=search,
        samples=samples,
        stopping=stopping,
        register=register,
    )


def _check_choices(
    seeds: Sequence[int], search: str, samples: int, stopping: str, register: str
) -> None:
    if search not in ("grid", "optuna"):
        raise ConfigError(f"search is {search!r}; it must be grid or optuna")
    if stopping not in get_args(Stopping):
        raise ConfigError(f"stopping is {stopping!r}; it must be none, asha or median")
    if not isinstance(samples, int) or samples < 1:
        raise ConfigError(f"samples is {samples!r}; it must be a whole number of at least 1")
    if not all(isinstance(seed, int) and 0 <= seed < 2**63 for seed in seeds):
        raise ConfigError(f"the seeds are {list(seeds)}; they must be whole numbers of at least 0")
    if not seeds:
        raise ConfigError("a sweep needs at least one seed; give --seeds 41,42,43")
    if register and not _REGISTERED.fullmatch(register):
        raise ConfigError(
            f"register is {register!r}; a registered model's name has letters, digits, spaces and "
            f"any of . _ - and begins with a letter or a digit"
        )


def _dimensions(
    config: RunConfig, kind: SweepKind, dims: Mapping[str, Any]
) -> tuple[dict[str, tuple[Any, ...]], dict[str, tuple[str, float, float]]]:
    """Lists and ranges: those of the kind, then those that were given."""
    grid: dict[str, tuple[Any, ...]] = dict(_GRIDS[kind])
    ranges: dict[str, tuple[str, float, float]] = {}
    if kind == "size":
        most = config.synthesis.n_per_class
        grid = {"n_per_class": tuple(sorted({int(share * most) for share in _SHARES}))}
    for name, value in dims.items():
        key = _KEYS.get(name, name)
        if key not in _KEYS.values() and key not in _OTHER_KEYS:
            raise ConfigError(
                f"dim.{name} is neither {', '.join(list(_KEYS)[:6])} nor one of "
                f"{', '.join(_OTHER_KEYS)}"
            )
        found = _RANGE.match(value.replace(" ", "")) if isinstance(value, str) else None
        if found:
            if key not in _RANGES:
                raise ConfigError(
                    f"dim.{name} is a range; only {', '.join(_RANGES)} can be searched: give "
                    f"dim.{name} as a list, and leave out search=optuna"
                )
            ranges[key] = _range(name, found)
            _check_values(config, key, ranges[key][1:])
            grid.pop(key, None)
        elif isinstance(value, list) and value:
            grid[key] = tuple(_number(key, v) for v in value)
        else:
            raise ConfigError(
                f"dim.{name} is {value!r}; write a list such as [0.2,0.5], or uniform(0,1) or "
                f"loguniform(1e-5,1e-3) with search=optuna"
            )
    return grid, ranges


def _number(key: str, value: Any) -> Any:
    """A value of a list, as the number that it is."""
    whole = type(value) is int and key in _BOUNDS
    return float(value) if whole or _EXPONENT.match(str(value)) else value


def _range(name: str, found: re.Match[str]) -> tuple[str, float, float]:
    kind, low, high = found.groups()
    try:
        bounds = float(low), float(high)
    except ValueError:
        bounds = (0.0, 0.0)
    if bounds[0] >= bounds[1] or (kind == "loguniform" and bounds[0] <= 0):
        raise ConfigError(
            f"dim.{name} is {found[0]}; the first bound must be a number below the second, and of "
            f"loguniform above 0"
        )
    return kind, *bounds


def _check_values(config: RunConfig, key: str, values: tuple[Any, ...]) -> None:
    low, high = _BOUNDS.get(key, (-math.inf, math.inf))
    for value in values:
        if key == "arm" and value not in (SOFT, HARD, UNVERIFIED):
            raise ConfigError(f"dim.arm is {value!r}; it must be soft, hard or unverified")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key in _BOUNDS and not (number and low <= value <= high):
            raise ConfigError(f"dim.{key} has {value!r}; it must lie in [{low:g}, {high:g}]")
        if key == "n_per_class" and not (isinstance(value, int) and value >= 0):
            raise ConfigError(f"dim.size has {value!r}; it must be a whole number of at least 0")
        start = config.student.model
        if key == "student.model" and value != start:
            both = [starts_from_teacher(str(value)), starts_from_teacher(start)]
            if not all(both):
                raise ConfigError(
                    f"dim.student.model has {value!r}; the students of a sweep share the tokens of "
                    f"{start}: only fresh:SHAPE and teacher:N go together"
                )
        if key not in _KEYS.values():
            parse_config(with_values(config.model_dump(mode="json"), {key: value}))
