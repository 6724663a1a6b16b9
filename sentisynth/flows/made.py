"""What a run's finished stages were made with, whatever a later command says."""

from collections.abc import Sequence
from typing import Any

from sentisynth.config.types import RunConfig
from sentisynth.data.files import read_json
from sentisynth.data.run_directory import RunDirectory, differences
from sentisynth.errors import RunDirectoryError
from sentisynth.models.classifier import starts_from_teacher

_JUDGES = ("teacher", "generator")
START = "start"  # in metrics.json of a model, the reference that it was made from
_DECIDED = (
    ("student", "distil", ("alpha", "temperature")),
    ("dataset", "distil", ("beta", "temperature")),
    ("dataset", "synthesis", ("tau", "n_per_class")),
)


def with_models(
    values: dict[str, Any], names: Sequence[str], directory: RunDirectory
) -> dict[str, Any]:
    """A configuration's values, of these models that are there with what they were made with."""
    values = dict(values)
    for name in names:
        stamp = directory.readable_stamp(name) or {}
        made = stamp.get(name)
        if isinstance(made, dict) and isinstance(made.get("train"), dict):
            start = _start(name, stamp, directory) or values[name]["model"]
            train = {**values[name]["train"], **made["train"]}
            values[name] = {**values[name], **made, "model": start, "train": train}
    return values


def refuse_other_lengths(config: RunConfig, directory: RunDirectory) -> None:
    """Raise RunDirectoryError where teacher or generator would read other lengths than they were
    made for: scores and screens depend on that, and a pool is of one kind.
    """
    made = with_models(config.model_dump(mode="json"), _JUDGES, directory)
    for name in _JUDGES:
        was, now = made[name]["max_length"], getattr(config, name).max_length
        if was != now:
            raise RunDirectoryError(
                f"the {name} was made with {name}.max_length={was}, which is {now} now; give that, "
                f"or make it anew by `sentisynth {name} … --overwrite`"
            )


def kept_otherwise(config: RunConfig, names: Sequence[str], directory: RunDirectory) -> list[str]:
    """What of these models' sections is not as it was when they were made: a later stage takes them
    as they are.
    """
    values = config.model_dump(mode="json")
    made = with_models(values, names, directory)
    return [
        f"the {name} is used as it is: {differences(made[name], values[name])}; "
        f"`sentisynth {name} … --overwrite` makes it anew"
        for name in names
        if made[name] != values[name]
    ]


def with_dataset(values: dict[str, Any], directory: RunDirectory) -> dict[str, Any]:
    """The same of the dataset that is there, and of the student's objective."""
    values = dict(values)
    for stage, section, keys in _DECIDED:
        made = directory.readable_stamp(stage) or {}
        values[section] = {**values[section], **{key: made[key] for key in keys if key in made}}
    return values


def _start(name: str, stamp: dict[str, Any], directory: RunDirectory) -> str | None:
    """The reference of a finished model's start; None where an earlier version noted none."""
    try:
        figures = read_json(directory.stage(name) / "metrics.json")
    except (OSError, ValueError, RecursionError):  # absent, or a stranger's
        figures = None
    noted = figures.get(START) if isinstance(figures, dict) else None
    if noted is None and name == "student" and starts_from_teacher(str(stamp.get("model"))):
        noted = stamp["model"]
    return noted if isinstance(noted, str) else None
