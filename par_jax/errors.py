"""What a user can mend: the exception that says so, and how a full disk is recognised."""

import errno


class UserError(Exception):
    """A user's mistake or a missing piece of the machine.

    The message is one clear sentence: what is wrong and what to do. Commands print it to stderr without a
    traceback and exit with status 2 (see `experiments.app.run`).
    """


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an exception, or one that caused it, says that the disk is full; orbax says so in words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
