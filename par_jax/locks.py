"""That one process at a time works in a folder. Imports no jax: collecting and converting start quickly."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from par_jax.errors import UserError


@contextlib.contextmanager
def locked(folder: Path, taken: str) -> Iterator[None]:
    """Holds a folder, made where it is missing, for this process; the lock ends with the process, however that ends.

    Args:
      folder: to hold.
      taken: the sentence for the user where another process holds it.

    Raises:
      UserError: another process holds it.
      OSError: the folder cannot be made or opened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(taken) from error
        yield
    finally:
        os.close(handle)
