"""Which cluster a command connects to."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:9", "use `sentisynth submit`, or HOST:6379"),
        ("nonsense://hunter2@x", "no Ray that fits answers at nonsense://"),
    ],
)
def test_an_address_that_is_no_cluster_is_a_sentence(address: str, said: str) -> None:
    code = (
        "from sentisynth.errors import PlacementError\n"
        "from sentisynth.runtime.ray_cluster import connected\n"
        "try:\n"
        "    connected().__enter__()\n"
        "except PlacementError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "RAY_ADDRESS": address},
    )
    assert said in done.stdout and "hunter2" not in done.stdout
