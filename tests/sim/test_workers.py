import os
import signal

import numpy as np
import pytest

from par_jax.errors import UserError
from par_jax.sim.expert import EXPERTS
from par_jax.sim.hand import make_hand
from par_jax.sim.workers import EnvPool, Worker

ECHO = """
class Echo:
    def __init__(self, fail=False):
        if fail:
            from par_jax.errors import UserError
            raise UserError("mend this")
    def twice(self, x):
        return 2 * x
    def count(self, n):
        yield from range(n)
    def crash(self):
        raise KeyError("inside")
"""


@pytest.fixture
def echo(tmp_path, monkeypatch):
    """Starts workers that serve a small class."""
    (tmp_path / "echo_for_tests.py").write_text(ECHO)
    monkeypatch.syspath_prepend(tmp_path)
    started = []

    def start(**arguments):
        started.append(Worker("echo_for_tests:Echo", **arguments))
        return started[-1]

    yield start
    for worker in started:
        worker.stop()


def test_results_and_generators(echo):
    worker = echo()
    worker.submit("twice", np.arange(3))
    np.testing.assert_array_equal(worker.result(), [0, 2, 4])
    worker.submit("count", 3)
    messages = [worker.receive() for _ in range(4)]
    assert [(message.kind, message.value) for message in messages] == [
        ("item", 0), ("item", 1), ("item", 2), ("result", None),
    ]  # fmt: skip


def test_a_users_mistake_crosses_as_one(echo):
    worker = echo(fail=True)
    worker.submit("twice", 1)
    with pytest.raises(UserError, match="^mend this$"):
        worker.result()


def test_other_errors_carry_their_traceback_and_the_worker_lives(echo):
    worker = echo()
    worker.submit("crash")
    with pytest.raises(RuntimeError, match="KeyError: .inside"):
        worker.result()
    worker.submit("twice", 4)
    assert worker.result() == 8


def test_a_killed_worker_is_one_sentence(echo):
    worker = echo()
    worker.submit("twice", 1)
    worker.result()
    os.kill(worker.process.pid, signal.SIGKILL)
    with pytest.raises(UserError, match="simulator process died with signal SIGKILL"):
        worker.submit("twice", 1)
        worker.result()


def test_a_worker_ignores_ctrl_c_and_ends_with_its_parent(echo):
    worker = echo()
    worker.submit("twice", 1)
    worker.result()
    os.kill(worker.process.pid, signal.SIGINT)
    worker.submit("twice", 3)
    assert worker.result() == 6
    worker.connection.close()
    assert worker.process.wait(timeout=10) == 0


@pytest.fixture(scope="module")
def pool():
    """Two environments with a short limit."""
    with EnvPool(2, task="pushcube", picture_size=(48, 64), max_steps=42) as made:
        yield made


@pytest.fixture(scope="module")
def actions(simulators):
    """An expert's joint targets for PushCube's seed 8, [T, 8], up to the success."""
    simulator = simulators("pushcube")
    simulator.reset([8])
    expert, hand, taken = EXPERTS["pushcube"](simulator.env), make_hand(simulator), []
    while len(taken) < 60:
        taken.append(hand(expert())[0])
        if simulator.step(taken[-1])[1][0]:
            return np.stack(taken)
    raise AssertionError("the expert failed")


def test_both_environments_do_the_same(pool, actions):
    for i in (0, 1):
        pool.submit(i, "reset", 8)
    first, second = pool.result(0), pool.result(1)
    assert first.shape == (48, 64, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    pool.submit(0, "step_chunk", actions[:8], render="all")
    pool.submit(1, "step_chunk", actions[:8])
    waiting = {0, 1}
    while waiting:
        waiting -= set(pool.ready(sorted(waiting)))
    every, last = pool.result(0), pool.result(1)
    assert every.pictures.shape == (8, 48, 64, 3)
    assert last.pictures.shape == (1, 48, 64, 3)
    np.testing.assert_array_equal(every.pictures[-1], last.pictures[0])
    np.testing.assert_array_equal(every.qpos, last.qpos)
    assert (every.steps, every.elapsed, every.success, every.done) == (8, 8, False, False)
    assert every.reward == pytest.approx(last.reward)


def test_the_limit_ends_an_episode(pool, actions):
    pool.reset(0, 8)
    chunks = [pool.step_chunk(0, np.repeat(actions[:1], 8, 0)) for _ in range(6)]
    assert [chunk.steps for chunk in chunks] == [8, 8, 8, 8, 8, 2]
    assert [chunk.done for chunk in chunks] == [False] * 5 + [True]
    assert not chunks[-1].success
    assert pool.step_chunk(0, actions[:8]).steps == 0


def test_a_success_stops_the_chunk(pool, actions):
    pool.reset(0, 8)
    longer = np.concatenate([actions, np.repeat(actions[-1:], 5, 0)])
    assert len(longer) < 42
    chunk = pool.step_chunk(0, longer)
    assert chunk.success
    assert chunk.done
    assert chunk.steps == len(actions)
    pool.reset(0, 8)
    chunk = pool.step_chunk(0, longer, stop_on_success=False)
    assert chunk.success
    assert not chunk.done
    assert chunk.steps == len(longer)


def test_bad_arguments_come_back_as_the_users():
    with EnvPool(1, task="flycube") as pool, pytest.raises(UserError, match="unknown task"):
        pool.reset(0, 0)
