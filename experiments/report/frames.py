"""The report's sections on pictures: predicted beside executed, how near they are, and failures."""

import numpy as np
from PIL import Image

from experiments.report import pictures, plots
from experiments.report.page import Page
from experiments.report.read import Rollouts, Run
from experiments.report.results import name
from par_jax import quality
from par_jax.looking import Looker
from par_jax.recording import Recording
from par_jax.video import write_png

_COLUMNS = 8
_TARGET = 3.0


def _films(runs: list[Run]) -> list[tuple[Run, Rollouts, list[Recording]]]:
    return [(run, rollouts, rollouts.films) for run in runs for rollouts in run.rollouts]


def _say_not_filmed(page: Page, rollouts: Rollouts) -> None:
    page.say(f"{name(rollouts)} has no recordings: experiments.rollout makes them of the rollouts that it films.")


def strips(page: Page, runs: list[Run], most: int) -> None:
    """Predicted over executed film strips of the first `most` recordings of each folder, aligned in time."""
    page.section("Predicted and executed")
    page.say(
        "The model predicts the picture after the chunk of actions that it is about to execute. Above: what it "
        "predicted; in the middle: what happened at the same control step; below: how far the two are apart, "
        "twice as strong. A rollout that ends in the middle of a chunk leaves its last prediction without a partner."
    )
    for _, rollouts, films in _films(runs):
        shown = [film for film in films if len(film.predicted)][:most]
        if not films:
            _say_not_filmed(page, rollouts)
        elif not shown:
            page.say(f"{name(rollouts)}: the model was trained without frame prediction.")
        else:
            page.heading(name(rollouts))
        for number, film in enumerate(shown):
            path = page.picture(f"{rollouts.key}-strip-{number}.png", f"{_title(film)}.")
            write_png(path, strip(film))


def strip(film: Recording, columns: int = _COLUMNS) -> np.ndarray:
    """Predicted, executed and their difference, evenly over the rollout: uint8 [H, W, 3]."""
    last = int(film.steps[-1])
    rows: tuple[list, list, list] = ([], [], [])
    for n in np.unique(np.linspace(0, len(film.due) - 1, columns).round().astype(int)):
        due, seen = int(film.due[n]), film.at(np.minimum(film.due[n], last))
        came = due <= last
        apart = pictures.difference(film.predicted[n], seen) if came else np.full_like(seen, 255)
        rows[0].append((f"predicted, step {due}", film.predicted[n]))
        rows[1].append((f"executed, step {due}" if came else f"ended at step {last}", seen))
        rows[2].append(("apart" if n == 0 else "", apart))
    return pictures.sheet(rows)


def _title(film: Recording) -> str:
    verdict = "success" if film.success else "no success"
    return f"State {film.seed}, policy seed {film.policy_seed}: {verdict} after {film.steps[-1]} steps"


def frame_quality(page: Page, runs: list[Run], lookers: dict[str, Looker]) -> list[str]:
    """PSNR, SSIM and motion of predicted frames beside repeating the last frame; the numbers in lines to print.

    Args:
      lookers: by the run's key, of the runs that could be loaded.
    """
    page.section("Quality of the predicted frames")
    page.say(
        "Each prediction is compared with the picture of the moment that it was made for. Repeating the last frame, "
        "the picture at which it was made, is what a model would do that expects nothing to happen; a still background "
        "makes both look good. Moving pixels are those in which some colour of the executed pictures changed by more "
        f"than {quality.MOVED} of 255 meanwhile: there repeating is wrong by construction, and what a model invents "
        "elsewhere shows in the plain figure only."
    )
    lines = []
    for run, rollouts, films in _films(runs):
        pairs = [pair for pair in (film.pairs() for film in films) if len(pair[0])]
        if not pairs:
            page.say(f"{name(rollouts)}: no predicted frames whose moment came.")
            continue
        predicted, executed, before = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        scores = quality.compare(predicted, executed, before)
        best = {}
        if run.key in lookers:
            best = quality.compare(lookers[run.key].through_the_vae(executed, before), executed, before)
        page.heading(f"{name(rollouts)}: {int(scores['frames'])} predictions in {len(pairs)} rollouts")
        _scores(page, rollouts, scores, best)
        lines.append(f"{name(rollouts)}: {quality.sentence(scores)}")
    return lines


def _scores(page: Page, rollouts: Rollouts, scores: dict[str, float], best: dict[str, float]) -> None:
    rows = []
    for key, label, decimals in (
        ("psnr", "PSNR, dB, all pixels", 2),
        ("psnr_moving", "PSNR, dB, moving pixels", 2),
        ("psnr_frames", "PSNR, dB, mean of the frames' own", 2),
        ("ssim", "SSIM", 3),
    ):
        ours, theirs = scores[f"{key}_predicted"], scores[f"{key}_repeated"]
        ceiling = f"{best[f'{key}_predicted']:.{decimals}f}" if best else ""
        rows.append(
            (label, f"{ours:.{decimals}f}", f"{theirs:.{decimals}f}", f"{ours - theirs:+.{decimals}f}", ceiling)
        )
    page.table(
        ("", "predicted", "last frame repeated", "gain", "frame VAE alone"),
        rows,
        "The first two are of the mean squared error over all frames together; the third averages the decibels of the "
        "frames in which something moves. The frame VAE alone, given the executed picture itself, is the best that a "
        "prediction which passes through it could be.",
    )
    gain = scores["psnr_gain"]
    page.say(
        f"The target is a gain of {_TARGET:g} dB: {'met' if gain >= _TARGET else 'missed'} with {gain:+.2f} dB on all "
        f"pixels, {scores['psnr_moving_gain']:+.2f} dB on the moving ones, {100 * scores['moving_share']:.1f}% of all."
    )
    page.say(
        f"Motion: the cosine between the change that was predicted and the one that was executed is "
        f"{scores['agreement']:.3f} on average; with the change executed in another chunk it is "
        f"{scores['agreement_of_others']:.3f}."
    )
    groups = [
        ("all pixels", scores["psnr_predicted"], scores["psnr_repeated"]),
        ("moving pixels", scores["psnr_moving_predicted"], scores["psnr_moving_repeated"]),
    ]
    path = page.picture(f"{rollouts.key}-psnr.png", "PSNR of the next frame: predicted, and the last frame repeated.")
    plots.pairs(groups, ("predicted", "last frame repeated"), "PSNR, dB", path)


def failures(page: Page, runs: list[Run], most: int) -> None:
    """The last frames of rollouts that failed, enlarged, and a closer look at the cube."""
    page.section("Failures")
    for run, rollouts, films in _films(runs):
        failed = [row for row in rollouts.rows if not row["success"]]
        shown = [film for film in films if not film.success][:most]
        page.heading(f"{name(rollouts)}: {len(failed)} of {len(rollouts.rows)} rollouts failed")
        if failed:
            seeds = ", ".join(f"{row['seed']} (policy seed {row['policy_seed']})" for row in failed[:12])
            page.say(f"States of failures: {seeds}{' and others' if len(failed) > 12 else ''}.")
        if failed and not shown:
            page.say("None of them was filmed: experiments.rollout films the first --videos rollouts.")
        cameras = len(run.meta["config"]["picture"]["cameras"])
        for number, film in enumerate(shown):
            path = page.picture(
                f"{rollouts.key}-failure-{number}.png",
                f"{_title(film)}. Above: the last frames; below: the same around the cube, three times as large.",
            )
            write_png(path, ending(film, cameras))


def ending(film: Recording, cameras: int = 1, columns: int = 4) -> np.ndarray:
    """The last frames of a recording, every second step, over what the first camera shows of the cube."""
    steps = film.steps[film.steps >= film.steps[-1] - 2 * (columns - 1)][::-2][::-1]
    height, width = film.executed.shape[1:3]
    one = width // cameras
    rows, columns_ = pictures.cut(film.segments[-1][:, :one], height // 3, one // 3)
    above, below = [], []
    for step, picture in zip(steps, film.at(steps), strict=True):
        close = Image.fromarray(picture[rows, columns_]).resize((width, height), Image.Resampling.NEAREST)
        above.append((f"step {step}", picture))
        below.append(("", np.asarray(close)))
    return pictures.sheet([above, below], height=288)
