"""Every file under cluster/ is read by what would read it, or by its schema."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

REPOSITORY = Path(__file__).parent.parent
CLUSTER = REPOSITORY / "cluster"
BIN = Path(sys.executable).parent
KUBERNETES = "1.33"

# The fields of ray.io/v1 that the manifests may have, read off the types of KubeRay 1.6
# (ray-operator/apis/ray/v1); pod templates are checked against Kubernetes' own schema.
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}


def closed(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


SPEC = closed(
    ("headGroupSpec",),
    rayVersion={"type": "string"},
    authOptions=closed(("mode",), mode={"enum": ["token", "disabled"]}),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=closed(
        (), idleTimeoutSeconds=COUNT, upscalingMode={"enum": ["Default", "Conservative"]}
    ),
    headGroupSpec=closed(("template",), rayStartParams=TEXTS, template={"type": "object"}),
    workerGroupSpecs={
        "type": "array",
        "items": closed(
            ("groupName", "template"),
            groupName={"type": "string"},
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template={"type": "object"},
        ),
    },
)
META = closed(("name",), name={"type": "string", "pattern": "^[a-z0-9-]{1,60}$"})
CLUSTER_SCHEMA = closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata=META,
    spec=SPEC,
)
JOB_SCHEMA = closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=META,
    spec=closed(
        ("entrypoint", "rayClusterSpec"),
        entrypoint={"type": "string"},
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        activeDeadlineSeconds=COUNT,
        backoffLimit=COUNT,
        rayClusterSpec=SPEC,
    ),
)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def pinned(package: str) -> str:
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        if line.startswith(f"{package}=="):
            return line.split("==")[1]
    raise AssertionError(package)


@pytest.mark.parametrize("name", ["aws", "gcp", "machines"])
def test_ray_up_takes_the_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(read(CLUSTER / f"{name}.yaml")))
    validate_config(config)
    kinds = config["available_node_types"]
    assert config["head_node_type"] in kinds
    worker = [*kinds.values()][-1]
    assert worker["max_workers"] >= max(1, worker["min_workers"])
    with pytest.raises(Exception, match="nonsense"):
        validate_config({**config, "nonsense": 1})


def test_ray_up_files_keep_to_loopback_and_a_token() -> None:
    for path in CLUSTER.glob("*.yaml"):
        config = read(path)
        for line in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]):
            if "ray start" in line:
                assert line.startswith("RAY_AUTH_MODE=token ") and "0.0.0.0" not in line
        assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
        assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_gpu_nodes_have_the_driver_that_the_pinned_torch_needs() -> None:
    from ray.autoscaler._private.aws.config import _check_ami

    aws = read(CLUSTER / "aws.yaml")
    _check_ami(aws)  # puts Ray's default, of CUDA 11, where none is given
    for kind in aws["available_node_types"].values():
        assert kind["node_config"]["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/")
    for kind in read(CLUSTER / "gcp.yaml")["available_node_types"].values():
        image = kind["node_config"]["disks"][0]["initializeParams"]["sourceImage"]
        assert int(image.rsplit("-", 1)[-1]) >= 580
    assert f"torch=={pinned('torch')}" in (CLUSTER / "README.md").read_text()


def check_manifest(manifest: dict[str, Any], schema: dict[str, Any]) -> None:
    jsonschema.validate(manifest, schema)
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        wrapped = {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": {"name": "x"},
            "template": group["template"],
        }
        kubernetes_validate.validate(wrapped, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("name", "schema"), [("raycluster", CLUSTER_SCHEMA), ("rayjob", JOB_SCHEMA)]
)
def test_kuberay_manifests_fit_their_schemas(name: str, schema: dict[str, Any]) -> None:
    manifest = read(CLUSTER / "kuberay" / f"{name}.yaml")
    check_manifest(manifest, schema)
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    assert spec["authOptions"] == {"mode": "token"} and spec["rayVersion"] == pinned("ray")
    worker = spec["workerGroupSpecs"][0]
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] >= 600
    if "entrypoint" in manifest["spec"]:  # asks for what is started
        assert f"cluster.gpus={worker['replicas']}" in manifest["spec"]["entrypoint"]
    assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    broken = copy.deepcopy(manifest)
    (broken["spec"].get("rayClusterSpec") or broken["spec"])["workerGroupSpec"] = []
    with pytest.raises(jsonschema.ValidationError):
        check_manifest(broken, schema)
    worker["template"]["spec"]["containers"][0]["imagePolicy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        check_manifest(manifest, schema)


def test_the_dockerfile_passes_hadolint_and_has_the_pinned_ray() -> None:
    file = CLUSTER / "Dockerfile"
    done = subprocess.run([BIN / "hadolint", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for path in (file, CLUSTER / "aws.yaml", CLUSTER / "gcp.yaml"):
        assert f"rayproject/ray:{pinned('ray')}-py311-gpu" in path.read_text(), path


def test_what_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY")]
    copied = [word for words in copies for word in words if not word.startswith("--")]
    assert len(copied) >= len(copies) > 0
    kept = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    for name in copied:
        assert (REPOSITORY / name).exists() and f"!{name.removeprefix('./')}" in kept


def test_scripts_pass_shellcheck() -> None:
    scripts = [*CLUSTER.glob("**/*.sh"), *REPOSITORY.glob("benchmarks/*.sh")]
    for script in (*scripts, REPOSITORY / ".ci" / "run"):
        done = subprocess.run(
            [BIN / "shellcheck", script], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
        syntax = subprocess.run(["bash", "-n", script], check=False)
        assert syntax.returncode == 0


# what Slurm has, for one node; `ray` runs the command, or not, as Ray where the head did not start
STUBS = {
    "scontrol": "echo node1",
    "srun": 'while [[ $1 == --* ]]; do shift; done; "$@"',
    "hostname": '[[ $1 == --ip-address ]] && echo "127.0.1.1" || echo "fe80::1 10.0.0.1 10.0.0.2 "',
    "ray": """echo "$@" > "$STUBS/ray.txt"
        [[ -e $STUBS/broken ]] && exit 0
        while [[ $1 != -- ]]; do shift; done; shift; "$@"; exit "${RAY_ENDS:-$?}\"""",
    "sentisynth": """\
        echo "$@" > "$STUBS/ran.txt"; echo "$RAY_TMPDIR" > "$STUBS/tmp.txt"; exit "${ENDS:-0}\"""",
}


def slurm(project: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """cluster/slurm.sh in a shell where Slurm, Ray and sentisynth are stubs."""
    stubs = project / ".venv" / "bin"
    stubs.mkdir(parents=True, exist_ok=True)
    (stubs / "activate").write_text(f"PATH={stubs}:{BIN}:$PATH\n")
    for name, text in STUBS.items():
        (stubs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (stubs / name).chmod(0o755)
    given = {
        "SLURM_SUBMIT_DIR": str(project),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "4",
        "HOME": str(project),
        "STUBS": str(stubs),
        **variables,
    }
    return subprocess.run(
        ["bash", CLUSTER / "slurm.sh", *command],
        env={"PATH": os.environ["PATH"], **given},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_slurm_job_ends_with_the_status_of_its_command(tmp_path: Path) -> None:
    done = slurm(tmp_path, "run", "sst2", "data.source=a b")
    assert done.returncode == 0, done.stderr
    stubs = tmp_path / ".venv" / "bin"
    assert (stubs / "ran.txt").read_text() == "run sst2 data.source=a b\n"
    assert "--address 10.0.0.1:20007 " in (stubs / "ray.txt").read_text()
    assert (stubs / "tmp.txt").read_text() == "/tmp/ray-7\n"  # of this job alone
    assert slurm(tmp_path, "run", "sst2", ENDS="2").returncode == 2
    assert slurm(tmp_path, "run", "sst2", RAY_ENDS="9").returncode == 0  # a lost node
    (stubs / "broken").touch()
    never = slurm(tmp_path, "run", "sst2")
    assert never.returncode == 1 and "did not run to its end" in never.stderr
    assert not [*(tmp_path / ".ray").iterdir()]


def test_ray_takes_the_options_of_the_slurm_job_on_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray._private.node
    from click.testing import CliRunner
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    class StartedError(Exception):
        pass

    def begin(*_: Any, **__: Any) -> None:
        raise StartedError

    slurm(tmp_path, "run", "sst2")
    line = (tmp_path / ".venv" / "bin" / "ray.txt").read_text().split()
    options = curate_and_validate_ray_start_args(line[1 : line.index("--")])
    monkeypatch.setattr(ray._private.node, "Node", begin)
    done = CliRunner().invoke(start, ["--address", "127.0.0.1:1", "--block", *options])
    assert isinstance(done.exception, StartedError), done.output
