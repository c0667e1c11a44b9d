"""Learning-rate schedules: the factor on lr for update `step` of `total`."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.schedules import constant, cosine, linear

DECAYS = pytest.mark.parametrize("schedule", [linear, cosine])
spans = st.tuples(st.integers(1, 400), st.integers(0, 500))  # total, warmup_steps


def test_constant_is_one_throughout():
    assert {constant(step, 10) for step in range(10)} == {1.0}


@DECAYS
@given(span=spans)
def test_no_update_is_wasted_on_a_learning_rate_of_zero_and_none_exceeds_lr(schedule, span):
    total, warmup = span
    factors = [schedule(step, total, warmup_steps=warmup) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)


@DECAYS
@given(span=spans)
def test_it_rises_in_equal_parts_through_warmup_and_is_one_right_after(schedule, span):
    total, warmup = span
    for step in range(min(warmup, total)):
        assert schedule(step, total, warmup_steps=warmup) == pytest.approx((step + 1) / (warmup + 1))
    if warmup < total:
        assert schedule(warmup, total, warmup_steps=warmup) == 1


@DECAYS
@given(span=spans.filter(lambda span: span[1] < span[0]))
def test_after_warmup_it_only_falls_and_would_be_zero_one_update_past_the_last(schedule, span):
    total, warmup = span
    factors = [schedule(step, total, warmup_steps=warmup) for step in range(warmup, total)]
    assert all(later < earlier for earlier, later in pairwise(factors))
    assert schedule(total, total, warmup_steps=warmup) == pytest.approx(0, abs=1e-12)


def test_halfway_both_decays_are_at_one_half_and_cosine_is_above_before_and_below_after():
    assert linear(50, 100, warmup_steps=0) == cosine(50, 100, warmup_steps=0) == pytest.approx(0.5)
    assert cosine(25, 100, warmup_steps=0) > linear(25, 100, warmup_steps=0) == 0.75
    assert cosine(75, 100, warmup_steps=0) < linear(75, 100, warmup_steps=0) == 0.25
