"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A user's mistake or a missing piece of the machine.

    The message is one clear sentence: what is wrong and what to do. Commands print it to stderr without a
    traceback and exit with status 2 (see `experiments.app.run`).
    """
