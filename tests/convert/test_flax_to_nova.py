"""The way back from checkpoints that are not whole; what a whole one gives stands in test_nova_to_flax.py."""

import json
import shutil

import pytest

from convert.flax_to_nova import convert_back
from convert.nova_to_flax import convert
from par_jax.errors import UserError


@pytest.fixture(scope="module")
def made(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "flax"
    convert(str(published), folder)
    return folder


@pytest.fixture
def checkpoint(made, tmp_path):
    return shutil.copytree(made, tmp_path / "flax")


def test_no_checkpoint(published, tmp_path):
    with pytest.raises(UserError, match="is no converted checkpoint"):
        convert_back(published, tmp_path / "back")


def _drop(manifest):
    manifest["components"]["vae"]["tensors"].popitem()


def _reshape(manifest):
    manifest["components"]["vae"]["tensors"]["quant_conv.bias"][1] = [4, 2]


def _retype(manifest):
    manifest["components"]["vae"]["tensors"]["quant_conv.bias"][0] = "I8"


def _rename(manifest):
    manifest["components"]["unet"] = manifest["components"].pop("vae")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_drop, "no tensor fills it"),
        (_reshape, "quant_conv.bias: shape"),
        (_retype, "manifest.json is damaged"),
        (_rename, "manifest.json is damaged"),
        (lambda manifest: manifest.pop("scheduler"), "manifest.json is damaged"),
        (lambda manifest: manifest.update(components=3), "manifest.json is damaged"),
    ],
)
def test_a_manifest_that_was_changed(checkpoint, tmp_path, spoil, said):
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    spoil(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=said):
        convert_back(checkpoint, tmp_path / "back")
    assert [one.name for one in tmp_path.iterdir()] == ["flax"]


def test_missing_parameters(checkpoint, tmp_path):
    shutil.rmtree(checkpoint / "params" / "vae")
    with pytest.raises(UserError, match="vae is missing"):
        convert_back(checkpoint, tmp_path / "back")
    assert [one.name for one in tmp_path.iterdir()] == ["flax"]


def test_destinations(checkpoint, tmp_path):
    convert_back(checkpoint, tmp_path / "back")
    with pytest.raises(UserError, match="exists: add --overwrite"):
        convert_back(checkpoint, tmp_path / "back")
    convert_back(checkpoint, tmp_path / "back", overwrite=True)
    with pytest.raises(UserError, match="or around it"):
        convert_back(checkpoint, checkpoint / "back")
