"""A run's folder and its `config.json`."""

import json
import os
from pathlib import Path

from par_jax import config as config_lib
from par_jax import processes
from par_jax.errors import UserError

# Sub-folder of a run with its best checkpoint, see `par_jax.best`.
BEST = "best"
# What only the `config.json` of a released policy has, see `par_jax.release`.
RELEASED = "released"


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


def results_home(checkpoint: Path, meta: dict) -> Path:
    """Where what a checkpoint does is written: its own folder, but not a released one, which stays as it is."""
    return Path("runs") / f"{checkpoint.resolve().name}-shipped" if RELEASED in meta else checkpoint


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


def config_of(meta: dict, folder: Path | str) -> config_lib.Config:
    """The configuration that a folder's `config.json` holds.

    Raises:
      UserError: it is of another program version.
    """
    try:
        return config_lib.from_dict(meta["config"])
    except TypeError as error:
        raise UserError(f"{folder}/config.json does not fit this version of par_jax: {error}") from error
