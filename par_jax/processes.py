"""Several processes that train one model, each with devices of its own: who writes, who waits, what all agree on.

All run the same program. Process 0 alone writes and prints; the folders are ones that all of them see. With one
process, everything here does what it says without asking anybody.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from par_jax.errors import UserError

T = TypeVar("T")

_LONGEST = 2000  # bytes of a sentence that processes tell each other
_by_itself = False  # whether this process is at its turn


def join(coordinator: str, processes: int | None, process: int | None) -> None:
    """Joins the others; call it before jax computes anything.

    Args:
      coordinator: host:port of process 0, or "auto" where a cluster's scheduler is asked (Slurm, MPI, TPU, ...).
      processes: how many there are.
      process: which of them this one is, from 0.

    Raises:
      UserError: they cannot meet.
    """
    address = None if coordinator == "auto" else coordinator
    try:
        jax.distributed.initialize(address, processes, process, shutdown_timeout_seconds=60)
        agree(0)  # connections are made at once: later on, processes may wait for each other as long as they like
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"--coordinator={coordinator}: the processes do not meet ({reason})") from error


def leads() -> bool:
    """Whether this is process 0."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Prints a line, once for all processes."""
    if leads():
        print(line, flush=True)


def rows(batch: int) -> slice:
    """Which rows of a batch are this process's; `par_jax.sharding.check_rows` makes sure that they divide."""
    share = batch // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def agree(number: int) -> int:
    """The greatest number that any process gives."""
    if _by_itself or jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def whole(leaf: Any) -> np.ndarray:
    """A copy of an array that may be spread over processes; all of them have to ask for it."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return multihost_utils.process_allgather(leaf, tiled=True)
    return np.array(leaf)


def in_turn(action: Callable[[], T]) -> T:
    """Process 0 acts while the others wait; then they act, and find done what is done on disk.

    Within its turn a process asks nobody, so that an action may be made of actions in turn.

    Raises:
      UserError: as `action` raises it, also on the others when it comes from process 0.
    """
    if _by_itself or jax.process_count() == 1:
        return action()
    said, failure = b"", None
    if leads():
        try:
            made = _at_its_turn(action)
        except (UserError, OSError) as error:
            said, failure = str(error).encode()[:_LONGEST], error
    heard = multihost_utils.broadcast_one_to_all(np.frombuffer(said.ljust(_LONGEST, b"\0"), np.uint8))
    sentence = bytes(heard).rstrip(b"\0").decode(errors="ignore")
    if failure is not None:
        raise failure
    if sentence:
        raise UserError(sentence)
    return made if leads() else _at_its_turn(action)


def _at_its_turn(action: Callable[[], T]) -> T:
    global _by_itself
    _by_itself = True
    try:
        return action()
    finally:
        _by_itself = False
