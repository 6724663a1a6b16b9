"""Where a training stands, in its work directory; safetensors and JSON, whatever the engine.

    progress.json               written last: the step, the figures so far, which files belong to it
    state-<step>.safetensors    trained weights and AdamW's moments
    best-<step>.safetensors     trained weights of the best evaluation
    rows-*.arrow                tokenised rows

Order and dropout are functions of the seed and the step, so there is no state of a random number
generator to keep.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from sentisynth.data.files import aside, read_json, write_json
from sentisynth.errors import ModelError
from sentisynth.training.engine import State

PROGRESS = "progress.json"


@dataclass
class Progress:
    """What has been done so far."""

    step: int = 0
    evaluations: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last evaluation."""
    best_step: int = 0
    best_value: float | None = None
    since_best: int = 0
    """Evaluations since the best one."""
    seconds: float = 0.0
    is_finished: bool = False
    scale: dict[str, Any] = field(default_factory=dict)
    """Of fp16's gradients, and AdamW's count of steps."""


def read_progress(work: Path) -> Progress:
    """Where the training in a work directory stands; at step 0 if nothing is there."""
    path = work / PROGRESS
    if not path.is_file():
        return Progress()
    try:
        return Progress(**read_json(path))
    except (ValueError, TypeError):
        raise ModelError(f"{path} is damaged; remove {work} to begin this training anew") from None


def commit(work: Path, progress: Progress, state: State | None, best: State | None) -> None:
    """Write what is new, then the progress that names it, then remove what it replaces."""
    if best is not None:
        _write(work / _best(progress.best_step), best)
    if state is not None:
        _write(work / _state(progress.step), state)
    write_json(work / PROGRESS, asdict(progress))
    kept = {_best(progress.best_step), _state(progress.step)}
    for pattern in ("best-*.safetensors", "state-*.safetensors"):
        for path in work.glob(pattern):
            if path.name not in kept:
                path.unlink(missing_ok=True)


def read_state(work: Path, step: int) -> State:
    """Weights and moments after `step` steps. Raises ModelError if they are damaged."""
    return _read(work / _state(step), work)


def best_weights(work: Path) -> State:
    """Trained weights of the best evaluation; empty if no figure was finite.

    Raises ModelError if they are damaged.
    """
    progress = read_progress(work)
    return _read(work / _best(progress.best_step), work) if progress.best_step else {}


def put_weights(model: nn.Module, state: State, work: Path) -> None:
    """Copy `weights.NAME` into the parameters of these names. Raises ModelError."""
    check_state(model, state, work)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for key, value in state.items():
            kind, _, name = key.partition(".")
            if kind == "weights":
                parameters[name].copy_(value)


def check_state(model: nn.Module, state: State, work: Path) -> None:
    """Raise ModelError unless each tensor has a parameter of its name and shape."""
    shapes = {name: _shape(p) for name, p in model.named_parameters()}
    for key, value in state.items():
        name = key.partition(".")[2]
        if shapes.get(name) != tuple(value.shape):
            raise ModelError(
                f"the checkpoint in {work} is of another model: {name} is {tuple(value.shape)} "
                f"there and {shapes.get(name, 'absent')} here; remove {work} to begin anew"
            )


def _shape(parameter: Any) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _best(step: int) -> str:
    return f"best-{step:08d}.safetensors"


def _state(step: int) -> str:
    return f"state-{step:08d}.safetensors"


def _write(path: Path, state: State) -> None:
    with aside(path) as temporary:
        try:
            save_file(state, temporary)
        except SafetensorError as error:  # its own class, for a full disk too
            raise OSError(str(error)) from None


def _read(path: Path, work: Path) -> State:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} cannot be read ({error}); remove {work} to begin this training anew"
        ) from None
