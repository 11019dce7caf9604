"""What the predicted actions look at: the video encoder's own attention, kept while it is computed again.

Axis legend: N packages, K_package tokens a package, S tokens in all, text first: [text | P_0 | P_1 | ..]; Y layers,
H heads, E width. One robot's episode from its first package on: what a package sees comes from those before it.
"""

import dataclasses

import jax
import jax.numpy as jnp

from par_jax.model.par import PAR
from par_jax.model.video_encoder import VideoEncoder
from par_jax.nn.attention import Block
from par_jax.nn.masks import package_mask

_DRAWS = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionMaps:
    """Where the action tokens of each package look; every row over S adds up to 1.

    Attributes:
      z: [N, K_package, E], the video encoder's outputs.
      heads: [Y, H, N, S] float32, attention of each head, averaged over the package's action tokens.
      rolled: [N, S] float32, attention rollout (Abnar and Zuidema 2020): attention averaged over heads, half of it
        the residual branch's, multiplied through the layers: what has flowed from the tokens at the bottom.
      influence: [N, S] float32, how strongly a small change of each token at the bottom moves the package's Z_A:
        norms of the gradient, from a few random projections.
    """

    z: jax.Array
    heads: jax.Array
    rolled: jax.Array
    influence: jax.Array


def attention_maps(
    model: PAR, latents: jax.Array, actions: jax.Array, known: jax.Array, text: jax.Array, key: jax.Array
) -> AttentionMaps:
    """Encodes an episode's first packages, and keeps who looked where.

    Args:
      model: one with a transformer.
      latents: [N, h, w, C], O_0 .. O_{N-1}.
      actions: [N, L, A], scaled, A_0 .. A_{N-1}, each the chunk that led to the frame.
      known: [N] bool, False where there was none.
      text: [K_text] int32 word ids, or [K_text, dim] embeddings.
      key: of the random projections.
    """
    encoder, time = model.video_encoder, jnp.arange(len(latents), dtype=jnp.float32)[None]
    packages = model.physical_tokens(latents, actions, known, time[0])[None]
    words = model.text_embed(text[None])
    z, mean, heads = _encode(encoder, words, packages, time)
    influence = _influence(encoder, words, packages, time, key)
    return AttentionMaps(z[0], heads[:, 0], _rolled(encoder, mean[:, 0]), influence)


def _encode(
    encoder: VideoEncoder, text: jax.Array, packages: jax.Array, time: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `VideoEncoder.__call__`, and its attention, float32.

    Returns:
      Outputs [B, N, K_package, E]; attention averaged over heads [Y, B, S, S]; the action tokens' own, averaged over
      each package's [Y, B, H, N, S].
    """
    b, n, k, e = packages.shape
    mask = package_mask(encoder.text, encoder.frame_tokens, encoder.config.chunk, n, encoder.config.context)
    x, angles = encoder.joined(text, packages, time)

    def body(block: Block, x: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        q, keys, v = block.attn.project(x, angles)
        scores = jnp.einsum("bshd,bthd->bhst", q * q.shape[-1] ** -0.5, keys, preferred_element_type=jnp.float32)
        shares = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1)
        x = block.finish(x, jnp.einsum("bhst,bthd->bshd", shares.astype(v.dtype), v))
        of_packages = shares[:, :, encoder.text :].reshape(*shares.shape[:2], n, k, -1)
        return x, (shares.mean(1), of_packages[..., encoder.frame_tokens :, :].mean(-2))

    x, (mean, heads) = encoder.stack.scan(body, x)
    return encoder.norm(x[:, encoder.text :]).reshape(b, n, k, e), mean, heads


def _rolled(encoder: VideoEncoder, mean: jax.Array) -> jax.Array:
    """Attention rollout of each package's action tokens: [Y, S, S] -> [N, S]."""
    place = jnp.arange(mean.shape[-1]) - encoder.text
    package = jnp.where(place % encoder.package_tokens >= encoder.frame_tokens, place // encoder.package_tokens, -1)
    packages = (mean.shape[-1] - encoder.text) // encoder.package_tokens
    rows = (package == jnp.arange(packages)[:, None]).astype(mean.dtype) / encoder.config.chunk
    for shares in mean[::-1]:
        rows = (rows + rows @ shares) / 2
    return rows


def _influence(
    encoder: VideoEncoder, text: jax.Array, packages: jax.Array, time: jax.Array, key: jax.Array
) -> jax.Array:
    """Root mean square over random projections of Z_A of the gradient's norm at each token: [N, S], rows add to 1."""
    n = packages.shape[1]
    z, back = jax.vjp(lambda *inputs: encoder(inputs[0], inputs[1], time)[:, :, encoder.frame_tokens :], text, packages)
    draws = jax.random.normal(key, (_DRAWS, *z.shape[2:]), z.dtype)

    def one(index: jax.Array) -> jax.Array:
        """index: package and draw -> squared norms [S]."""
        of_text, of_packages = back(jnp.zeros_like(z).at[0, index[0]].set(draws[index[1]]))
        rows = jnp.concatenate([of_text[0], of_packages[0].reshape(-1, text.shape[-1])])
        return jnp.square(rows.astype(jnp.float32)).sum(-1)

    which = jnp.stack(jnp.meshgrid(jnp.arange(n), jnp.arange(_DRAWS), indexing="ij"), axis=-1)
    norms = jnp.sqrt(jax.lax.map(one, which.reshape(-1, 2)).reshape(n, _DRAWS, -1).mean(1))
    return norms / norms.sum(-1, keepdims=True)
