"""A configuration file's content, checked value by value and used up key by key."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from par_jax.errors import UserError

_REQUIRED = object()


class Values:
    """A configuration's content, taken key by key.

    Args:
      values: the content.
      where: what messages call it.
    """

    def __init__(self, values: Mapping[str, Any], where: Path | str):
        self.where = where
        self._values = {key: value for key, value in values.items() if not key.startswith("_")}

    def take(self, key: str, default: Any = _REQUIRED) -> Any:
        """A value as it stands there."""
        if key not in self._values and default is _REQUIRED:
            raise UserError(f"{self.where} lacks {key}: fetch the checkpoint again")
        return self._values.pop(key, default)

    def integer(self, key: str, default: Any = _REQUIRED) -> int:
        """A number of at least 1."""
        value = self.take(key, default)
        if type(value) is not int or not 1 <= value < 2**31:
            raise self.wrong(key, value, "a number of at least 1")
        return value

    def integers(self, key: str, count: int | None = None, default: Any = _REQUIRED) -> tuple[int, ...]:
        """Numbers of at least 1."""
        value = self.take(key, default)
        sound = isinstance(value, list | tuple) and all(type(one) is int and 1 <= one < 2**31 for one in value)
        if not sound or not value or count not in (None, len(value)):
            raise self.wrong(key, value, f"{count or 'some'} numbers of at least 1")
        return tuple(value)

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A finite number."""
        value = self.take(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > 1e30:
            raise self.wrong(key, value, "a finite number")
        return float(value)

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        """True or false."""
        value = self.take(key, default)
        if type(value) is not bool:
            raise self.wrong(key, value, "true or false")
        return value

    def words(self, key: str, default: Any = _REQUIRED) -> tuple[str, ...]:
        """Several strings."""
        value = self.take(key, default)
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise self.wrong(key, value, "a list of names")
        return tuple(value)

    def only(self, key: str, *allowed: Any) -> None:
        """A key that may be absent or have one of the values with which it changes nothing."""
        value = self.take(key, allowed[0])
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise UserError(f"{self.where}: {key} is {short(value)}, which this version cannot convert")

    def ignore(self, keys: Iterable[str]) -> None:
        """Drops keys."""
        for key in keys:
            self._values.pop(key, None)

    def end(self) -> None:
        """Refuses what was not taken."""
        if self._values:
            raise UserError(
                f"{self.where} has keys that this version does not know, so the model may be another: "
                + ", ".join(sorted(self._values))
            )

    def wrong(self, key: str, value: Any, wanted: str) -> UserError:
        """A value that is not what it must be."""
        return UserError(f"{self.where}: {key} is {short(value)}, which must be {wanted}")


def short(value: Any) -> str:
    """A value as a message shows it."""
    said = repr(value)
    return said if len(said) <= 80 else said[:77] + "..."
