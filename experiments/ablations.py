"""Trains ablations and baselines on the same data with the same budget, rolls each out, and makes one table of them.

    python -m experiments.ablations --task=pickcube --data=data/pickcube --steps=4000 --out=runs/ablations-pickcube

Takes the flags of experiments.finetune as well, and passes them on. One frame VAE is trained, in <out>/vae; each run is
in <out>/<variant>-<seed>, its rollouts below it; the table is in <out>/table.md and table.json, and grows run by run.
Typed again it goes on where it stopped, and makes nothing twice.
"""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import flags

from experiments import ablation_table, app, devices, training
from par_jax import evaluation
from par_jax.data.latents import share
from par_jax.errors import UserError
from par_jax.runs import is_trained
from par_jax.variants import POLICIES, VARIANTS, vary
from par_jax.workdir import write_json

FLAGS = flags.FLAGS

TRAIN, ROLL_OUT = "experiments.finetune", "experiments.rollout"
# Whose flags are passed on.
PASSED = ("experiments.training", "experiments.model_flags")
# Flags of training that this command sets itself, and those that are the policy's alone.
OWN = ("workdir", "variant", "policy", "stage", "seed", "coordinator", "processes", "process")
OF_POLICY = ("steps", "batch", "accumulate", "optimizer", "learning_rate", "dtype", "remat", "vae_steps")
NAMES = [*VARIANTS, *(name for name in POLICIES if name != "par")]


def define_flags() -> None:
    """The command's flags."""
    training.define_flags()
    flags.DEFINE_string("out", None, "Folder to write.")
    flags.DEFINE_list("variants", NAMES, f"Which to make, of {', '.join(NAMES)}.")
    flags.DEFINE_list("seeds", ["0"], "Seeds of training; each variant is trained with each of them.")
    flags.DEFINE_string("protocol", "rdt", "Of the rollouts: rdt or maniskill.")
    flags.DEFINE_integer("episodes", None, "Rollouts of a run; as many as the protocol asks for by default.")
    flags.DEFINE_integer("workers", 2, "Simulator processes.", lower_bound=1)
    flags.DEFINE_integer("videos", 0, "Film the first so many rollouts of a run.", lower_bound=0)


def main() -> None:
    """Trains, rolls out, and writes the table."""
    if not FLAGS.task or not FLAGS.out:
        raise UserError("say what to compare on and where to: --task=pickcube --out=runs/ablations-pickcube")
    if len(set(FLAGS.task)) > 1:  # one task may have several folders
        raise UserError("compare on one task at a time: --task=pickcube")
    for name in OWN:
        if FLAGS[name].present:
            raise UserError(f"--{name} is set by this command, run by run: leave it out")
    seeds = _seeds()
    protocol = evaluation.protocol(FLAGS.protocol)
    episodes = protocol.episodes if FLAGS.episodes is None else FLAGS.episodes
    protocol.trials(episodes)
    variants = chosen()
    devices.choose("cpu")  # only to count parameters: the runs choose for themselves
    out = Path(FLAGS.out)
    vae = shared_vae(out)
    results: dict[str, list[dict[str, Any]]] = {}
    task = FLAGS.task[0]
    title = f"{task}, preset {FLAGS.preset}, protocol {protocol.name}"
    for seed in seeds:
        for name in variants:
            run = out / f"{name}-{seed}"
            train = [TRAIN, *passed(), *_as_flag(name), *vae, f"--seed={seed}", f"--workdir={run}"]
            roll_out = [ROLL_OUT, f"--task={task}", f"--protocol={protocol.name}", f"--episodes={episodes}"]
            results.setdefault(name, []).append(finished(run, train, roll_out))
            rows = ablation_table.rows(results)
            write_json(out / "table.json", {"title": title, "rows": rows, "runs": results})
            (out / "table.md").write_text(ablation_table.markdown(rows, title))
    print((out / "table.md").read_text())
    print(f"table: {out / 'table.md'} and {out / 'table.json'}")


def chosen() -> list[str]:
    """The variants that are asked for and change something; says which do not.

    Raises:
      UserError: there is no such variant, or flags do not go together.
    """
    base, kept = training.configuration(), []
    for name in dict.fromkeys(FLAGS.variants):
        if name not in NAMES:
            raise UserError(f"unknown variant {name!r}: choose of {', '.join(NAMES)}")
        made = vary(base, "full", name) if name in POLICIES else vary(base, name)
        if FLAGS.init is None:  # there is nothing pretrained to begin with
            made = dataclasses.replace(made, pretrained=base.pretrained)
        if made == base and name != ablation_table.FULL:
            print(f"{name} is left out: it changes nothing about preset {base.name} with these flags")
            continue
        kept.append(name)
    return kept


def passed(without: tuple[str, ...] = ()) -> list[str]:
    """The flags of training that are given, as they are written."""
    known = FLAGS.flags_by_module_dict()
    given = [flag for module in PASSED for flag in known[module] if flag.present and flag.name not in without]
    return sorted(flag.serialize() for flag in given)


def shared_vae(out: Path) -> list[str]:
    """The flag by which all runs use one frame VAE, trained first where none is given."""
    if FLAGS.vae is not None or FLAGS.init is not None:
        return []  # passed on, or brought by what the runs begin with
    if not is_trained(out / "vae"):
        steps = [] if FLAGS.vae_steps is None else [f"--steps={FLAGS.vae_steps}"]
        call([TRAIN, *passed(OF_POLICY), *steps, "--stage=vae", f"--workdir={out}"])
    return [f"--vae={out / 'vae'}"]


def finished(run: Path, train: list[str], roll_out: list[str]) -> dict[str, Any]:
    """A run's numbers; it is trained and rolled out first, unless the same was done before.

    Raises:
      UserError: one of the commands failed.
    """
    path, rollouts = run / "result.json", run / FLAGS.protocol
    asked = {"train": train, "rollout": roll_out}
    if path.exists() and (found := json.loads(path.read_text()))["asked"] == asked:
        print(f"{run}: done before")
        return found["numbers"]
    for other in sorted(run.parent.glob("*/vae")):
        share(other, run / "vae")
    print(f"{run}: training", flush=True)
    call(train)
    print(f"{run}: rolling out", flush=True)
    how = [f"--checkpoint={run}", f"--out={rollouts}", f"--workers={FLAGS.workers}", f"--videos={FLAGS.videos}"]
    call([*roll_out, *how, FLAGS["device"].serialize()])
    numbers = ablation_table.result(run, rollouts)
    write_json(path, {"asked": asked, "numbers": numbers})
    return numbers


def call(words: list[str]) -> None:
    """Runs one of our commands; what stops this one stops it first, so that it goes on another time.

    Args:
      words: a module's name and its flags.

    Raises:
      UserError: it ended with another status than 0.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # A process group of its own: Ctrl-C reaches it through us, once.
        with subprocess.Popen([sys.executable, "-m", *words], process_group=0) as process:
            try:
                status = process.wait()
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)
                process.wait()
                raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if status:
        raise UserError(
            f"`python -m {' '.join(words)}` ended with status {status}, see above; the same command goes on from here"
        )


def _as_flag(name: str) -> list[str]:
    return [f"--policy={name}"] if name in POLICIES else [f"--variant={name}"]


def _seeds() -> list[int]:
    try:
        return list(dict.fromkeys(int(seed) for seed in FLAGS.seeds))
    except ValueError as error:
        raise UserError(f"--seeds={','.join(FLAGS.seeds)}: write whole numbers with commas between") from error


if __name__ == "__main__":
    define_flags()
    app.run(main)
