import random
import tracemalloc

import pytest

from sentisynth.data.units import Unit
from sentisynth.runtime.plan import _LARGEST_BUNDLE, _MOST_MORE, UnitPlan

SLOW_S = 3600.0  # so that no more are in flight than there are workers


def planned(
    n_labels: int = 2,
    n_workers: int = 4,
    n_waiting: int = 0,
    done: tuple[tuple[int, int], ...] = (),
    shuffle: int | None = None,
) -> UnitPlan:
    units = {Unit(label, number, 10) for label, number in done}
    return UnitPlan(
        n_labels=n_labels,
        size=10,
        n_workers=n_workers,
        n_waiting=n_waiting,
        done=units,
        shuffle=shuffle,
    )


def handed_out(plan: UnitPlan) -> list[Unit]:
    return [unit for bundle in plan.hand_out() for unit in bundle]


def numbers(units: list[Unit]) -> list[tuple[int, int]]:
    return [(unit.label, unit.number) for unit in units]


def everything(plan: UnitPlan) -> list[tuple[int, int]]:
    """All units in the order in which they are handed out, each finished before the next ones."""
    found: list[Unit] = []
    while units := handed_out(plan):
        found += units
        for unit in units:
            plan.finished(unit, SLOW_S)
    return numbers(found)


def test_labels_take_turns() -> None:
    plan = planned(n_labels=3, n_workers=7)
    plan.want([9, 9, 9])
    assert numbers(handed_out(plan)) == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (0, 2)]
    plan.finished(Unit(0, 0, 10), SLOW_S)
    assert handed_out(plan) == [Unit(1, 2, 10)]


def test_a_label_that_has_enough_gives_its_turns_away() -> None:
    plan = planned(n_workers=100)
    plan.want([1, 4])
    assert everything(plan) == [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3)]


def test_nothing_is_handed_out_that_nobody_wants() -> None:
    plan = planned(n_workers=100)
    assert handed_out(plan) == []
    plan.want([2, 1])
    assert everything(plan) == [(0, 0), (1, 0), (0, 1)]
    plan.want([1, 2])  # a horizon may come nearer again
    assert everything(plan) == [(1, 1)]


def test_done_units_are_passed_over() -> None:
    plan = planned(done=((0, 0), (0, 2), (1, 1)))
    plan.want([4, 3])
    assert everything(plan) == [(0, 1), (1, 0), (0, 3), (1, 2)]
    plan = planned(done=((0, 0), (1, 0), (1, 1)))
    plan.want([1, 2])
    assert handed_out(plan) == []


@pytest.mark.parametrize("shuffle", [None, 1])
@pytest.mark.parametrize("seed", range(5))
def test_no_more_units_are_in_flight_than_workers_and_each_is_made_once(
    seed: int, shuffle: int | None
) -> None:
    rng, horizons = random.Random(seed), [0, 0, 0]
    done = tuple((rng.randrange(3), rng.randrange(40)) for _ in range(20))
    plan, found = planned(n_labels=3, n_workers=5, done=done, shuffle=shuffle), []
    while len(found) < 120 - len(set(done)):
        horizons = [min(40, horizon + rng.randrange(4)) for horizon in horizons]
        plan.want(horizons)
        units = handed_out(plan)
        assert all(unit.number < horizons[unit.label] for unit in units)
        assert len(plan.in_flight) <= 5
        assert len(plan.in_flight) == 5 or not handed_out(plan)
        found += units
        for unit in rng.sample(sorted(plan.in_flight), rng.randint(0, len(plan.in_flight))):
            plan.finished(unit, SLOW_S)
    assert len(set(found)) == len(found)
    assert not {(unit.label, unit.number) for unit in found} & set(done)


@pytest.mark.parametrize(
    ("seconds", "limit"), [(60, 4), (5, 4), (1, 8), (0.1, 44), (0, 4 + _MOST_MORE)]
)
def test_as_many_more_are_in_flight_as_the_workers_finish_in_a_second(
    seconds: float, limit: int
) -> None:
    plan = planned(n_workers=4)
    plan.want([100_000, 100_000])
    assert plan.limit == 4  # nothing is known yet
    for _ in range(20):
        for unit in handed_out(plan):
            plan.finished(unit, seconds)
        assert len(handed_out(plan)) == plan.limit == limit
        for unit in list(plan.in_flight):
            plan.finished(unit, seconds)


def test_units_wait_for_workers_that_finish() -> None:
    plan = planned(n_workers=4, n_waiting=2)
    plan.want([1000, 1000])
    assert len(handed_out(plan)) == 6
    plan.finished(min(plan.in_flight), SLOW_S)
    assert len(handed_out(plan)) == 1
    for _ in range(40):
        for unit in list(plan.in_flight):
            plan.finished(unit, 0.1)
        handed_out(plan)
    assert 40 < plan.limit <= 44  # one does not wait beside them: they are finished in time


@pytest.mark.parametrize(
    ("seconds", "size"), [(60, 1), (0.2, 1), (0.1, 2), (0.02, 12), (0, _LARGEST_BUNDLE)]
)
def test_quick_units_travel_in_bundles_of_a_quarter_of_a_second(seconds: float, size: int) -> None:
    plan = planned(n_workers=4)
    plan.want([1000, 1000])
    first = plan.hand_out()
    assert list(map(len, first)) == [1] * 4
    for (unit,) in first:
        plan.finished(unit, seconds)
    bundles = plan.hand_out()
    units = [unit for bundle in bundles for unit in bundle]
    assert len(units) == len(set(units)) == len(plan.in_flight) == plan.limit
    assert {len(bundle) for bundle in bundles[:-1]} == {size}
    assert 1 <= len(bundles[-1]) <= size


def test_one_slow_unit_among_quick_ones_does_not_bring_the_limit_down_at_once() -> None:
    plan = planned(n_workers=4)
    plan.want([1000, 1000])
    for seconds in [0.1] * 20:
        plan.finished(handed_out(plan)[0], seconds)
    high = plan.limit
    plan.finished(min(plan.in_flight), 1.0)
    assert 4 < plan.limit < high
    for _ in range(40):
        plan.finished(min(plan.in_flight or handed_out(plan)), SLOW_S)
    assert plan.limit == 4


def test_a_unit_that_is_finished_twice_makes_room_once() -> None:
    plan = planned(n_workers=2)
    plan.want([9, 9])
    first, _ = handed_out(plan)
    plan.finished(first, SLOW_S)
    plan.finished(first, SLOW_S)
    assert len(handed_out(plan)) == 1 and len(plan.in_flight) == 2


def test_a_shuffled_plan_hands_out_the_same_units_in_another_order() -> None:
    done, orders = ((0, 3), (1, 0), (1, 59)), []
    for shuffle in (None, 1, 2, 1):
        plan = planned(done=done, shuffle=shuffle)
        plan.want([50, 60])
        orders.append(everything(plan))
    assert len(set(map(tuple, orders))) == 3 and orders[1] == orders[3]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    for order in orders[1:]:  # not far from their place, so that the prefix grows
        places = [i for i, (label, _) in enumerate(order) if label == 0]
        assert all(order[place][1] <= i + 17 for i, place in enumerate(places))


@pytest.mark.parametrize("shuffle", [None, 1])
def test_a_plan_of_millions_costs_no_memory(shuffle: int | None) -> None:
    tracemalloc.start()
    plan = UnitPlan(n_labels=4, size=256, n_workers=64, n_waiting=0, done=set(), shuffle=shuffle)
    plan.want([40_000_000 // 256] * 4)
    units = handed_out(plan)
    for unit in units:
        plan.finished(unit, SLOW_S)
    units = handed_out(plan)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(units) == 64 and peak < 1_000_000
