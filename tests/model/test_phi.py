"""The text encoder against recorded numbers of the public NOVA, against tests/reference/phi.py, and by its size."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from convert import models, rules
from convert.apply import apply
from par_jax.config import PhiConfig
from par_jax.errors import UserError
from par_jax.model.phi import Phi, rotate_halves
from par_jax.nn.functional import Functional

GOLDEN = pathlib.Path(__file__).parents[3] / "shared" / "golden" / "t2v_tiny"
# Head width 20, of which 8 components are turned.
SMALL = {
    "vocab_size": 53,
    "hidden_size": 60,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "layer_norm_eps": 1e-3,
    "partial_rotary_factor": 0.44,
    "rope_theta": 500.0,
}


def _made(values, tensors):
    """The encoder as a jitted function, and its parameters."""
    config = PhiConfig(**{key: value for key, value in values.items() if key in PhiConfig.__dataclass_fields__})
    arrays = apply(rules.TEXT_ENCODER, tensors, models.shapes(config))
    phi = Functional(lambda rngs: Phi(config, rngs=rngs))
    run = jax.jit(lambda params, ids: phi.bind(params)(ids))
    return run, traverse_util.unflatten_dict(arrays, sep=".")


def _error(ours, torchs):
    torchs = np.asarray(torchs)
    assert ours.shape == torchs.shape
    return np.linalg.norm(np.asarray(ours, np.float64) - torchs) / np.linalg.norm(torchs)


def test_as_nova():
    if not GOLDEN.is_dir():
        pytest.skip(f"the recorded numbers are not at {GOLDEN}")
    from safetensors.numpy import load_file

    config = json.loads((GOLDEN / "text_encoder" / "config.json").read_text())
    run, params = _made(config, load_file(GOLDEN / "text_encoder" / "model.safetensors"))
    io = load_file(GOLDEN / "phi_io.safetensors")
    assert _error(run(params, io["input_ids"].astype(np.int32)), io["last_hidden_state"]) <= 1e-5


@pytest.fixture(scope="module")
def reference():
    """The reference's weights and its answer to two rows of ids, and ours with the same weights."""
    torch = pytest.importorskip("torch")
    from tests.reference import phi

    state = phi.random_state(SMALL)
    ids = torch.randint(0, SMALL["vocab_size"], (2, 7), generator=torch.Generator().manual_seed(1))
    wanted = phi.encode(state, SMALL, ids)
    return *_made(SMALL, {name: tensor.numpy() for name, tensor in state.items()}), ids.numpy().astype(np.int32), wanted


def test_as_reference(reference):
    run, params, ids, wanted = reference
    assert _error(run(params, ids), wanted) <= 1e-5


def test_bfloat16_stays_bfloat16(reference):
    run, params, ids, wanted = reference
    half = run(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params), ids)
    assert half.dtype == jnp.bfloat16
    assert _error(half.astype(jnp.float32), wanted) < 0.05


def test_no_token_sees_a_later_one(reference):
    run, params, ids, _ = reference
    later = ids.copy()
    later[:, 5:] = 0
    ours, same = run(params, ids), run(params, later)
    np.testing.assert_array_equal(ours[:, :5], same[:, :5])
    assert not np.allclose(ours[:, 5:], same[:, 5:])


def test_turning_leaves_the_rest_and_all_lengths():
    x = np.random.default_rng(0).normal(size=(2, 4, 3, 10)).astype(np.float32)
    angles = np.outer(np.arange(4), [1.0, 0.1, 0.01]).astype(np.float32)
    turned = np.asarray(jax.jit(rotate_halves)(x, angles))
    np.testing.assert_array_equal(turned[..., 6:], x[..., 6:])
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    pairs, before = (np.hypot(y[..., :3], y[..., 3:6]) for y in (turned, x))
    np.testing.assert_allclose(pairs, before, rtol=1e-5)


def test_full_size():
    """Phi-2, by shape alone."""
    shapes = models.shapes(PhiConfig())
    assert sum(map(math.prod, shapes.values())) == 2_779_683_840
    assert shapes["stack.blocks.mlp.fc1.kernel"] == (32, 2560, 10240)


def test_unknown_activation():
    with pytest.raises(UserError, match="hidden_act is 'relu6'"):
        models.shapes(PhiConfig(hidden_act="relu6"))
