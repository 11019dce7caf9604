"""The VAE against recorded numbers of the public NOVA, against tests/reference/vae.py, and against itself."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert import rules
from convert.apply import load
from par_jax.config import VAEConfig
from par_jax.errors import UserError
from par_jax.model.vae import VAE
from par_jax.nn.conv import GroupNorm, upsample_linear, upsample_nearest

GOLDEN = pathlib.Path(__file__).parents[3] / "shared" / "golden"
VIDEO = {
    "down_block_types": ["DownEncoderBlock2D"] * 2 + ["DownEncoderBlock3D"] * 2,
    "up_block_types": ["UpDecoderBlock3D"] * 4,
    "block_out_channels": [8, 8, 16, 24],
    "layers_per_block": 1,
    "latent_channels": 3,
    "norm_num_groups": 4,
    "scaling_factor": 0.7,
    "shift_factor": 0.2,
}
IMAGE = VIDEO | {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 16, 24],
}


def _config(values):
    """A VAEConfig of a published config.json; the 2D VAE's file names no block types."""
    blocks = len(values["block_out_channels"])
    values = {
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
    } | values
    known = VAEConfig.__dataclass_fields__
    return VAEConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known})


def _filled(values, tensors):
    vae = VAE(_config(values), rngs=nnx.Rngs(0))
    load(vae, rules.VAE, {name: np.asarray(tensor) for name, tensor in tensors.items()})
    return vae


def _run(vae, method, *args):
    graphdef, state = nnx.split(vae)
    run = jax.jit(lambda s, *a: getattr(nnx.merge(graphdef, s), method)(*a))
    with jax.default_matmul_precision("highest"):
        return run(state, *args)


def _ours(x):
    """Torch's channel-second axes to ours."""
    return jnp.asarray(np.moveaxis(np.asarray(x), 1, -1))


def _error(ours, torchs):
    torchs = np.moveaxis(np.asarray(torchs), 1, -1)
    assert ours.shape == torchs.shape
    return np.linalg.norm(np.asarray(ours) - torchs) / np.linalg.norm(torchs)


def _golden(name):
    folder = GOLDEN / name
    if not folder.is_dir():
        pytest.skip(f"the recorded numbers are not at {folder}")
    from safetensors.numpy import load_file

    config = json.loads((folder / "vae" / "config.json").read_text())
    vae = _filled(config, load_file(folder / "vae" / "diffusion_pytorch_model.safetensors"))
    return vae, load_file(folder / "vae_io.safetensors")


def test_clip_as_nova():
    vae, io = _golden("t2v_tiny")
    mean, logvar = _run(vae, "encode", _ours(io["x"]))
    assert _error(jnp.concatenate((mean, logvar), -1), io["moments"]) <= 1e-5
    assert _error(mean, io["mean"]) <= 1e-5
    assert _error(vae.scale(mean), io["scaled_latent"]) <= 1e-5
    latent = vae.unscale(_ours(io["scaled_latent"]))
    assert _error(_run(vae, "decode", latent), io["decoded"]) <= 1e-5


def test_single_frame_as_nova():
    vae, io = _golden("t2v_tiny")
    mean, logvar = _run(vae, "moments", _ours(io["image.x"]))
    assert _error(jnp.concatenate((mean, logvar), -1), io["image.moments"]) <= 1e-5
    scaled = _run(vae, "encode_frames", _ours(io["image.x"]))
    assert _error(_run(vae, "decode_frames", scaled), io["image.decoded"]) <= 1e-5


def test_image_vae_as_nova():
    vae, io = _golden("t2i_tiny")
    mean, logvar = _run(vae, "moments", _ours(io["x"]))
    assert _error(jnp.concatenate((mean, logvar), -1), io["moments"]) <= 1e-5
    assert _error(_run(vae, "encode_frames", _ours(io["x"])), io["scaled_latent"]) <= 1e-5
    assert _error(_run(vae, "decode_frames", _ours(io["scaled_latent"])), io["decoded"]) <= 1e-5


@pytest.fixture(scope="module")
def reference():
    """The video VAE's reference with drawn weights, and ours with the same."""
    torch = pytest.importorskip("torch")
    from tests.reference.vae import Reference

    made = Reference(VIDEO)
    with torch.no_grad():
        moments = made.moments(torch.zeros(1, 3, 1, 8, 16))
        made.pictures(moments[:, :3])
    return made, _filled(VIDEO, made.weights)


@pytest.mark.parametrize("frames", [5, 9])
def test_clip_as_reference(reference, frames):
    torch = pytest.importorskip("torch")
    made, vae = reference
    x = torch.randn(2, 3, frames, 16, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        moments = made.moments(x)
        pictures = made.pictures(moments[:, :3])
    mean, logvar = _run(vae, "encode", _ours(x))
    assert mean.shape == (2, (frames - 1) // 4 + 1, 2, 3, 3)
    assert _error(jnp.concatenate((mean, logvar), -1), moments) <= 1e-5
    assert _error(_run(vae, "decode", _ours(moments[:, :3])), pictures) <= 1e-5


def test_image_vae_as_reference():
    torch = pytest.importorskip("torch")
    from tests.reference.vae import Reference

    made = Reference(IMAGE)
    x = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        moments = made.moments(x)
        pictures = made.pictures(moments[:, :3])
    vae = _filled(IMAGE, made.weights)
    assert _error(jnp.concatenate(_run(vae, "moments", _ours(x)), -1), moments) <= 1e-5
    scaled = (_ours(moments[:, :3]) - 0.2) * 0.7
    assert _error(_run(vae, "decode_frames", scaled), pictures) <= 1e-5


def test_a_picture_is_a_clip_of_one_frame(reference):
    """The 2D path with kernels summed over time equals the causal 3D convolutions over a replicated past."""
    _, vae = reference
    x = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))
    clip = _run(vae, "moments", x[:, None])[0][:, 0]
    frames = _run(vae, "encode_frames", x)
    np.testing.assert_allclose(frames, vae.scale(clip), atol=2e-5)
    graphdef, state = nnx.split(vae)
    slow = jax.jit(lambda s, z: (m := nnx.merge(graphdef, s)).decoder(m.post_quant_conv(z)))
    np.testing.assert_allclose(_run(vae, "decode_frames", frames), slow(state, clip[:, None])[:, 0], atol=2e-4)
    operands = {
        eqn.invars[0].aval.ndim
        for eqn in jax.make_jaxpr(vae.encode_frames)(x).eqns
        if eqn.primitive.name == "conv_general_dilated"
    }
    assert operands == {4}


def test_long_clips_pass_in_pieces(reference):
    """33 frames: two pieces of 17 that share frame 16; the frames after the last whole piece are dropped."""
    _, vae = reference
    x = jax.random.normal(jax.random.key(0), (1, 35, 8, 16, 3))
    mean, _ = _run(vae, "encode", x)
    first, second = (_run(vae, "encode", x[:, at : at + 17])[0] for at in (0, 16))
    np.testing.assert_allclose(mean, jnp.concatenate((first, second[:, 1:]), 1), atol=1e-5)
    assert mean.shape[1] == 9
    pictures = _run(vae, "decode", mean)
    ends = [_run(vae, "decode", mean[:, at : at + 5]) for at in (0, 4)]
    np.testing.assert_allclose(pictures, jnp.concatenate((ends[0], ends[1][:, 1:]), 1), atol=1e-4)
    assert pictures.shape == (1, 33, 8, 16, 3)


def test_bfloat16_stays_bfloat16(reference):
    _, vae = reference
    x = jax.random.normal(jax.random.key(0), (1, 8, 16, 3))
    half = _run(vae, "encode_frames", x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), _run(vae, "encode_frames", x), atol=0.2)


def test_group_norm_of_a_large_mean():
    """Statistics survive a mean far above the deviation, where E[x^2] - E[x]^2 would not."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 6)) + 3000
    y = GroupNorm(6, 2)(x).reshape(2, 35, 2, 3)
    np.testing.assert_allclose(y.mean((1, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(y.std((1, 3)), 1, atol=1e-3)


def test_upsampling():
    x = jnp.asarray([0.0, 4.0]).reshape(1, 1, 2, 1)
    assert upsample_nearest(x)[0, :, :, 0].tolist() == [[0, 0, 4, 4]] * 2
    assert upsample_linear(x)[0, :, :, 0].tolist() == [[0, 1, 3, 4]] * 2
    clip = jnp.asarray([8.0, 0.0, 4.0]).reshape(1, 3, 1, 1, 1)
    assert upsample_linear(clip)[0, :, 0, 0, 0].tolist() == [8, 0, 1, 3, 4]


def test_weights_that_do_not_fit():
    vae = VAE(_config(IMAGE), rngs=nnx.Rngs(0))
    tensors = {
        "encoder.conv_in.weight": np.zeros((8, 3, 3, 5), np.float32),
        "encoder.conv_in.mystery": np.zeros(8, np.float32),
    }
    with pytest.raises(UserError) as error:
        load(vae, rules.VAE, tensors)
    said = str(error.value)
    for part in (
        "conv_in.weight: shape (8, 3, 3, 5)",
        "conv_in.mystery: matched by 0",
        "quant_conv.bias: no tensor",
    ):
        assert part in said


def test_blocks_and_widths_of_different_number():
    with pytest.raises(ValueError, match="as many of each"):
        VAE(VAEConfig(block_out_channels=(32, 32)), rngs=nnx.Rngs(0))


def test_a_patch_is_a_fold_of_the_picture():
    """With patch 2 the convolutions see a picture half as high and wide, four times as deep."""
    folded = VAE(
        _config(
            IMAGE
            | {
                "patch": 2,
                "block_out_channels": [8, 24],
                "down_block_types": IMAGE["down_block_types"][:2],
                "up_block_types": IMAGE["up_block_types"][:2],
            }
        ),
        rngs=nnx.Rngs(0),
    )
    plain = VAE(dataclasses.replace(folded.config, patch=1, in_channels=12, out_channels=12), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 12, 20, 3))
    deep = jnp.concatenate([x[:, i::2, j::2] for i in range(2) for j in range(2)], axis=-1)
    assert folded.config.stride == 4
    latents = _run(folded, "encode_frames", x)
    np.testing.assert_allclose(latents, _run(plain, "encode_frames", deep), rtol=1e-5, atol=1e-5)
    assert latents.shape == (2, 3, 5, 3)
    seen, deep = _run(folded, "decode_frames", latents), _run(plain, "decode_frames", latents)
    for i in range(2):
        for j in range(2):
            part = slice(3 * (2 * i + j), 3 * (2 * i + j) + 3)
            np.testing.assert_allclose(seen[:, i::2, j::2], deep[..., part], rtol=1e-5, atol=1e-5)
