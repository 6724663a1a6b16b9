"""Run directories under URIs, on a server that speaks the S3 protocol on loopback."""

from pathlib import Path

import numpy as np
import pytest

from sentisynth.config.types import RunConfig
from sentisynth.data.files import sha256_file, write_json
from sentisynth.data.manifest import check_pool, read_manifest
from sentisynth.data.pool import PoolReader
from sentisynth.data.run_directory import RunDirectory
from sentisynth.data.storage import here, is_file, is_remote, location
from sentisynth.data.units import Unit, units_on_disk
from sentisynth.errors import RunDirectoryError
from tests.data.pools import SIZE, fill


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SENTISYNTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_pool_on_s3_has_the_bytes_of_one_on_disk(
    bucket: str,
    tmp_path: Path,
    config: RunConfig,
) -> None:
    manifests = []
    for pool in (location(f"{bucket}/one/pool"), tmp_path / "pool"):
        for label in (0, 1):
            fill(pool, label, range(3))
        reader = PoolReader(pool, config, "plan")
        reader.recover()
        reader.publish()
        assert check_pool(pool) == []
        assert [(u.label, u.number) for u in units_on_disk(pool, SIZE)] == [
            (label, number) for label in (0, 1) for number in range(2)
        ]
        manifests.append((pool / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]


def test_a_store_that_does_not_list_a_pool_has_not_said_that_it_is_empty(
    bucket: str, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = location(f"{bucket}/slow/pool")
    fill(pool, 0, range(2))
    ls = pool.fs.ls

    def slow(path: str, **options: object) -> object:
        if path.endswith("label=0"):
            raise OSError("SlowDown")
        return ls(path, **options)

    monkeypatch.setattr(pool.fs, "ls", slow)
    reader = PoolReader(pool, config, "plan")
    with pytest.raises(RunDirectoryError, match="label=0 cannot be used: SlowDown"):
        reader.recover()


def test_damage_on_s3_is_found_and_mended_alone(bucket: str, config: RunConfig) -> None:
    pool = location(f"{bucket}/two/pool")
    for label in (0, 1):
        fill(pool, label, range(2))
    reader = PoolReader(pool, config, "plan")
    reader.recover()
    reader.publish()
    manifest = (pool / "manifest.json").read_bytes()
    unit = Unit(1, 0, SIZE).path(pool)
    data = bytearray(unit.read_bytes())
    data[np.random.default_rng(1).integers(len(data))] ^= 4
    unit.write_bytes(bytes(data))
    Unit(0, 1, SIZE).path(pool).unlink()
    assert len(check_pool(pool)) == 2
    again = PoolReader(pool, config, "plan")
    assert again.recover() == {Unit(0, 0, SIZE), Unit(1, 1, SIZE)} and again.n_damaged == 1
    fill(pool, 1, range(1))
    fill(pool, 0, range(1, 2))
    last = PoolReader(pool, config, "plan")
    last.recover()
    last.publish()
    assert (pool / "manifest.json").read_bytes() == manifest and read_manifest(pool) is not None


def test_the_journal_makes_a_restart_quick_on_s3_too(bucket: str, config: RunConfig) -> None:
    pool = location(f"{bucket}/three/pool")
    fill(pool, 0, range(2))
    PoolReader(pool, config, "plan").recover()
    reader = PoolReader(pool, config, "plan")
    assert reader.journal.get(Unit(0, 0, SIZE)) is not None
    assert reader.recover() == {Unit(0, 0, SIZE), Unit(0, 1, SIZE)}


def test_a_stage_is_mirrored_and_fetched_once(bucket: str, cache: Path) -> None:
    directory = RunDirectory(location(f"{bucket}/four"))
    made = directory.path / "teacher"
    write_json(made / "config.json", {"a": 1})
    write_json(made / "predictions" / "test.json", [1])
    directory.stamp(made, {"seed": 1})
    directory.push("teacher")

    another = RunDirectory(location(f"{bucket}/four"))
    another.path = cache / "elsewhere"
    another.pull()
    assert another.is_done("teacher", {"seed": 1})
    fetched = here(another.shared("teacher"))
    assert sha256_file(fetched / "config.json") == sha256_file(made / "config.json")
    before = (fetched / "config.json").stat().st_mtime_ns
    assert (here(another.shared("teacher")) / "config.json").stat().st_mtime_ns == before


def test_what_is_no_store_is_told_in_a_sentence(bucket: str) -> None:
    assert not is_remote(location("runs/x")) and is_remote(location(f"{bucket}/x"))
    with pytest.raises(RunDirectoryError, match="needs its fsspec package"):
        location("nonsense://bucket/run")
    for empty in ("s3://", "s3:///"):
        with pytest.raises(RunDirectoryError, match="names no place in its store; write s3://BUCK"):
            location(empty)
    with pytest.raises(RunDirectoryError, match="cannot be used"):
        location("ftp://127.0.0.1:1/run")
    with pytest.raises(RunDirectoryError, match="cannot be used"):
        write_json(location("s3://no-such-bucket/run/file.json"), {})


def test_a_store_that_does_not_answer_has_not_said_no(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage would count as unmade, and be made again in place of the one that is there."""
    directory = RunDirectory(location(f"{bucket}/five"))
    stage = directory.stage("teacher")
    stage.mkdir(parents=True)
    (stage / "weights").write_bytes(b"w")
    directory.stamp(stage, {"seed": 1})
    directory.push("teacher")
    remote = location(f"{bucket}/five/teacher/stage.json")
    assert is_file(remote) and not is_file(remote.with_name("other.json"))

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("the token has expired")

    with monkeypatch.context() as patch:
        patch.setattr(remote.fs, "info", refused)  # of all paths: instances are cached
        for look in (is_file, read_manifest):
            with pytest.raises(RunDirectoryError, match="the token has expired"):
                look(remote if look is is_file else remote.parent)
        with pytest.raises(RunDirectoryError, match="the token has expired"):
            directory.pull()
    (remote.parent / "weights").unlink()
    with pytest.raises(RunDirectoryError, match="weights could not be fetched"):
        here(directory.shared("teacher"))
