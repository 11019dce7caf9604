"""A published checkpoint: a folder in diffusers' layout, or a hub's `owner/name`; weights are found, not yet read."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convert.apply import Tensor
from convert.pickled import read_bin
from convert.tensors import read_safetensors
from par_jax.errors import UserError
from par_jax.tokenizer import load_tokenizer

INDEX = "model_index.json"
TOKENIZER = "tokenizer"
# Component -> its configuration's file and the name that its weights' files begin with.
FILES = {
    "transformer": ("config.json", "diffusion_pytorch_model"),
    "vae": ("config.json", "diffusion_pytorch_model"),
    "text_encoder": ("config.json", "model"),
    "scheduler": ("scheduler_config.json", None),
}
REQUIRED = ("transformer", "vae", "scheduler")
# Other programs' name of the same file.
_BIN = {"model": "pytorch_model"}
_READERS: dict[str, Callable[[Path], Any]] = {"safetensors": read_safetensors, "bin": read_bin}


@dataclasses.dataclass(frozen=True)
class Component:
    """One sub-folder.

    Attributes:
      config: its configuration's content.
      tensors: by torch name; empty for the scheduler.
      files: all that was read or will be.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    files: tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class Source:
    """A published checkpoint.

    Attributes:
      name: what the user typed.
      revision: the hub's commit; None for a local folder.
      folder: where the files are.
      index: content of `model_index.json`.
      components: those that are there, of `FILES`.
      tokenizer: the tokenizer's files, none if the checkpoint has no tokenizer.
    """

    name: str
    revision: str | None
    folder: Path
    index: dict[str, Any]
    components: dict[str, Component]
    tokenizer: tuple[Path, ...]

    def class_name(self, component: str) -> Any:
        """The Python class that published the component: its own word, or else the index's; None if neither tells.

        Raises:
          UserError: the two differ.
        """
        said = self.components[component].config.get("_class_name")
        entry = self.index.get(component)
        indexed = entry[-1] if isinstance(entry, list) and entry else None
        if said is not None and indexed is not None and said != indexed:
            raise UserError(
                f"{self.folder / component} contradicts {INDEX}: it says {said!r}, and the index {indexed!r}"
            )
        return indexed if said is None else said

    def checksums(self) -> dict[str, str]:
        """SHA-256 of every file, by its path in the folder."""
        files = [self.folder / INDEX, *self.tokenizer]
        files += [path for component in self.components.values() for path in component.files]
        made = {}
        for path in sorted(files):
            with path.open("rb") as file:
                made[str(path.relative_to(self.folder))] = hashlib.file_digest(file, "sha256").hexdigest()
        return made


def open_source(name: str, revision: str | None = None) -> Source:
    """Finds all that a checkpoint has, and checks its files' structure.

    Args:
      name: a folder, or a hub id `owner/name`.
      revision: the hub's branch, tag or commit.

    Raises:
      UserError: something is missing, damaged, or could not be downloaded.
    """
    folder, commit = _fetch(name, revision)
    if not (folder / INDEX).is_file():
        raise UserError(
            f"{folder} holds no {INDEX}: give --src the whole checkpoint, with transformer/, vae/ and scheduler/"
        )
    try:
        components = {
            component: _component(folder / component, *names)
            for component, names in FILES.items()
            if component in REQUIRED or (folder / component).exists()
        }
        tokenizer = _tokenizer(folder / TOKENIZER) if (folder / TOKENIZER).exists() else ()
        return Source(name, commit, folder, read_json(folder / INDEX), components, tokenizer)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file.

    Raises:
      UserError: the file is missing or is none.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: fetch the checkpoint again")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): fetch it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged (it holds no JSON object): fetch it again")
    return values


def _fetch(name: str, revision: str | None) -> tuple[Path, str | None]:
    folder = Path(name)
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"{name} is a local folder, which has no --revision: leave it out")
        return folder.resolve(), None
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) or folder.exists():
        raise UserError(f"there is no folder {name}: give --src a checkpoint's folder or a hub id owner/name")
    # Slow to import, and needed for this alone.
    import huggingface_hub
    from huggingface_hub import errors

    wanted = [INDEX, *(f"{component}/*" for component in (*FILES, TOKENIZER))]
    try:
        path = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted)
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{name} is neither a local folder nor in the cache, and the hub cannot be reached: "
            "go online, or give --src a folder"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"the hub's {name} has no revision {revision!r}: give --revision a branch, tag or commit"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is neither a folder {name} nor a public checkpoint of this name on the hub: "
            "check --src, or log in with `hf auth login` if it is private"
        ) from error
    except Exception as error:  # the library lets through what its HTTP client and the file system raise
        said = str(error).strip().split("\n")[0][:160]
        raise UserError(f"{name} could not be downloaded ({said}): type the same command again to go on") from error
    # A snapshot's folder is named by its commit: that is what was read, wherever the branch goes.
    return Path(path), Path(path).name


def _component(folder: Path, config: str, stem: str | None) -> Component:
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: the checkpoint is not whole, fetch it again")
    values, files = read_json(folder / config), [folder / config]
    if stem is None:
        return Component(values, {}, tuple(files))
    tensors, more = _weights(folder, stem)
    if not tensors:
        raise UserError(f"{folder} holds weights' files without a tensor: fetch them again")
    return Component(values, tensors, (*files, *more))


def _weights(folder: Path, stem: str) -> tuple[dict[str, Tensor], list[Path]]:
    """The tensors of the first kind of file that is there, and the files."""
    tried = []
    for kind, reader in _READERS.items():
        name = f"{stem if kind == 'safetensors' else _BIN.get(stem, stem)}.{kind}"
        whole, index = folder / name, folder / f"{name}.index.json"
        tried += [whole.name, index.name]
        if whole.exists():
            return reader(whole), [whole]
        if index.exists():
            return _shards(index, reader)
    raise UserError(f"{folder} holds no weights: none of {', '.join(tried)} is there")


def _shards(index: Path, reader: Callable[[Path], Any]) -> tuple[dict[str, Tensor], list[Path]]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in where.values()
    ):
        raise UserError(f"{index} is damaged (its weight_map names no files of this folder): fetch it again")
    files = [index.parent / name for name in sorted(set(where.values()))]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise UserError(f"{index} names files that are missing: {', '.join(missing)}; fetch them again")
    tensors: dict[str, Tensor] = {}
    wrong = []
    for path in files:
        found = reader(path)
        named = {name for name, file in where.items() if file == path.name}
        wrong += [f"{name} is not in {path.name}" for name in sorted(named - set(found))]
        wrong += [f"{name} is in {path.name}" for name in sorted(set(found) - named)]
        tensors |= found
    if wrong:
        raise UserError(f"{index} and the files that it names differ: {'; '.join(wrong)}")
    return tensors, [index, *files]


def _tokenizer(folder: Path) -> tuple[Path, ...]:
    load_tokenizer(folder)
    return tuple(sorted(path for path in folder.iterdir() if path.is_file()))
