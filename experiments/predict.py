"""Measures what a trained policy predicts and answers on demonstrations that it has not learnt from.

    python -m experiments.predict --checkpoint=runs/pushcube --data=data/pushcube

At every chunk the policy sees what the demonstrator saw, remembers what the demonstrator did, answers with the next
chunk and predicts the picture after it; no simulator runs. Given the training's --data, the demonstrations are those
that it held out. Writes `frames.json` and film strips.
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import app, devices
from experiments.model_flags import adjusted, define_frame_flags, define_sampling_flags, framed
from experiments.report.frames import strip
from par_jax import quality
from par_jax.data.episodes import Episodes, check_stride
from par_jax.data.mixture import Mixture
from par_jax.data.pictures import split_episodes
from par_jax.errors import UserError
from par_jax.policy import Policy
from par_jax.predictions import action_errors, watch
from par_jax.recording import Recording
from par_jax.video import write_png
from par_jax.workdir import read_meta, results_home, write_json

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("checkpoint", None, "A trained run's --workdir, or a released folder.")
    flags.DEFINE_list("data", None, "Folders of demonstrations, as the training had them.")
    flags.DEFINE_string("out", None, "Folder to write; <checkpoint>/frames, or runs/<name>-shipped/frames.")
    flags.DEFINE_integer("episodes", None, "Demonstrations; all that are held out by default.", lower_bound=1)
    flags.DEFINE_integer("strips", 4, "Draw the first so many.", lower_bound=0)
    flags.DEFINE_string("device", "auto", "auto, cpu or gpu: where the policy computes.")
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of the policy's computation; training's by default.")
    define_sampling_flags()
    define_frame_flags()


def open_data(folders: list[str], policy: Policy, meta: dict[str, Any]) -> tuple[Mixture, list[str]]:
    """The demonstrations, and the instruction of each folder.

    Raises:
      UserError: they are missing, damaged, or not what the policy was made for.
    """
    picture, opened = policy.config.picture, []
    for name in folders:
        folder = Path(name.strip())
        made = Episodes(
            folder, picture_size=picture.size, cameras=picture.cameras, control_mode=meta["dataset"]["control_mode"]
        )
        if made.meta["task"] not in meta["tasks"]:
            known = ", ".join(meta["tasks"])
            raise UserError(f"{folder} is of {made.meta['task']}, and the policy was trained on {known}: name others")
        check_stride(made, policy.config.model.chunk)
        opened.append(made)
    return Mixture(opened), [made.meta["instruction"] for made in opened]


def main() -> None:
    """The command."""
    if not FLAGS.checkpoint or not FLAGS.data:
        raise UserError("say whose frames and on what: --checkpoint=runs/pushcube --data=data/pushcube")
    folder = Path(FLAGS.checkpoint)
    meta = read_meta(folder)
    out = Path(FLAGS.out) if FLAGS.out else results_home(folder, meta) / "frames"
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file: give a folder")
    devices.choose(FLAGS.device)
    policy = Policy.load(folder, lambda config: framed(adjusted(config, FLAGS), FLAGS))
    if not policy.config.model.predict_frames:
        raise UserError(f"the policy in {folder} predicts no frames: there is nothing to measure")
    episodes, instructions = open_data(FLAGS.data, policy, meta)
    _, held_out = split_episodes(len(episodes))
    chosen = held_out[: FLAGS.episodes]
    if not len(chosen):
        raise UserError(f"{', '.join(FLAGS.data)} holds a single demonstration, and none of it is held out")
    films = [
        watch(policy, episodes, int(index), instructions[episodes.parts[index]])
        for index in tqdm(chosen, desc="demonstrations", unit="episode", dynamic_ncols=True)
    ]
    pairs = [np.concatenate(parts) for parts in zip(*(film.pairs() for film in films), strict=True)]
    if not len(pairs[0]):
        raise UserError(f"no demonstration is as long as a chunk of {policy.config.model.chunk} actions")
    known = meta["dataset"] == episodes.meta
    taught = [episodes.numbers(int(index))["action"] for index in chosen]
    errors = [action_errors(*each, meta["statistics"]) for each in zip(films, taught, strict=True)]
    scores = quality.compare(*pairs) | {"action_error": float(np.concatenate(errors).mean())}
    write(out, films, _settings(folder, policy, known) | scores)


def _settings(folder: Path, policy: Policy, known: bool) -> dict[str, Any]:
    """What the numbers are of."""
    return {
        "checkpoint": str(folder),
        "step": policy.step,
        "data": FLAGS.data,
        "of_its_training": known,
        "action_steps": policy.config.diffusion.action_steps,
        "frame_steps": policy.config.diffusion.frame_steps,
        "frame_sets": policy.config.diffusion.frame_sets,
    }


def write(out: Path, films: list[Recording], numbers: dict[str, Any]) -> None:
    """Writes what came out, and says it."""
    write_json(out / "frames.json", {**numbers, "demonstrations": len(films)})
    strips = {out / f"{film.seed}.png": film for film in films[: FLAGS.strips]}
    for path, film in strips.items():
        write_png(path, strip(film))
    known = numbers["of_its_training"]
    which = "held out of its training" if known else "of other data than its training's, which may overlap"
    print(f"{numbers['checkpoint']}: {int(numbers['frames'])} frames of {len(films)} demonstrations, {which}")
    print(quality.sentence(numbers))
    print(f"actions: mean absolute error {numbers['action_error']:.4f}, in halves of their range")
    print(f"numbers: {out / 'frames.json'}")
    if strips:
        print(f"film strips: {', '.join(map(str, strips))}")


if __name__ == "__main__":
    define_flags()
    app.run(main, resumes=False)
