"""Training sequences for the policy: windows of N packages that start at any control step with a picture.

Axes as in `par_jax.types`; T actions of an episode, s the control step of a window's frame O_0.
"""

import dataclasses
import functools

import grain
import numpy as np

from par_jax.data.pictures import picture_place
from par_jax.types import Batch

ENDLESS = 2**40  # steps


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
    _length: np.ndarray = dataclasses.field(init=False, repr=False)
    _joined: dict[str, np.ndarray] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        taught = self.taught or [np.ones(len(actions), bool) for actions in self.actions]
        joined = {"actions": self.actions, "executed": self.executed, "taught": taught}
        object.__setattr__(self, "_stride", np.broadcast_to(self.stride, len(self.actions)))
        object.__setattr__(self, "_length", np.array([len(actions) for actions in self.actions]))
        # Of all episodes one after the other, so that a batch is one look-up.
        object.__setattr__(self, "_joined", {name: np.concatenate(each) for name, each in joined.items()})

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

    def cut(self, episodes: np.ndarray, starts: np.ndarray) -> Batch:
        """The windows of `episodes`, int [B], at the control steps `starts`, int [B].

        After an episode's end the robot holds: the last frame and the last action repeat (or `rest`), and
        are targets for one chunk's time; what follows is not.
        """
        n, chunk = self.packages, self.chunk
        length, starts = self._length[episodes], np.asarray(starts)
        frames = np.minimum(starts[:, None] + chunk * np.arange(n + 1), length[:, None])
        places = picture_place(frames, self._stride[episodes][:, None])
        latents = [self.latents[episode][place] for episode, place in zip(episodes, places, strict=True)]
        steps = starts[:, None, None] + chunk * (np.arange(n + self.lookahead)[:, None] - 1) + np.arange(chunk)
        valid = steps[:, 1:] < length[:, None, None] + chunk
        # A chunk is a plan: it ends where something else was done.
        valid &= np.logical_and.accumulate(self._at("taught", episodes, steps[:, 1:]), axis=-1)
        return Batch(
            latents=np.stack(latents).astype(np.float32),
            executed=self._held("executed", episodes, steps[:, :n]),
            actions=self._held("actions", episodes, steps[:, 1:]),
            has_past=starts >= chunk,
            valid=valid,
            frame_valid=valid[:, :n, 0],
            text=np.stack([self.texts[task] for task in self.tasks[episodes]]),
        )

    def _at(self, name: str, episodes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """What each of `episodes` [B] has at `steps` [B, N, L]; its first or last beyond its ends: [B, N, L, (A)]."""
        length = self._length[episodes][:, None, None]
        first = np.cumsum(self._length)[episodes][:, None, None] - length
        return self._joined[name][first + np.clip(steps, 0, length - 1)]

    def _held(self, name: str, episodes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Actions at `steps` [B, N, L], and what holds the robot beyond an episode's end: float32 [B, N, L, A]."""
        taken = self._at(name, episodes, steps)
        if self.rest is not None:
            ended = steps >= self._length[episodes][:, None, None]
            taken = np.where(ended[..., None], self.rest, taken)
        return taken.astype(np.float32)


def window_batches(
    windows: Windows, ids: np.ndarray, batch: int, seed: int, start_share: float, rows: slice = slice(None)
) -> grain.DatasetIterator:
    """Endless training batches: every episode of `ids` once before any comes twice, each time at a new start.

    Deterministic in (seed, step); the iterator's `get_state` is its position. Only `rows` of each batch are cut: every
    process draws the whole batch, and makes its own part of it.
    """
    ids = np.asarray(ids)

    @functools.lru_cache(maxsize=4)
    def order(around: int) -> np.ndarray:
        return np.random.default_rng([seed, 0, around]).permutation(ids)

    def make(step: int) -> Batch:
        rng = np.random.default_rng([seed, 1, step])
        around, place = np.divmod(step * batch + np.arange(batch), len(ids))
        episodes = np.array([order(int(a))[p] for a, p in zip(around, place, strict=True)])
        starts = np.array([windows.draw_start(int(episode), rng, start_share) for episode in episodes])
        return windows.cut(episodes[rows], starts[rows])

    # Grain's own shuffle, row by row, takes longer than a GPU's step.
    return iter(
        grain.MapDataset.range(ENDLESS)
        .map(make)
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    )


def validation_batches(windows: Windows, ids: np.ndarray, batch: int, count: int) -> list[Batch]:
    """The same `count` batches at every call; every other window starts at its episode's first frame."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        episodes = [int(ids[(number * batch + row) // 2 % len(ids)]) for row in range(batch)]
        starts = [windows.draw_start(episode, rng, 0.0) if row % 2 else 0 for row, episode in enumerate(episodes)]
        made.append(windows.cut(np.array(episodes), np.array(starts)))
    return made
