"""The arrays that travel between the parts, as dataclass pytrees.

Axis legend: B sequences or robots, N packages, M chunks predicted together, L actions a chunk, A action dimensions,
K tokens of the kind named, S query tokens (in the action head the M * L actions), T key tokens, H heads, D head width,
Y layers, C latent channels, h w latent rows, columns.
"""

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Training sequences of N packages and what follows them (paper section 4.1).

    Package n holds frame O_n and the chunk A_n that led from O_{n-1} to O_n. The output at package n - 1 predicts
    frame O_n and the M chunks from A_n on, so a sequence of N packages carries N + 1 frames and N + M - 1 chunks to
    predict. What is read is what was executed, as in a rollout; what is predicted is what should have been: where the
    recorder disturbed the expert, the two differ.

    Attributes:
      latents: [B, N+1, h, w, C] float32, scaled frame latents of O_0 .. O_N.
      executed: [B, N, L, A] float32, A_0 .. A_{N-1} as executed, scaled to about [-1, 1]; A_0 is only read where
        `has_past`.
      actions: [B, N+M-1, L, A] float32, the targets A_1 .. A_{N+M-1}, scaled alike. Both are absolute where the control
        mode is: a model of relative actions takes the difference itself.
      has_past: [B] bool, False where O_0 is the episode's first frame (A_0 is then begin-of-action tokens).
      valid: [B, N+M-1, L] bool, which actions of A_1 .. A_{N+M-1} are targets.
      frame_valid: [B, N] bool, which of O_1 .. O_N are targets.
      text: [B, K] int32 word ids of the instruction, or [B, K, dim] float32, a language model's embeddings of it.
    """

    latents: jax.Array
    executed: jax.Array
    actions: jax.Array
    has_past: jax.Array
    valid: jax.Array
    frame_valid: jax.Array
    text: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ahead:
    """What a step before expected of the chunks that are predicted now, all but the last (PhysGen's look-ahead).

    Attributes:
      actions: [R, (M-1) * L, A], for R robots or packages.
      known: [R] bool, False where there is none.
    """

    actions: jax.Array
    known: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """What a robot's next step needs of those before: keys and values of the video encoder for B robots, as a text
    prefix and a ring of the last W packages; and the look-ahead.

    All robots write to the same slot of the ring, and `time` says how many of the slots behind it are a robot's own:
    one whose episode begins anew, whenever that is, gets time 0.

    Attributes:
      k, v: [Y, B, H, K_text + W * K_package, D]. Heads stand before tokens, as attention's products read them.
      slot: [] int32, of the package that comes next.
      time: [B] int32, packages seen so far.
      ahead: [B, (M-1) * L, A] float32, of the last step.
    """

    k: jax.Array
    v: jax.Array
    slot: jax.Array
    time: jax.Array
    ahead: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FrameCache:
    """Keys and values of NOVA's video encoder: text and frames, in the order in which they came.

    Attributes:
      k, v: [Y, B, T, H, D], T tokens in all.
      length: [] int32, tokens in it so far.
    """

    k: jax.Array
    v: jax.Array
    length: jax.Array
