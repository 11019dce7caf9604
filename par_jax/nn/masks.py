"""Who sees whom: the causal mask of physical tokens (paper section 4.2.4, fig. 3)."""

import jax
import jax.numpy as jnp


def package_mask(text: int, frame: int, action: int, packages: int, context: int) -> jax.Array:
    """PAR's mask over [text | P_0 | P_1 | ...], each package being [frame tokens | action tokens].

    Text sees text. A frame token sees text, its own frame and all of the earlier packages of its window. An action
    token sees that and the earlier actions of its own chunk and itself. The window is the package itself and the
    `context - 1` before it.

    With text=1, frame=2, action=2, packages=2 (rows look at columns):

        t | f f a a | f f a a
        1 | . . . . | . . . .   text
        1 | 1 1 . . | . . . .   frame 0
        1 | 1 1 . . | . . . .
        1 | 1 1 1 . | . . . .   actions 0
        1 | 1 1 1 1 | . . . .
        1 | 1 1 1 1 | 1 1 . .   frame 1
        1 | 1 1 1 1 | 1 1 . .
        1 | 1 1 1 1 | 1 1 1 .   actions 1
        1 | 1 1 1 1 | 1 1 1 1

    Args:
      text, frame, action: tokens of the instruction, of one frame, of one chunk.
      packages: number of packages.
      context: packages of the window.

    Returns:
      [S, S] bool, True where the row's token sees the column's, S = text + packages * (frame + action).
    """
    size = frame + action
    index = jnp.arange(packages * size)
    package, place = index // size, index % size
    age = package[:, None] - package[None, :]
    earlier = (age > 0) & (age < context)
    body = earlier | ((age == 0) & own_package_mask_at(place[:, None], place[None, :], frame))
    rows = jnp.concatenate([jnp.ones((packages * size, text), bool), body], axis=1)
    head = jnp.concatenate([jnp.ones((text, text), bool), jnp.zeros((text, packages * size), bool)], axis=1)
    return jnp.concatenate([head, rows], axis=0)


def own_package_mask_at(query: jax.Array, key: jax.Array, frame: int) -> jax.Array:
    """Whether the token at place `query` of a package sees the one at place `key` of the same package.

    Places count from 0; the first `frame` of them are frame tokens, the rest actions.
    """
    return (key < frame) | ((query >= frame) & (key <= query))


def package_of(text: int, size: int, packages: int) -> jax.Array:
    """The package number of every token, -1 for text: [S] int32."""
    return jnp.concatenate([jnp.full(text, -1), jnp.repeat(jnp.arange(packages), size)])


def frame_mask(text: int, frame: int, frames: int) -> jax.Array:
    """NOVA's mask over [text | frame 0 | frame 1 | ...]: every token sees its own frame and the earlier ones, and text
    and frame 0 are one bidirectional block.

    Returns:
      [S, S] bool, S = text + frames * frame.
    """
    of = jnp.maximum(package_of(text, frame, frames), 0)
    return of[:, None] >= of[None, :]
