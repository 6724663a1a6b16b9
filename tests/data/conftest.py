from pathlib import Path

import pytest

from sentisynth.config.types import RunConfig
from tests.data.pools import configured, fill, published


@pytest.fixture
def config() -> RunConfig:
    return configured()


@pytest.fixture
def finished(tmp_path: Path, config: RunConfig) -> Path:
    """A pool of two units a class under a manifest."""
    for label in (0, 1):
        fill(tmp_path, label, range(2))
    published(tmp_path, config)
    return tmp_path
