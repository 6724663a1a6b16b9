"""Commands as Ray jobs, on a cluster of several nodes with token authentication."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sentisynth.cli import main
from sentisynth.config.load import load_config, load_pretrain_config
from sentisynth.errors import DataError, JobError
from sentisynth.flows.submit import pack
from tests.flows.nodes import RAY, Nodes, wait_for

REPOSITORY = Path(__file__).parent.parent.parent
SENTISYNTH = [sys.executable, "-W", "ignore", "-m", "sentisynth.cli"]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    found = Nodes(tmp_path_factory.mktemp("nodes"))
    found.add()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def larger(quick_overrides: list[str]) -> list[str]:
    """Overrides of a synthesis that takes long enough to lose a node in it."""
    return [
        *quick_overrides,
        "synthesis.n_per_class=200",
        "synthesis.max_candidates_per_class=3200",
    ]


@pytest.fixture(scope="module")
def calm(
    finished_run: Path, larger: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """sha256 of pool and dataset, made on this machine alone."""
    out = trained(finished_run, tmp_path_factory.mktemp("calm") / "run")
    assert main(["synthesize", "quickstart", *larger, "--out", str(out)]) == 0
    return digests(out)


def trained(run: Path, out: Path) -> Path:
    """A copy of a run with teacher and generator alone."""
    for name in ("corpus", "teacher", "generator"):
        shutil.copytree(run / name, out / name)
    return out


def digests(out: Path) -> dict[str, str]:
    stamp = json.loads((out / "dataset" / "stage.json").read_text())
    manifest = json.loads((out / "pool" / "manifest.json").read_text())
    return {"pool": manifest["sha256"], **stamp["files"]}


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["sentisynth submit", "ray job submit"])
def test_a_job_that_loses_a_node_makes_the_same_bytes(
    way: str,
    nodes: Nodes,
    finished_run: Path,
    larger: list[str],
    calm: dict[str, str],
    tmp_path: Path,
) -> None:
    out = trained(finished_run, tmp_path / "run")
    lost = nodes.add()
    command = ["synthesize", "quickstart", *larger, "--out", str(out)]
    if way == "ray job submit":
        command = [
            *(*RAY, "job", "submit", "--address", nodes.address, "--working-dir", "."),
            *("--", "python", "jobs/synthesize.py", *command[1:]),
        ]
    else:
        command = [*SENTISYNTH, "submit", *command, "--address", nodes.address]
    job = subprocess.Popen(
        command, env=nodes.env, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    made = (out / "pool").rglob
    wait_for(lambda: job.poll() is not None or len([*made("unit-*.parquet")]) > 3, "units", 240)
    nodes.kill(lost)
    told = job.communicate()[0].decode()
    assert job.returncode == 0, told
    # whether what is left takes over at once, or the stream has to be opened anew on it
    assert "marked dead" in told or "going on with the nodes that are there" in told, told
    assert digests(out) == calm


def test_a_job_that_fails_says_why_and_is_not_started_twice(
    nodes: Nodes, small_data: Path, tmp_path: Path
) -> None:
    command = [*SENTISYNTH, "submit", "synthesize", "quickstart", "--address", nodes.address]
    command += [f"data.source={small_data / 'train.parquet'}", f"--out={tmp_path / 'run'}"]
    first = subprocess.run(
        [*command, "--detach"], env=nodes.env, capture_output=True, text=True, check=True
    )
    again = subprocess.run(command, env=nodes.env, capture_output=True, text=True, check=False)
    assert "was submitted" in first.stderr and "is running already" in again.stderr
    assert first.stderr.split()[1] == again.stderr.split()[1], first.stderr
    assert again.returncode == 2
    assert "distinct rows left for data.n_seed=1000" in again.stdout


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cluster.nodes=9", "cluster.wait_s=1"], "2 of 9 nodes and 0 of 0 GPUs are there"),
        (["--out", "memory://run"], "run is not what these nodes see: "),
    ],
)
def test_a_cluster_that_is_not_as_it_should_be_is_a_sentence(
    arguments: list[str], said: str, nodes: Nodes, quick_overrides: list[str], tmp_path: Path
) -> None:
    command = [*SENTISYNTH, "submit", "teacher", "quickstart", "--address", nodes.address]
    command += [*quick_overrides, "--out", str(tmp_path / "run"), *arguments]
    job = subprocess.run(command, env=nodes.env, capture_output=True, text=True, check=False)
    assert job.returncode == 2 and said in job.stdout


def test_what_a_job_gets(
    tmp_path: Path, small_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config("quickstart", [f"data.source={small_data / 'train.parquet'}"])
    pack(config, tmp_path / "package")
    files = {
        p.relative_to(tmp_path / "package").as_posix() for p in (tmp_path / "package").rglob("*")
    }
    assert {"recipe.yaml", "data/source-train.parquet", "sentisynth/cli.py"} <= files
    assert "sentisynth/resources/gpt2-mini/model.safetensors" in files
    assert not [f for f in files if "__pycache__" in f or f.startswith(".")]
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a film .")
    base = load_pretrain_config("reviews-encoder-mini", [f"text.source={corpus}"])
    assert pack(base, tmp_path / "base").keys() == {"source"}
    assert (tmp_path / "base" / "data" / "source-corpus.txt").is_file()
    recipe = load_pretrain_config(str(tmp_path / "base" / "recipe.yaml"))
    assert recipe.text.source == "data/source-corpus.txt"
    (folder := tmp_path / "folder" / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("a film .")
    base = load_pretrain_config("reviews-encoder-mini", [f"text.source={folder.parent}"])
    pack(base, tmp_path / "folders")
    assert (tmp_path / "folders" / "data" / "source-folder" / "deep" / "a.txt").is_file()
    (tmp_path / "rows.csv").symlink_to("/proc/self/environ")
    for n, other in enumerate((folder.parent, "/proc/self/environ", tmp_path / "rows.csv")):
        with pytest.raises(JobError, match="is not a file of labelled texts .*, and nothing else"):
            pack(load_config("quickstart", [f"data.test={other}"]), tmp_path / f"labelled-{n}")
    (folder / "b.txt").symlink_to("/etc/hostname")
    with pytest.raises(JobError, match="b.txt is a link to /etc/hostname, outside of the corpus"):
        pack(base, tmp_path / "linked")
    (folder / "b.txt").unlink()
    (tmp_path / "one.txt").symlink_to("/etc/hostname")
    base_of_one = load_pretrain_config(
        "reviews-encoder-mini", [f"text.source={tmp_path / 'one.txt'}"]
    )
    with pytest.raises(DataError, match="/etc/hostname has files without a suffix"):
        pack(base_of_one, tmp_path / "one")
    (folder / ".env").write_text("SECRET=1")
    with pytest.raises(DataError, match="the corpus .* has files without a suffix, .txt"):
        pack(base, tmp_path / "secret")
    hub = load_config("sst2", ["data.source=x:train"])
    pack(hub, tmp_path / "small")
    assert sum(p.stat().st_size for p in (tmp_path / "small").rglob("*") if p.is_file()) < 2**21


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "quickstart"], "--out is not given; a job needs storage that all nodes share"),
        (["run", "quickstart", "--out", "runs/x"], "--out is runs/x; a job needs storage"),
        (["run", "nosuch", "--out", "/x"], "there is no recipe or file 'nosuch'"),
        (["run", "quickstart", "--out", "s3:x"], "--out is s3:x; a job needs storage"),
        (["run", "quickstart", "--out", "s3://key:secret@x/y"], "URI holds a password"),
        (["run", "quickstart", "--out", "/x"], "no Ray Jobs API answers at http://127.0.0.1:9"),
        (["run", "quickstart", "--out", "gs://x/y"], "Jobs API answers at http://127.0.0.1:9"),
        (["sweep", "tau", "quickstart", "--out", "s3://x/y"], "a sweep needs a directory that all"),
        (["run", "quickstart", "--out", "/x", "--address", "head:8265"], "--address is head:8265;"),
    ],
)
def test_mistakes_are_sentences(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:7")  # what is said here comes first
    assert main(["submit", "--address", "http://127.0.0.1:9", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_cluster_that_asks_for_a_token_says_so(nodes: Nodes) -> None:
    env = {k: v for k, v in nodes.env.items() if not k.startswith("RAY_AUTH")}
    command = [*SENTISYNTH, "submit", "run", "quickstart", "--out", "/x"]
    command += ["--address", nodes.address]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "asks for a token; set RAY_AUTH_MODE=token" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_secret_is_not_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@mlflow.example")
    arguments = ["submit", "run", "quickstart", "--out", "/x", "--address", "http://127.0.0.1:9"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "holds a password" in error and "hunter2" not in error
