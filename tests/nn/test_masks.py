import jax.numpy as jnp
import numpy as np

from par_jax.nn.masks import own_package_mask_at, package_mask, package_of


def test_the_example_of_the_docstring():
    picture = """
        1 . . . . . . . .
        1 1 1 . . . . . .
        1 1 1 . . . . . .
        1 1 1 1 . . . . .
        1 1 1 1 1 . . . .
        1 1 1 1 1 1 1 . .
        1 1 1 1 1 1 1 . .
        1 1 1 1 1 1 1 1 .
        1 1 1 1 1 1 1 1 1
    """
    lines = picture.splitlines()[1:-1]
    wanted = np.array([[c == "1" for c in line.split()] for line in lines])
    np.testing.assert_array_equal(package_mask(text=1, frame=2, action=2, packages=2, context=9), wanted)


def test_the_window_ends_after_context_packages():
    mask = np.asarray(package_mask(text=2, frame=3, action=1, packages=4, context=2))
    of = np.asarray(package_of(text=2, size=4, packages=4))
    for row in range(2, 18):
        seen = set(of[mask[row]])
        assert seen == {-1, of[row], of[row] - 1} - {-2} if of[row] else {-1, 0}


def test_an_action_sees_its_frame_and_the_actions_before_it():
    mask = own_package_mask_at(jnp.arange(5)[:, None], jnp.arange(5)[None, :], frame=2)
    wanted = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(mask, np.array(wanted, bool))
