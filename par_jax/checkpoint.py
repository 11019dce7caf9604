"""A run's folder: `config.json` and whole checkpoints. Knows paths and arrays, never model classes.

A checkpoint is one folder `checkpoints/<step>/` that orbax writes under another name and renames when it is
whole, so a kill at any moment leaves either the checkpoint or nothing. Beside the arrays stand their
checksums: a folder that was damaged afterwards is recognised and the one before it is used.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from par_jax import config as config_lib
from par_jax import processes
from par_jax.errors import UserError

Tree = Any
# Sub-folder of a run with its best checkpoint, see `par_jax.best`.
BEST = "best"
# What only the `config.json` of a released policy has, see `par_jax.release`.
RELEASED = "released"


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def orbax() -> ModuleType:
    """Orbax, imported when it is needed and silenced: it logs pages about errors that it raises anyway."""
    import orbax.checkpoint

    logging.getLogger("absl").addFilter(_not_from_orbax)
    return orbax.checkpoint


def _alone() -> Any:
    """Orbax's word for: no other process takes part, so wait for none."""
    me = jax.process_index()
    return orbax().options.MultiprocessingOptions(primary_host=me, active_processes={me})


def reader() -> Any:
    """An orbax checkpointer with which a process reads pytrees by itself, whatever the others do; to be closed."""
    ocp = orbax()
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_alone())
    return ocp.Checkpointer(handler, multiprocessing_options=_alone())


def flatten(tree: Tree) -> dict[str, Any]:
    """A pytree's leaves by name: dataclass fields, keys and indices joined with `/`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nest(flat: Mapping[str, Any]) -> dict:
    """Nested dicts from names joined with `/`; parts made of digits become integers, as in flax's lists."""
    tree: dict = {}
    for name, leaf in flat.items():
        *parents, last = (int(part) if part.isdecimal() else part for part in name.split("/"))
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def checksum(array: np.ndarray) -> int:
    """Sum of an array's bytes as 32-bit words, modulo 2**64: catches any damaged word, at memory speed."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    words = data[: len(data) // 4 * 4].view(np.uint32)
    tail = int(data[len(words) * 4 :].sum(dtype=np.uint64))
    return (int(words.sum(dtype=np.uint64)) + tail) % 2**64


def _unflatten(template: Tree, arrays: Mapping[str, np.ndarray], folder: Path) -> Tree:
    wanted = flatten(template)
    wrong = [f"{name}: missing" for name in wanted if name not in arrays]
    wrong += [f"{name}: not part of this model" for name in arrays if name not in wanted]
    wrong += [
        f"{name}: {arrays[name].dtype}{list(arrays[name].shape)} != {leaf.dtype}{list(leaf.shape)}"
        for name, leaf in wanted.items()
        if name in arrays and (arrays[name].shape, arrays[name].dtype) != (leaf.shape, leaf.dtype)
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"the checkpoint in {folder} is of another model or preset: {'; '.join(wrong[:5])}{more}")
    return jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in wanted])


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an exception, or one that caused it, says that the disk is full; orbax says so in words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_json(path: Path, value: dict) -> None:
    """Writes a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_meta(workdir: Path | str) -> dict:
    """The `config.json` of a run's folder.

    Raises:
      UserError: the folder or the file is missing or is not what a run writes.
    """
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise UserError(f"{workdir} holds no checkpoint: {path} is missing; give the --workdir of a trained run")
    try:
        meta = json.loads(path.read_text())
        meta["config"]["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); train again into a new --workdir") from error
    return meta


def claim(workdir: Path | str, meta: dict, ignore: tuple[str, ...] = ()) -> dict:
    """Makes a run's folder, or makes sure that it belongs to the same run; of several processes, the first makes it.

    Args:
      workdir: the run's folder.
      meta: what `config.json` shall hold; its `versions` may differ from those that began the run.
      ignore: dotted names of further fields that may differ.

    Returns:
      The folder's `config.json`, which is `meta` for a new run.

    Raises:
      UserError: the folder belongs to a run with another configuration or other data; names the fields.
    """
    workdir = Path(workdir)
    meta = json.loads(json.dumps(meta))
    return processes.in_turn(lambda: _claim(workdir, meta, ignore))


def _claim(workdir: Path, meta: dict, ignore: tuple[str, ...]) -> dict:
    if not (workdir / "config.json").exists():
        write_json(workdir / "config.json", meta)
        return meta
    found = read_meta(workdir)
    differing = [
        line
        for line in config_lib.differences({**found, "config": _completed(found["config"])}, meta)
        if not any(line.startswith((f"{name}.", f"{name}:")) for name in (*ignore, "versions"))
    ]
    if differing:
        shown = "; ".join(line if len(line) < 200 else line[:200] + "..." for line in differing[:8])
        raise UserError(
            f"{workdir} holds a run with other settings (there != asked for): {shown}; "
            "give the settings it was started with, or another --workdir"
        )
    return found


def _completed(values: dict) -> dict:
    """A configuration with the defaults of fields that are younger than it."""
    try:
        return config_lib.to_dict(config_lib.from_dict(values))
    except TypeError:
        return values


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds a run's folder for this process; the lock ends with the process, however that ends.

    Raises:
      UserError: another process trains in the folder.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    handle = os.open(workdir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process trains in {workdir}: wait for it, or end it") from error
        yield
    finally:
        os.close(handle)


class Checkpoints:
    """The checkpoints of one run: saved asynchronously, restored whole.

    Of several processes, which all have to call the same methods, the first one writes.

    Args:
      workdir: the run's folder.
      keep: how many to keep; two or more, so that a damaged one has a predecessor.
    """

    def __init__(self, workdir: Path | str, keep: int = 3):
        ocp = orbax()
        self.workdir = Path(workdir)
        self.folder = self.workdir.absolute() / "checkpoints"
        self.saved: int | None = None
        self._manager = None
        if not processes.leads():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep, cleanup_tmp_directories=True, create=False, multiprocessing_options=_alone()
                ),
                item_names=("state", "meta"),
            )
        except OSError as error:
            raise self.explained(error) from error

    def save(self, step: int, state: Tree, progress: dict) -> None:
        """Starts writing a checkpoint and returns; the arrays are copied first, so they may be donated.

        Args:
          step: of the state.
          state: pytree of arrays, which may be spread over devices and processes.
          progress: JSON-able: the data's position and what else must go on.

        Raises:
          UserError: the disk is full (also when that struck the checkpoint before this one).
        """
        arrays = {}
        for name, leaf in flatten(state).items():
            array = processes.whole(leaf)
            if processes.leads():
                arrays[name] = array
        processes.in_turn(lambda: self._write(step, arrays, progress))
        self.saved = step

    def _write(self, step: int, arrays: dict[str, np.ndarray], progress: dict) -> None:
        if self._manager is None:
            return
        ocp = orbax()
        sums = {name: checksum(array) for name, array in arrays.items()}
        try:
            # Seen beforehand, a full disk costs nothing; orbax's threads would leave half a checkpoint.
            if shutil.disk_usage(self.folder).free < sum(array.nbytes for array in arrays.values()) + 2**16:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(string_keys(nest(arrays))),
                    meta=ocp.args.JsonSave({"progress": progress, "checksums": sums}),
                ),
                force=True,
            )
        except Exception as error:
            raise self.explained(error) from error

    def wait(self) -> None:
        """Returns when the last checkpoint is on disk.

        Raises:
          UserError: the disk is full.
        """
        processes.in_turn(self._finish)

    def _finish(self) -> None:
        if self._manager is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self.explained(error) from error

    def restore(self, template: Tree) -> tuple[int, Tree, dict] | None:
        """The latest whole checkpoint, or None: (step, numpy pytree like `template`, progress).

        A damaged one is moved aside, with a warning, and the one before it is taken.

        Args:
          template: pytree of arrays or `jax.ShapeDtypeStruct`.

        Raises:
          UserError: all are damaged, the model is another one, or not every process sees the same folder.
        """
        found = processes.in_turn(self._find)
        seen = -1 if found is None else found[0]
        if processes.agree(seen) != -processes.agree(-seen):
            raise UserError(f"not every process sees the same {self.folder}: give a --workdir that all of them share")
        if found is None:
            return None
        step, arrays, progress = found
        self.saved = step
        return step, _unflatten(template, arrays, self.workdir), progress

    def _find(self) -> tuple[int, dict[str, np.ndarray], dict] | None:
        found = _latest(self.folder, move_damaged=True)
        if self._manager is not None:
            self._manager.reload()
        return found

    def close(self) -> None:
        """Waits for what is being written and ends the writing threads."""
        if self._manager is not None:
            self._manager.close()

    def explained(self, error: BaseException) -> BaseException:
        """A full disk as a sentence; any other error as it is."""
        if not is_full_disk(error):
            return error
        with contextlib.suppress(Exception):  # the one before may still be on its way
            self._manager.wait_until_finished()  # type: ignore[union-attr]
        whole = _steps(self.folder)
        stands = f"the last good checkpoint, of step {whole[-1]}, stands" if whole else "no checkpoint was written yet"
        return UserError(
            f"the disk of {self.workdir} is full: {stands}; free some space and type the same command again"
        )


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal()) if folder.exists() else []


def string_keys(tree: Any) -> Any:
    """Nested dicts with every key as a string, as orbax stores them."""
    if not isinstance(tree, dict):
        return tree
    return {str(key): string_keys(value) for key, value in tree.items()}


def _read(folder: Path, prefix: str = "") -> tuple[dict[str, np.ndarray], dict]:
    """One checkpoint's arrays by name, those below `prefix` only, and its progress. Raises on any damage."""
    ocp = orbax()
    json_handler = ocp.JsonCheckpointHandler(multiprocessing_options=_alone())
    meta = ocp.Checkpointer(json_handler, multiprocessing_options=_alone()).restore(folder / "meta")
    sums = {name: value for name, value in meta["checksums"].items() if name.startswith(prefix)}
    with reader() as opened:
        stored = flatten(opened.metadata(folder / "state").item_metadata.tree)
        wanted = string_keys(nest({name: 0 for name in stored if name.startswith(prefix)}))
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        tree = opened.restore(
            folder / "state",
            args=ocp.args.PyTreeRestore(item=wanted, restore_args=args, partial_restore=True),
        )
    arrays = {name: np.asarray(leaf) for name, leaf in flatten(tree).items()}
    if set(arrays) != set(sums):
        raise ValueError(f"arrays are missing: {sorted(set(sums) ^ set(arrays))[:3]}")
    for name, array in arrays.items():
        if checksum(array) != sums[name]:
            raise ValueError(f"the checksum of {name} is wrong")
    return arrays, meta["progress"]


def _latest(
    folder: Path, prefix: str = "", move_damaged: bool = False
) -> tuple[int, dict[str, np.ndarray], dict] | None:
    steps = _steps(folder)
    for step in reversed(steps):
        try:
            arrays, progress = _read(folder / str(step), prefix)
        except Exception as error:  # orbax and tensorstore raise whatever they meet in a damaged file
            reason = str(error).strip().split("\n")[0][:160]
            print(f"warning: the checkpoint of step {step} in {folder} is damaged: {reason}", file=sys.stderr)
            continue
        for damaged in [other for other in steps if other > step] if move_damaged else []:
            aside = folder.parent / f"damaged-{damaged}"
            shutil.rmtree(aside, ignore_errors=True)
            (folder / str(damaged)).rename(aside)
        return step, arrays, progress
    if steps:
        raise UserError(
            f"every checkpoint in {folder} is damaged (steps {', '.join(map(str, steps))}); "
            "train again into a new --workdir"
        )
    return None


def config_of(meta: dict, folder: Path | str) -> config_lib.Config:
    """The configuration that a folder's `config.json` holds.

    Raises:
      UserError: it is of another program version.
    """
    try:
        return config_lib.from_dict(meta["config"])
    except TypeError as error:
        raise UserError(f"{folder}/config.json does not fit this version of par_jax: {error}") from error


def load_params(workdir: Path | str, kind: str = "ema", preset: str | None = None) -> tuple:
    """A trained run's parameters.

    Args:
      workdir: the run's folder.
      kind: "ema", the best that validation has seen, or the last where it has seen none; or "params", the last.
      preset: refuse a run of another preset.

    Returns:
      (config, meta, params): the `Config`; the whole `config.json` with `step` added; nested dicts of numpy arrays,
      as `flax.nnx.merge` takes them: float32, and what adapters leave frozen in the type of its training.

    Raises:
      UserError: there is no checkpoint, every one is damaged, or it is of another preset or program version.
    """
    workdir = Path(workdir)
    meta = read_meta(workdir)
    config = config_of(meta, workdir)
    if RELEASED in meta:
        raise UserError(f"{workdir} holds a released policy, which acts and is not trained on: give a run's --workdir")
    if preset is not None and config.name != preset:
        raise UserError(
            f"{workdir} was trained with preset {config.name!r}, not {preset!r}: give --preset={config.name}"
        )
    found = _latest(workdir.absolute() / BEST / "checkpoints", f"{kind}/") if kind == "ema" else None
    found = found or _latest(workdir.absolute() / "checkpoints", f"{kind}/")
    if found is None:
        raise UserError(f"{workdir} holds no checkpoint yet: let its training run reach its first one")
    step, arrays, _ = found
    if meta["stage"] == "policy" and config.lora.rank:
        frozen = _latest(workdir.absolute() / "base" / "checkpoints", "ema/")
        if frozen is None:
            raise UserError(f"{workdir}/base is missing: it holds the frozen weights that the adapters belong to")
        arrays |= {name.replace("ema/", f"{kind}/", 1): array for name, array in frozen[1].items()}
    return config, {**meta, "step": step}, nest(arrays)[kind]
