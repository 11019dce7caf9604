"""Demonstrations on disk: writing shards, reading episodes, statistics. Knows no simulator.

A folder holds `dataset.json` (what the data is: task, control mode, cameras, size of one camera's picture, seeds,
versions) and
`episodes-<first seed>.array_record` shards, one for each block of consecutive seeds. An episode is two records, so that
the numbers can be read without its pictures:

  numbers (safetensors)   action   f32 [T, A]     what to do, in the control mode's units
                          executed f32 [T, A]     what was done: `action` plus the recorder's noise
                          taught   bool [T]       where `action` is to be learnt (all of it, where this is missing)
                          qpos     f32 [T+1, J]   joint positions, radians (fingers: metres)
                          seed     i64 [1]
  pictures (safetensors)  picture_bytes u8 [sum]  concatenated PNG files, each of all cameras from left to right
                          picture_ends  i64 [P]   where each ends

The P pictures are of every `picture_every`-th control step, and of the end: T + 1 where it is 1
(`par_jax.data.pictures.picture_counts`).

Axes: E episodes, T actions, P pictures, A action numbers, J joints, H W picture of one camera, n cameras.
"""

import errno
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save

from par_jax.data.pictures import Demonstrations
from par_jax.errors import UserError
from par_jax.tasks import get_robot

FORMAT = 1
META = "dataset.json"
MOTION = "motion"
"""What `source` says where nobody demonstrates anything: videos to learn from how things move."""

BLOCK = 20
"""Seeds of one shard."""

RECORDS = 2
"""Records of one episode."""

PICTURE_KEYS = ("picture_bytes", "picture_ends")


def shard_name(first_seed: int) -> str:
    """File name of the shard that starts with a seed."""
    return f"episodes-{first_seed:08d}.array_record"


def join_pictures(files: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Encoded pictures as the record's two arrays, u8 [sum] and i64 [len(files)]."""
    return {
        "picture_bytes": np.frombuffer(b"".join(files), np.uint8),
        "picture_ends": np.cumsum([len(file) for file in files], dtype=np.int64),
    }


def write_shard(folder: Path, first_seed: int, episodes: Iterable[dict[str, np.ndarray]]) -> Path:
    """Writes one shard under a temporary name and renames it when it is whole.

    Args:
      folder: of the data set; must exist.
      first_seed: of the block.
      episodes: the arrays of the module's head, pictures included.

    Returns:
      the shard's path.

    Raises:
      UserError: the disk is full or not writable; nothing of the shard stays.
    """
    path = folder / shard_name(first_seed)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        try:
            writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
            for episode in episodes:
                pictures = {key: episode[key] for key in PICTURE_KEYS}
                writer.write(save({key: value for key, value in episode.items() if key not in pictures}))
                writer.write(save(pictures))
            writer.close()
            temporary.replace(path)
        except (OSError, RuntimeError) as error:
            raise _disk_error(error, folder) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Replaces `dataset.json` in one move.

    Raises:
      UserError: the disk is full or not writable; the old file stays.
    """
    temporary = folder / f"{META}.{os.getpid()}.tmp"
    try:
        try:
            temporary.write_text(json.dumps(meta, indent=2) + "\n")
            temporary.replace(folder / META)
        except OSError as error:
            raise _disk_error(error, folder) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_meta(folder: Path) -> dict[str, Any]:
    """What `dataset.json` says. Folders older than `cameras` saw through the render camera.

    Raises:
      UserError: there is no such folder or file, or it is not ours.
    """
    if not folder.is_dir():
        raise UserError(f"no data folder at {folder}: collect one with `python -m experiments.collect`")
    file = folder / META
    if not file.is_file():
        raise UserError(f"{folder} holds no {META}: it is not a demonstration folder; name one in --data")
    try:
        meta = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): collect the data again into a new folder") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise UserError(f"{file} is not of format {FORMAT}: collect the data again with this version")
    return {"cameras": ["render"], **meta}


def shards(folder: Path) -> dict[int, Path]:
    """Whole shards of a folder, by first seed, in order."""
    return {int(path.name[9:17]): path for path in sorted(folder.glob("episodes-????????.array_record"))}


def count(shard: Path) -> int:
    """Episodes of a shard.

    Raises:
      UserError: it is cut off or no shard at all.
    """
    try:
        reader = ArrayRecordReader(str(shard))
        records = reader.num_records()
        reader.close()
    except (RuntimeError, ValueError, IndexError) as error:
        raise _damaged(shard) from error
    if records % RECORDS:
        raise _damaged(shard)
    return records // RECORDS


def check_stride(made: "Episodes", chunk: int) -> None:
    """Makes sure that there is a picture at the end of every chunk of actions.

    Raises:
      UserError: there is not.
    """
    if chunk % made.picture_every:
        raise UserError(
            f"{made.path} has a picture every {made.picture_every} control steps, which does not divide the model's "
            f"chunk of {chunk}: collect with another --picture_every"
        )


class Episodes:
    """Random access to a folder's demonstrations, in the order of their seeds.

    Attributes:
      path: the folder.
      meta: what `dataset.json` says.
      picture_every: control steps between pictures, 1 in folders that are older than the field.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        task: str | None = None,
        picture_size: Sequence[int] | None = None,
        control_mode: str | None = None,
        cameras: Sequence[str] | None = None,
    ):
        """Opens a folder; reads no episode yet.

        Args:
          path: the folder that `experiments.collect` wrote.
          task, picture_size (height, width), control_mode: what the caller needs; None accepts any.
          cameras: those to show, in this order; all by default.

        Raises:
          UserError: missing, empty, half-written or damaged, or of another task, picture size or control mode, or
            without a camera that is asked for, or with the arm of one that is not.
        """
        self.path = Path(path)
        self.meta = read_meta(self.path)
        self.picture_every: int = self.meta.get("picture_every", 1)
        self._expect("task", task)
        self._expect("picture_size", None if picture_size is None else list(picture_size))
        self._expect("control_mode", control_mode)
        self._cameras, self._chosen = len(self.meta["cameras"]), self._choose_cameras(cameras)
        found = shards(self.path)
        listed = {int(seed): number for seed, number in self.meta["shards"].items()}
        if not listed:
            raise UserError(
                f"{self.path} is empty: no block of demonstrations was finished; run experiments.collect again"
            )
        if not self.meta["complete"]:
            raise UserError(
                f"{self.path} is half-written: {sum(listed.values())} of {self.meta['episodes_wanted']} demonstrations "
                f"are there; type the experiments.collect command again and it goes on"
            )
        for seed, number in listed.items():
            if seed not in found:
                raise UserError(
                    f"{self.path} lacks the file {shard_name(seed)} that {META} lists: copy the whole folder, or type "
                    "the experiments.collect command again to make it anew"
                )
            if count(found[seed]) != number:
                raise _damaged(found[seed])
        self._source = ArrayRecordDataSource([str(found[seed]) for seed in sorted(listed)])
        self._length = min(len(self._source) // RECORDS, self.meta["episodes_wanted"])
        self._lengths: np.ndarray | None = None

    def __len__(self) -> int:
        """E: at most what was asked of `collect`."""
        return self._length

    def numbers(self, index: int) -> dict[str, np.ndarray]:
        """Arrays of one episode but its pictures: those of the module's head that it has."""
        return self._read(RECORDS * self._check(index))

    def lengths(self) -> np.ndarray:
        """T of every episode, i64 [E]; reads all numbers once."""
        if self._lengths is None:
            self._lengths = np.array([len(self.numbers(index)["action"]) for index in range(len(self))], np.int64)
        return self._lengths

    def strides(self) -> np.ndarray:
        """Control steps between the pictures of every episode, i64 [E]."""
        return np.full(len(self), self.picture_every, np.int64)

    def pictures(self, index: int, places: Sequence[int] | None = None) -> np.ndarray:
        """Pictures of one episode, u8 [len(places), H, n*W, 3], of the n cameras that were asked for.

        Args:
          index: of the episode.
          places: which of its P pictures to decode; all by default.
        """
        record = self._read(RECORDS * self._check(index) + 1)
        data, ends = record["picture_bytes"].data, record["picture_ends"]
        starts = np.concatenate([[0], ends[:-1]])
        chosen = range(len(ends)) if places is None else places
        shown = np.stack([np.asarray(Image.open(io.BytesIO(data[starts[i] : ends[i]]))) for i in chosen])
        if self._chosen is None:
            return shown
        return np.concatenate([np.split(shown, self._cameras, axis=2)[place] for place in self._chosen], axis=2)

    def _check(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        return int(index)

    def _read(self, record: int) -> dict[str, np.ndarray]:
        try:
            return load(self._source[record])
        except (RuntimeError, ValueError, SafetensorError) as error:
            raise UserError(
                f"episode {record // RECORDS} of {self.path} cannot be read ({error}): collect the data again"
            ) from error

    def _expect(self, field: str, wanted: Any) -> None:
        if wanted is not None and self.meta[field] != wanted:
            raise UserError(
                f"{self.path} has {field} {self.meta[field]}, but {wanted} was asked for: name other data in --data or "
                f"collect it with experiments.collect"
            )

    def _choose_cameras(self, wanted: Sequence[str] | None) -> list[int] | None:
        """Places of the cameras that are asked for in a picture; None for all as they are."""
        there = self.meta["cameras"]
        if wanted is None or list(wanted) == there:
            return None
        lacking = [name for name in wanted if name not in there]
        have, want = ",".join(there), ",".join(wanted)
        problem = f"has no pictures of camera {', '.join(lacking)}"
        if not lacking:
            task = self.meta["task"]
            needed, carries = get_robot(task, wanted), get_robot(task, there)
            if needed == carries:
                self.meta = {**self.meta, "cameras": list(wanted)}
                return [there.index(name) for name in wanted]
            problem = f"shows {have}, and so the arm {carries}, where {want} alone is with {needed}"
        raise UserError(
            f"{self.path} {problem}: train with --cameras={have}, or collect other data with --cameras={want}"
        )


def is_delta(meta: dict) -> bool:
    """Whether a folder's actions are moves, and not targets."""
    return "delta" in meta.get("control_mode", "")


def statistics(episodes: Demonstrations, chunk: int | None = None, one_scale: bool = False) -> dict[str, Any]:
    """What normalisation needs, from the numbers alone: no picture is read.

    Args:
      episodes: the demonstrations.
      chunk: L where actions are told as differences from the last executed one, else None. `low` and `high` of the
        arm's numbers (all but the last) then lie about where episodes begin, as far off as the differences of the
        joint that moves most reach: 99.5% of them within a chunk.
      one_scale: the arm's `low` and `high` lie about the middle of each number's range, as far off as the widest
        range reaches.

    Returns:
      plain floats and lists, for JSON: `low`, `high` (0.5% and 99.5% quantiles), `mean`, `std`, each a list of A
      numbers over all `action`s, and `count`, the number of actions.
    """
    records = [episodes.numbers(index) for index in range(len(episodes))]
    actions = np.concatenate([record["action"] for record in records]).astype(np.float64)
    low, high = np.quantile(actions, [0.005, 0.995], axis=0)
    # One scale for all: a joint that hardly moves would else count as much as those that do the work.
    if chunk is not None:
        begin, reach = _reach(records, chunk)
        low[:-1], high[:-1] = begin - reach.max(), begin + reach.max()
    elif one_scale:
        middle, reach = (low + high)[:-1] / 2, (high - low)[:-1] / 2
        low[:-1], high[:-1] = middle - reach.max(), middle + reach.max()
    return {
        "low": low.tolist(),
        "high": high.tolist(),
        "mean": actions.mean(0).tolist(),
        "std": actions.std(0).tolist(),
        "count": len(actions),
    }


def _reach(records: Sequence[dict[str, np.ndarray]], chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the arm begins, and how far a chunk's actions lie from what was executed last: f64 [A-1] each."""
    arm = records[0]["action"].shape[1] - 1
    begin = np.mean([record["qpos"][0, :arm] for record in records], axis=0, dtype=np.float64)
    differences = []
    for record in records:
        action, executed = record["action"][:, :arm], record.get("executed", record["action"])[:, :arm]
        last = np.concatenate([begin[None], executed[:-1]])
        steps = np.minimum(np.arange(len(action))[:, None] + np.arange(chunk), len(action) - 1)
        differences.append(np.abs(action[steps] - last[:, None]).reshape(-1, arm))
    return begin, np.quantile(np.concatenate(differences), 0.995, axis=0)


def _damaged(shard: Path) -> UserError:
    return UserError(
        f"{shard} is damaged or cut off: delete it and type the experiments.collect command again, which makes it anew"
    )


def _disk_error(error: Exception, folder: Path) -> UserError:
    text = str(error)
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text:
        return UserError(
            f"the disk is full: could not write to {folder}; finished shards stay, so free some space and type the "
            "same command again"
        )
    return UserError(f"could not write to {folder}: {text.splitlines()[0]}")
