"""How the benchmarks judge: medians of paired rounds, with their interval."""

import random

import pytest

from benchmarks import harness
from benchmarks.harness import Seconds, alternate, format_rows, is_held, median_interval, row


def test_the_interval_holds_the_median_as_often_as_it_says():
    """Of 2,000 samples of a skew distribution whose median is 1, at least 90 % have it inside."""
    generator = random.Random(0)
    for count in (5, 9, 20):
        inside = 0
        for _ in range(2000):
            low, high = median_interval([generator.lognormvariate(0, 1) for _ in range(count)])
            inside += low <= 1 <= high
        assert inside / 2000 > 0.9 - 3 * (0.09 / 2000) ** 0.5
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_a_ratio_is_that_of_neighbours():
    """A machine that grows slower from round to round leaves the ratio alone."""
    found = row("a", "time", Seconds([2.0, 4.0, 8.0, 16.0, 32.0]), Seconds([1.0, 2.0, 4.0, 8.0, 16.0]), 2)
    assert found["ratio"] == 2 and found["interval"] == (2, 2) and found["rounds"] == 5


@pytest.mark.parametrize("target, held", [(1.4, True), (1.6, False), (None, None)])
def test_the_lower_end_must_hold_the_target(target, held):
    found = row("a", "time", Seconds([1.5, 2, 2, 2, 2.5]), Seconds([1.0] * 5), target)
    assert found["ratio"] == 2 and is_held(found) is held
    assert ("**missed**" in format_rows([found])) == (held is False)
    assert is_held(row("a", "memory", 3, 2, 1.5)) is True


def test_rounds_go_on_until_the_interval_is_narrow_or_the_time_is_up(monkeypatch, capsys):
    generator = random.Random(0)
    clock = iter(range(10**6))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(harness, "timed", lambda call: call() * generator.uniform(0.9, 1.1))
    baseline, ours = alternate(lambda: 2.0, lambda: 1.0, seconds=1e9)
    ratios = sorted(harness.paired(baseline.rounds, ours.rounds))
    low, high = median_interval(ratios)
    assert len(ratios) > 5 and high / float(baseline) * float(ours) < 1.1 and not capsys.readouterr().err
    baseline, ours = alternate(lambda: 2.0, lambda: 1.0, within=1e-9, seconds=20)
    assert 5 <= len(ours.rounds) < 40 and "time is up" in capsys.readouterr().err
