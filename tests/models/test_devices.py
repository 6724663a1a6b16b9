"""What is read of a device."""

from pathlib import Path

import pytest
import torch

from sentisynth.models import devices
from sentisynth.models.devices import device_facts


@pytest.mark.parametrize(
    ("said", "wanted"), [("1073741824\n", 2**30), ("max\n", None), ("9223372036854771712\n", None)]
)
def test_a_container_has_the_memory_that_its_limit_says(
    said: str, wanted: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_MEMORY_LIMITS", (tmp_path / "absent", tmp_path / "limit"))
    whole = device_facts(torch.device("cpu")).memory
    (tmp_path / "limit").write_text(said)
    assert device_facts(torch.device("cpu")).memory == (wanted or whole)
