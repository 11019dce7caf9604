"""A folder that appears whole or not at all: written beside its place and renamed at the end."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from par_jax.errors import UserError, is_full_disk
from par_jax.locks import locked


def refuse_nested(src: Path | str, out: Path | str) -> None:
    """Refuses a destination inside its source, or around it.

    Raises:
      UserError: it is.
    """
    a, b = Path(src).resolve(), Path(out).resolve()
    if a == b or a in b.parents or b in a.parents:
        raise UserError(f"{out} lies in {src} or around it: choose another --out")


@contextlib.contextmanager
def whole(out: Path | str, overwrite: bool, mark: str) -> Iterator[Path]:
    """The folder to write to instead of `out`, which gets its name when the block ends without an error.

    A kill leaves a hidden folder, which the next call removes. What `out` was before stands until it is replaced.

    Args:
      out: the folder wanted.
      overwrite: whether it may exist.
      mark: a file that only folders of this kind have: no other folder is ever replaced.

    Raises:
      UserError: `out` exists or cannot be written, another process writes it, or the disk is full.
    """
    out = Path(out).resolve()
    part, old = (out.with_name(f".{out.name}.{suffix}") for suffix in ("part", "old"))
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(part, f"another process writes {out}: wait for it, or end it"))
        except OSError as error:
            raise UserError(f"{out} cannot be written ({error.strerror}): choose another --out") from error
        yield from _filled(out, part, old, overwrite, mark)


def _filled(out: Path, part: Path, old: Path, overwrite: bool, mark: str) -> Iterator[Path]:
    try:
        if old.exists() and not out.exists():  # killed between the two renames below
            old.rename(out)
        if out.exists() and not overwrite:
            raise UserError(f"{out} exists: add --overwrite to replace it, or choose another --out")
        if out.exists() and not (out / mark).is_file():
            raise UserError(f"{out} exists and is not what this command makes, so it stays: choose another --out")
        for left in part.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield part
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        part.rename(out)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if is_full_disk(error):
            raise UserError(f"the disk of {out} is full: free some space and type the same command again") from error
        raise
    finally:
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
