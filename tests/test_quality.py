import numpy as np
import pytest

from par_jax import quality


def _noise(seed, shape=(2, 24, 20, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_psnr_of_pictures_that_are_a_constant_apart():
    black = np.zeros((1, 5, 4, 3), np.uint8)
    for apart in (1, 10, 255):
        errors = quality.squared_errors(black, black + np.uint8(apart))
        assert quality.psnr(errors.mean()) == pytest.approx(20 * np.log10(255 / apart))
    assert np.isinf(quality.psnr(0.0))


def test_ssim_of_the_same_and_of_even_pictures():
    assert quality.ssim(_noise(0), _noise(0)) == pytest.approx(1)
    a, b = (np.full((1, 16, 16, 3), value, np.uint8) for value in (50, 200))
    c1 = (0.01 * 255) ** 2
    assert quality.ssim(a, b)[0] == pytest.approx((2 * 50 * 200 + c1) / (50**2 + 200**2 + c1), rel=1e-6)


def test_ssim_of_one_window_is_the_formula():
    """A picture as large as the window: the weights of all pixels written out."""
    a, b = _noise(1, (1, 11, 11, 3)), _noise(2, (1, 11, 11, 3))
    x, y = (p[0] @ np.array([0.299, 0.587, 0.114]) for p in (a, b))
    rows, columns = np.mgrid[-5:6, -5:6]
    weight = np.exp(-(rows**2 + columns**2) / (2 * 1.5**2))
    weight /= weight.sum()
    mx, my = (weight * x).sum(), (weight * y).sum()
    vx, vy, both = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum(), (weight * (x - mx) * (y - my)).sum()
    c1, c2 = 2.55**2, 7.65**2
    wanted = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert quality.ssim(a, b)[0] == pytest.approx(wanted)
    negative = quality.ssim(a, 255 - a)[0]
    assert negative < -0.9, "the structure is turned round"


def test_motion_agrees_by_direction_and_not_by_size():
    before = np.full((1, 4, 4, 3), 100, np.uint8)
    left, right = np.zeros_like(before), np.zeros_like(before)
    left[:, :, :2], right[:, :, 2:] = 20, 20
    for predicted, wanted in (
        (before + left, 1),
        (before + left // 2, 1),
        (before - left, -1),
        (before + right, 0),
        (before + left + right, 0.5**0.5),
        (before, 0),
    ):
        assert quality.agreement(predicted, before + left, before)[0] == pytest.approx(wanted)


def _scene(places):
    """A white square of 6 pixels on grey, its left edge at each of `places`: uint8 [P, 24, 48, 3]."""
    pictures = np.full((len(places), 24, 48, 3), 90, np.uint8)
    for picture, place in zip(pictures, places, strict=True):
        picture[8:14, place : place + 6] = 250
    return pictures


def test_a_still_background_flatters_and_the_moving_pixels_do_not():
    before, executed = _scene([0, 12, 24]), _scene([6, 18, 30])
    scores = quality.compare(_scene([5, 17, 29]), executed, before)
    assert scores["frames"] == 3
    assert scores["moving_share"] == pytest.approx(2 * 36 / (24 * 48))
    # Of the 72 pixels that move, all are wrong in the frame before, and 12 in the prediction; by 160 each.
    assert scores["psnr_moving_repeated"] == pytest.approx(20 * np.log10(255 / 160))
    assert scores["psnr_moving_gain"] == pytest.approx(10 * np.log10(6))
    assert scores["psnr_gain"] == scores["psnr_frames_gain"] == pytest.approx(10 * np.log10(6))
    assert scores["psnr_repeated"] > scores["psnr_moving_repeated"] + 10
    assert scores["ssim_predicted"] > scores["ssim_repeated"]
    assert scores["agreement"] > 0.8 > 0.1 > abs(scores["agreement_of_others"])


def test_what_a_model_invents_shows_in_the_plain_figure_only():
    before, executed = _scene([0]), _scene([6])
    predicted = executed.copy()
    predicted[:, 20:] += 60
    scores = quality.compare(predicted, executed, before)
    assert np.isinf(scores["psnr_moving_predicted"]) and scores["psnr_predicted"] < 25
    assert np.isnan(scores["agreement_of_others"]), "there is no other chunk"


def test_where_nothing_moves_there_is_no_motion_to_judge():
    scene = _scene([3, 3])
    scores = quality.compare(scene, scene, scene)
    assert scores["moving_share"] == 0
    assert np.isinf(scores["psnr_predicted"])
    assert all(np.isnan(scores[key]) for key in ("psnr_moving_predicted", "psnr_frames_repeated", "agreement"))


def test_small_changes_do_not_count_as_motion():
    before = np.full((1, 2, 2, 3), 100, np.uint8)
    after = before.copy()
    after[0, 0, 0, 1] += quality.MOVED
    after[0, 1, 1, 2] -= quality.MOVED + 1
    np.testing.assert_array_equal(quality.moving(after, before), [[[False, False], [False, True]]])
