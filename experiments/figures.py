"""Shows trained runs on one static HTML page, with its pictures beside it.

    python -m experiments.figures --runs=runs/pushcube,runs/pickcube --out=report

Success beside the paper's table, learning curves, predicted and executed frames, attention, failures, latency, of what
experiments.finetune and experiments.rollout have left in the runs' folders. What is missing is left out, and said.
"""

from pathlib import Path

from absl import flags

from experiments import app, devices
from experiments.report import attention, frames, results
from experiments.report.page import Page
from experiments.report.read import Run, read
from par_jax.errors import UserError
from par_jax.looking import Looker

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_list("runs", [], "Runs' folders, with commas between; their rollouts are in sub-folders.")
    flags.DEFINE_string("out", "report", "Folder for index.html and its pictures.")
    flags.DEFINE_integer("films", 3, "Filmed rollouts to show of each folder.", lower_bound=0)
    flags.DEFINE_bool("look", True, "Load the policies, to see what they look at.")
    flags.DEFINE_string("device", "auto", "auto, cpu or gpu: where the policies compute.")


def _lookers(runs: list[Run]) -> dict[str, Looker]:
    """By a run's key; runs without whole checkpoints or without recordings have none."""
    out = {}
    for run in runs:
        if any(rollouts.films for rollouts in run.rollouts):
            try:
                out[run.key] = Looker(run.folder)
            except UserError as error:
                print(f"{run.folder} is shown without attention: {error}")
    return out


def main() -> None:
    """Runs' folders to a page."""
    if not FLAGS.runs:
        raise UserError("say which runs to show: --runs=runs/<name>,runs/<name>")
    out = Path(FLAGS.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file: give a folder")
    runs = [read(Path(folder.strip()), number) for number, folder in enumerate(FLAGS.runs, 1)]
    devices.choose(FLAGS.device)
    lookers = _lookers(runs) if FLAGS.look else {}
    page = Page(out, "par_jax: trained policies")
    lines = results.success(page, runs)
    results.learning(page, runs)
    frames.strips(page, runs, FLAGS.films)
    lines += frames.frame_quality(page, runs, lookers)
    lines += attention.attention(page, runs, lookers, FLAGS.films)
    frames.failures(page, runs, FLAGS.films)
    results.latency(page, runs)
    print("\n".join(lines))
    print(f"page: {page.write(lines)}")


if __name__ == "__main__":
    define_flags()
    app.run(main, resumes=False)
