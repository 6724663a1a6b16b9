"""Connecting to Ray, and what it has."""

import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from sentisynth import signals
from sentisynth.config.outside import without_secrets
from sentisynth.errors import PlacementError
from sentisynth.runtime.leaving import workers_ended
from sentisynth.runtime.placement import PoolPlacement, Resources

if TYPE_CHECKING:
    from sentisynth.models.devices import DeviceFacts

_PROMPT_S = 10.0  # for a process to start
_KIND = "accelerator_type:"
_OBJECT_STORE_BYTES = 512 * 2**20  # units are kilobytes; a laptop keeps its memory
_LOCAL = {  # nobody reads the reports of a session without a dashboard
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_metrics_report_interval_ms": "3600000",
    "GLOO_SOCKET_IFNAME": "lo",
}


@contextmanager
def connected() -> Iterator[None]:
    """A Ray session: the one of RAY_ADDRESS (a job has one), or one on this machine alone.

    A local session starts no dashboard; its ports are guarded by Ray's token, which Ray makes, and
    those of a command are the loopback's alone. A session that this process has already is used and
    left as it is.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # no GPU asked, none seen
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # the core's notes are not for users
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process nobody asks
    options: dict[str, object] = {"logging_level": logging.ERROR, "log_to_driver": False}
    ended: Callable[[], AbstractContextManager[None]] = nullcontext
    if not os.environ.get("RAY_ADDRESS"):
        ended = workers_ended
        options |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
        if shlex.quote(sys.executable) != sys.executable:  # Ray gives it to a shell as it is
            options["runtime_env"] = {"py_executable": shlex.quote(sys.executable)}
        for name, value in _LOCAL.items():
            os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory(prefix="sentisynth-") as empty:
        try:
            with _native_notes_hidden(), signals.kept(), _imports_as_here(empty):
                ray.init(**options)
                _keep_token_private()
        except ray.exceptions.AuthenticationError:
            raise PlacementError(
                f"the Ray at {without_secrets(os.environ.get('RAY_ADDRESS', 'this machine'))} asks "
                f"for a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH "
                f"to what it was started with"
            ) from None
        except (ConnectionError, ValueError, RuntimeError) as error:
            address = without_secrets(os.environ.get("RAY_ADDRESS", ""))
            reason = without_secrets(" ".join(str(error).split())[:200])
            if not address and not isinstance(error, ConnectionError):
                raise
            hint = "; use `sentisynth submit`, or HOST:6379" if address.startswith("http") else ""
            raise PlacementError(
                f"no Ray that fits answers at {address or 'this machine'} ({reason}){hint}"
            ) from None
        try:
            yield
        finally:
            with ended():
                ray.shutdown()


def _keep_token_private() -> None:
    """Ray makes the token's file as any other, which all users of a machine may be able to read."""
    token = Path(os.path.expanduser("~/.ray/auth_token"))
    with suppress(OSError):
        if token.stat().st_mode & 0o077:
            token.chmod(0o600)


def _imports_as_here(empty: str) -> AbstractContextManager[None]:
    """Ray's workers import from the current directory before all else. Where this process does not,
    as the command does not, they are given an empty one: the folder may be a stranger's.
    """
    if os.getcwd() in map(os.path.abspath, sys.path):
        return nullcontext()
    return chdir(empty)


@contextmanager
def _native_notes_hidden() -> Iterator[None]:
    """Ray's core announces its log level on standard error, below Python; failures are raised."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def gpu_kinds() -> frozenset[str]:
    """What Ray calls the GPUs of the session's nodes: L4, A100, …"""
    return frozenset(kind for node in ray.nodes() if node["Alive"] and (kind := _gpu_kind(node)))


def _gpu_kind(node: dict[str, Any]) -> str:
    """Of a node, which has one kind; empty if it has no GPU, or one that Ray does not know."""
    found = node["Resources"]
    kinds = [name.removeprefix(_KIND) for name in found if name.startswith(_KIND)]
    return kinds[0] if kinds and found.get("GPU") else ""


def cluster_resources(kinds: frozenset[str] | None = None) -> Resources:
    """Of the Ray session that this process is connected to; of nodes with GPUs, of `kinds` alone
    where they are given.
    """
    nodes = [
        node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and (kinds is None or (_gpu_kind(node) or None) in {None, *kinds})
    ]
    return Resources(
        node_cpus=tuple(node.get("CPU", 0.0) for node in nodes),
        node_gpus=tuple(node.get("GPU", 0.0) for node in nodes),
    )


def hide_gpus() -> None:
    """Let this worker see no GPU where it was given none: Ray would let it see all of its node's,
    unless RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO is set where the node was started.
    """
    if ray.is_initialized() and not ray.get_runtime_context().get_accelerator_ids()["GPU"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def facts_of_an_actor(
    placed: PoolPlacement, longest_s: float, tell: Callable[[str], None]
) -> "DeviceFacts":
    """Of the device that an actor of this pool gets: asked there, unless it gets no GPU and this
    machine is the whole cluster. Where it cannot start at once, `tell` is told.

    Raises PlacementError where the actor does not see the GPU that it is given, or none could start
    within `longest_s`.
    """
    import torch  # here: the stream's small processes import this module and start fast

    from sentisynth.models.devices import check_gpu, device_facts

    needs_gpu = placed.gpus > 0

    def facts() -> "DeviceFacts":
        hide_gpus()
        if needs_gpu:
            check_gpu()
        return device_facts(None if needs_gpu else torch.device("cpu"))

    if not needs_gpu and len(cluster_resources().node_cpus) == 1:
        return device_facts(torch.device("cpu"))  # the driver may see a GPU that the actor does not
    ask = ray.remote(num_cpus=placed.cpus, num_gpus=placed.gpus, max_retries=1)(facts)
    answer = ask.remote()
    try:
        if not ray.wait([answer], timeout=min(_PROMPT_S, longest_s))[0]:
            tell(f"   waiting for {_told(placed)}, which others have")
        return ray.get(answer, timeout=max(0.0, longest_s - _PROMPT_S))
    except ray.exceptions.GetTimeoutError:
        ray.cancel(answer, force=True)
        raise PlacementError(
            f"within {longest_s:g} s no actor got {_told(placed)}: others have them; wait until "
            f"they have ended, or add nodes"
        ) from None
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _told(placed: PoolPlacement) -> str:
    return f"{placed.cpus:g} CPUs" + (f" and {placed.gpus:g} GPUs" if placed.gpus else "")
