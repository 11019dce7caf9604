import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from par_jax import evaluation
from par_jax.errors import UserError


def _row(seed: int, success: bool, policy_seed: int = 0, latencies: tuple[float, ...] = (1.0,)) -> dict:
    return {
        "seed": seed,
        "policy_seed": policy_seed,
        "success": success,
        "steps": 10 if success else 400,
        "return": 1.0,
        "latencies_ms": list(latencies),
        "filmed": False,
    }


def test_rdt_is_125_rollouts_on_25_states_with_5_policy_seeds():
    trials = evaluation.protocol("rdt").trials(125)
    assert len(set(trials)) == 125
    assert {t.seed for t in trials} == set(range(20241201, 20241226))
    assert {t.policy_seed for t in trials} == set(range(5))
    assert evaluation.protocol("rdt").trials(25) == trials[:25]
    assert {t.policy_seed for t in trials[:25]} == {0}


def test_rdt_keeps_its_states_whatever_the_seed():
    one, other = (evaluation.protocol("rdt").trials(25, seed) for seed in (0, 7))
    assert [t.seed for t in one] == [t.seed for t in other]
    assert {t.policy_seed for t in other} == {7}


def test_maniskill_starts_every_rollout_somewhere_else():
    rule = evaluation.protocol("maniskill")
    one, other = rule.trials(rule.episodes), rule.trials(rule.episodes, seed=1)
    assert len(one) >= 250
    assert len({t.seed for t in one + other}) == len(one) + len(other)


@pytest.mark.parametrize(("name", "episodes"), [("rdt", 0), ("rdt", 126), ("maniskill", -1)])
def test_a_senseless_number_of_rollouts_is_refused(name, episodes):
    with pytest.raises(UserError, match=f"--episodes={episodes} does not fit --protocol={name}"):
        evaluation.protocol(name).trials(episodes)


def test_a_negative_seed_is_refused():
    with pytest.raises(UserError, match="negative"):
        evaluation.protocol("maniskill").trials(3, seed=-1)


def test_an_unknown_protocol_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="choose one of rdt, maniskill"):
        evaluation.protocol("libero")


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(successes, trials, low, high):
    assert evaluation.wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_its_equation_and_mirrors(counts):
    successes, trials = counts
    low, high = evaluation.wilson(successes, trials)
    p = successes / trials
    assert 0 <= low <= p <= high <= 1
    assert evaluation.wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low))
    for end in (low, high):
        if 0 < end < 1:
            assert abs(p - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / trials))


@pytest.mark.parametrize("counts", [(1, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(counts):
    with pytest.raises(ValueError):
        evaluation.wilson(*counts)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), 873-890, table II, method 10.
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
    ],
)
def test_newcombe_gives_the_published_intervals(first, second, low, high):
    assert evaluation.newcombe(first, second) == pytest.approx((low, high), abs=5e-5)
    assert evaluation.newcombe(second, first) == pytest.approx((-high, -low), abs=5e-5)


def test_the_summary_counts_and_pools_latencies():
    rows = [
        _row(1, True, latencies=(1.0, 3.0)),
        _row(2, False, latencies=(100.0,)),
        _row(1, True, policy_seed=1),
    ]
    summary = evaluation.summarize(rows)
    assert summary["success_rate"] == pytest.approx(2 / 3)
    assert summary["wilson_95"] == list(evaluation.wilson(2, 3))
    assert (summary["episodes"], summary["states"], summary["seeds"]) == (3, 2, [1, 2])
    assert summary["policy_seeds"] == [0, 1]
    assert summary["mean_steps"] == 140
    assert summary["mean_steps_success"] == 10
    assert summary["latency_ms"]["median"] == 2.0
    assert 90 < summary["latency_ms"]["p99"] <= 100
    assert evaluation.sentence(summary).startswith("success 2 of 3: 66.7% (95% interval 20.8 to 93.9%)")


def test_latencies_with_predicted_frames_count_only_where_there_are_no_others():
    filmed = _row(1, True, latencies=(900.0,)) | {"filmed": True}
    assert evaluation.summarize([filmed, _row(2, True)])["latency_ms"]["p99"] == 1.0
    alone = evaluation.summarize([filmed])["latency_ms"]
    assert (alone["median"], alone["with_predicted_frames"]) == (900.0, True)


def test_the_summary_without_a_success_has_no_steps_to_success():
    assert evaluation.summarize([_row(1, False)])["mean_steps_success"] is None


def test_the_summary_does_not_depend_on_the_order():
    rows = [_row(i, i % 3 == 0, latencies=(float(i),)) for i in range(9)]
    assert evaluation.summarize(rows) == evaluation.summarize(rows[::-1])
