"""The table over all presets, without a device; training on eight virtual ones and on two processes of two."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from par_jax import sharding
from par_jax.config import PRESETS, TrainConfig
from par_jax.errors import UserError
from par_jax.model.par import PAR
from par_jax.model.vae import VAE
from par_jax.nn.functional import Functional
from par_jax.train import init_state
from par_jax.trees import flatten
from par_jax.variants import VARIANTS, vary
from tests import sharded


def state_of(make):
    train = TrainConfig(steps=1, batch=1)
    return jax.eval_shape(lambda: init_state(Functional(make).init(jax.random.key(0)), train, 0))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_state_of_every_preset_divides_and_its_weights_are_cut(name):
    config = PRESETS[name]
    state = state_of(lambda rngs: PAR(config, rngs=rngs))
    for size in (2, 4, 8):
        placed = flatten(sharding.shardings(state, AbstractMesh((1, size), sharding.AXES)))
        leaves = flatten(state)
        whole = sum(leaf.size for leaf in leaves.values())
        held = sum(np.prod(placed[leaf].shard_shape(leaves[leaf].shape)) for leaf in leaves)
        assert held < (1 / size + 0.05) * whole
        for leaf, where in placed.items():
            root, _, rest = leaf.partition("/")
            if root == "params":  # moments and average lie where their parameter lies
                others = [other for other in placed if other.endswith(f"/{rest}")]
                assert len(others) >= 4 and all(placed[other].spec == where.spec for other in others), rest


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_the_state_of_every_variant_and_of_the_vae_divides(name):
    mesh = AbstractMesh((1, 8), sharding.AXES)
    config = vary(PRESETS["tiny"], name)
    wide = dataclasses.replace(config, model=dataclasses.replace(config.model, action_dim=7))
    sharding.shardings(state_of(lambda rngs: PAR(wide, rngs=rngs)), mesh)
    sharding.shardings(state_of(lambda rngs: VAE(config.vae, rngs=rngs)), mesh)


def test_a_name_without_a_rule_and_a_size_that_does_not_divide():
    mesh = AbstractMesh((2, 4), sharding.AXES)
    with pytest.raises(ValueError, match="no rule of par_jax.sharding.RULES matches a/b/gain"):
        sharding.shardings({"a": {"b": {"gain": np.zeros(4)}}}, mesh)
    with pytest.raises(UserError, match=r"a/kernel \[8, 6\] does not divide into 4 along fsdp"):
        sharding.shardings({"a": {"kernel": np.zeros((8, 6))}}, mesh)


def test_the_first_rule_that_matches_decides():
    tree = {"stack": {"blocks": {"attn": {"kernel": 0}}}, "head": {"kernel": 0}, "proj": {"kernel": 0, "bias": 0}}
    made = sharding.shardings(jax.tree.map(lambda _: np.zeros((2, 2, 2)), tree), AbstractMesh((1, 2), sharding.AXES))
    assert {name: where.spec for name, where in flatten(made).items()} == {
        "stack/blocks/attn/kernel": P(None, None, "fsdp"),
        "head/kernel": P("fsdp"),
        "proj/kernel": P(None, "fsdp"),
        "proj/bias": P(),
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no mesh: write each axis once with its size"),
        ("data", "is no mesh"),
        ("data:", "is no mesh"),
        ("data:0", "is no mesh"),
        ("data:-1", "is no mesh"),
        ("data:1,data:1", "is no mesh"),
        ("data:1;fsdp:1", "is no mesh"),
        ("model:1", "unknown axis 'model'; the axes are data and fsdp"),
        ("data:2", r"wants 2 devices, and there are 1 \(cpu\)"),
        ("data:4,fsdp:2", "wants 8 devices"),
    ],
)
def test_a_wrong_mesh_is_a_sentence(text, sentence):
    with pytest.raises(UserError, match=sentence):
        sharding.make_mesh(text, jax.devices()[:1])


def test_a_mesh_has_both_axes():
    for text in ("data:1", "fsdp:1", "fsdp:1, data:1"):
        assert dict(sharding.make_mesh(text, jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1}


def test_a_batch_that_does_not_divide_is_a_sentence():
    mesh = AbstractMesh((2, 2), sharding.AXES)
    sharding.check_rows(24, mesh, 3)
    with pytest.raises(UserError, match="a batch of 24 rows does not divide into 4 parts over 4 devices.*of 16"):
        sharding.check_rows(24, mesh, 4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Training on one device."""
    return sharded.run(tmp_path_factory.mktemp("alone") / "out.npz", "none", devices=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "devices", "processes"),
    [("data:4,fsdp:2", 8, 1), ("data:2,fsdp:2", 2, 2), ("data:8", 8, 1), ("fsdp:8", 8, 1)],
)
def test_training_on_a_mesh_is_training_on_one_device(alone, tmp_path, mesh, devices, processes):
    made = sharded.run(tmp_path / "out.npz", mesh, devices, processes)
    assert alone.keys() == made.keys()
    np.testing.assert_allclose(made.pop("losses"), alone["losses"], atol=1e-5)
    share = made.pop("held") / alone["held"]
    assert share == 1 if mesh == "data:8" else share < {2: 0.75, 8: 0.5}[int(mesh[-1])]
    for name, array in made.items():  # the steps were 3e-5 long in all
        np.testing.assert_allclose(array, alone[name], atol=1e-6, err_msg=name)
