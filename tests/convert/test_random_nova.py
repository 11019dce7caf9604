"""Random checkpoints in the published layout."""

import json

import numpy as np
import pytest

from convert.published import PRESETS, model_index
from convert.random_nova import write_random
from convert.tensors import read_safetensors
from par_jax.errors import UserError

CONFIGS = {name: PRESETS["tiny"][name] for name in ("transformer", "vae", "scheduler")}


def _tensors(folder):
    return {
        name: tensor[:]
        for path in sorted(folder.glob("*/*.safetensors"))
        for name, tensor in read_safetensors(path).items()
    }


def test_layout(published):
    files = {str(path.relative_to(published)) for path in published.rglob("*") if path.is_file()}
    assert files == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    index = json.loads((published / "model_index.json").read_text())
    assert index["vae"] == ["diffnext.models.autoencoders.autoencoder_kl_opensora", "AutoencoderKLOpenSora"]
    assert index["text_encoder"][1] == "PhiEncoderModel"
    assert "tokenizer" not in index


def test_weights_are_drawn_by_seed_and_name(published, tmp_path):
    write_random(CONFIGS, tmp_path / "same")
    write_random(CONFIGS, tmp_path / "other", seed=1)
    first, same, other = (_tensors(folder) for folder in (published, tmp_path / "same", tmp_path / "other"))
    assert set(same) == {name for name in first if not name.startswith(("model.", "lm_head"))}
    for name, tensor in same.items():
        np.testing.assert_array_equal(tensor, first[name])
        assert not np.array_equal(tensor, other[name])
    assert not np.array_equal(first["video_encoder.blocks.0.norm1.bias"], first["video_encoder.blocks.1.norm1.bias"])
    # Activations keep their size: by its inputs for a matrix, about 1 for a norm.
    assert first["image_encoder.blocks.0.mlp.fc2.weight"].std() == pytest.approx(128**-0.5, rel=0.1)
    assert first["image_encoder.blocks.0.norm1.weight"].mean() == pytest.approx(1, abs=0.05)


def test_a_destination_that_exists(tmp_path):
    write_random(CONFIGS, tmp_path / "out", dtype="bfloat16")
    with pytest.raises(UserError, match="exists: add --overwrite"):
        write_random(CONFIGS, tmp_path / "out")
    write_random(CONFIGS, tmp_path / "out", overwrite=True)
    assert {tensor.dtype for tensor in _tensors(tmp_path / "out").values()} == {np.dtype(np.float32)}


def test_every_preset_has_an_index():
    for configs in PRESETS.values():
        assert set(model_index(configs)) == {"_class_name", *configs}
