import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from sentisynth.data.files import directory_aside, write_text
from sentisynth.data.run_directory import RunDirectory
from sentisynth.data.storage import location
from sentisynth.errors import RunDirectoryError

PARTS = {"code": 1, "train": {"epochs": 3, "batch_size": 32}}


def make(run: RunDirectory, name: str = "teacher") -> None:
    with directory_aside(run.stage(name)) as out:
        write_text(out / "file", "x")
        run.stamp(out, PARTS)


def test_the_same_parts_are_done_and_others_name_the_difference(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert not run.is_done("teacher", PARTS)
    make(run)
    assert run.is_done("teacher", PARTS)
    with pytest.raises(RunDirectoryError, match=r"train.epochs was 3, is now 4.*--overwrite"):
        run.is_done("teacher", {"code": 1, "train": {"epochs": 4, "batch_size": 32}})
    assert (tmp_path / "teacher" / "file").exists()


def test_a_difference_inside_a_long_value_is_shown(tmp_path: Path) -> None:
    run, prompts = RunDirectory(tmp_path), ["a good film", "a review of a film that was bad " * 3]
    with directory_aside(run.stage("pool")) as out:
        run.stamp(out, {"prompts": prompts})
    changed = [prompts[0], prompts[1].replace("bad", "dull", 1)]
    with pytest.raises(RunDirectoryError, match=r"prompts.1 was ….*was bad.*now ….*was dull"):
        run.is_done("pool", {"prompts": changed})


def test_overwrite_removes_what_was_made_otherwise(tmp_path: Path) -> None:
    make(RunDirectory(tmp_path))
    assert not RunDirectory(tmp_path, overwrite=True).is_done("teacher", {"code": 2})
    assert not (tmp_path / "teacher").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_no_run_made_is_never_removed(tmp_path: Path, overwrite: bool) -> None:
    run = RunDirectory(tmp_path, overwrite)
    (tmp_path / "teacher").mkdir()
    assert not run.is_done("teacher", PARTS)
    notes = tmp_path / "teacher" / "notes.txt"
    notes.write_text("mine")
    (tmp_path / "corpus").write_text("mine")
    for name in ("teacher", "corpus"):
        with pytest.raises(RunDirectoryError, match=f"{name} is in the way.*--out"):
            run.is_done(name, PARTS)
    assert notes.read_text() == "mine"


def test_what_is_left_by_one_who_was_cut_off_in_removing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(RunDirectory(tmp_path))
    (tmp_path / "teacher" / "predictions").mkdir()
    run = RunDirectory(tmp_path, overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.is_done("teacher", {"code": 2})
    assert run.read_stamp("teacher") == PARTS
    assert not run.is_done("teacher", {"code": 2})
    assert not (tmp_path / "teacher").exists()


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_stage_that_fails_leaves_nothing_under_its_name(tmp_path: Path) -> None:
    def fail() -> None:
        with directory_aside(tmp_path / "teacher") as out:
            write_text(out / "file", "x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not (tmp_path / "teacher").exists()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with (
        RunDirectory(tmp_path).locked(),
        pytest.raises(RunDirectoryError, match="another sentisynth is at work"),
        RunDirectory(tmp_path).locked(),
    ):
        pass


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_lock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", no_lock)
    with (
        pytest.raises(RunDirectoryError, match="cannot be locked .Function not implemented"),
        RunDirectory(tmp_path).locked(),
    ):
        pass


def test_records_go_to_the_store_and_on_from_there(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = location(f"{bucket}/records")
    pending = "mlflow-pending-0a1b2c3d.jsonl"
    monkeypatch.setenv("SENTISYNTH_CACHE", str(tmp_path / "one"))
    one = RunDirectory(there)
    one.path.mkdir(parents=True)
    with suppress(ZeroDivisionError), one.records_kept():
        (one.path / "mlflow.json").write_text("{}")
        (one.path / pending).write_text("kept\n")
        raise ZeroDivisionError
    monkeypatch.setenv("SENTISYNTH_CACHE", str(tmp_path / "two"))
    two = RunDirectory(there)
    two.pull()
    assert (two.path / pending).read_text() == "kept\n"
    assert (two.path / "mlflow.json").is_file()
    (two.path / pending).unlink()
    two.push_files()
    assert [path.name for path in there.iterdir()] == ["mlflow.json"]


def test_a_missing_stage_names_its_command(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="run `sentisynth teacher quickstart` first"):
        RunDirectory(tmp_path).require("teacher", "teacher quickstart")


def test_a_damaged_stamp_is_a_sentence(tmp_path: Path) -> None:
    make(RunDirectory(tmp_path))
    (tmp_path / "teacher" / "stage.json").write_text("{")
    with pytest.raises(RunDirectoryError, match="damaged"):
        RunDirectory(tmp_path).read_stamp("teacher")


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunDirectoryError, match="cannot be written"),
        RunDirectory(tmp_path / "file" / "run").locked(),
    ):
        pass
