import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from par_jax import lora, losses
from par_jax.config import LoRAConfig
from par_jax.errors import UserError
from par_jax.model.par import PAR
from par_jax.nn.functional import Functional
from par_jax.trees import flatten
from tests.model.conftest import SMALL, make_batch, random_params

LORA = LoRAConfig(rank=3, alpha=6.0)
ADAPTED = dataclasses.replace(SMALL, lora=LORA)


@pytest.fixture(scope="module")
def plain():
    return Functional(lambda rngs: PAR(SMALL, rngs=rngs))


@pytest.fixture(scope="module")
def adapted():
    return Functional(lambda rngs: PAR(ADAPTED, rngs=rngs))


@functools.cache
def _jitted(functional):
    batch = make_batch(SMALL, n=2)
    return jax.jit(lambda params: losses.policy_loss(functional.bind(params), batch, jax.random.key(1))[0])


def _loss(functional, params):
    return _jitted(functional)(params)


def test_fresh_adapters_change_no_output(plain, adapted):
    params = adapted.init(jax.random.key(0))
    assert _loss(adapted, params) == _loss(plain, lora.merge(params, LORA))
    without = {name: leaf for name, leaf in flatten(params).items() if "lora" not in name}
    for name, leaf in flatten(lora.merge(params, LORA)).items():
        np.testing.assert_array_equal(leaf, without[name])


def test_merged_equals_unmerged(plain, adapted):
    params = random_params(adapted)
    unmerged, merged = _loss(adapted, params), _loss(plain, lora.merge(params, LORA))
    np.testing.assert_allclose(unmerged, merged, rtol=1e-5)
    bare = {name: leaf for name, leaf in flatten(params).items() if "lora" not in name}
    assert abs(_loss(plain, lora.nest(bare)) - merged) > 1e-2 * merged


def test_the_backbone_is_frozen_but_for_its_adapters(adapted):
    params = random_params(adapted)
    trained, frozen = lora.split(params)
    names, still = set(flatten(trained)), set(flatten(frozen))
    assert names | still == set(flatten(params)) and not names & still
    assert {name.split("/")[0] for name in still} == {"video_encoder", "frame_encoder"}
    inside = [name for name in names if name.split("/")[0] in ("video_encoder", "frame_encoder")]
    # Two transformers, four linear layers a block, two matrices each.
    assert len(inside) == 16 and all("lora_" in name for name in inside)
    assert "action_head/embed/kernel" in names
    small = lora.adapters(params)
    assert set(small) == set(inside)
    assert sum(a.size for a in small.values()) < 0.2 * sum(leaf.size for leaf in jax.tree.leaves(frozen))


def test_only_adapters_get_gradients_in_the_backbone(adapted):
    trained, frozen = lora.split(random_params(adapted))
    batch = make_batch(SMALL, b=6, n=2)

    @jax.jit
    @jax.grad
    def slope(trained):
        params = lora.nest(flatten(trained) | flatten(frozen))
        return losses.policy_loss(adapted.bind(params), batch, jax.random.key(3))[0]

    assert all(np.abs(leaf).sum() > 0 for leaf in jax.tree.leaves(slope(trained)))


def test_targets_choose_the_layers():
    config = dataclasses.replace(SMALL, lora=LoRAConfig(rank=2, targets=r"^video_encoder/.*qkv$"))
    shapes = jax.eval_shape(Functional(lambda rngs: PAR(config, rngs=rngs)).init, jax.random.key(0))
    found = {name: leaf.shape for name, leaf in flatten(shapes).items() if "lora" in name}
    layer = "video_encoder/stack/blocks/attn/qkv"
    assert found == {f"{layer}/lora_a": (3, 96, 2), f"{layer}/lora_b": (3, 2, 288)}


@pytest.mark.parametrize(("targets", "said"), [("nowhere", "match no linear layer"), ("(", "no regular expression")])
def test_targets_that_match_nothing_are_refused(targets, said):
    config = dataclasses.replace(SMALL, lora=LoRAConfig(rank=2, targets=targets))
    with pytest.raises(UserError, match=said):
        Functional(lambda rngs: PAR(config, rngs=rngs))


def test_bfloat16_stays_bfloat16(adapted):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params(adapted))
    block = adapted.bind(params).video_encoder.stack.block(0)
    assert block(jnp.ones((1, 2, 96), jnp.bfloat16)).dtype == jnp.bfloat16
