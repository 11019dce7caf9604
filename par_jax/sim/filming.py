"""What fills a demonstration folder shares: one simulator in a worker process, and blocks of episodes on disk."""

import abc
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from par_jax.data import episodes as disk
from par_jax.sim.simulator import Simulator


class Take:
    """One episode as it is filmed: T actions, T+1 joint positions, and P pictures, `shown` the last of them."""

    def __init__(self, simulator: Simulator, pictures: bool = True, every: int = 1):
        """Films the first picture of the simulator's episode.

        Args:
          simulator: at the episode's begin.
          pictures: without them, empty files stand for them.
          every: control steps between two pictures; the episode's end is filmed in any case.
        """
        self.simulator, self.pictures, self.every = simulator, pictures, every
        self.actions: list[np.ndarray] = []
        self.executed: list[np.ndarray] = []
        self.taught: list[bool] = []
        self.qpos: list[np.ndarray] = []
        self.files: list[bytes] = []
        self.shown: np.ndarray | None = None
        self.see()

    def __len__(self) -> int:
        """T."""
        return len(self.actions)

    def see(self) -> None:
        """Reads the joints, and films the simulator where it is time to."""
        self.qpos.append(self.simulator.qpos()[0].cpu().numpy().astype(np.float32).copy())
        if len(self) % self.every == 0:
            self.film()

    def film(self) -> None:
        """A picture of the simulator as it is now."""
        self.shown = self.simulator.picture()[0].cpu().numpy().copy() if self.pictures else None
        self.files.append(b"" if self.shown is None else png(self.shown))

    def add(self, action: np.ndarray, executed: np.ndarray | None = None, taught: bool = True) -> None:
        """What came of an action, f32 [A].

        Args:
          action: what was meant.
          executed: what was done, where that is told.
          taught: whether the action is to be learnt.
        """
        self.actions.append(action)
        self.taught.append(taught)
        if executed is not None:
            self.executed.append(executed)
        self.see()

    def record(self, seed: int) -> dict[str, np.ndarray]:
        """The record's arrays, as `par_jax.data.episodes` lists them; the simulator is still at the episode's end."""
        if len(self) % self.every:
            self.film()
        return {
            "action": np.stack(self.actions),
            **({"executed": np.stack(self.executed)} if self.executed else {}),
            **({} if all(self.taught) else {"taught": np.array(self.taught)}),
            "qpos": np.stack(self.qpos),
            "seed": np.array([seed], np.int64),
            **disk.join_pictures(self.files),
        }


class Filming(abc.ABC):
    """Fills blocks of a demonstration folder from one simulator; lives in a worker process.

    A subclass says what one episode is.
    """

    def __init__(
        self,
        task: str,
        control_mode: str,
        picture_size: tuple[int, int],
        device: str,
        cameras: Sequence[str],
        picture_every: int,
    ):
        """Makes the simulator; the arguments are its own, and the control steps between pictures."""
        self.picture_every = picture_every
        self.simulator = Simulator(task, control_mode, picture_size, device=device, reward=False, cameras=cameras)

    @abc.abstractmethod
    def episode(self, number: int) -> dict[str, np.ndarray] | None:
        """Episode `number` as a record of `par_jax.data.episodes`, or None where it came to nothing."""

    def numbers(self, first: int, count: int) -> range:
        """The episodes of a block."""
        return range(first, first + count)

    def block(self, folder: str, first: int, count: int) -> Iterator[int]:
        """Records the episodes `first .. first + count - 1` into one shard, which appears when it is whole.

        Yields:
          the number of records so far, after each episode.
        """
        records: list[dict[str, Any]] = []
        for number in self.numbers(first, count):
            record = self.episode(number)
            if record is not None:
                records.append(record)
            yield len(records)
        disk.write_shard(Path(folder), first, records)

    def close(self) -> None:
        """Frees the simulator."""
        self.simulator.close()


def png(picture: np.ndarray) -> bytes:
    """A picture, uint8 [H, W, 3], as a lossless PNG file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=3)
    return file.getvalue()
