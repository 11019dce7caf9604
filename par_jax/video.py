"""Films of rollouts: what happened beside what the model had predicted, as mp4 and as a strip of pictures.

Axes: h, w = pixels of one picture. Prediction n is made at control step `made[n]` for step `due[n]`, the end
of the chunk that is executed meanwhile.
"""

import contextlib
import dataclasses
import itertools
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PANEL = 288
_STRIP_PANEL = 192
_HEADER = 28
_GAP = 8
_INK = (235, 235, 235)
_GROUND = (24, 24, 24)


@dataclasses.dataclass
class Film:
    """A recorded rollout.

    Attributes:
      title: shown above the pictures.
      executed: uint8 [h, w, 3] each; picture t was taken after t control steps.
      predicted: uint8 [h, w, 3] each, of the same scene region as `executed`.
      made: for each prediction, the step at which it was made.
      due: for each prediction, the step that it shows.
      looks: the steps at which the policy looked.
      actions: float32 [L, A] each, what it decided there.
      segments: uint8 [h, w] each, which thing it saw where, as `par_jax.rollout.Robot.segments` says.
    """

    title: str
    executed: list[np.ndarray]
    predicted: list[np.ndarray] = dataclasses.field(default_factory=list)
    made: list[int] = dataclasses.field(default_factory=list)
    due: list[int] = dataclasses.field(default_factory=list)
    looks: list[int] = dataclasses.field(default_factory=list)
    actions: list[np.ndarray] = dataclasses.field(default_factory=list)
    segments: list[np.ndarray] = dataclasses.field(default_factory=list)

    def look(self, step: int, actions: np.ndarray, segments: np.ndarray) -> None:
        """Adds what the policy decided, [L, A], and which thing it saw where, [h, w]."""
        self.looks.append(step)
        self.actions.append(actions)
        self.segments.append(segments)

    def predict(self, picture: np.ndarray, made: int, due: int) -> None:
        """Adds a prediction, uint8 [h, w, 3]."""
        self.predicted.append(picture)
        self.made.append(made)
        self.due.append(due)


def frames(film: Film) -> Iterator[np.ndarray]:
    """Pictures of the video at control rate, uint8 [H, W, 3] with even H and W.

    Left the executed picture of each step; right the prediction that was in force then, held until the moment
    that it shows has come. Both show the same moment in the last picture of each chunk.
    """
    now = 0
    for step, executed in enumerate(film.executed):
        # At the step where one prediction is due the next one is made: that step still belongs to the first.
        while now + 1 < len(film.made) and film.made[now + 1] < step:
            now += 1
        panels = [(f"executed, step {step}", executed)]
        if film.predicted:
            panels.append((f"predicted for step {film.due[now]}", film.predicted[now]))
        yield _sheet(film.title, [panels])


def strip(film: Film, columns: int = 8) -> np.ndarray:
    """The film as one picture, uint8 [H, W, 3]: the ends of the chunks executed, over their predictions.

    Args:
      film: at least one executed picture.
      columns: at most so many chunks, evenly spread over the rollout, the first and the last among them.
    """
    last = len(film.executed) - 1
    if not film.predicted:
        steps = np.unique(np.linspace(0, last, columns).round().astype(int))
        return _sheet(film.title, [[(f"step {s}", film.executed[s]) for s in steps]], panel=_STRIP_PANEL)
    chunks = np.unique(np.linspace(0, len(film.due) - 1, columns).round().astype(int))
    above, below = [], []
    for n in chunks:
        step = min(film.due[n], last)
        above.append((f"executed, step {step}", film.executed[step]))
        below.append((f"predicted for step {film.due[n]}", film.predicted[n]))
    return _sheet(film.title, [above, below], panel=_STRIP_PANEL)


def write_mp4(path: Path, pictures: Iterable[np.ndarray], fps: float) -> None:
    """Writes an H.264 video that browsers play; a half-written file never bears the name `path`.

    Args:
      path: ends in .mp4; its folder exists.
      pictures: uint8 [H, W, 3], all of one size, H and W even; at least one.
      fps: pictures a second.

    Raises:
      OSError: the file cannot be written, with ffmpeg's own words.
    """
    pictures = iter(pictures)
    first = next(pictures)
    half = path.with_name(f".{path.name}")
    height, width = first.shape[:2]
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps}", "-i", "-"]
    target = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "18", str(half)]
    # A process group of its own: Ctrl-C ends the command, which then ends the video.
    with subprocess.Popen(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *source, *target],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    ) as ffmpeg:
        assert ffmpeg.stdin is not None
        # Where ffmpeg gives up early, what it said is the better message.
        with contextlib.suppress(BrokenPipeError):
            for picture in itertools.chain([first], pictures):
                ffmpeg.stdin.write(picture.tobytes())
        _, said = ffmpeg.communicate()
    if ffmpeg.returncode:
        half.unlink(missing_ok=True)
        raise OSError(f"{path} was not written: {said.decode(errors='replace').strip()}")
    half.replace(path)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Writes a picture, uint8 [H, W, 3]; a half-written file never bears the name `path`."""
    half = path.with_name(f".{path.name}")
    Image.fromarray(picture).save(half, format="png")
    half.replace(path)


def write(film: Film, stem: Path, fps: float) -> tuple[Path, Path]:
    """Writes `stem`.mp4 and `stem`.png (the strip) and returns their paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    video, picture = stem.with_name(f"{stem.name}.mp4"), stem.with_name(f"{stem.name}.png")
    write_png(picture, strip(film))
    write_mp4(video, frames(film), fps)
    return video, picture


def _sheet(title: str, rows: list[list[tuple[str, np.ndarray]]], panel: int = _PANEL) -> np.ndarray:
    """Labelled pictures in rows under a title, whole-number upscaled so that a pixel stays a square."""
    height, width = rows[0][0][1].shape[:2]
    scale = max(1, panel // height)
    height, width = height * scale, width * scale
    columns = max(len(row) for row in rows)
    size = (
        _even(_GAP + columns * (width + _GAP)),
        _even(_HEADER + len(rows) * (height + _HEADER) + _GAP),
    )
    sheet = Image.new("RGB", size, _GROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    draw.text((_GAP, 7), title, fill=_INK, font=font)
    for r, row in enumerate(rows):
        top = _HEADER + r * (height + _HEADER)
        for c, (label, picture) in enumerate(row):
            left = _GAP + c * (width + _GAP)
            draw.text((left, top + 6), label, fill=_INK, font=font)
            tile = Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(tile, (left, top + _HEADER))
    return np.asarray(sheet)


def _even(pixels: int) -> int:
    """H.264 with its usual colour format halves the picture: sides must be even."""
    return pixels + pixels % 2
