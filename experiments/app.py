"""What every command shares: flags to `main`, users' mistakes to one sentence."""

import os
import signal
import sys
from collections.abc import Callable

from absl import app

from par_jax.errors import UserError


def run(main: Callable[[], None], resumes: bool = True) -> None:
    """Parses the absl flags, calls `main`, and exits with status 2 and one sentence on a `UserError`.

    Ctrl-C exits with status 130 without a traceback.

    Args:
      main: the command.
      resumes: whether it goes on where it was stopped when it is typed again.
    """
    # A shell starts background jobs with SIGINT ignored; a command of ours can always be stopped with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            sys.exit(_say(f"unexpected argument {argv[1]!r}: options are written --name=value", 2))
        try:
            main()
        except UserError as error:
            sys.exit(_say(str(error), 2))
        except KeyboardInterrupt:
            _say(f"stopped; the same command {'goes on from here' if resumes else 'begins again'}", 130)
            sys.stdout.flush()
            sys.stderr.flush()
            # What jax still computes would crash under an interpreter that takes itself apart.
            os._exit(130)

    app.run(guarded)


def _say(message: str, status: int) -> int:
    print(f"error: {message}" if status == 2 else message, file=sys.stderr)
    return status
