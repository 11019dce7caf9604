"""Attention as pure functions, then the block that NOVA stacks.

Axis legend: B batch, S query tokens, T key tokens, H heads, D head width, E model width (E = H * D).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from par_jax.nn.layers import MLP, LayerNorm, Linear
from par_jax.nn.positions import rotate

# From this many scores a head on, a CPU takes the heads one by one, and of a head as many queries at a time as have
# no more than the second number of scores, but no fewer than the third.
_MANY_SCORES, _MOST_SCORES, _FEW_QUERIES = 2**18, 2**21, 64


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Scaled dot-product attention: q [B, S, H, D], k and v [B, T, H, D] -> [B, S, H, D]; softmax in float32.

    Args:
      mask: bool, broadcastable to [B, S, T]; True where a query sees a key. Every query must see some key.
    """
    return attend_heads(q, jnp.moveaxis(k, -2, -3), jnp.moveaxis(v, -2, -3), mask)


def attend_heads(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """As `attend`, of keys and values whose heads lead, as a cache keeps them: k and v [B, H, T, D]."""
    q = jnp.moveaxis(q * q.shape[-1] ** -0.5, -2, -3)
    if mask is not None:
        mask = mask[:, None] if mask.ndim == 3 else mask[None, None]
    if q.shape[-2] * k.shape[-2] < _MANY_SCORES:
        o = _all_heads(q, k, v, mask)
    else:
        o = jax.lax.platform_dependent(q, k, v, mask, cpu=_piece_by_piece, default=_all_heads)
    return jnp.moveaxis(o, -3, -2)


def _all_heads(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Heads lead in the products: on a CPU this takes two thirds of the time of `jax.nn.dot_product_attention`."""
    scores = jnp.einsum("bhsd,bhtd->bhst", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    shares = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhst,bhtd->bhsd", shares, v)


def _piece_by_piece(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """One head's scores, or some queries' of it, stay in the caches: half the time where there are many of them
    (1800 x 1800: 0.47). A frame VAE's 5760 x 5760 take a fifth: what makes the keys would else be fused into their
    product, and made again for every few queries.
    """
    b, h, s, _ = q.shape
    counts = range(1, s // _FEW_QUERIES + 1)
    pieces = next((n for n in counts if s % n == 0 and s // n * k.shape[-2] <= _MOST_SCORES), 1)
    q = q.reshape(b, h, pieces, s // pieces, -1)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (b, 1, s, k.shape[-2])).reshape(b, pieces, s // pieces, -1)

    def one(index: jax.Array) -> jax.Array:
        (row, head), piece = jnp.divmod(index // pieces, h), index % pieces
        some_q, head_k, head_v = (x[None, None] for x in (q[row, head, piece], k[row, head], v[row, head]))
        return _all_heads(some_q, head_k, head_v, None if mask is None else mask[row, piece])[0, 0]

    return jax.lax.map(one, jnp.arange(b * h * pieces)).reshape(b, h, s, v.shape[-1])


class Attention(nnx.Module):
    """Multi-head attention, in two halves so that a KV cache can stand between them."""

    def __init__(self, dim: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim, rngs=rngs)
        self.proj = Linear(dim, dim, rngs=rngs)

    def project(self, x: jax.Array, angles: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B, S, E] -> q, k, v [B, S, H, D]; q and k turned by `angles` [B or 1, S, D // 2]."""
        qkv = self.qkv(x).reshape(*x.shape[:-1], 3, self.heads, -1)
        q, k, v = qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]
        return (q, k, v) if angles is None else (rotate(q, angles), rotate(k, angles), v)

    def merge(self, o: jax.Array) -> jax.Array:
        """[B, S, H, D] -> [B, S, E]."""
        return self.proj(o.reshape(*o.shape[:-2], -1))


class Block(nnx.Module):
    """NOVA's transformer block: the norms stand behind attention and MLP, inside the residual branch."""

    def __init__(self, dim: int, heads: int, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(dim, rngs=rngs)
        self.attn = Attention(dim, heads, rngs=rngs)
        self.norm2 = LayerNorm(dim, rngs=rngs)
        self.mlp = MLP(dim, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, angles: jax.Array | None = None) -> jax.Array:
        """Args: x [B, S, E]; mask bool [B, S, S] or [S, S]; angles [B or 1, S, D // 2]."""
        return self.finish(x, attend(*self.attn.project(x, angles), mask))

    def finish(self, x: jax.Array, o: jax.Array) -> jax.Array:
        """The block's remainder, from the attention's output o [B, S, H, D]."""
        x = x + self.norm1(self.attn.merge(o))
        return x + self.norm2(self.mlp(x))
