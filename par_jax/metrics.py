"""Where a run's numbers go: a progress bar, a console line, `metrics.jsonl` and TensorBoard."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tqdm import tqdm


def describe(values: Mapping[str, float]) -> str:
    """Numbers in one line: `loss 0.123  action_loss 0.045`."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def rewind(path: Path, step: int) -> None:
    """Drops the lines of a JSON-lines file that come after `step`, and a last line that a kill has cut."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            break
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(line + "\n" for line in kept))
    part.replace(path)


class Silence:
    """The numbers' way in a process that does not write them: `Metrics` without effect."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, line: str) -> None:
        """Nothing."""

    def advance(self, loss: float, seconds: float) -> None:
        """Nothing."""

    def write(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Nothing."""


class Metrics(Silence):
    """Writes one run's numbers; a context manager.

    Args:
      workdir: gets `metrics.jsonl` (one object a line: `step`, `split`, the numbers, `steps_per_second`) and
        `tensorboard/`. Lines after `step` are dropped: a resumed run writes them again.
      step: where the run stands.
      steps: where it ends.
    """

    def __init__(self, workdir: Path, step: int, steps: int):
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        path = workdir / "metrics.jsonl"
        rewind(path, step)
        self._file = path.open("a")
        self._events = EventFileWriter(str(workdir / "tensorboard"))
        if step:  # TensorBoard then forgets what a killed run has shown beyond this step
            log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._events.add_event(event_pb2.Event(wall_time=time.time(), step=step + 1, session_log=log))
        self._bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True, disable=None, smoothing=0.05)
        self._seconds, self._count, self._warm, self._steps = 0.0, 0, False, steps

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._events.close()
        self._file.close()

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        tqdm.write(line)

    def advance(self, loss: float, seconds: float) -> None:
        """Counts one step that took `seconds`; the first one compiles, and does not count as speed."""
        if self._warm:
            self._seconds, self._count = self._seconds + seconds, self._count + 1
        self._warm = True
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        self._bar.update()

    def write(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Writes one line of numbers, everywhere; training lines carry the speed since the last one."""
        from tensorboard.compat.proto import event_pb2, summary_pb2

        values = {name: float(value) for name, value in values.items()}
        speed = {}
        if split == "train" and self._count:
            speed = {"steps_per_second": self._count / max(self._seconds, 1e-9)}
            self._seconds, self._count = 0.0, 0
        self._file.write(json.dumps({"step": step, "split": split, **values, **speed}) + "\n")
        self._file.flush()
        summary = summary_pb2.Summary(
            value=[
                summary_pb2.Summary.Value(tag=f"{split}/{name}", simple_value=value)
                for name, value in (values | speed).items()
            ]
        )
        self._events.add_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))
        left = ""
        if speed:
            seconds = round((self._steps - step) / speed["steps_per_second"])
            left = f"  {speed['steps_per_second']:.2f} steps/s  {seconds // 60}:{seconds % 60:02d} left"
        mark = "" if split == "train" else f"{split}  "
        self.say(f"step {step:>6}/{self._steps}  {mark}{describe(values)}{left}")
