"""Bad input: one sentence, exit status 2, no traceback, nothing made."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentisynth.cli import main
from tests.conftest import RESOURCES, reviews

JOBS = Path(__file__).parent.parent / "jobs"


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused, and return its message."""
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("sentisynth: ") and message.count("\n") == 1
    assert "Traceback" not in message
    return message


def write(path: Path, texts: list[object], labels: list[object]) -> str:
    pq.write_table(pa.table({"text": texts, "label": labels}), path)
    return str(path)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.source=absent.csv"], "there is no file absent.csv"),
        (["data.n_seed=9000"], "lower data.n_seed or give more rows"),
        (["data.labels=[negative, positive, neutral]"], "entries for negative, positive"),
        (["teacher.model=./absent"], "there is no model directory ./absent"),
        (["generator.model=package:absent"], "shipped are gpt2-mini, reviews-encoder-mini"),
        (["teacher.max_length=129"], "teacher.max_length is 129; the model in"),
        (["student.model=fresh:bert-huge"], "write fresh:bert-tiny or fresh:bert-mini"),
        (["student.max_length=600"], "student.max_length is 600"),
        (["teacher.model=fresh:bert-tiny"], "fresh:bert-tiny"),
        (["synthesis.tau=2"], "it must be at most 1"),
        (["synthesis.taw=1"], "did you mean 'synthesis.tau'?"),
    ],
)
def test_mistakes_in_settings(
    overrides: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert told in refused(["run", "quickstart", *overrides, "--out", str(out)], capsys)
    assert not out.exists()


@pytest.mark.parametrize(
    ("texts", "labels", "told"),
    [
        ([], [], "has no rows"),
        (["a", "b"], [1, 1], "has no row of class negative"),
        (["a", "  "], [0, 1], "row 2: the text is empty"),
        ([1, 2], [0, 1], "row 1: the text is 1, which is no text"),
        (["a", "b"], [0, 7], "row 2: the label 7 is not one of data.labels"),
        (["a", "b"], [0, 1], "2 distinct rows left for data.n_seed=1000"),
    ],
)
def test_mistakes_in_data(
    texts: list[object],
    labels: list[object],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out = write(tmp_path / "rows.parquet", texts, labels), tmp_path / "run"
    arguments = ["run", "quickstart", f"data.source={source}", "--out", str(out)]
    assert told in refused(arguments, capsys)
    assert not out.exists()


def test_a_model_directory_without_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "model", tmp_path / "run"
    model.mkdir()
    (model / "config.json").write_bytes((RESOURCES / "gpt2-mini" / "config.json").read_bytes())
    for section in ("teacher", "generator", "student"):
        arguments = ["run", "quickstart", f"{section}.model={model}", "--out", str(out)]
        assert "has no weights (*.safetensors)" in refused(arguments, capsys)
    assert not out.exists()


def test_a_stage_before_its_time_names_the_command(
    tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, told in (
        ("synthesize", "no finished teacher"),
        ("distil", "no finished teacher"),
        ("preview", "no finished corpus"),
    ):
        out = tmp_path / command
        assert main([command, "quickstart", "--out", str(out)]) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert told in message and "run `sentisynth teacher …` first" in message


def test_the_command_that_is_named_is_not_made_of_the_recipes_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file's recipe may have any name, and the user's keys and --out belong to the command."""
    recipe = tmp_path / "my.yaml"
    text = (RESOURCES.parent / "config/recipes/quickstart.yaml").read_text()
    recipe.write_text(text.replace("name: quickstart", "name: tickets"))
    assert main(["preview", str(recipe), "--out", str(tmp_path / "run")]) == 2
    assert "run `sentisynth teacher …` first" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "report"])
def test_a_directory_that_is_no_run(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        assert str(path) in refused([command, str(path)], capsys)


def test_a_text_file_with_a_wrong_kind_of_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("text")
    arguments = ["run", "quickstart", f"data.source={path}", "--out", str(tmp_path / "run")]
    assert "use .parquet, .csv, .tsv, .jsonl" in refused(arguments, capsys)


def test_recipes_are_listed_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "quickstart",
        "rotten_tomatoes",
        "rotten_tomatoes_large",
        "sst2",
        "for",
        "reviews-electra-mini",
        "reviews-encoder-mini",
        "reviews-generator-mini",
    ]


@pytest.mark.parametrize("script", [p.stem for p in JOBS.glob("[!b]*.py")])
def test_jobs_are_the_same_commands(script: str, tmp_path: Path) -> None:
    job, kind = JOBS / f"{script}.py", ["alpha"] if script == "sweep" else []
    mistaken = [*kind, "quickstart", "synthesis.taw=1"]
    if script == "pretrain":
        mistaken = ["encoder", "reviews-encoder-mini", "synthesis.tau=1"]
    done = subprocess.run(
        [sys.executable, str(job), *mistaken],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    hint = "unknown key" if script == "pretrain" else "did you mean 'synthesis.tau'?"
    assert done.returncode == 2 and hint in done.stderr
    assert len(job.read_text().splitlines()) <= 25


@pytest.mark.slow
def test_generation_is_measured_on_all_devices_of_a_cluster(tmp_path: Path) -> None:
    job = [sys.executable, str(JOBS / "bench_generation.py"), "--layers", "1", "--batch", "4"]
    out = tmp_path / "found.json"
    subprocess.run([*job, "--seconds", "0", "--actors", "2", "--json", str(out)], check=True)
    found = json.loads(out.read_text())
    assert found["actors"] == 2 and found["tokens per second, all"] > 0
    assert 0 < found["share of the limit, one alone"] < 1 and found["versions"]["torch"]


def test_three_named_classes_with_numbers_for_names_fill_the_corpus(tmp_path: Path) -> None:
    from sentisynth.config.load import load_config
    from sentisynth.data.splits import load_corpus

    texts = reviews("train", 30)["text"].to_pylist()
    source = write(tmp_path / "rows.parquet", texts, ["bad", "good", "mixed"] * 20)
    settings = ["data.labels=[bad, good, mixed]", "generator.control_tokens=", "data.n_seed=30"]
    sizes = ["data.validation=9", "data.test=9", f"data.source={source}"]
    corpus = load_corpus(load_config("quickstart", [*settings, *sizes]).data, 1)
    assert sorted(set(corpus.seed["labels"].to_pylist())) == [0, 1, 2]


def test_a_uri_of_no_known_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(["run", "quickstart", "--out", "nonsense://bucket/run"], capsys)
    assert "needs its fsspec package" in told


def test_a_terminal_that_lacks_some_letters_is_written_to() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sentisynth.cli", "keys", "quickstart", "distil"],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=True,
    )
    assert b"\\u03b1" in done.stdout


def test_a_store_that_cannot_be_used_is_named(
    tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "quickstart", "tracking.uri=sqlite:////proc/none/mlflow.db"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    assert "the MLflow store sqlite:////proc/none" in capsys.readouterr().err


def test_progress_has_three_styles(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run", "quickstart", "--progress", "bar"])
    told = capsys.readouterr().err.splitlines()[-1]
    assert all(style in told for style in ("line", "json", "ray"))


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_a_command_with_its_status(
    signum: signal.Signals, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import sentisynth.flows.pipeline  # noqa: F401  not to be stopped half-way

    os.mkfifo(tmp_path / ".lock")  # where the command would wait for ever
    ended = threading.Event()

    def nag() -> None:
        while not ended.wait(0.2):
            os.kill(os.getpid(), signum)

    before = signal.signal(signum, lambda *_: None)
    nagging = threading.Thread(target=nag)
    nagging.start()
    try:
        assert main(["evaluate", "quickstart", "--out", str(tmp_path)]) == status
    finally:
        ended.set()
        nagging.join()
        signal.signal(signum, before)
    told = f"sentisynth: stopped by {signum.name}; the same command goes on from here\n"
    assert capsys.readouterr().err == told


def sentisynth(*arguments: str, **streams: object) -> "subprocess.CompletedProcess[str]":
    """A command in a process of its own that writes each line at once."""
    command = [sys.executable, "-u", "-m", "sentisynth.cli", *arguments]
    return subprocess.run(command, text=True, check=False, **streams)  # type: ignore[call-overload]


def test_a_full_disk_is_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        done = sentisynth("recipes", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr == "sentisynth: no space is left to write to; free some and run it again\n"


def test_a_reader_that_has_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = sentisynth("recipes", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.returncode == 141 and done.stderr == ""


def test_a_terminal_that_was_closed_hears_nothing_and_the_status_is_the_same() -> None:
    master, terminal = os.openpty()
    os.close(master)
    done = sentisynth("recipes", "more", stdout=terminal, stderr=terminal)
    assert done.returncode == 2
    done = sentisynth("check", "absent", stdout=terminal, stderr=terminal)
    os.close(terminal)
    assert done.returncode == 2


def test_results_for_a_terminal_that_was_closed_end_a_command_with_a_sentence() -> None:
    master, terminal = os.openpty()
    os.close(master)
    done = sentisynth("recipes", stdout=terminal, stderr=subprocess.PIPE)
    os.close(terminal)
    assert done.returncode == 129
    assert done.stderr.startswith("sentisynth: an input or output failed")
    assert len(done.stderr.splitlines()) == 1
