import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from par_jax import video

_L = 8


def _film(steps: int, predicted: bool = True) -> video.Film:
    """Executed pictures are as bright as their step, predictions as the step that they are due at."""
    film = video.Film("a title", [np.full((96, 64, 3), 2 * t, np.uint8) for t in range(steps + 1)])
    for made in range(0, steps, _L) if predicted else ():
        film.predict(np.full((96, 64, 3), 2 * (made + _L), np.uint8), made, made + _L)
    return film


def _panels(picture: np.ndarray) -> tuple[int, int]:
    """Brightness in the middle of the left and of the right half."""
    height, width = picture.shape[:2]
    return picture[height // 2, width // 4, 0], picture[height // 2, 3 * width // 4, 0]


def test_the_prediction_is_held_until_its_moment_has_come():
    pictures = list(video.frames(_film(20)))
    assert len(pictures) == 21
    for step, picture in enumerate(pictures):
        due = max(_L, -(-step // _L) * _L)
        assert _panels(picture) == (2 * step, 2 * due)
    # At the end of each chunk both sides show the same moment.
    assert _panels(pictures[8]) == (16, 16)
    assert _panels(pictures[16]) == (32, 32)


def test_without_predictions_only_the_executed_pictures_are_shown():
    with_, without = next(video.frames(_film(9))), next(video.frames(_film(9, predicted=False)))
    assert without.shape[1] < with_.shape[1]
    assert video.strip(_film(9, predicted=False)).ndim == 3


def test_two_cameras_side_by_side_are_enlarged_like_one():
    one, two = (video.Film("", [np.zeros((32, 32 * cameras, 3), np.uint8)]) for cameras in (1, 2))
    (first,), (second,) = video.frames(one), video.frames(two)
    assert second.shape[0] == first.shape[0] and second.shape[1] > 1.9 * first.shape[1]


@pytest.mark.parametrize("steps", [1, 7, 8, 65, 400])
def test_the_strip_has_the_executed_over_the_predicted(steps):
    sheet = video.strip(_film(min(steps, 120)), columns=5)
    assert sheet.dtype == np.uint8
    assert sheet.shape[0] % 2 == 0
    assert sheet.shape[1] % 2 == 0
    chunks = min(5, -(-min(steps, 120) // _L))
    width = video.strip(_film(1)).shape[1]
    assert sheet.shape[1] == pytest.approx(chunks * (width - 8) + 8, abs=2)


def test_the_mp4_plays_back_what_was_written(tmp_path):
    film = _film(16)
    path, strip = video.write(film, tmp_path / "videos" / "one", fps=20)
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    size, fps = meta["size"], meta["fps"]
    played = [np.frombuffer(data, np.uint8).reshape(size[1], size[0], 3) for data in reader]
    expected = list(video.frames(film))
    assert fps == 20
    assert len(played) == len(expected) == 17
    for got, want in zip(played, expected, strict=True):
        assert got.shape == want.shape
        assert np.abs(got.astype(int) - want).mean() < 3
    assert np.array_equal(np.asarray(Image.open(strip)), video.strip(film))
    assert sorted(p.name for p in path.parent.iterdir()) == ["one.mp4", "one.png"]


def test_a_video_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(OSError):
        video.write_mp4(tmp_path / "no" / "folder.mp4", video.frames(_film(100)), fps=20)
