"""Proves a converted checkpoint against recordings of the PyTorch NOVA.

    python -m convert.verify --checkpoint=ckpt/nova --golden=golden/t2v_tiny --json=report.json

Replays the recorded inputs and random draws and prints, for every recorded output, the largest absolute error, the
relative L2 error, and whether it passes: 1e-5 for a part, 1e-4 for a whole generation, in float32. Exits with
status 1 if any fails. `--bfloat16` also prints what each output's error is when everything runs in bfloat16.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from safetensors import SafetensorError
from safetensors.numpy import load_file

from convert import replay
from experiments import app, devices
from par_jax import pretrained
from par_jax.errors import UserError
from par_jax.nn.functional import Params
from par_jax.workdir import write_json

FLAGS = flags.FLAGS

FILES = ("io.safetensors", "vae_io.safetensors", "phi_io.safetensors")


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("checkpoint", None, "A converted checkpoint.", required=True)
    flags.DEFINE_string("golden", None, "A folder of recordings.", required=True)
    flags.DEFINE_string("json", None, "Write the numbers to this file as well.")
    flags.DEFINE_bool("bfloat16", False, "Print the errors of a run in bfloat16 beside them.")
    flags.DEFINE_string("device", "cpu", "auto, cpu or gpu; the limits are meant for a CPU's float32.")


def main() -> None:
    """The command."""
    devices.choose(FLAGS.device)
    jax.config.update("jax_default_matmul_precision", "highest")
    golden, checkpoint = Path(FLAGS.golden), Path(FLAGS.checkpoint)
    if not golden.is_dir():
        raise UserError(f"there is no folder {golden}: give --golden a folder of recordings")
    found = [name for name in FILES if (golden / name).exists()]
    if not found:
        raise UserError(f"{golden} holds no recordings: one of {', '.join(FILES)} must be there")
    architecture = pretrained.read_config(checkpoint)
    print(f"{'output':<28}{'max abs':>12}{'relative L2':>14}{'limit':>9}" + ("    bfloat16" if FLAGS.bfloat16 else ""))
    rows = []
    for name in found:
        recording = replay.Recording(_read(golden / name), name)
        half = {}
        if FLAGS.bfloat16:
            half = {one.name: _error(one) for one in _replay(architecture, checkpoint, golden, recording, jnp.bfloat16)}
        for one in _replay(architecture, checkpoint, golden, recording, jnp.float32):
            rows.append(_row(one, name, half.get(one.name)))
            print(_line(rows[-1]), flush=True)
        for unknown in recording.unknown():
            print(f"{unknown:<28}not replayed: no output of this name is known")
    failed = [row["name"] for row in rows if not row["pass"]]
    print(
        f"{len(rows) - len(failed)} of {len(rows)} recorded outputs pass"
        + "".join(f"; {name} fails" for name in failed)
    )
    if FLAGS.json:
        report = {"checkpoint": str(checkpoint), "golden": str(golden), "pass": not failed, "outputs": rows}
        write_json(Path(FLAGS.json), report)
    if failed or not rows:
        sys.exit(1)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): record it again") from error


def _replay(
    architecture: pretrained.Architecture, checkpoint: Path, golden: Path, recording: replay.Recording, dtype: Any
) -> Iterator[replay.Replayed]:
    def params(component: str) -> Params:
        tree = pretrained.load(checkpoint, component)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)

    try:
        yield from _parts(architecture, params, golden, recording)
    except (TypeError, ValueError, KeyError, IndexError) as error:  # what shapes that do not meet come to
        said = str(error).strip().split("\n")[0][:200]
        raise UserError(f"{recording.file} in {golden} does not fit the checkpoint {checkpoint} ({said})") from error


def _parts(
    architecture: pretrained.Architecture,
    params: Callable[[str], Params],
    golden: Path,
    recording: replay.Recording,
) -> Iterator[replay.Replayed]:
    if recording.file == "io.safetensors":
        path = golden / "io.json"
        try:
            info = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); io.safetensors needs it") from error
        yield from replay.transformer(architecture.nova, architecture.scheduler, params("transformer"), recording, info)
    elif recording.file == "vae_io.safetensors":
        yield from replay.vae(architecture.vae, params("vae"), recording)
    elif architecture.text_encoder is None:
        raise UserError(f"{golden} records a text encoder, but the checkpoint was converted without one")
    else:
        yield from replay.phi(architecture.text_encoder, params("text_encoder"), recording)


def _error(one: replay.Replayed) -> float:
    """The relative L2 error; infinite where the shapes differ."""
    if one.ours.shape != one.recorded.shape:
        return float("inf")
    ours, recorded = (np.asarray(x, np.float64) for x in (one.ours, one.recorded))
    return float(np.linalg.norm(ours - recorded) / (float(np.linalg.norm(recorded)) or 1.0))


def _row(one: replay.Replayed, file: str, half: float | None) -> dict[str, Any]:
    error = _error(one)
    same = one.ours.shape == one.recorded.shape
    worst = float(np.abs(np.asarray(one.ours, np.float64) - one.recorded).max()) if same else float("inf")
    row = {"name": one.name, "file": file, "max_abs": worst, "relative_l2": error, "limit": one.limit}
    if half is not None:
        row["bfloat16_relative_l2"] = half
    return {**row, "pass": bool(error <= one.limit)}


def _line(row: dict[str, Any]) -> str:
    half = f"{row['bfloat16_relative_l2']:>12.1e}" if "bfloat16_relative_l2" in row else ""
    numbers = f"{row['max_abs']:>12.2e}{row['relative_l2']:>14.2e}{row['limit']:>9.0e}"
    return f"{row['name']:<28}{numbers}{half}  {'pass' if row['pass'] else 'FAIL'}"


if __name__ == "__main__":
    define_flags()
    app.run(main, resumes=False)
