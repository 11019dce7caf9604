"""Measures a trained policy in the simulator, closed loop.

    python -m experiments.rollout --task=pushcube
    python -m experiments.rollout --checkpoint=runs/pushcube --task=pushcube --protocol=rdt --episodes=125

The first rolls out runs/pushcube, or, where there is none, a few times the checkpoint that the repository ships.

Writes `settings.json`; `rollouts.jsonl`, one line a rollout, as they finish; `videos/`, executed pictures
beside the predicted ones, with what experiments.figures needs of them; at the end `summary.json`. Typed again it
goes on where it stopped.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import app, devices
from experiments.model_flags import adjusted, define_frame_flags, define_sampling_flags, framed
from par_jax import evaluation, recording, video
from par_jax.errors import UserError, is_full_disk
from par_jax.evaluation import Protocol, Trial
from par_jax.policy import Policy
from par_jax.release import SHIPPED
from par_jax.results import Results
from par_jax.rollout import Outcome, Robot, Runner
from par_jax.tasks import get_task
from par_jax.trees import checksum
from par_jax.versions import versions
from par_jax.workdir import RELEASED, read_meta, results_home, write_json

FLAGS = flags.FLAGS

# ManiSkill's control rate: a video plays as fast as the robot moved.
_CONTROL_HZ = 20
# Rollouts of a released checkpoint where nothing is said about them.
_QUICK = 5
_PACKAGES = ("par_jax", "jax", "jaxlib", "flax", "numpy", "mani_skill", "sapien", "torch")


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string(
        "checkpoint", None, "A trained run's --workdir, or a released folder; runs/<task>, else what is shipped."
    )
    flags.DEFINE_string("task", None, "pushcube, pickcube or stackcube.")
    flags.DEFINE_string("out", None, "Folder to write; <checkpoint>/<protocol>, or runs/<name>-shipped/<protocol>.")
    flags.DEFINE_string("protocol", None, "rdt (25 states, 5 policy seeds), the default, or maniskill (success_once).")
    flags.DEFINE_integer("episodes", None, "Rollouts; as many as the protocol asks for by default.")
    flags.DEFINE_integer("seed", 0, "First policy seed; with --protocol=maniskill also of the states.")
    flags.DEFINE_integer("workers", 2, "Simulator processes; the results do not depend on it.", lower_bound=1)
    flags.DEFINE_integer("videos", 5, "Film the first so many rollouts.", lower_bound=0)
    flags.DEFINE_bool("overwrite", False, "Forget the rollouts that --out holds.")
    flags.DEFINE_string("device", "auto", "auto, cpu or gpu: where the policy computes.")
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of the policy's computation; training's by default.")
    define_sampling_flags()
    define_frame_flags()


@dataclasses.dataclass(frozen=True)
class _Pooled:
    """Environment `index` of a pool, as a `Robot`."""

    pool: Any
    index: int

    def reset(self, seed: int) -> np.ndarray:
        return self.pool.reset(self.index, seed)

    def step_chunk(self, actions: np.ndarray, render: str = "last") -> Outcome:
        return self.pool.step_chunk(self.index, actions, render)

    def segments(self) -> np.ndarray:
        return self.pool.segments(self.index)


def find(given: str | None, task: str) -> Path:
    """The checkpoint's folder: what is asked for, else the task's run, else what is shipped for it. Says which."""
    if given is not None:
        return Path(given)
    run, shipped = Path("runs") / task, SHIPPED / task
    if (run / "config.json").exists():
        print(f"checkpoint: {run}")
    elif shipped.exists():
        print(f"checkpoint: {shipped}, which is shipped ({run} holds no run)")
        return shipped
    return run


def check_fit(meta: dict[str, Any], folder: Path, task: str, protocol: Protocol) -> None:
    """Refuses a checkpoint that was not trained for what is asked.

    Args:
      meta: the checkpoint's `config.json`.
      folder: where it is, for the message.
      task: asked for.
      protocol: asked for.

    Raises:
      UserError: it is of another stage, task or control mode.
    """
    if meta["stage"] != "policy":
        raise UserError(f"{folder} holds a {meta['stage']}, not a policy: give the policy's --workdir")
    if task not in meta["tasks"]:
        known = ", ".join(meta["tasks"])
        raise UserError(f"the checkpoint in {folder} was trained on {known}: it cannot roll out --task={task}")
    mode = meta["dataset"]["control_mode"]
    if protocol.control_mode not in (None, mode):
        raise UserError(
            f"--protocol={protocol.name} is defined for {protocol.control_mode}, and the checkpoint in "
            f"{folder} was trained with {mode}: use --protocol=maniskill"
        )


def roll_out(
    runner: Runner,
    robots: Sequence[Robot],
    trials: Sequence[Trial],
    filmed: Sequence[Trial],
    results: Results,
    task: str,
) -> None:
    """Makes the rollouts that `results` lacks and films those of `filmed`, with a progress bar.

    Args:
      runner: makes them.
      robots: at least one.
      trials: all that are wanted.
      filmed: those of which a video is wanted.
      results: gets the rows.
      task: for the videos' titles.
    """
    missing = results.missing(trials)

    def make(robot: Robot, trial: Trial) -> dict[str, Any]:
        if trial not in filmed:
            return runner.rollout(robot, trial)
        film = video.Film(title="", executed=[])
        row = runner.rollout(robot, trial, film)
        verdict = "success" if row["success"] else "no success"
        film.title = f"{task}, state {trial.seed}, policy seed {trial.policy_seed}: {verdict}"
        stem = results.folder / "videos" / f"{trial.seed}-{trial.policy_seed}"
        recording.write(film, stem.with_name(f"{stem.name}.npz"), trial, row["success"])
        video.write(film, stem, _CONTROL_HZ)
        return row

    runner.warm_up(robots[0].reset(missing[0].seed), predict_frame=any(trial in filmed for trial in missing))
    done = len(trials) - len(missing)
    wins = sum(row["success"] for row in results.of([trial for trial in trials if trial not in missing]))
    bar = tqdm(total=len(trials), initial=done, unit="rollout", dynamic_ncols=True, disable=None)
    # Closing the rows, whatever ends this loop, stops the rollouts under way.
    with bar, contextlib.closing(runner.run(robots, missing, make)) as rows:
        for row in rows:
            results.append({"task": task, **row})
            done, wins = done + 1, wins + row["success"]
            how = "success" if row["success"] else "no success"
            bar.set_postfix(success=f"{100 * wins / done:.0f}%", refresh=False)
            bar.update()
            tqdm.write(
                f"{done:>4}/{len(trials)}  state {row['seed']}  policy seed {row['policy_seed']}  "
                f"{how} in {row['steps']} steps  so far {wins}/{done}"
            )


def _pool(task: str, meta: dict[str, Any], cameras: tuple[str, ...], max_steps: int, workers: int) -> Any:
    """Simulator processes; Vulkan is checked here first, where its message can be read."""
    from par_jax.sim import vulkan
    from par_jax.sim.workers import EnvPool

    vulkan.check()
    return EnvPool(
        workers,
        task=task,
        control_mode=meta["dataset"]["control_mode"],
        picture_size=tuple(meta["dataset"]["picture_size"]),
        cameras=cameras,
        max_steps=max_steps,
    )


def _settings(policy: Policy, task: str, protocol: Protocol, max_steps: int, meta: dict) -> dict[str, Any]:
    """All that the rollouts depend on besides their seeds."""
    sums = [checksum(np.asarray(leaf)) for leaf in jax.tree.leaves(policy.params)]
    return {
        "task": task,
        "protocol": protocol.name,
        "max_steps": max_steps,
        "control_mode": meta["dataset"]["control_mode"],
        "picture_size": list(meta["dataset"]["picture_size"]),
        "cameras": list(policy.config.picture.cameras),
        "checkpoint": {
            "preset": meta["config"]["name"],
            "step": policy.step,
            "checksum": sum(sums) % 2**64,
        },
        "context": policy.config.model.context,
        "sampler": policy.config.diffusion.chosen,
        "action_steps": policy.config.diffusion.action_steps,
        "frame_steps": policy.config.diffusion.frame_steps,
        "dtype": policy.config.train.dtype,
        "device": jax.devices()[0].device_kind,
        "versions": versions(_PACKAGES),
    }


def main() -> None:
    """Flags to rollouts to a summary."""
    if FLAGS.task is None:
        raise UserError("say which task to roll out: --task=pushcube, pickcube or stackcube")
    task = get_task(FLAGS.task)
    protocol = evaluation.protocol(FLAGS.protocol or "rdt")
    folder = find(FLAGS.checkpoint, FLAGS.task)
    meta = read_meta(folder)
    check_fit(meta, folder, FLAGS.task, protocol)
    episodes = FLAGS.episodes
    if episodes is None:
        episodes = _QUICK if RELEASED in meta and FLAGS.protocol is None else protocol.episodes
    trials = protocol.trials(episodes, FLAGS.seed)
    devices.choose(FLAGS.device)
    policy = Policy.load(folder, lambda config: framed(adjusted(config, FLAGS), FLAGS))
    max_steps = protocol.max_steps or task.max_steps
    settings = _settings(policy, FLAGS.task, protocol, max_steps, meta)
    of_several = f"-{FLAGS.task}" if len(meta["tasks"]) > 1 else ""
    out = Path(FLAGS.out or results_home(folder, meta) / f"{protocol.name}{of_several}")
    try:
        results = Results(out, settings, FLAGS.overwrite)
        if missing := results.missing(trials):
            workers = min(FLAGS.workers, len(missing))
            with _pool(FLAGS.task, meta, policy.config.picture.cameras, max_steps, workers) as pool:
                robots = [_Pooled(pool, i) for i in range(workers)]
                runner = Runner(policy, task.instruction, max_steps)
                roll_out(runner, robots, trials, trials[: FLAGS.videos], results, FLAGS.task)
        summary = evaluation.summarize(results.of(trials)) | settings | {"checkpoint_folder": str(folder)}
        write_json(out / "summary.json", summary)
    except OSError as error:
        if is_full_disk(error):
            raise UserError(
                f"the disk of {out} is full: the rollouts written so far stand; free some space and type the "
                "same command again"
            ) from error
        raise
    report(summary, protocol, out)


def report(summary: dict[str, Any], protocol: Protocol, out: Path) -> None:
    """Says what came out and where it is."""
    latency = summary["latency_ms"]
    print(f"{summary['task']}, protocol {protocol.name}: {evaluation.sentence(summary)}")
    print(f"a policy step takes {latency['median']:.1f} ms (median; 99th percentile {latency['p99']:.1f} ms)")
    if summary["episodes"] < protocol.episodes:
        print(
            f"a quick look: the protocol asks for {protocol.episodes} rollouts; --episodes={protocol.episodes} goes on"
        )
    print(f"summary: {out / 'summary.json'}")
    print(f"rollouts: {out / 'rollouts.jsonl'}")
    if videos := sorted((out / "videos").glob("*.mp4")):
        print(f"videos: {videos[0]}" + (f" and {len(videos) - 1} more" if len(videos) > 1 else ""))


if __name__ == "__main__":
    define_flags()
    app.run(main)
