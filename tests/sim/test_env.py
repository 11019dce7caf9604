import jax.numpy as jnp
import numpy as np
import pytest

from par_jax.errors import UserError
from par_jax.sim import bridge
from par_jax.sim.env import Env


@pytest.fixture(scope="module")
def env():
    """One environment in this process."""
    made = Env("pushcube", picture_size=(64, 96), max_steps=3)
    yield made
    made.close()


def hold(env, picture_of=None):
    """The action that stays: the robot's present joints and a closed gripper, f32 [1, 8]."""
    qpos = env.simulator.qpos()[:, :7].numpy()
    return jnp.concatenate([jnp.asarray(qpos), -jnp.ones((1, 1))], 1)


def test_shapes_and_types(env):
    picture = env.reset([0])
    assert (picture.shape, picture.dtype) == ((1, 64, 96, 3), jnp.uint8)
    step = env.step(hold(env))
    assert (step.reward.shape, step.reward.dtype) == ((1,), jnp.float32)
    assert (step.success.shape, step.success.dtype) == ((1,), jnp.bool_)
    assert (step.elapsed.tolist(), step.truncated.tolist()) == ([1], [False])


def test_two_cameras(env):
    both = Env("pushcube", picture_size=(64, 96), cameras=("render", "base"))
    try:
        picture = both.reset([0])
        assert (picture.shape, picture.dtype) == ((1, 64, 192, 3), jnp.uint8)
        np.testing.assert_array_equal(picture[:, :, :96], env.reset([0]))
    finally:
        both.close()


def test_the_limit(env):
    env.reset([0])
    steps = [env.step(hold(env)) for _ in range(3)]
    assert [step.truncated.tolist() for step in steps] == [[False], [False], [True]]
    assert env.reset([0]) is not None
    assert env.step(hold(env)).elapsed.tolist() == [1]


def test_pictures_and_actions_cross_without_a_copy(env):
    env.reset([0])
    tensor = env.simulator.picture()
    assert bridge.to_jax(tensor).unsafe_buffer_pointer() == tensor.data_ptr()
    action = hold(env)
    assert bridge.to_torch(action).data_ptr() == action.unsafe_buffer_pointer()


def test_a_picture_survives_the_next_one_on_the_cpu(env):
    first = env.reset([0])
    before = np.array(first)
    other = env.reset([1])
    np.testing.assert_array_equal(np.asarray(first), before)
    assert not np.array_equal(np.asarray(other), before)


def test_actions_arrive(env):
    env.reset([0])
    target = hold(env).at[0, 0].add(0.2)
    before = env.simulator.qpos()[0].numpy().copy()
    for _ in range(3):
        env.step(target)
    moved = env.simulator.qpos()[0].numpy() - before
    assert moved[0] > 0.1
    assert np.abs(moved[1:7]).max() < 0.03


def test_wrong_shape(env):
    with pytest.raises(ValueError, match=r"expected \(1, 8\)"):
        env.step(jnp.zeros((2, 8)))


def test_many_are_the_same_as_one(env):
    many = Env("pushcube", picture_size=(64, 96), num_envs=2)
    try:
        pictures = many.reset([0, 1])
        np.testing.assert_array_equal(pictures[1], env.reset([1])[0])
        action = hold(env).at[0, 1].add(0.1)
        both = many.step(jnp.concatenate([action, action]))
        alone = env.step(action)
        assert float(both.reward[1]) == pytest.approx(float(alone.reward[0]), rel=1e-6)
        np.testing.assert_array_equal(many.render()[1], env.render()[0])
        assert both.elapsed.tolist() == [1, 1]
    finally:
        many.close()


@pytest.mark.parametrize("arguments", [{"num_envs": 1}, {"num_envs": 2}, {"apart": True}])
def test_bad_task(arguments):
    with pytest.raises(UserError, match="unknown task"):
        Env("flycube", **arguments)


@pytest.mark.parametrize("arguments", [{"num_envs": 1}, {"num_envs": 2}, {"apart": True}])
def test_a_gpu_that_is_not_there(arguments):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match="no CUDA GPU"):
        Env("pushcube", device="gpu", **arguments)
