import dataclasses
import json

import jax
import numpy as np
import pytest

from par_jax.data.windows import Windows, validation_batches, window_batches

CHUNK, PACKAGES, LENGTHS = 8, 3, (30, 13, 8, 21)
ROWS = (slice(None), slice(0, 2), slice(2, 6))


def make(rest=None, stride=1):
    """Latents hold (episode, step), actions (episode, step): every number tells where it is from."""
    strides = np.broadcast_to(stride, len(LENGTHS))
    shown = [[*range(0, n, each), n] for n, each in zip(LENGTHS, strides, strict=True)]
    latents = [np.array([[[[e, t]]] for t in steps], np.float16) for e, steps in enumerate(shown)]
    actions, executed = (
        [np.array([[e, t, kind] for t in range(n)], np.float32) for e, n in enumerate(LENGTHS)] for kind in (-1, -2)
    )
    texts, tasks = [np.full(4, task, np.int32) for task in (5, 6)], np.array([0, 1, 1, 0])
    return Windows(latents, actions, executed, texts, tasks, PACKAGES, CHUNK, rest, stride=stride)


def cut_one(windows, episode, start):
    batch = windows.cut(np.array([episode]), np.array([start]))
    return {name: array[0] for name, array in vars(batch).items()}


@pytest.mark.parametrize(("episode", "start"), [(0, 0), (0, 8), (0, 11), (0, 22), (1, 0), (1, 8), (2, 0), (3, 13)])
def test_frames_and_actions_are_those_of_the_window(episode, start):
    window, length = cut_one(make(), episode, start), LENGTHS[episode]
    for n in range(PACKAGES + 1):
        assert window["latents"][n, 0, 0].tolist() == [episode, min(start + CHUNK * n, length)]
        for k in range(CHUNK):
            step = start + CHUNK * (n - 1) + k
            if step >= 0 and n < PACKAGES:
                assert window["executed"][n, k].tolist() == [episode, min(step, length - 1), -2]
            if n > 0:
                assert window["actions"][n - 1, k].tolist() == [episode, min(step, length - 1), -1]
                assert window["valid"][n - 1, k] == (step < length + CHUNK)
    assert window["has_past"] == (start >= CHUNK)
    assert window["frame_valid"].tolist() == window["valid"].any(axis=1).tolist()
    assert window["text"].tolist() == [6 if episode in (1, 2) else 5] * 4


@pytest.mark.parametrize("stride", [2, 4, 8, np.array([4, 1, 8, 2])])
def test_windows_of_fewer_pictures_are_the_same(stride):
    """What is cut where there is a picture is what is cut of all pictures, and nothing is cut elsewhere."""
    whole, few, rng = make(), make(stride=stride), np.random.default_rng(0)
    for episode, each in enumerate(np.broadcast_to(stride, len(LENGTHS))):
        starts = {few.draw_start(episode, rng, 0.2) for _ in range(200)}
        every = {start for start in (whole.draw_start(episode, rng, 0.2) for _ in range(400)) if start % each == 0}
        assert starts == every
        for start in starts:
            for name, array in cut_one(whole, episode, start).items():
                np.testing.assert_array_equal(cut_one(few, episode, start)[name], array)


def test_rest_holds_where_the_last_action_would_move_on():
    window = cut_one(make(rest=np.array([0, 0, 9], np.float32)), 1, 8)
    assert window["actions"][0, 4].tolist() == [1, 12, -1] and window["executed"][1, 4].tolist() == [1, 12, -2]
    assert window["actions"][0, 5].tolist() == window["executed"][1, 5].tolist() == [0, 0, 9]


def test_a_chunk_is_taught_up_to_where_something_else_was_done():
    windows = make()
    taught = [np.ones(n, bool) for n in LENGTHS]
    taught[0][10:13] = False  # steps 10, 11 and 12 of the first episode
    lapsing = dataclasses.replace(windows, taught=taught)
    plain, cut = cut_one(windows, 0, 8), cut_one(lapsing, 0, 8)
    assert cut["valid"][0].tolist() == [True, True] + [False] * 6
    assert cut["valid"][1:].tolist() == plain["valid"][1:].tolist()
    late = cut_one(lapsing, 0, 12)
    assert not late["valid"][0].any() and not late["frame_valid"][0]
    for name in ("latents", "executed", "actions", "has_past"):
        np.testing.assert_array_equal(cut[name], plain[name])


def test_starts_have_a_whole_past_or_none():
    windows, rng = make(), np.random.default_rng(0)
    starts = np.array([windows.draw_start(0, rng, 0.25) for _ in range(2000)])
    assert not np.any((starts > 0) & (starts < CHUNK))
    assert 0.2 < np.mean(starts == 0) < 0.3
    assert set(starts) == {0, *range(CHUNK, LENGTHS[0] - CHUNK + 1)}
    assert {windows.draw_start(2, rng, 0.0) for _ in range(20)} == {0}
    assert {windows.draw_start(1, rng, 0.0) for _ in range(20)} == {8}


def test_a_batch_is_its_windows_one_by_one():
    episodes, starts = np.array([3, 0, 1, 0]), np.array([13, 8, 0, 22])
    batch = make().cut(episodes, starts)
    for row, (episode, start) in enumerate(zip(episodes, starts, strict=True)):
        for name, array in cut_one(make(), episode, start).items():
            np.testing.assert_array_equal(vars(batch)[name][row], array)


def test_batches_have_the_contract_s_shapes_and_dtypes():
    batch = next(window_batches(make(), np.arange(3), 5, seed=0, start_share=0.5))
    shapes = {name: (getattr(batch, name).shape, str(getattr(batch, name).dtype)) for name in batch.__dict__}
    assert shapes == {
        "latents": ((5, PACKAGES + 1, 1, 1, 2), "float32"),
        "executed": ((5, PACKAGES, CHUNK, 3), "float32"),
        "actions": ((5, PACKAGES, CHUNK, 3), "float32"),
        "has_past": ((5,), "bool"),
        "valid": ((5, PACKAGES, CHUNK), "bool"),
        "frame_valid": ((5, PACKAGES), "bool"),
        "text": ((5, 4), "int32"),
    }


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in a.__dict__)


def test_batches_go_on_from_a_position_and_depend_on_the_seed():
    make_iterator = lambda seed: window_batches(make(), np.arange(4), 6, seed, 0.25)  # noqa: E731
    first = make_iterator(3)
    for _ in range(5):
        next(first)
    position = json.loads(json.dumps(first.get_state()))
    second = make_iterator(3)
    second.set_state(position)
    for _ in range(5):
        assert same(next(first), next(second))
    assert not same(next(make_iterator(3)), next(make_iterator(4)))


def test_processes_make_their_own_rows_of_the_same_batches():
    whole, first, last = (window_batches(make(), np.arange(4), 6, 3, 0.25, rows) for rows in ROWS)
    for _ in range(3):
        wanted, *parts = next(whole), next(first), next(last)
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        assert parts[0].latents.shape[0] == 2 and same(joined, wanted)


def test_every_episode_comes_once_a_round_in_a_new_order():
    batches = window_batches(make(), np.arange(4), 6, seed=0, start_share=0.25)  # a round ends within a batch
    drawn = [int(e) for _ in range(4) for e in next(batches).latents[:, 0, 0, 0, 0]]
    rounds = [drawn[first : first + 4] for first in range(0, 24, 4)]
    assert all(sorted(round_) == [0, 1, 2, 3] for round_ in rounds)
    assert len({tuple(round_) for round_ in rounds}) > 1


def test_validation_is_the_same_every_time_and_half_of_it_starts_at_the_start():
    first, second = (validation_batches(make(), np.array([0, 3]), 4, 2) for _ in range(2))
    assert len(first) == 2 and all(same(a, b) for a, b in zip(first, second, strict=True))
    assert [batch.has_past.tolist() for batch in first] == [[False, True, False, True]] * 2
    assert {int(e) for batch in first for e in batch.latents[:, 0, 0, 0, 0]} == {0, 3}
