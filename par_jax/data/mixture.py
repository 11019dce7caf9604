"""Several folders of demonstrations as one: a policy of several tasks learns from all of them alike.

Axes as in `par_jax.data.episodes`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from par_jax.data.episodes import Episodes
from par_jax.errors import UserError

# What all folders must have in common: one policy speaks one control mode and sees one kind of picture.
COMMON = ("control_mode", "picture_size", "cameras")


class Mixture:
    """Random access to the demonstrations of several folders, in an order that mixes them.

    Any stretch of the order holds of each folder as many as its share, the last ones too, which validation takes.

    Attributes:
      meta: what the folder's `dataset.json` says; of several what they have in common, and all of them in `parts`.
      folders: those that are mixed.
      parts: int [E], which folder each episode is from; each folder's come in its own order.
    """

    def __init__(self, folders: Sequence[Episodes]):
        """Mixes folders.

        Args:
          folders: at least one, opened.

        Raises:
          UserError: they differ in what all must have in common.
        """
        first = folders[0]
        for other in folders[1:]:
            for field in COMMON:
                if other.meta[field] != first.meta[field]:
                    raise UserError(
                        f"{first.path} has {field} {first.meta[field]} and {other.path} {other.meta[field]}: "
                        "data that is trained on together must agree in it"
                    )
        self.folders = list(folders)
        self.meta: dict[str, Any] = first.meta
        if len(folders) > 1:
            common = {field: first.meta[field] for field in COMMON}
            self.meta = common | {"parts": [folder.meta for folder in folders]}
        places = [((i + 0.5) / len(folder), part, i) for part, folder in enumerate(folders) for i in range(len(folder))]
        order = np.array([place[1:] for place in sorted(places)], np.int64).reshape(-1, 2)
        self.parts, self._indices = order[:, 0], order[:, 1]

    def __len__(self) -> int:
        return len(self.parts)

    def numbers(self, index: int) -> dict[str, np.ndarray]:
        """As `Episodes.numbers`."""
        return self.folders[self.parts[index]].numbers(int(self._indices[index]))

    def lengths(self) -> np.ndarray:
        """T of every episode, i64 [E]."""
        each = [folder.lengths() for folder in self.folders]
        return np.array([each[part][index] for part, index in zip(self.parts, self._indices, strict=True)], np.int64)

    def strides(self) -> np.ndarray:
        """Control steps between the pictures of every episode, i64 [E]."""
        return np.array([folder.picture_every for folder in self.folders], np.int64)[self.parts]

    def pictures(self, index: int, places: Sequence[int] | None = None) -> np.ndarray:
        """As `Episodes.pictures`."""
        return self.folders[self.parts[index]].pictures(int(self._indices[index]), places)
