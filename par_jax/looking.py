"""What a trained policy looked at in recorded rollouts, and what of the picture that is.

Axes: N packages (looks), L actions, S tokens of text and packages, g grid of a frame's tokens, h w pixels.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from par_jax.checkpoint import load_params
from par_jax.data.pictures import to_unit
from par_jax.errors import UserError
from par_jax.language import instruction_tokens
from par_jax.model.attention_maps import AttentionMaps, attention_maps
from par_jax.model.par import PAR
from par_jax.model.vae import VAE
from par_jax.nn.functional import Functional
from par_jax.normalise import scale_actions
from par_jax.policy import changed_picture
from par_jax.recording import Recording
from par_jax.tasks import SEGMENTS

READINGS = ("last layer", "rollout", "influence")
"""How a map is made of a model: the last layer's attention; attention rollout; the gradient's norm."""


@dataclasses.dataclass(frozen=True)
class Look:
    """What the predicted actions of a recording's first N packages look at.

    Attributes:
      tokens: reading -> [N, S], rows add up to 1.
      heads: [Y, H, N, S], attention of each layer and head.
      text, frame, action: tokens of the instruction, of one frame, of one chunk: the layout of S.
      grid: rows and columns of a frame's tokens.
      segments: uint8 [N, h, w].
      pictures: uint8 [N, h, w, 3].
      context: packages that the model may look back on, its own included.
    """

    tokens: dict[str, np.ndarray]
    heads: np.ndarray
    text: int
    frame: int
    action: int
    grid: tuple[int, int]
    segments: np.ndarray
    pictures: np.ndarray
    context: int

    def frames(self, reading: str) -> np.ndarray:
        """Each package's map over its own frame: [N, g, g], each adds up to 1."""
        rows = self.tokens[reading]
        size = self.frame + self.action
        own = np.stack([row[self.text + n * size :][: self.frame] for n, row in enumerate(rows)])
        return (own / own.sum(-1, keepdims=True)).reshape(-1, *self.grid)

    def by_age(self, rows: np.ndarray) -> np.ndarray:
        """Mass of rows [..., N, S] by kind, of the packages that have a whole context behind them, averaged.

        Returns:
          [..., 2 + 2 * context]: text, packages before the context, then frame and actions of each package of it, the
          oldest first. The mean over the last `N - context + 1` packages; over the last one alone, with zeros before
          it, where the episode is shorter.
        """
        size, width = self.frame + self.action, self.context
        out = []
        for n in range(min(width, rows.shape[-2]) - 1, rows.shape[-2]):
            text, own, _ = np.split(rows[..., n, :], [self.text, self.text + (n + 1) * size], -1)
            own = own.reshape(*own.shape[:-1], n + 1, size)
            kinds = np.stack([own[..., : self.frame].sum(-1), own[..., self.frame :].sum(-1)], -1)
            kinds = np.concatenate([np.zeros((*kinds.shape[:-2], width, 2)), kinds], -2)
            of_context = kinds[..., -width:, :].reshape(*kinds.shape[:-2], -1)
            sums = np.stack([text.sum(-1), kinds[..., :-width, :].sum((-2, -1))], -1)
            out.append(np.concatenate([sums, of_context], -1))
        return np.mean(out, axis=0)


def on_things(maps: np.ndarray, segments: np.ndarray) -> dict[str, tuple[float, float]]:
    """How much of the maps lies on each thing, and how much of the pictures.

    A token's mass is spread evenly over its square of the picture.

    Args:
      maps: [N, g, g], each adds up to 1.
      segments: uint8 [N, h, w], h and w multiples of the grid's.

    Returns:
      name -> (mass, share), means over the pictures; the names are `par_jax.tasks.SEGMENTS` and "all three".
    """
    n, rows, columns = maps.shape
    height, width = segments.shape[1] // rows, segments.shape[2] // columns
    squares = segments.reshape(n, rows, height, columns, width)
    masks = {name: squares == number for number, name in enumerate(SEGMENTS, 1)} | {"all three": squares > 0}
    covered = {name: mask.mean((2, 4)) for name, mask in masks.items()}
    return {name: (float((maps * part).sum((1, 2)).mean()), float(part.mean())) for name, part in covered.items()}


class Looker:
    """A trained run's policy, asked where it looks.

    Args:
      folder: of the run.

    Raises:
      UserError: there is no whole checkpoint of a policy and its VAE in it.
    """

    def __init__(self, folder: Path):
        self.config, meta, par = load_params(folder)
        config, statistics = self.config, meta["statistics"]
        _, _, vae = load_params(folder / "vae")
        self._params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), {"par": par, "vae": vae})
        make_par = Functional(lambda rngs: PAR(config, rngs=rngs))
        make_vae = Functional(lambda rngs: VAE(config.vae, rngs=rngs))
        told = zip(meta["tasks"], meta["instructions"], strict=True)
        self._texts = {task: jnp.asarray(instruction_tokens(config.text, words, folder)) for task, words in told}
        self._scale = lambda actions: scale_actions(actions, statistics["low"], statistics["high"])

        def encode(params: dict, picture: jax.Array) -> jax.Array:
            return make_vae.bind(params["vae"]).encode_frames(to_unit(picture[None]))[0]

        def again(params: dict, picture: jax.Array, before: jax.Array) -> jax.Array:
            return changed_picture(make_vae.bind(params["vae"]), before[None], encode(params, picture)[None])[0]

        def maps(params: dict, latents: jax.Array, actions: jax.Array, text: jax.Array) -> AttentionMaps:
            known = jnp.arange(len(latents)) > 0
            return attention_maps(make_par.bind(params["par"]), latents, actions, known, text, jax.random.key(0))

        self._encode, self._again, self._maps = jax.jit(encode), jax.jit(again), jax.jit(maps)

    def through_the_vae(self, pictures: np.ndarray, before: np.ndarray) -> np.ndarray:
        """What predictions that knew the latents would be: the best that any could be.

        Args:
          pictures: uint8 [P, h, w, 3].
          before: likewise, what was seen when they were predicted.
        """
        pairs = zip(pictures, before, strict=True)
        return np.stack([np.asarray(self._again(self._params, picture, earlier)) for picture, earlier in pairs])

    def maps(self, recording: Recording, task: str, packages: int) -> AttentionMaps:
        """Of a recording's first looks; of `packages` of them, whose last ones are made up where it has fewer.

        Raises:
          UserError: the policy has no transformer.
        """
        if not self.config.model.transformer:
            raise UserError("the policy has no transformer, and so no attention to show")
        count = min(packages, len(recording.looks))
        pictures = recording.at(recording.looks[:count])
        latents = np.stack([np.asarray(self._encode(self._params, picture)) for picture in pictures])
        led = np.concatenate([np.zeros_like(recording.actions[:1]), self._scale(recording.actions)])
        # Nothing sees what comes later: repeated at the end, packages change nothing, and one program serves all.
        fill = np.minimum(np.arange(packages), count - 1)
        return self._maps(self._params, latents[fill], led[fill], self._texts[task])

    def __call__(self, recording: Recording, task: str, packages: int = 8) -> Look:
        """Where the actions of a recording's first `packages` looks, or fewer, look; raises what `maps` does."""
        made = self.maps(recording, task, packages)
        count = min(packages, len(recording.looks))
        m, grid = self.config.model, self.config.latent_size
        frame, text = self.config.frame_tokens, self.config.text.tokens
        size = text + count * (frame + m.chunk)
        heads = np.asarray(made.heads)[:, :, :count, :size]
        tokens = dict(zip(READINGS, (heads[-1].mean(0), made.rolled, made.influence), strict=True))
        return Look(
            {name: np.asarray(rows)[:count, :size] for name, rows in tokens.items()},
            heads,
            text,
            frame,
            m.chunk,
            (grid[0] // m.video_patch, grid[1] // m.video_patch),
            recording.segments[:count],
            recording.at(recording.looks[:count]),
            m.context,
        )
