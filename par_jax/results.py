"""A folder of rollouts on disk that can be resumed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from par_jax import config as config_lib
from par_jax.errors import UserError
from par_jax.evaluation import Trial
from par_jax.workdir import write_json


class Results:
    """A folder with `settings.json` and `rollouts.jsonl`, one line a rollout, written as they finish.

    Attributes:
      rows: the rollouts that are there.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], overwrite: bool = False):
        """Opens the folder, new or to go on.

        Args:
          folder: made when it is missing.
          settings: JSON-able: everything that the rollouts depend on besides their seeds.
          overwrite: forget what is there.

        Raises:
          UserError: the folder has results of other settings, or none that can be read.
        """
        self.folder = folder
        self._path = folder / "rollouts.jsonl"
        header = folder / "settings.json"
        wanted = json.loads(json.dumps(settings))
        if overwrite:
            for path in (self._path, header, folder / "summary.json"):
                path.unlink(missing_ok=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise UserError(f"--out={folder} is a file: give a folder") from error
        if self._path.exists() and not header.exists():
            raise UserError(f"{self._path} has no settings.json beside it: use --overwrite or another --out")
        if header.exists():
            try:
                found = json.loads(header.read_text())
            except ValueError as error:
                raise UserError(f"{header} is damaged: use --overwrite or another --out") from error
            if differing := config_lib.differences(found, wanted):
                raise UserError(
                    f"{folder} has rollouts of other settings (there != asked for): {'; '.join(differing)}; "
                    "use --overwrite or another --out"
                )
        else:
            write_json(header, wanted)
        self.rows: list[dict[str, Any]] = self._read()

    def missing(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those of `trials` that have no row yet."""
        done = {Trial(row["policy_seed"], row["seed"]) for row in self.rows}
        return [trial for trial in trials if trial not in done]

    def of(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """The rows of `trials`, in their order."""
        rows = {Trial(row["policy_seed"], row["seed"]): row for row in self.rows}
        return [rows[trial] for trial in trials]

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row and flushes it."""
        self.rows.append(dict(row))
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _read(self) -> list[dict[str, Any]]:
        """The rows; a last line that a kill cut short is taken off the file."""
        if not self._path.exists():
            return []
        text = self._path.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._path.write_text(whole)
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise UserError(f"{self._path} is damaged ({error}): use --overwrite or another --out") from error
