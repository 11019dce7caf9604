import jax
import jax.numpy as jnp

from par_jax import sampling
from tests.model.conftest import SMALL, par, params  # noqa: F401


def test_frames_and_actions_have_their_shapes_and_depend_on_key_and_condition(par, params):  # noqa: F811
    model, m = par.bind(params), SMALL.model
    z_o = jax.random.normal(jax.random.key(0), (2, SMALL.frame_tokens, m.width))
    z_a = jax.random.normal(jax.random.key(1), (2, m.chunk, m.width))
    frame, same, other_key, other_z = (
        sampling.decode_frame(model, z, jax.random.key(key)) for z, key in ((z_o, 0), (z_o, 0), (z_o, 1), (2 * z_o, 0))
    )
    assert frame.shape == (2, *SMALL.latent_size, SMALL.vae.latent_channels)
    assert jnp.all(frame == same) and not jnp.any(frame == other_key) and not jnp.any(frame == other_z)
    actions = sampling.decode_actions(model, z_a, jax.random.key(0))
    assert actions.shape == (2, m.chunk, m.action_dim)
