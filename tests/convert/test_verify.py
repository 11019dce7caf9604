"""A converted checkpoint against recordings: right ones pass, altered ones fail, missing ones are told."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert import verify
from convert.nova_to_flax import convert
from par_jax.errors import UserError
from tests.reference import nova

CONFIG = {
    "_class_name": "NOVATransformer3DModel",
    "image_dim": 4,
    "image_size": [64, 32],
    "image_stride": 8,
    "image_base_size": [4, 2],
    "video_base_size": [3, 2, 1],
    "text_token_dim": 12,
    "text_token_len": 3,
    "rotary_pos_embed": True,
    "video_mixer_rank": 2,
    "arch": ["vit_d1w24", "vit_d2w24", "mlp_d1w20"],
    "num_heads": 1,
}
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
INFO = {"frames": 2, "diffusion_steps": 2, "loss_repeat": 2, "guidance_scale": 3.0, "sets": 2}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, published):
    """A converted checkpoint and recordings of its transformer."""
    base = tmp_path_factory.mktemp("verify")
    source, golden = base / "source", base / "golden"
    shutil.copytree(published, source)
    state, io = nova.record(CONFIG, SCHEDULER, INFO)
    (source / "transformer" / "config.json").write_text(json.dumps(CONFIG))
    (source / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    weights = {name: tensor.numpy() for name, tensor in state.items()}
    save_file(weights, source / "transformer" / "diffusion_pytorch_model.safetensors")
    golden.mkdir()
    save_file({name: x.numpy().copy() for name, x in io.items()}, golden / "io.safetensors")
    (golden / "io.json").write_text(json.dumps(INFO))
    convert(str(source), base / "checkpoint")
    return base / "checkpoint", golden


@pytest.fixture
def run(recorded, tmp_path, monkeypatch):
    """Runs the command on a copy of the recordings that a test may change."""
    checkpoint, golden = recorded
    copy = shutil.copytree(golden, tmp_path / "golden")

    def command(**values):
        defaults = {"checkpoint": checkpoint, "golden": copy, "json": None, "bfloat16": False, "device": "cpu"}
        monkeypatch.setattr(verify, "FLAGS", SimpleNamespace(**defaults | values))
        try:
            verify.main()
        finally:
            jax.config.update("jax_default_matmul_precision", None)

    return command, copy


def test_right_numbers_pass_and_are_written(run, tmp_path, capsys):
    command, _ = run
    command(json=str(tmp_path / "report.json"), bfloat16=True)
    said = capsys.readouterr().out
    assert "FAIL" not in said and "13 of 13 recorded outputs pass" in said
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["pass"] and len(report["outputs"]) == 13
    by_name = {row["name"]: row for row in report["outputs"]}
    assert 0 < by_name["generate.out"]["relative_l2"] < 1e-5 < by_name["generate.out"]["bfloat16_relative_l2"] < 0.2


def test_a_wrong_number_fails(run, capsys):
    command, golden = run
    arrays = load_file(golden / "io.safetensors")
    kept = ("decoder.z", "decoder.x_t", "decoder.timestep", "decoder.out")
    arrays = {name: arrays[name] for name in kept}
    arrays["decoder.out"][0, 0, 0] += 1e-3
    save_file(arrays | {"later.out": np.zeros(2, np.float32)}, golden / "io.safetensors")
    with pytest.raises(SystemExit) as stopped:
        command()
    said = capsys.readouterr().out
    assert stopped.value.code == 1
    assert "0 of 1 recorded outputs pass; decoder.out fails" in said
    assert "later.out" in said and "not replayed" in said


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda golden: (golden / "io.json").unlink(), "io.json cannot be read"),
        (lambda golden: (golden / "io.json").write_text("{"), "io.json cannot be read"),
        (lambda golden: (golden / "io.safetensors").write_bytes(b"abc"), "io.safetensors cannot be read"),
        (lambda golden: (golden / "io.safetensors").unlink(), "holds no recordings"),
        (lambda golden: _without(golden, "decoder.z"), "lacks 'decoder.z'"),
        (lambda golden: _reshaped(golden, "latents", 2, 4, 2, 4, 4), "do not fit the checkpoint"),
        (lambda golden: _reshaped(golden, "train.c", 2, 3, 25), "does not fit the checkpoint"),
        (lambda golden: (golden / "io.json").write_text("{}"), "does not fit the checkpoint"),
    ],
)
def test_bad_recordings_are_told_in_a_sentence(run, spoil, message):
    command, golden = run
    spoil(golden)
    with pytest.raises(UserError, match=message):
        command()


def test_missing_folders_are_told_in_a_sentence(run, tmp_path):
    command, _ = run
    with pytest.raises(UserError, match="there is no folder"):
        command(golden=str(tmp_path / "none"))
    with pytest.raises(UserError, match="is no converted checkpoint"):
        command(checkpoint=str(tmp_path))


def _without(golden, name):
    arrays = load_file(golden / "io.safetensors")
    kept = {key: value for key, value in arrays.items() if key != name and not key.startswith(("text", "motion"))}
    save_file(kept, golden / "io.safetensors")


def _reshaped(golden, name, *shape):
    arrays = load_file(golden / "io.safetensors")
    arrays = {key: value for key, value in arrays.items() if key == "latents" or key.startswith("train.")}
    save_file(arrays | {name: np.zeros(shape, np.float32)}, golden / "io.safetensors")
