"""Training sequences for the policy: windows of N packages that start at any control step with a picture.

Axes as in `par_jax.types`; T actions of an episode, s the control step of a window's frame O_0.
"""

import dataclasses

import grain
import numpy as np

from par_jax.data.pictures import picture_place
from par_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Windows:
    """Cuts windows out of episodes that are held as latents and scaled actions.

    Attributes:
      latents: one [P, h, w, C] an episode, any float dtype, memory-mapped or not.
      actions, executed: one float32 [T, A] an episode each, scaled: what to do, and what was done.
      texts: one array a task, [K] int32 token ids of its instruction, or [K, dim] float32 embeddings.
      tasks: int [E], each episode's place in `texts`.
      packages: N.
      chunk: L, actions a package, and control steps between frames.
      rest: [A] or None: the action that holds the robot still after an episode's end, scaled; None where
        repeating the last action does so (position targets).
      lookahead: M, chunks that a package predicts.
      taught: bool [T] an episode, which of its actions are targets; None for all.
      stride: control steps between pictures, of all episodes or int [E] of each; divides L.
    """

    latents: list[np.ndarray]
    actions: list[np.ndarray]
    executed: list[np.ndarray]
    texts: list[np.ndarray]
    tasks: np.ndarray
    packages: int
    chunk: int
    rest: np.ndarray | None = None
    lookahead: int = 1
    stride: np.ndarray | int = 1
    taught: list[np.ndarray] | None = None
    _stride: np.ndarray = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        stride = np.broadcast_to(self.stride, len(self.actions))
        object.__setattr__(self, "_stride", stride)

    def draw_start(self, episode: int, rng: np.random.Generator, start_share: float) -> int:
        """A control step to start from: 0 with probability `start_share`, else any with a whole past chunk.

        A start is never among 1 .. L-1, where the past would be cut, and always has a picture; it leaves a whole chunk
        of actions where the episode is long enough.
        """
        stride = int(self._stride[episode])
        last = max(len(self.actions[episode]) - self.chunk, self.chunk)
        if rng.random() < start_share or len(self.actions[episode]) <= self.chunk:
            return 0
        return stride * int(rng.integers(self.chunk // stride, last // stride + 1))

    def cut(self, episode: int, start: int) -> dict[str, np.ndarray]:
        """The window of an episode at control step `start`: the fields of `Batch`, without the axis B.

        After the episode's end the robot holds: the last frame and the last action repeat (or `rest`), and
        are targets for one chunk's time; what follows is not.
        """
        length = len(self.actions[episode])
        n, chunk = self.packages, self.chunk
        frames = np.minimum(start + chunk * np.arange(n + 1), length)
        steps = start + chunk * (np.arange(n + self.lookahead)[:, None] - 1) + np.arange(chunk)
        valid = steps[1:] < length + chunk
        if self.taught is not None:
            # A chunk is a plan: it ends where something else was done.
            kept = self.taught[episode][np.clip(steps[1:], 0, length - 1)]
            valid &= np.logical_and.accumulate(kept, axis=-1)
        return {
            "latents": np.asarray(self.latents[episode][picture_place(frames, self._stride[episode])], np.float32),
            "executed": self._held(self.executed[episode], steps[:n]),
            "actions": self._held(self.actions[episode], steps[1:]),
            "has_past": np.asarray(start >= chunk),
            "valid": valid,
            "frame_valid": valid[:n, 0],
            "text": self.texts[self.tasks[episode]],
        }

    def _held(self, actions: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """[T, A] at `steps` [...], and what holds the robot beyond their end: float32 [..., A]."""
        taken = actions[np.clip(steps, 0, len(actions) - 1)]
        if self.rest is not None:
            taken = np.where((steps >= len(actions))[..., None], self.rest, taken)
        return taken.astype(np.float32)


def window_batches(
    windows: Windows, ids: np.ndarray, batch: int, seed: int, start_share: float, rows: slice = slice(None)
) -> grain.DatasetIterator:
    """Endless training batches: every episode of `ids` once before any comes twice, each time at a new start.

    Deterministic in (seed, step); the iterator's `get_state` is its position. Only `rows` of each batch are cut: every
    process draws the whole batch, and makes its own part of it.
    """

    def draw(episode: int, rng: np.random.Generator) -> np.ndarray:
        return np.array([episode, windows.draw_start(int(episode), rng, start_share)])

    return iter(
        grain.MapDataset.source(np.asarray(ids))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(draw)
        .batch(batch)
        .map(lambda places: _stack([windows.cut(int(episode), int(start)) for episode, start in places[rows]]))
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    )


def validation_batches(windows: Windows, ids: np.ndarray, batch: int, count: int) -> list[Batch]:
    """The same `count` batches at every call; every other window starts at its episode's first frame."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        cuts = []
        for row in range(batch):
            episode = int(ids[(number * batch + row) // 2 % len(ids)])
            start = 0 if row % 2 == 0 else windows.draw_start(episode, rng, 0.0)
            cuts.append(windows.cut(episode, start))
        made.append(_stack(cuts))
    return made


def _stack(cuts: list[dict[str, np.ndarray]]) -> Batch:
    return Batch(**{name: np.stack([cut[name] for cut in cuts]) for name in cuts[0]})
