"""Many demonstrations by several processes: blocks of seeds handed out, shards coming back.

What is written depends on the settings alone: not on the number of workers, nor on how often it was interrupted.
"""

import contextlib
import dataclasses
import importlib.metadata
import platform
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from par_jax.data import episodes as disk
from par_jax.data.episodes import MOTION
from par_jax.errors import UserError
from par_jax.locks import locked
from par_jax.sim import vulkan
from par_jax.sim.simulator import SHADER, resolve_device
from par_jax.sim.workers import Worker
from par_jax.tasks import check_control_mode, get_scene, get_task

PACKAGES = ("mani_skill", "sapien", "torch", "numpy", "array_record", "pillow")
"""Whose versions are written down."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the demonstrations depend on.

    Attributes:
      task, control_mode, picture_size, device, cameras: see `par_jax.sim.simulator.Simulator`.
      seed_first: first seed of the expert's episodes.
      noise: whether the expert is disturbed.
      trajectories: ManiSkill's `.h5` file to replay instead of the expert; seeds and noise then mean nothing.
      motion: an arm that moves about at random instead of the expert, for video pretraining; noise then means nothing.
      picture_every: control steps between pictures; the end is filmed in any case.
      lapses: share of the expert's episodes in which the arm does something else for a while.
      around: PushCube's expert goes round the cube, on a side that is drawn: one picture then has two answers.
      policy: folder of a policy that drives in turn with the expert (`par_jax.corrections`), if any.
      takeover: how often the expert takes over after a chunk of that policy's.
      policy_checksum: of its parameters.
    """

    task: str
    control_mode: str = "pd_joint_pos"
    picture_size: tuple[int, int] = (128, 128)
    device: str = "cpu"
    seed_first: int = 0
    noise: bool = True
    trajectories: str | None = None
    cameras: tuple[str, ...] = ("render",)
    motion: bool = False
    picture_every: int = 1
    lapses: float = 0.0
    around: bool = False
    policy: str | None = None
    takeover: float = 0.25
    policy_checksum: int | None = None


# Fields that folders of earlier versions lack, and what those were made with.
_YOUNGER = {name: getattr(Settings, name) for name in ("picture_every", "lapses", "around", "takeover")}


def describe(settings: Settings) -> dict[str, Any]:
    """The part of `dataset.json` that a restart must agree with."""
    task = get_scene(settings.task) if settings.motion else get_task(settings.task)
    return {
        "format": disk.FORMAT,
        "source": MOTION if settings.motion else settings.trajectories or "expert",
        "task": settings.task,
        "env_id": task.env_id,
        "instruction": task.instruction,
        "control_mode": settings.control_mode,
        "cameras": list(settings.cameras),
        "shader": SHADER,
        "picture_size": list(settings.picture_size),
        "picture_every": settings.picture_every,
        "device": resolve_device(settings.device),
        "seed_first": 0 if settings.trajectories else settings.seed_first,
        "block": disk.BLOCK,
        "noise": settings.noise and not settings.trajectories and not settings.motion,
        "lapses": 0.0 if settings.trajectories or settings.motion else settings.lapses,
        "around": settings.around,
        "policy": settings.policy,
        "takeover": settings.takeover,
        "policy_checksum": settings.policy_checksum,
    }


def versions() -> dict[str, str]:
    """Versions of what the data comes from."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def open_folder(folder: Path, described: dict[str, Any]) -> dict[str, Any]:
    """Makes a data folder, or opens one that an earlier run of the same settings left.

    Returns:
      `dataset.json`'s contents, with `shards` telling what is on disk.

    Raises:
      UserError: the folder holds other data (the differing fields are named), or is no data folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error
    if (folder / disk.META).exists():
        meta = {**_YOUNGER, **disk.read_meta(folder)}
        differing = [
            f"{key} {meta.get(key)!r} there, {value!r} asked for"
            for key, value in described.items()
            if meta.get(key) != value
        ]
        if differing:
            raise UserError(
                f"{folder} holds other data ({'; '.join(differing)}): name another folder in --out, or delete it"
            )
    else:
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no {disk.META}: name another folder in --out")
        meta = {**described, "versions": versions(), "episodes_wanted": 0, "complete": False}
    for leftover in folder.glob("*.tmp"):
        leftover.unlink()
    return {**meta, "shards": _whole_shards(folder, meta.get("shards", {}))}


def _whole_shards(folder: Path, listed: dict[str, int]) -> dict[str, int]:
    """Episodes of each shard on disk; damaged ones are deleted, to be made anew."""
    whole = {}
    for seed, path in disk.shards(folder).items():
        try:
            number = disk.count(path)
        except UserError:
            number = -1
        if number < 0 or number != listed.get(str(seed), number):
            print(f"{path} is damaged: making it anew")
            path.unlink()
        else:
            whole[str(seed)] = number
    return whole


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM as Ctrl-C, so that clean-up runs."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def collect(settings: Settings, folder: Path, episodes: int, workers: int) -> str:
    """Records until the folder has enough successes.

    Args:
      settings: of the data.
      folder: to write.
      episodes: successes wanted; fewer than there are trims nothing on disk, readers stop there.
      workers: processes.

    Returns:
      a sentence that says what is there.

    Raises:
      UserError: bad settings, another run's folder, no Vulkan, no GPU, a full disk, a dead worker. Finished shards
        stay.
      KeyboardInterrupt: on Ctrl-C or SIGTERM, after cleaning up.
    """
    check_control_mode(settings.control_mode)
    described = describe(settings)
    if settings.trajectories:
        # Imported here: it brings torch, and a bad flag should be refused in a second.
        from par_jax.sim.replay import read_index

        index = read_index(Path(settings.trajectories), settings.task, settings.control_mode, settings.cameras)
        episodes = min(episodes, len(index))
    vulkan.check(described["device"])
    began = time.monotonic()
    taken = f"another experiments.collect is writing to {folder}: wait for it"
    with locked(folder, taken), terminate_as_interrupt():
        meta = open_folder(folder, described)
        meta["episodes_wanted"] = episodes
        meta["complete"] = sum(meta["shards"].values()) >= episodes
        disk.write_meta(folder, meta)
        if not meta["complete"]:
            _fill(settings, folder, meta, workers)
            meta["complete"] = True
            disk.write_meta(folder, meta)
    there, took = sum(meta["shards"].values()), f"{time.monotonic() - began:.0f} s"
    if settings.trajectories:
        return f"{folder}: {episodes} demonstrations of {settings.task} from {settings.trajectories} ({took})"
    if settings.motion:
        return f"{folder}: {episodes} videos of a moving arm in {settings.task} ({took})"
    return (
        f"{folder}: {episodes} demonstrations of {settings.task} "
        f"({there} successes in {disk.BLOCK * len(meta['shards'])} seeds, {took})"
    )


def _fill(settings: Settings, folder: Path, meta: dict[str, Any], workers: int) -> None:
    """Hands blocks to workers in order, each only when it is certain to be needed."""
    wanted = meta["episodes_wanted"]
    factory, arguments = _source(settings)
    blocks = (seed for seed in range(meta["seed_first"], 10**8, disk.BLOCK) if str(seed) not in meta["shards"])
    running: dict[Worker, list[int]] = {}
    idle = [Worker(factory, **arguments) for _ in range(workers)]
    bar = tqdm(total=wanted, initial=sum(meta["shards"].values()), unit="episode", desc=settings.task, smoothing=0.05)
    try:
        while True:
            while idle and sum(meta["shards"].values()) + disk.BLOCK * len(running) < wanted:
                worker, seed = idle.pop(), next(blocks)
                worker.submit("block", str(folder), seed, disk.BLOCK)
                running[worker] = [seed, 0]
            if not running:
                return
            by_connection: dict[Any, Worker] = {worker.connection: worker for worker in running}
            for connection in wait(list(by_connection)):
                worker = by_connection[connection]
                message = worker.receive()
                if message.kind == "item":
                    bar.update(message.value - running[worker][1])
                    running[worker][1] = message.value
                    continue
                seed, number = running.pop(worker)
                idle.append(worker)
                meta["shards"] = dict(sorted({**meta["shards"], str(seed): number}.items(), key=lambda x: int(x[0])))
                disk.write_meta(folder, meta)
    finally:
        bar.close()
        for worker in [*idle, *running]:
            worker.stop()
        for leftover in folder.glob("*.tmp"):
            leftover.unlink(missing_ok=True)


def _source(settings: Settings) -> tuple[str, dict[str, Any]]:
    """Class of the object that makes demonstrations in a worker, and its arguments."""
    arguments = dataclasses.asdict(settings)
    del arguments["seed_first"], arguments["policy_checksum"]
    trajectories, motion = arguments.pop("trajectories"), arguments.pop("motion")
    if settings.policy is not None:
        return "par_jax.corrections:Corrected", arguments
    del arguments["policy"], arguments["takeover"]
    if trajectories is None and not motion:
        return "par_jax.sim.recorder:Recorder", arguments
    del arguments["noise"], arguments["lapses"], arguments["around"]
    if motion:
        return "par_jax.sim.motion:Motions", arguments
    return "par_jax.sim.replay:Replayer", {"path": trajectories, **arguments}
