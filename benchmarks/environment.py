"""What a measurement was made on: hardware, versions, commit."""

import datetime
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    *("ray", "torch", "transformers", "datasets", "deepspeed", "mlflow", "pyarrow", "triton"),
    *("openvino-genai", "ctranslate2", "vllm"),
)


def environment() -> dict[str, Any]:
    """For the head of a benchmark's JSON."""
    from sentisynth.models.devices import hardware  # here: the processes of a stream need no torch
    from sentisynth.models.kernels import library

    return {
        "command": re.sub(r"(?<=[ =])/\S*/", "", " ".join(sys.argv)),  # no folders of a machine
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "kernels of our own": library() is not None,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what is installed; the commit where this is a checkout. Needs no Ray."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    git = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # there is no git
        return found
    return found | ({"git": commit.stdout.strip()} if commit.returncode == 0 else {})


def let_workers_import() -> None:
    """Ray's workers, which do not start in this folder, find the benchmarks' modules."""
    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
