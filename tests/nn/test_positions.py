import jax
import jax.numpy as jnp
import numpy as np

from par_jax.nn.positions import action_angles, frame_angles, rotate, sincos_2d


def test_sincos_of_a_small_grid():
    table = sincos_2d(2, 3, 8)
    assert table.shape == (6, 8)
    row, column = 1, 2
    wanted = [
        np.sin([2.0, 0.02]),
        np.cos([2.0, 0.02]),
        np.sin([1.0, 0.01]),
        np.cos([1.0, 0.01]),
    ]
    np.testing.assert_allclose(table[row * 3 + column], np.concatenate(wanted), atol=1e-6)


def test_scores_depend_on_time_differences_only():
    head = 16 * 4
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 6 + 3, 1, head))

    def scores(time):
        angles = jnp.concatenate(
            [frame_angles(time, 2, 3, head, 1e4), action_angles(time, 3, head, 1e4, 100.0)], axis=-2
        )
        later = jnp.concatenate(
            [frame_angles(time + 2, 2, 3, head, 1e4), action_angles(time + 2, 3, head, 1e4, 100.0)], axis=-2
        )
        return jnp.einsum("bshd,bthd->bst", rotate(q, later), rotate(k, angles))

    np.testing.assert_allclose(scores(jnp.zeros(1)), scores(jnp.full(1, 37.0)), atol=2e-4)


def test_actions_are_finer_in_time_and_end_on_their_frame():
    angles = action_angles(jnp.array(3.0), 4, 64, 1e4, 100.0)
    np.testing.assert_allclose(angles[:, 0], [2.25, 2.5, 2.75, 3.0])
    np.testing.assert_allclose(frame_angles(jnp.array(3.0), 1, 1, 64, 1e4)[0, 0], 3.0)


def test_rotation_keeps_lengths():
    x = jax.random.normal(jax.random.key(1), (2, 5, 3, 8))
    angles = jax.random.normal(jax.random.key(2), (2, 5, 4))
    np.testing.assert_allclose(jnp.linalg.norm(rotate(x, angles), axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
