"""What a local session, and a training of one worker on torch, open to the network, and import
from the folder they are started in: nothing.
"""

import os
import subprocess
import sys
from pathlib import Path

# A command that starts a local session, a training's worker, and says who listens where.
_LOOK = """
import psutil
from pathlib import Path
from sentisynth import cli

def look(arguments):
    from sentisynth.config.types import TrainConfig
    from sentisynth.runtime.ray_cluster import connected
    from sentisynth.runtime.recovery import run_training

    def listening(report, attempt):
        me = psutil.Process(DRIVER)
        for process in [me, *me.children(recursive=True)]:
            for found in process.net_connections("inet"):
                if found.status == psutil.CONN_LISTEN:
                    report({process.name(): found.laddr.ip})

    with connected():
        run_training(listening, TrainConfig(), Path.cwd(), print, print)
    return 0

DRIVER = psutil.Process().pid
cli._COMMANDS["recipes"] = look
cli.main(["recipes"])
"""


def test_a_local_session_listens_on_the_loopback_and_imports_nothing_from_here(
    tmp_path: Path,
) -> None:
    (tmp_path / "sentisynth").mkdir()
    (tmp_path / "sentisynth" / "__init__.py").write_text("raise RuntimeError('a trap')")
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    told = subprocess.run(
        [sys.executable, "-P", "-c", _LOOK],  # as the command: "" is not on its path
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = [line for line in told.stdout.splitlines() if line.startswith("{")]
    assert any("gcs_server" in line for line in found), told.stderr
    assert any("RayTrainWorker" in line for line in found)
    assert not [line for line in found if "127.0.0.1" not in line]
