"""The house stays a house: imports point downward, heavy packages have one door each."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sentisynth"

# Lowest floor first. A module may import from lower floors and from its own folder.
FLOORS: list[set[str]] = [
    {"errors", "schema", "seeding", "signals", "__init__"},
    {"config"},
    {"data", "models", "arguments"},
    {"generation", "training", "evaluation"},
    {"stages"},
    {"runtime"},
    {"flows"},
    {"cli"},
]

# Each package is imported by these modules alone.
DOORS: dict[str, set[str]] = {
    "ray.data": {"runtime/stream.py", "runtime/corpus.py"},
    "ray.train": {"runtime/train.py"},
    "ray.tune": {"runtime/tune.py"},
    "mlflow": {"runtime/tracking.py"},
    "deepspeed": {"training/deepspeed_engine.py"},
    "sklearn": {"training/cooccurrence.py"},  # a second to import, which no training waits for
    "peft": {"models/generator.py"},
    "vllm": {"generation/vllm_engine.py"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room(module: str) -> str:
    """The folder, or ground-floor module, of a dotted name inside the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def floor(room_name: str) -> int:
    (found,) = [i for i, rooms in enumerate(FLOORS) if room_name in rooms]
    return found


def imported(path: Path) -> list[str]:
    """Dotted names of all modules that a file imports, wherever in the file."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)} has a relative import"
            assert node.module is not None
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


@pytest.mark.parametrize("path", modules(), ids=name)
def test_imports_point_downward(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imported(path):
        rooms = set().union(*FLOORS)
        if module.startswith("sentisynth.") and room(module) in rooms - {own}:
            assert floor(room(module)) < floor(own), f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", modules(), ids=name)
def test_heavy_packages_have_one_door(path: Path) -> None:
    for package, doors in DOORS.items():
        found = [m for m in imported(path) if m == package or m.startswith(package + ".")]
        assert not found or name(path) in doors, f"{name(path)} imports {found}"


@pytest.mark.parametrize("path", modules(), ids=name)
def test_nothing_below_runtime_needs_ray(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if floor(own) < floor("runtime"):
        assert not [m for m in imported(path) if m.split(".")[0] == "ray"]


@pytest.mark.parametrize("path", modules(), ids=name)
def test_no_file_outgrows_a_head(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


def test_config_does_not_import_torch() -> None:
    for folder in ("config", "errors.py", "schema.py", "seeding.py", "signals.py"):
        base = PACKAGE / folder
        for path in base.rglob("*.py") if base.is_dir() else [base]:
            assert "torch" not in {m.split(".")[0] for m in imported(path)}, name(path)


def test_the_small_processes_of_the_stream_start_fast() -> None:
    """The plan's source, screens and writers start many times when things die."""
    code = "import sys, sentisynth.runtime.stream; print(*{'torch', 'scipy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == ""
