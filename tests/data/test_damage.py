"""Random damages of a finished pool: each is found and costs the damaged units alone.

Three hundred of them; seven hundred more with `make test-chaos`.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from sentisynth.config.types import RunConfig
from sentisynth.data.manifest import check_pool
from sentisynth.data.pool import PoolReader

KINDS = ("flip", "truncate", "extend", "swap", "delete", "empty")


def damage(pool: Path, random: np.random.Generator) -> list[Path]:
    """Do one random harm; the files that are no longer what they were."""
    files = sorted(p for p in pool.rglob("*") if p.is_file())
    path = files[random.integers(len(files))]
    data = bytearray(path.read_bytes())
    kind = KINDS[random.integers(len(KINDS))]
    if kind == "flip":
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        path.write_bytes(data)
    elif kind == "truncate":
        path.write_bytes(data[: random.integers(len(data))])
    elif kind == "extend":
        path.write_bytes(data + random.bytes(random.integers(1, 9)))
    elif kind == "swap":
        units = [p for p in files if p.suffix == ".parquet"]
        path, other = (units[i] for i in random.choice(len(units), 2, replace=False))
        aside = path.with_suffix(".aside")
        path.rename(aside)
        other.rename(path)
        aside.rename(other)
        return [path, other]
    elif kind == "delete":
        path.unlink()
    else:
        path.write_bytes(b"")
    return [path]


_BLOCKS = [pytest.param(k, marks=[pytest.mark.chaos] if k >= 3 else []) for k in range(10)]


@pytest.mark.parametrize("block", _BLOCKS)
def test_each_damage_is_found_and_only_the_damaged_units_are_made_again(
    finished: Path,
    config: RunConfig,
    tmp_path_factory: pytest.TempPathFactory,
    block: int,
) -> None:
    whole = {p.relative_to(finished): p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    assert check_pool(finished) == []
    for trial in range(100):
        random = np.random.default_rng((block, trial))
        pool = tmp_path_factory.mktemp("pool") / "pool"
        shutil.copytree(finished, pool)
        harmed = {p.relative_to(pool) for p in damage(pool, random)}
        problems = check_pool(pool)
        assert all(any(p.name in told for told in problems) for p in harmed), (trial, problems)

        reader = PoolReader(pool, config, "plan")
        kept = {unit.path(Path()) for unit in reader.recover()}
        units = {p for p in whole if p.suffix == ".parquet"}
        assert kept == units - harmed
        for path in harmed & units:  # what the stream would make again
            (pool / path).write_bytes(whole[path])
        again = PoolReader(pool, config, "plan")
        assert {u.path(Path()) for u in again.recover()} == units
        assert again.all_full
        again.publish()
        assert {
            p.relative_to(pool): p.read_bytes() for p in pool.rglob("*") if p.is_file()
        } == whole
        shutil.rmtree(pool.parent)
