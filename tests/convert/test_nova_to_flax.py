"""There and back: every tensor returns bit for bit, and nothing broken becomes a checkpoint."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from convert import nova_to_flax
from convert.flax_to_nova import convert_back
from convert.nova_to_flax import convert
from convert.published import PRESETS
from convert.random_nova import write_random
from convert.tensors import Kind, read_safetensors, write_safetensors
from par_jax import pretrained
from par_jax.errors import UserError
from par_jax.model.nova import NOVA
from tests.convert.test_source import shard

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT.parent / "shared" / "golden"
TINY = PRESETS["tiny"]


def _tensors(folder):
    """Every tensor of a published folder as bits, by component and name."""
    return {
        (path.parent.name, name): (tensor.dtype, tensor.shape, tensor[:].tobytes())
        for path in folder.glob("*/*.safetensors")
        for name, tensor in read_safetensors(path).items()
    }


def _there_and_back(src, tmp_path):
    convert(str(src), tmp_path / "flax")
    convert_back(tmp_path / "flax", tmp_path / "back")
    assert _tensors(tmp_path / "back") == {
        key: value for key, value in _tensors(src).items() if key[0] in pretrained.COMPONENTS
    }
    for name in ("model_index.json", "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"):
        assert json.loads((tmp_path / "back" / name).read_text()) == json.loads((src / name).read_text())


@pytest.mark.parametrize("name", ["t2v_tiny", "t2i_tiny"])
def test_golden_folders_return_bit_for_bit(name, tmp_path):
    if not (GOLDEN / name).is_dir():
        pytest.skip(f"the recorded numbers are not at {GOLDEN / name}")
    _there_and_back(GOLDEN / name, tmp_path)


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"rotary_pos_embed": True, "num_heads": 1, "video_mixer_rank": -1}, "float32"),
        (
            {"video_mixer_rank": 8, "image_stride": 16, "video_base_size": [1, 1, 2], "image_base_size": [2, 4]},
            "float16",
        ),
        ({"arch": ["vit_d1w64", "vit_d2w64", "mlp_d1w32"]}, "bfloat16"),
    ],
)
def test_variants_return_bit_for_bit(changes, dtype, tmp_path):
    configs = {name: TINY[name] for name in ("transformer", "vae", "scheduler")}
    write_random(configs | {"transformer": TINY["transformer"] | changes}, tmp_path / "src", dtype=dtype)
    _there_and_back(tmp_path / "src", tmp_path)


def test_a_converted_checkpoint(published, tmp_path, capsys):
    convert(str(published), tmp_path / "flax")
    said = capsys.readouterr().out
    assert "transformer: 131 tensors -> 75 arrays" in said
    assert "video_encoder.blocks.*.attn.qkv.weight " in said
    assert "all 131 tensors used, all 75 arrays filled, nothing left over" in said
    assert "has no tokenizer: converted without" in said
    architecture = pretrained.read_config(tmp_path / "flax")
    assert (architecture.nova.width, architecture.nova.video_base) == (32, (3, 1, 2))
    assert architecture.scheduler == TINY["scheduler"]
    manifest = pretrained.read_manifest(tmp_path / "flax")
    assert (manifest["source"], manifest["revision"], manifest["dtype"]) == (str(published), None, "float32")
    assert manifest["components"]["transformer"]["parameters"] == 173088
    assert len(manifest["files"]["vae/config.json"]) == 64
    # The tree is the module's own.
    graphdef, state = nnx.split(nnx.eval_shape(lambda: NOVA(architecture.nova, rngs=nnx.Rngs(0))))
    params = pretrained.load(tmp_path / "flax", "transformer")
    assert jax.tree.structure(nnx.to_pure_dict(state)) == jax.tree.structure(params)
    module = nnx.merge(graphdef, nnx.State(jax.tree.map(nnx.Param, params)))
    first = read_safetensors(published / "transformer" / "diffusion_pytorch_model.safetensors")
    np.testing.assert_array_equal(
        module.video_encoder.stack.blocks.attn.qkv.kernel[1], first["video_encoder.blocks.1.attn.qkv.weight"][:].T
    )


def test_full_table(published, tmp_path, capsys):
    convert(str(published), tmp_path / "flax", table="full")
    said = capsys.readouterr().out
    assert "mask_embed.bos_token [1, 32] -> begin [32]" in said
    assert "image_encoder.blocks.3.norm1.bias [32] -> frame_encoder.stack.blocks.norm1.bias[3] [4, 32]" in said


def test_bfloat16(published, tmp_path, capsys):
    convert(str(published), tmp_path / "flax", dtype="bfloat16")
    params = pretrained.load(tmp_path / "flax", "vae")
    kernel = params["encoder"]["conv_in"]["kernel"]
    assert kernel.dtype == ml_dtypes.bfloat16
    capsys.readouterr()
    convert_back(tmp_path / "flax", tmp_path / "back")
    assert "vae: 176 tensors, 176 of them BF16 now, not as published" in capsys.readouterr().out
    back = read_safetensors(tmp_path / "back" / "vae" / "diffusion_pytorch_model.safetensors")
    was = read_safetensors(published / "vae" / "diffusion_pytorch_model.safetensors")
    for name, tensor in was.items():
        np.testing.assert_array_equal(back[name][:], tensor[:].astype(ml_dtypes.bfloat16))


def test_mixed_types_shards_and_bin(copy, tmp_path):
    """One component in shards, one as .bin, one with three types: the same parameters, and their own types again."""
    torch = pytest.importorskip("torch")
    shard(copy / "transformer", "diffusion_pytorch_model", parts=3)
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    vae = {name: tensor[:] for name, tensor in read_safetensors(path).items()}
    torch.save({name: torch.from_numpy(tensor) for name, tensor in vae.items()}, path.with_suffix(".bin"))
    path.unlink()
    path = copy / "text_encoder" / "model.safetensors"
    kinds = (np.float32, np.float16, ml_dtypes.bfloat16)
    phi = {name: tensor[:].astype(kinds[i % 3]) for i, (name, tensor) in enumerate(read_safetensors(path).items())}
    write_safetensors(
        path, {name: Kind(one.dtype, one.shape) for name, one in phi.items()}, ((n, [t]) for n, t in phi.items())
    )
    before = _tensors(copy)
    convert(str(copy), tmp_path / "flax")
    convert_back(tmp_path / "flax", tmp_path / "back")
    after = _tensors(tmp_path / "back")
    assert {key: after[key] for key in before} == before
    assert {name: bits for (part, name), (_, _, bits) in after.items() if part == "vae"} == {
        name: tensor.tobytes() for name, tensor in vae.items()
    }


def test_old_names_of_attention(copy, tmp_path):
    """Image VAEs older than diffusers 0.15 call the attention's layers otherwise; they return under those names."""
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    tensors = {}
    for name, tensor in read_safetensors(path).items():
        for new, older in old.items():
            name = name.replace(new, older)
        tensors[name] = tensor[:]
    write_safetensors(
        path, {n: Kind(t.dtype, t.shape) for n, t in tensors.items()}, ((n, [t]) for n, t in tensors.items())
    )
    _there_and_back(copy, tmp_path)


def test_tokenizer_is_copied(copy, tmp_path):
    (copy / "tokenizer").mkdir()
    (copy / "tokenizer" / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0, "a": 1}))
    (copy / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    convert(str(copy), tmp_path / "flax")
    convert_back(tmp_path / "flax", tmp_path / "back")
    assert (tmp_path / "back" / "tokenizer" / "vocab.json").read_text() == '{"<|endoftext|>": 0, "a": 1}'


def test_a_destination_that_exists(published, tmp_path):
    out = tmp_path / "flax"
    convert(str(published), out)
    before = (out / "manifest.json").read_text()
    with pytest.raises(UserError, match="exists: add --overwrite"):
        convert(str(published), out)
    assert (out / "manifest.json").read_text() == before
    convert(str(published), out, dtype="bfloat16", overwrite=True)
    assert pretrained.read_manifest(out)["dtype"] == "bfloat16"
    with pytest.raises(UserError, match="is not what this command makes"):
        convert(str(out), published, overwrite=True)
    with pytest.raises(UserError, match="or around it"):
        convert(str(published), published / "flax")


@pytest.mark.parametrize("step", ["apply", "_copy_tokenizer", "_manifest"])
def test_stopped_in_between(published, tmp_path, monkeypatch, step):
    """At whatever point it ends, nothing is there that could be taken for a checkpoint, and it can begin again."""

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(nova_to_flax, step, stop)
        with pytest.raises(KeyboardInterrupt):
            convert(str(published), tmp_path / "flax")
    assert list(tmp_path.iterdir()) == []


def test_killed(published, tmp_path):
    """A kill leaves a hidden folder only; the next run clears it away."""
    program = (
        "import os, sys; from convert import nova_to_flax as n\n"
        "n.pretrained.write_config = lambda *a: os._exit(9)\n"
        "n.convert(sys.argv[1], sys.argv[2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(published), str(tmp_path / "flax")], cwd=ROOT, timeout=120
    )
    assert done.returncode == 9
    assert [path.name for path in tmp_path.iterdir()] == [".flax.part"]
    with pytest.raises(UserError, match="is no converted checkpoint"):
        pretrained.read_config(tmp_path / ".flax.part")
    convert(str(published), tmp_path / "flax")
    assert [path.name for path in tmp_path.iterdir()] == ["flax"]


def test_by_path_and_by_module(published, tmp_path):
    """The commands as they are typed; a mistake is one sentence and status 2."""
    src = f"--src={published}"
    for command, options, status, said in (
        (["convert/nova_to_flax.py"], [src, f"--out={tmp_path / 'flax'}"], 0, "is a whole checkpoint"),
        (["-m", "convert.nova_to_flax"], [src, f"--out={tmp_path / 'flax'}"], 2, "error: .* exists: add --overwrite"),
        (["convert/flax_to_nova.py"], [f"--checkpoint={tmp_path / 'flax'}", f"--out={tmp_path / 'back'}"], 0, "whole"),
        (["-m", "convert.random_nova"], ["--preset=tiny", "--components=vae", "--out=x"], 2, "must be among them"),
    ):
        done = subprocess.run(
            [sys.executable, *command, *options], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        assert re.search(said, done.stdout + done.stderr)
