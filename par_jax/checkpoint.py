"""Whole checkpoints in a run's folder. Knows paths and arrays, never model classes.

A checkpoint is one folder `checkpoints/<step>/` that orbax writes under another name and renames when it is
whole, so a kill at any moment leaves either the checkpoint or nothing. Beside the arrays stand their
checksums: a folder that was damaged afterwards is recognised and the one before it is used.
"""

import contextlib
import errno
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from par_jax import processes
from par_jax.errors import UserError, is_full_disk
from par_jax.trees import Tree, checksum, flatten, nest, string_keys
from par_jax.workdir import BEST, RELEASED, config_of, read_meta


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


def load_params(workdir: Path | str, kind: str = "ema") -> tuple:
    """A trained run's parameters.

    Args:
      workdir: the run's folder.
      kind: "ema", the best that validation has seen, or the last where it has seen none; or "params", the last.

    Returns:
      (config, meta, params): the `Config`; the whole `config.json` with `step` added; nested dicts of numpy arrays,
      as `flax.nnx.merge` takes them: float32, and what adapters leave frozen in the type of its training.

    Raises:
      UserError: there is no checkpoint, every one is damaged, or it is of another program version or released.
    """
    workdir = Path(workdir)
    meta = read_meta(workdir)
    config = config_of(meta, workdir)
    if RELEASED in meta:
        raise UserError(f"{workdir} holds a released policy, and no run: give a run's --workdir")
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
