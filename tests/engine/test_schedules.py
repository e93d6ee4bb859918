"""Schedules, iteration by iteration."""

from __future__ import annotations

from mgd_det.engine.schedules import UpdateSchedule, WeightSchedule
from mgd_det.engine.schedules import due as due_by_period


def due(schedule: UpdateSchedule, last: int) -> list[int]:
    return [i for i in range(last + 1) if schedule.due(i)]


def test_by_period_then_slower():
    assert due(UpdateSchedule(5, 15, 30), 100) == [0, 5, 10, 15, 30, 60, 90]
    assert due(UpdateSchedule(4, 100, 0), 13) == [0, 4, 8, 12]
    assert due(UpdateSchedule(4, 6, 0), 13) == [0, 4]
    assert due(UpdateSchedule(0, 10, 0), 30) == [0]


def test_explicit_iterations_take_the_place_of_periods():
    reference = (5000, 10000, 15000, 31000, 62000)
    assert due(UpdateSchedule(7, 10, 7, reference), 90000) == [0, *reference]


def test_none_after_the_end():
    assert due(UpdateSchedule(4, 100, 0, until=8), 100) == [0, 4, 8]
    assert due(UpdateSchedule(4, 100, 0, (3, 9), until=8), 100) == [0, 3]


def test_weights():
    def factors(schedule: WeightSchedule, count: int) -> list[float]:
        return [schedule.factor(i) for i in range(count)]

    assert factors(WeightSchedule(), 3) == [1, 1, 1]
    assert factors(WeightSchedule(warmup=4), 6) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert factors(WeightSchedule(stop=2), 4) == [1, 1, 0, 0]
    assert factors(WeightSchedule(decay_from=1, stop=5), 7) == [1, 1, 0.75, 0.5, 0.25, 0, 0]


def test_a_teacher_that_runs_in_some_iterations_has_as_many_times_the_weight():
    def factors(schedule: WeightSchedule, count: int) -> list[float]:
        return [schedule.factor(i) for i in range(count)]

    assert factors(WeightSchedule(teacher_every=3), 7) == [3, 0, 0, 3, 0, 0, 3]
    assert factors(WeightSchedule(warmup=4, teacher_every=2), 6) == [0.5, 0, 1.5, 0, 2, 0]
    stopping = WeightSchedule(stop=3, teacher_every=2)
    assert factors(stopping, 5) == [2, 0, 2, 0, 0]
    assert [stopping.skips(i) for i in range(5)] == [False, True, False, False, False]


def test_what_is_due_between_two_iterations_of_the_teacher_waits_for_the_second():
    def chosen(period: int, every: int) -> list[int]:
        return [i for i in range(0, 25, every) if due_by_period(period, i, every)]

    assert chosen(8, 1) == [0, 8, 16, 24]
    assert chosen(8, 3) == [0, 9, 18, 24]
    assert chosen(2, 5) == [0, 5, 10, 15, 20]
    assert chosen(0, 5) == []
