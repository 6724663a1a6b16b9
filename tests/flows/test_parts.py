"""What decides the bytes of a pool where the configuration leaves it open."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sentisynth
from sentisynth.config.load import load_config
from sentisynth.errors import ConfigError, ModelError, PlacementError, RunDirectoryError
from sentisynth.flows.parts import plan_parts, refuse_other_machines
from sentisynth.flows.session import versions
from sentisynth.flows.starts import check_generation
from sentisynth.models.devices import DeviceFacts
from sentisynth.runtime.placement import Placement, PoolPlacement, Resources
from tests.conftest import RESOURCES

TOP_K = "synthesis.sampling.top_k"


def session(
    overrides: list[str], kind: str, memory: int, stamp: Any = None, *, overwrites: bool = False
) -> Any:
    gpu = kind == "cuda"
    placed = PoolPlacement(min_actors=1, max_actors=2, cpus=0.5, gpus=0.5 if gpu else 0)
    facts = DeviceFacts(kind=kind, name="", memory=memory, precision="bf16" if gpu else "fp32")
    directory = SimpleNamespace(
        overwrites=overwrites,
        pool=Path("pool"),
        read_stamp=lambda _: {},
        readable_stamp=lambda _: stamp,
        require=lambda *_: Path(RESOURCES / "gpt2-mini"),
        require_trained=lambda _: Path(RESOURCES / "gpt2-mini"),
    )
    return SimpleNamespace(
        config=load_config("quickstart", overrides),
        directory=directory,
        devices=(facts, facts),
        placement=Placement(generate=placed, verify=placed),
    )


@pytest.mark.parametrize(
    ("kind", "memory", "wanted"),
    [("cpu", 2**34, 256), ("cpu", 2**28, 16), ("cuda", 2**37, 4096), ("cuda", 2**31, 1024)],
)
def test_units_are_as_large_as_an_actor_holds(kind: str, memory: int, wanted: int) -> None:
    parts = plan_parts(session(["synthesis.unit_size=0"], kind, memory))
    assert parts["synthesis"]["unit_size"] == wanted


@pytest.mark.parametrize("overwrites", [False, True])
def test_what_is_given_counts_and_a_pool_keeps_its_own(overwrites: bool) -> None:
    given = plan_parts(session(["synthesis.unit_size=77"], "cpu", 2**34))
    assert given["synthesis"]["unit_size"] == 77
    pool = plan_parts(session(["synthesis.unit_size=0"], "cuda", 2**37))
    laptop = session(
        ["synthesis.unit_size=0", "synthesis.n_per_class=7", "synthesis.tau=0.5"],
        *("cpu", 2**28),
        pool,
        overwrites=overwrites,
    )
    assert plan_parts(laptop) == pool


def test_a_pool_that_is_replaced_is_planned_for_these_machines() -> None:
    pool = plan_parts(session(["synthesis.unit_size=0"], "cuda", 2**37))
    other = ["synthesis.unit_size=0", "synthesis.sampling.top_k=7"]
    laptop = session(other, "cpu", 2**28, pool, overwrites=True)
    assert plan_parts(laptop)["synthesis"]["devices"] == ["cpu", "cpu"]
    assert plan_parts(laptop) == plan_parts(session(other, "cpu", 2**28))


def test_a_pool_without_top_k_says_which_sampler_made_it() -> None:
    with_it, without = (plan_parts(session([f"{TOP_K}={k}"], "cpu", 2**34)) for k in (50, 0))
    assert "sampler" not in with_it["synthesis"] and without["synthesis"]["sampler"] == 2


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_precision_of_generation_alone(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan names what the teacher computes in, too; going back to auto begins anew."""
    monkeypatch.setattr("sentisynth.flows.parts.check_int8", lambda _: None)
    asked = [f"synthesis.precision={precision}"]
    pool = plan_parts(session(asked, "cpu", 2**34))
    assert pool["synthesis"]["precision"] == [precision, "fp32"]
    assert pool["synthesis"][precision] > 0
    refuse_other_machines(session(asked, "cpu", 2**34), pool)
    assert plan_parts(session(asked, "cpu", 2**28, pool)) == pool
    anew = plan_parts(session([], "cpu", 2**34, pool, overwrites=True))
    assert (
        anew == plan_parts(session([], "cpu", 2**34)) != plan_parts(session([], "cpu", 2**34, pool))
    )


@pytest.mark.parametrize(("kind", "computes"), [("cpu", "fp32"), ("cuda", "fp16")])
def test_fp16_with_an_engine_that_keeps_no_weights_in_it(kind: str, computes: str) -> None:
    asked = ["synthesis.precision=fp16", "synthesis.engine=transformers"]
    parts = plan_parts(session(asked, kind, 2**37))
    assert parts["synthesis"]["precision"] == [computes, computes]


def test_int8_where_it_is_not_multiplied() -> None:
    with pytest.raises(ModelError, match="precision=int8 is for CPUs that multiply bytes"):
        plan_parts(session(["synthesis.precision=int8"], "cuda", 2**37))


@pytest.mark.parametrize(("gpus", "is_refused"), [((1.0,), True), ((0.0,), False)])
def test_int8_with_gpus_is_refused_before_the_trainings(
    gpus: tuple[float, ...], is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resources() -> Resources:
        return Resources(node_cpus=(8.0,), node_gpus=gpus)

    monkeypatch.setattr("sentisynth.flows.starts.cluster_resources", resources)
    monkeypatch.setattr("sentisynth.models.devices.multiplies_int8", lambda kind: kind == "cpu")
    place = session(["synthesis.precision=int8"], "cpu", 2**34)
    if is_refused:
        with pytest.raises(ModelError, match="this is a GPU; .*generate_pool.gpus=0"):
            check_generation(place)
    else:
        check_generation(place)
    check_generation(session([], "cpu", 2**34))
    check_generation(session(["synthesis.precision=int8"], "cpu", 2**34, {"synthesis": {}}))


def test_actors_that_fit_on_no_node_are_refused_before_the_trainings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resources() -> Resources:
        return Resources(node_cpus=(2.0,), node_gpus=(0.0,))

    monkeypatch.setattr("sentisynth.flows.starts.cluster_resources", resources)
    wide = ["synthesis.verify_pool.cpus=4"]
    with pytest.raises(PlacementError, match="lower synthesis.verify_pool.cpus"):
        check_generation(session(wide, "cpu", 2**34))
    check_generation(session(wide, "cpu", 2**34, {"synthesis": {}}))  # a pool that is kept
    with pytest.raises(ConfigError, match="gpus is 1.5; above 1 it has to be a whole number"):
        load_config("quickstart", ["synthesis.generate_pool.gpus=1.5"])


def test_a_vllm_that_is_not_there_is_told_before_the_trainings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sentisynth.generation.vllm_engine.find_spec", lambda _: None)
    with pytest.raises(ModelError, match="vllm, which is not installed"):
        check_generation(session(["synthesis.engine=vllm"], "cuda", 2**34))


def test_a_long_prompt_and_a_wide_cache_make_smaller_units() -> None:
    short, long = (
        plan_parts(session(["synthesis.unit_size=0", *more], "cuda", 2**31))["synthesis"]
        for more in ([], ["generator.prompts={negative: [" + "so " * 60 + "], positive: ['']}"])
    )
    assert short["unit_size"] == 2 * long["unit_size"]


@pytest.mark.parametrize(
    ("n_prompts", "quota", "wanted"),
    [(1, 2000, 4096), (2, 2000, 512), (50, 10000, 128), (50, 40, 8), (2, 9000, 4096)],
)
def test_every_prompt_has_a_unit(n_prompts: int, quota: int, wanted: int) -> None:
    texts = ", ".join(f"prompt {i}" for i in range(n_prompts))
    prompts = f"generator.prompts={{negative: [{texts}], positive: ['']}}"
    overrides = ["synthesis.unit_size=0", f"synthesis.n_per_class={quota}", prompts]
    parts = plan_parts(session(overrides, "cuda", 2**37))
    assert parts["synthesis"]["unit_size"] == wanted


def test_units_are_not_made_on_other_machines() -> None:
    here = session([], "cpu", 2**34)
    same = {"synthesis": {"devices": ["cpu", "cpu"], "precision": ["fp32", "fp32"]}}
    refuse_other_machines(here, same)
    for name, there in (("devices", ["H100", "H100"]), ("precision", ["bf16", "bf16"])):
        other = {"synthesis": same["synthesis"] | {name: there}}
        with pytest.raises(RunDirectoryError, match=f"begun with {name} {there[0]}.*other bytes"):
            refuse_other_machines(here, other)


def test_versions_need_no_installed_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:  # a job has the package's directory alone
        if name == "sentisynth":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr("sentisynth.flows.session.metadata.version", version)
    assert versions()["sentisynth"] == sentisynth.__version__
