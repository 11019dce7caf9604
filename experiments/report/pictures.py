"""Pictures put together from pictures: labelled sheets, enlarged cuts, heat maps over what the camera saw."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP, _LABEL = 6, 20
_INK, _GROUND = (87, 96, 106), (255, 255, 255)

Cell = tuple[str, np.ndarray]
"""A label and a picture, uint8 [h, w, 3]."""


def sheet(rows: Sequence[Sequence[Cell]], height: int = 192) -> np.ndarray:
    """Rows of labelled pictures of one size on white: uint8 [H, W, 3].

    Args:
      rows: at least one picture; a label stands above its picture, and where a row has none, neither has it room.
      height: that each is enlarged to at most, by a whole number so that a pixel stays a square.
    """
    first = rows[0][0][1]
    scale = max(1, height // first.shape[0])
    tall, wide = first.shape[0] * scale, first.shape[1] * scale
    tops = np.cumsum([0, *(tall + _GAP + _LABEL * any(label for label, _ in row) for row in rows)])
    out = Image.new("RGB", (max(map(len, rows)) * (wide + _GAP) - _GAP, int(tops[-1]) - _GAP), _GROUND)
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(13)
    for top, row in zip(tops, rows, strict=False):
        labelled = any(label for label, _ in row)
        for column, (label, picture) in enumerate(row):
            left = column * (wide + _GAP)
            draw.text((left, int(top)), label, fill=_INK, font=font)
            tile = Image.fromarray(picture).resize((wide, tall), Image.Resampling.NEAREST)
            out.paste(tile, (left, int(top) + _LABEL * labelled))
    return np.asarray(out)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far two pictures are apart, dark on white, twice as strong: uint8 [h, w, 3] each."""
    apart = np.abs(a.astype(np.int16) - b).mean(-1, keepdims=True)
    return np.broadcast_to(255 - np.clip(2 * apart, 0, 255), a.shape).astype(np.uint8)


def heat(picture: np.ndarray, heat_map: np.ndarray) -> np.ndarray:
    """A map [g, g] over a picture uint8 [h, w, 3]: grey where it is even with the mean or below, red at its peak."""
    over = heat_map / heat_map.mean() - 1
    strength = np.clip(over / max(over.max(), 1e-9), 0, 1)
    smooth = Image.fromarray(np.float32(strength)).resize(picture.shape[1::-1], Image.Resampling.BICUBIC)
    weight = np.clip(np.asarray(smooth), 0, 1)[..., None]
    grey = picture.mean(-1, keepdims=True) * 0.6 + 95
    return np.round(grey * (1 - 0.85 * weight) + np.array([215, 25, 28]) * 0.85 * weight).astype(np.uint8)


def outlined(picture: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """A picture uint8 [h, w, 3] with its segments, uint8 [h, w], tinted: arm blue, cube orange, goal green."""
    colours = np.array([[0, 0, 0], [31, 119, 180], [255, 127, 14], [44, 160, 44]], np.float64)
    weight = np.where(segments > 0, 0.65, 0.0)[..., None]
    return np.round(picture * (1 - weight) + colours[segments] * weight).astype(np.uint8)


def cut(segments: np.ndarray, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns around the cube; around the goal or the middle where it is not seen.

    Args:
      segments: uint8 [h, w], as `par_jax.recording.Recording` has them.
      height, width: of the cut, no more than the picture's.
    """
    seen = [np.argwhere(segments == number) for number in (2, 3)]
    centre = next((places.mean(0) for places in seen if len(places)), np.array(segments.shape) / 2)
    ends = zip(centre, (height, width), segments.shape, strict=True)
    top, left = (int(np.clip(middle - side / 2, 0, size - side)) for middle, side, size in ends)
    return slice(top, top + height), slice(left, left + width)
