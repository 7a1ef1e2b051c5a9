"""What is counted of calls: times in buckets, methods by name, and no more of either than fits."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkwire.errors import UsageError
from forkwire.pool.histogram import LAST, SHORTEST, Histogram, Recorder, bucket_of
from forkwire.pool.statistics import MOST_METHODS, OTHERS, Counters

seconds = st.floats(0, 1e6)


def recorded(times: list[float]) -> Histogram:
    recorder = Recorder()
    for time in times:
        recorder.add(time)
    return recorder.histogram()


def test_of_nothing_all_is_zero() -> None:
    """A histogram without a time has zeros, and raises nothing."""
    empty = Histogram()
    assert (empty.count, empty.sum, empty.min, empty.max, empty.mean) == (0, 0, 0, 0, 0)
    assert empty.quantile(0.5) == 0
    assert empty == Recorder().histogram()


@given(st.lists(seconds, min_size=1))
def test_the_exact_parts_are_exact(times: list[float]) -> None:
    """Count, sum, least, most and mean are those of the times, and each time is in a bucket."""
    histogram = recorded(times)
    assert histogram.count == len(times) == sum(histogram.buckets.values())
    assert (histogram.min, histogram.max) == (min(times), max(times))
    assert histogram.sum == pytest.approx(sum(times))
    assert histogram.mean == pytest.approx(statistics.fmean(times))


@given(st.lists(st.floats(2 * SHORTEST, 1e6), min_size=1), st.floats(0, 1))
def test_quantiles_are_near(times: list[float], q: float) -> None:
    """A quantile is within the half of a bucket of the time that has that rank."""
    true = sorted(times)[max(1, math.ceil(q * len(times))) - 1]
    found = recorded(times).quantile(q)
    assert true / 1.0906 <= found <= true * 1.0906


@given(seconds.filter(lambda s: s > SHORTEST))
def test_buckets_are_where_they_say(time: float) -> None:
    """A time lies between the bounds of its bucket, as far as a double can tell."""
    bucket = bucket_of(time)
    slack = 1e-9
    assert (
        Histogram.bound(bucket) * (1 - slack) <= time <= Histogram.bound(bucket + 1) * (1 + slack)
    )


@pytest.mark.parametrize("time", [0.0, 1e-12, 1e9, 1e300])
def test_extremes_have_a_bucket(time: float) -> None:
    """What is too short or too long for the scale is in its first or last bucket."""
    histogram = recorded([time])
    assert set(histogram.buckets) <= {0, LAST}
    assert histogram.quantile(0.5) == time


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_a_quantile_is_a_part(q: float) -> None:
    """A quantile outside of 0 to 1 is a usage error: 99 is not meant to be 0.99."""
    with pytest.raises(UsageError, match="quantile"):
        Histogram().quantile(q)


def test_a_histogram_stays_as_it_was() -> None:
    """One that was handed out does not change when more is recorded, nor can it be changed."""
    recorder = Recorder()
    recorder.add(1.0)
    before = recorder.histogram()
    recorder.add(2.0)
    assert (before.count, sum(before.buckets.values())) == (1, 1)
    with pytest.raises(TypeError):
        before.buckets[0] = 1  # type: ignore[index]


def test_methods_are_counted_by_name() -> None:
    """Each method has its own numbers, and all together have the sums."""
    counters = Counters()
    counters.ended("add", 0.0, 1.0, error=False)
    counters.ended("add", 0.5, 3.0, error=True)
    counters.ended("nap", 0.0, 9.0, error=False)
    add, nap = counters.methods()["add"], counters.methods()["nap"]
    assert (add.calls, add.errors, add.latency.sum, add.wait.sum) == (2, 1, 4.0, 0.5)
    assert (nap.calls, nap.errors, nap.latency.sum) == (1, 0, 9.0)
    assert (counters.all.calls, counters.all.errors) == (3, 1)


def test_the_number_of_methods_is_bounded() -> None:
    """A program that makes up names fills no memory: from some number on they are one."""
    counters = Counters()
    for number in range(MOST_METHODS + 10):
        counters.ended(f"m{number}", 0.0, 1.0, error=False)
    methods = counters.methods()
    assert len(methods) == MOST_METHODS + 1
    assert methods[OTHERS].calls == 10
    assert counters.all.calls == MOST_METHODS + 10
