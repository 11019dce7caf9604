"""Pictures as the models see them: of each camera a centre crop, moved by a few pixels in training, side by side."""

from collections.abc import Sequence
from typing import Protocol

import grain
import numpy as np

from par_jax.config import PictureConfig


class Demonstrations(Protocol):
    """What this package asks of `par_jax.data.episodes.Episodes`."""

    meta: dict

    def __len__(self) -> int: ...

    def numbers(self, i: int) -> dict:
        """Arrays of episode i other than its pictures: `action` float32 [T, A], `seed` [1], ..."""

    def lengths(self) -> np.ndarray:
        """Actions of each episode, [E]."""

    def strides(self) -> np.ndarray:
        """Control steps between the pictures of each episode, [E]."""

    def pictures(self, i: int, places: Sequence[int] | None = None) -> np.ndarray:
        """Pictures of episode i, of every `stride` control steps and of its end: uint8 [P, H, n*W, 3]."""


def picture_place(step: np.ndarray, stride: np.ndarray | int) -> np.ndarray:
    """Which picture of an episode shows it after `step` control steps, a multiple of `stride` or the episode's last."""
    return -(-step // stride)


def picture_counts(episodes: Demonstrations) -> np.ndarray:
    """P of each episode, [E]."""
    return picture_place(episodes.lengths(), episodes.strides()) + 1


def crop(pictures: np.ndarray, config: PictureConfig, shift: tuple[int, int] = (0, 0)) -> np.ndarray:
    """The crop that the model sees of each camera, `shift` pixels further down and right, from left to right.

    Args:
      pictures: [..., H, n*W, 3] of the n cameras of `config`; numpy or jax.
      config: gives the cameras and the crop's size and place, which are the same for all of them.
      shift: whole pixels; what would leave a camera's picture stays at its edge.

    Returns:
      [..., crop height, n * crop width, 3]; a view of the pictures of a single camera.
    """
    *rest, height, width, colours = pictures.shape
    cameras = len(config.cameras)
    places = []
    for size, wanted, offset, moved in zip((height, width // cameras), config.crop, config.offset, shift, strict=True):
        first = min(max((size - wanted) // 2 + offset + int(moved), 0), size - wanted)
        places.append(slice(first, first + wanted))
    if cameras == 1:
        return pictures[..., *places, :]
    rows, columns = places
    parts = pictures.reshape(*rest, height, cameras, width // cameras, colours)[..., rows, :, columns, :]
    return parts.reshape(*rest, *config.stitched, colours)


def to_unit(pictures: np.ndarray) -> np.ndarray:
    """uint8 0..255 -> float32 -1..1; numpy or jax."""
    return pictures.astype("float32") / 127.5 - 1.0


def split_episodes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation episodes: the last 5% are held out, at least 1, at most 50; int64 each."""
    held_out = min(max(count // 20, 1), 50) if count > 1 else 0
    return np.arange(count - held_out), np.arange(count - held_out, count)


def picture_batches(
    episodes: Demonstrations, ids: np.ndarray, config: PictureConfig, batch: int, seed: int, rows: slice = slice(None)
) -> grain.DatasetIterator:
    """Endless batches of random pictures of the episodes `ids`, each cropped with its own random shift.

    Every picture comes once before any comes twice. Deterministic in (seed, step); the iterator's `get_state`
    is its position. Only `rows` of each batch are read: every process draws all of them, and makes its own part.

    Returns:
      An iterator over uint8 [batch, h, w, 3], or as many rows as `rows` takes.
    """
    counts = picture_counts(episodes)[ids]
    places = np.stack([np.repeat(ids, counts), np.concatenate([np.arange(n) for n in counts])], axis=1)

    def draw(place: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.concatenate([place, rng.integers(-config.shift, config.shift + 1, 2)])

    def load(drawn: np.ndarray) -> np.ndarray:
        return np.stack([crop(episodes.pictures(int(i), [int(s)])[0], config, (y, x)) for i, s, y, x in drawn[rows]])

    return iter(
        grain.MapDataset.source(places)
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(draw)
        .batch(batch)
        .map(load)
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * batch))
    )


def sample_pictures(episodes: Demonstrations, ids: np.ndarray, config: PictureConfig, count: int) -> np.ndarray:
    """`count` unshifted crops, spread over the episodes `ids` and their pictures: uint8 [count, h, w, 3]."""
    last = picture_counts(episodes) - 1
    chosen = np.asarray(ids)[np.linspace(0, len(ids) - 1, count).round().astype(int)]
    places = [round(last[i] * ((k * 0.618034) % 1.0)) for k, i in enumerate(chosen)]
    return np.stack([crop(episodes.pictures(int(i), [p])[0], config) for i, p in zip(chosen, places, strict=True)])
