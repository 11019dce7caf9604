"""A converted checkpoint's folder: whole, or recognised as damaged."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from par_jax import pretrained
from par_jax.config import NovaConfig, PhiConfig, VAEConfig
from par_jax.errors import UserError

ARCHITECTURE = pretrained.Architecture(
    NovaConfig(8, 2, 1, 2, 8, 1, 4, (8, 12), 2, 6, 3, (3, 2, 3), (4, 6), True, 0),
    VAEConfig(shift_factor=0.5),
    None,
    {"_class_name": "DDPMScheduler"},
)
ARRAYS = {
    "blocks/0/kernel": np.arange(600, dtype=np.float32).reshape(20, 30),
    "blocks/1/kernel": np.arange(6, dtype=np.float32),
    "norm/scale": np.arange(5, dtype=ml_dtypes.bfloat16),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "checkpoint"
    folder.mkdir()
    sums = pretrained.write_params(folder, "transformer", ARRAYS)
    pretrained.write_config(folder, ARCHITECTURE, {"components": {"transformer": {"checksums": sums}}})
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "checkpoint")


def test_there_and_back(made):
    assert pretrained.read_config(made) == ARCHITECTURE
    params = pretrained.load(made, "transformer")
    assert list(params["blocks"]) == [0, 1]
    np.testing.assert_array_equal(params["blocks"][0]["kernel"], ARRAYS["blocks/0/kernel"])
    assert params["norm"]["scale"].dtype == ml_dtypes.bfloat16


def test_a_text_encoder(tmp_path):
    with_phi = pretrained.Architecture(ARCHITECTURE.nova, ARCHITECTURE.vae, PhiConfig(), {})
    pretrained.write_config(tmp_path, with_phi, {})
    assert pretrained.read_config(tmp_path) == with_phi


def test_what_is_missing(folder):
    with pytest.raises(UserError, match="holds no vae"):
        pretrained.load(folder, "vae")
    shutil.rmtree(folder / "params" / "transformer")
    with pytest.raises(UserError, match="transformer is missing"):
        pretrained.load(folder, "transformer")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="is no converted checkpoint"):
        pretrained.read_config(folder)


def test_every_damaged_file_is_recognised(folder):
    """Shortened, or one bit of it changed."""
    with_data = [
        path for path in sorted((folder / "params").rglob("*")) if path.is_file() and path.stat().st_size > 100
    ]
    assert with_data
    hits = 0
    for path in with_data:
        data = path.read_bytes()
        for bad in (data[: len(data) // 2], data[:-30] + bytes([data[-30] ^ 1]) + data[-29:]):
            path.write_bytes(bad)
            try:
                params = pretrained.load(folder, "transformer")
            except UserError as error:
                assert "is damaged" in str(error)
                hits += 1
            else:  # what was changed is not what is read
                np.testing.assert_array_equal(params["blocks"][0]["kernel"], ARRAYS["blocks/0/kernel"])
        path.write_bytes(data)
    assert hits >= 2


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("config.json", {"format": 99}, "is of format 99"),
        ("config.json", {"nova": {"width": 3}}, "does not fit this version"),
        ("config.json", {"vae": None}, "does not fit this version"),
        ("manifest.json", {"components": []}, "manifest.json is damaged"),
        ("manifest.json", {"components": {"transformer": {"checksums": {"norm/scale": 1}}}}, "is not what was written"),
    ],
)
def test_changed_words(folder, name, change, said):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said):
        pretrained.read_config(folder)
        pretrained.load(folder, "transformer")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 1}'])
def test_no_json(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json is damaged"):
        pretrained.read_config(folder)


def test_another_checksum(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["components"]["transformer"]["checksums"]["norm/scale"] += 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="norm/scale is not what was written"):
        pretrained.load(folder, "transformer")


def test_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(OSError, match="No space left"):
        pretrained.write_params(tmp_path, "vae", ARRAYS)
    assert not (tmp_path / "params" / "vae").exists()
