"""A trained model as a policy: (carry, picture) -> (carry, the next 8 actions)."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from par_jax import sampling
from par_jax.config import Config
from par_jax.data.pictures import crop, to_unit
from par_jax.language import instruction_tokens
from par_jax.model.par import PAR
from par_jax.model.vae import DECODER, VAE
from par_jax.nn.conv import pictures_only
from par_jax.nn.functional import Functional
from par_jax.nn.stack import unstacked
from par_jax.normalise import centre_and_half
from par_jax.release import load_policy
from par_jax.types import KVCache


def prepared(params: dict) -> dict:
    """`{"par": ..., "vae": ...}` as a `PhysicalStep` runs fastest with: what no step need do again is done.

    Layers stand apart, but for those of the frame encoder, which runs its stack in many lengths.
    """
    par = {name: tree if name == "frame_encoder" else unstacked(tree) for name, tree in params["par"].items()}
    return {"par": par, "vae": pictures_only(params["vae"])}


def _dtype(params: dict) -> jnp.dtype:
    """What the parameters, and so the computation, are made of."""
    return jax.tree.leaves(params["par"])[0].dtype


CHANGED = 0.2
"""A pixel has changed where some colour of it is decoded so much higher or lower, in -1..1."""


def changed_picture(vae: VAE, pictures: jax.Array, latents: jax.Array) -> jax.Array:
    """Pictures that have changed to what latents say.

    A VAE that was trained for minutes leaves out grain and edges. Where the decoder makes of these latents what it
    makes of those seen, they come from the picture; where it makes something else, it is believed.

    Args:
      vae: with its decoder.
      pictures: uint8 [B, h, w, 3], seen.
      latents: [B, h', w', C], scaled, of what follows.

    Returns:
      uint8 [B, h, w, 3].
    """
    seen = to_unit(pictures)
    before = vae.encode_frames(seen.astype(latents.dtype))
    now, then = jnp.split(vae.decode_frames(jnp.concatenate([latents, before])).astype(jnp.float32), 2)
    same = 1.0 - jnp.minimum(jnp.abs(now - then).max(-1, keepdims=True) / CHANGED, 1.0)
    return jnp.clip(jnp.round((now + same * (seen - then) + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


class PhysicalStep:
    """The step from pictures to actions, as pure functions over `{"par": ..., "vae": ...}` for B robots.

    They are not compiled yet: the caller jits them, donates the cache, shards or exports. The parameters may be
    `prepared`; `predict` alone needs the VAE's decoder.

    Args:
      config: of the policy, its `vae` as trained.
    """

    def __init__(self, config: Config):
        self._par = Functional(lambda rngs: PAR(config, rngs=rngs))
        self._vae = Functional(lambda rngs: VAE(config.vae, rngs=rngs))
        self._eye = Functional(lambda rngs: VAE(config.vae, decodes=False, rngs=rngs))

    def start(self, params: dict, text: jax.Array) -> KVCache:
        """The cache before the first observation: text [B, K_text] ids or [B, K_text, dim] embeddings."""
        if jnp.issubdtype(text.dtype, jnp.floating):
            text = text.astype(_dtype(params))
        return sampling.start(self._par.bind(params["par"]), text)

    def act(
        self, params: dict, cache: KVCache, pictures: jax.Array, executed: jax.Array, keys: jax.Array
    ) -> tuple[KVCache, jax.Array, jax.Array, jax.Array]:
        """Looks once and decides.

        Args:
          cache: of B robots.
          pictures: uint8 [B, h, w, 3], what the model sees of the cameras.
          executed: [B, L, A] float32, the chunk that led here, scaled; not read where the cache is empty.
          keys: [B], each robot's own noise.

        Returns:
          The cache, the next chunk [B, L, A] and the look-ahead [B, (M-1) * L, A], both float32 and scaled; and
          [B, K_o, E] for `predict`.
        """
        model = self._par.bind(params["par"])
        dtype = _dtype(params)
        eye = {name: tree for name, tree in params["vae"].items() if name not in DECODER}
        latents = self._eye.bind(eye).encode_frames(to_unit(pictures).astype(dtype))
        return sampling.act(model, cache, latents, executed, keys)

    def predict(
        self, params: dict, cache: KVCache, waiting: jax.Array, pictures: jax.Array, keys: jax.Array
    ) -> jax.Array:
        """The next frame, after `act`.

        Args:
          cache: that `act` has returned.
          waiting: [B, K_o, E], likewise.
          pictures: uint8 [B, h, w, 3], those that `act` has looked at.
          keys: [B].

        Returns:
          uint8 [B, h, w, 3].
        """
        model = self._par.bind(params["par"])
        latents = sampling.decode_frame(model, sampling.frame_condition(model, cache, waiting), keys)
        return changed_picture(self._vae.bind(params["vae"]), pictures, latents)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Carry:
    """What a robot's policy remembers between two calls.

    Attributes:
      cache: of one robot, B = 1.
      executed: [1, L, A] float32, the last chunk, scaled.
      key: of the noise still to be drawn.
    """

    cache: KVCache
    executed: jax.Array
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Info:
    """What `Policy.act` tells besides the actions.

    Attributes:
      predicted: uint8 [h, w, 3], the picture expected after the chunk (the model's crop), or None if not asked for or
        if the model was trained without frame prediction.
    """

    predicted: np.ndarray | None


class Policy:
    """The jitted physical step of one robot, with the frame VAE before it and, on request, behind it.

    Args:
      config: of the policy, its `vae` as trained; it computes in `train.dtype`.
      params: of `PAR`, nested dicts of arrays.
      vae: of `VAE`, likewise; the decoder's only where frames are predicted.
      statistics: `low` and `high` of the actions, as `par_jax.data.episodes.statistics` gives them.
      step: of training, for the record.
      folder: of the run, which holds the instruction's embeddings where a language model reads it.
    """

    def __init__(
        self, config: Config, params: dict, vae: dict, statistics: dict, step: int = 0, folder: Path | str = "."
    ):
        self.config, self.step, self.folder = config, step, Path(folder)
        dtype = config.train.dtype
        self.params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), prepared({"par": params, "vae": vae}))
        self._scale = centre, half = centre_and_half(statistics["low"], statistics["high"])
        step_of = PhysicalStep(config)
        shape = (1, config.model.chunk, config.model.action_dim)

        def init(params: dict, text: jax.Array, key: jax.Array) -> Carry:
            return Carry(step_of.start(params, text[None]), jnp.zeros(shape, jnp.float32), key)

        def act(params: dict, carry: Carry, picture: jax.Array) -> tuple[Carry, jax.Array, jax.Array]:
            key, now = jax.random.split(carry.key)
            cache, actions, _, waiting = step_of.act(params, carry.cache, picture[None], carry.executed, now[None])
            return Carry(cache, actions, key), actions[0] * half + centre, waiting

        def predict(params: dict, carry: Carry, waiting: jax.Array, picture: jax.Array, key: jax.Array) -> jax.Array:
            return step_of.predict(params, carry.cache, waiting, picture[None], key[None])[0]

        self._init, self._act, self._predict = jax.jit(init), jax.jit(act, donate_argnums=1), jax.jit(predict)

    @classmethod
    def load(cls, checkpoint: Path | str, adjust: Callable[[Config], Config] = lambda config: config) -> "Policy":
        """The policy of a trained run's folder, with its averaged (EMA) parameters, or of a released one.

        Args:
          checkpoint: the folder.
          adjust: changes how it samples or computes.

        Raises:
          UserError: there is no whole policy in it.
        """
        config, meta, params = load_policy(checkpoint)
        return cls(adjust(config), params["par"], params["vae"], meta["statistics"], meta["step"], checkpoint)

    def init(self, key: jax.Array, instruction: str) -> Carry:
        """The carry at the start of an episode."""
        text = instruction_tokens(self.config.text, instruction, self.folder)
        return self._init(self.params, text, key)

    def view(self, picture: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
        """The crop of a picture [H, W, 3] that the policy sees, and predicts: [h, w, 3]."""
        return crop(picture, self.config.picture)

    def act(
        self, carry: Carry, picture: np.ndarray | jax.Array, predict_frame: bool = False
    ) -> tuple[Carry, jax.Array, Info]:
        """Looks, and decides on the next chunk, which the caller executes whole before the next call.

        Args:
          carry: of this robot; its arrays are given away.
          picture: uint8 [H, W, 3], what the camera shows now.
          predict_frame: also predict the picture after the chunk; the actions do not depend on it.

        Returns:
          The new carry, the actions [L, A] float32 in the controller's units, and what else there is to tell.
        """
        predict_frame = predict_frame and self.config.model.predict_frames
        key = jax.random.fold_in(carry.key, 1) if predict_frame else None
        seen = self.view(picture)
        carry, actions, waiting = self._act(self.params, carry, seen)
        predicted = np.asarray(self._predict(self.params, carry, waiting, seen, key)) if predict_frame else None
        return carry, actions, Info(predicted)

    def overruled(self, carry: Carry, actions: np.ndarray) -> Carry:
        """The carry where other actions were executed than `act` has decided on.

        Args:
          carry: that `act` has returned.
          actions: f32 [L, A], what was executed, in the controller's units.
        """
        centre, half = self._scale
        return dataclasses.replace(carry, executed=jnp.asarray((np.asarray(actions) - centre) / half)[None])
