"""What a measurement was made on: hardware, versions, commit."""

import datetime
import os
import platform
import sys
from pathlib import Path
from typing import Any

from sentisynth.flows.pipeline import versions


def environment() -> dict[str, Any]:
    """For the head of a benchmark's JSON."""
    return {
        "command": " ".join(sys.argv),
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
    }


def hardware() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return f"{os.cpu_count()} cores, {model}, GPU: {gpu()}"


def gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
