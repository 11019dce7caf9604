"""How near predicted pictures come to what happened: PSNR, SSIM, and whether the same things move. Plain numpy.

Axes: P pictures, h w pixels. Pictures are uint8; a peak is 255.
"""

import numpy as np

MOVED = 8
"""A pixel moves where some colour changes by more than so much of 255."""


def squared_errors(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """uint8 [P, h, w, 3] each -> [P, h, w], the mean over colours."""
    # One picture at a time, here and below: a rollout of full-size ones would take gigabytes at once.
    return np.stack([np.square(x.astype(np.float64) - y).mean(-1) for x, y in zip(a, b, strict=True)])


def psnr(squared_error: np.ndarray | float) -> np.ndarray:
    """Mean squared error to decibels; infinite where there is none."""
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / np.asarray(squared_error, np.float64))


def moving(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Which pixels move between two executed pictures: uint8 [P, h, w, 3] each -> bool [P, h, w]."""
    return np.stack([(np.abs(x.astype(np.int16) - y) > MOVED).any(-1) for x, y in zip(after, before, strict=True)])


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity of pictures (Wang et al. 2004): uint8 [P, h, w, 3] each -> [P].

    As in the paper: of the luma, under a Gaussian window of 11 pixels whose deviation is 1.5, K1 = 0.01 and
    K2 = 0.03, averaged over the places at which the window lies wholly within the picture.
    """
    return np.array([_ssim(x, y) for x, y in zip(a, b, strict=True)])


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    x, y = (p.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) for p in (a, b))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = _blur(x), _blur(y)
    vx, vy, vxy = _blur(x * x) - mx * mx, _blur(y * y) - my * my, _blur(x * y) - mx * my
    score = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return score.mean()


def _blur(x: np.ndarray, size: int = 11, sigma: float = 1.5) -> np.ndarray:
    """Gaussian means [h - size + 1, w - size + 1] of [h, w]."""
    window = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    window /= window.sum()
    for axis in (-2, -1):
        x = np.lib.stride_tricks.sliding_window_view(x, size, axis) @ window
    return x


def agreement(predicted: np.ndarray, executed: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Cosine between the change that was predicted and the one that happened: uint8 [P, h, w, 3] each -> [P].

    1 where they are the same but for a factor, 0 where they have nothing in common or nothing changes.
    """
    return np.array(
        [_cosine(x - y, z - y) for x, z, y in zip(predicted, executed, before.astype(np.float64), strict=True)]
    )


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return np.vdot(a, b) / norms if norms > 0 else 0.0


def compare(predicted: np.ndarray, executed: np.ndarray, before: np.ndarray) -> dict[str, float]:
    """All of the above in numbers, beside what repeating the last frame gives.

    Args:
      predicted, executed: uint8 [P, h, w, 3], of the same moments; at least one.
      before: uint8 [P, h, w, 3], what was seen when the prediction was made.

    Returns:
      `frames`, `moving_share`; for `predicted` and `repeated`: `psnr_*` and `psnr_moving_*`, of the mean squared
      error over all frames, `psnr_frames_*`, the mean over frames of each one's own, where anything moves (repeating
      a still frame is infinitely good), `ssim_*`; the gains in decibels, `psnr_gain`, `psnr_moving_gain` and
      `psnr_frames_gain`; `agreement`, and `agreement_of_others`, with what happened in another of the chunks. Not a
      number where nothing moves, or where there is no other.
    """
    moved = moving(executed, before)
    some = moved.any((-2, -1))
    out = {"frames": float(len(executed)), "moving_share": float(moved.mean())}
    for name, shown in (("predicted", predicted), ("repeated", before)):
        errors = squared_errors(shown, executed)
        out[f"psnr_{name}"] = float(psnr(errors.mean()))
        out[f"psnr_moving_{name}"] = float(psnr(errors[moved].mean())) if moved.any() else float("nan")
        out[f"psnr_frames_{name}"] = _mean(psnr(errors[some].mean((-2, -1))))
        out[f"ssim_{name}"] = float(ssim(shown, executed).mean())
    for kind in ("psnr", "psnr_moving", "psnr_frames"):
        out[f"{kind}_gain"] = out[f"{kind}_predicted"] - out[f"{kind}_repeated"]
    out["agreement"] = _mean(agreement(predicted, executed, before)[some])
    other = before[some] + np.roll(executed[some].astype(np.int16) - before[some], max(1, some.sum() // 2), axis=0)
    others = agreement(predicted[some], other, before[some]) if some.sum() > 1 else np.zeros(0)
    out["agreement_of_others"] = _mean(others)
    return out


def sentence(scores: dict[str, float]) -> str:
    """What `compare` has found, for people."""
    return (
        f"next frame PSNR {scores['psnr_predicted']:.2f} dB, repeating the last frame "
        f"{scores['psnr_repeated']:.2f}: {scores['psnr_gain']:+.2f} dB; on the moving pixels "
        f"{scores['psnr_moving_predicted']:.2f} and {scores['psnr_moving_repeated']:.2f}: "
        f"{scores['psnr_moving_gain']:+.2f} dB"
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
