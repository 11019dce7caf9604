"""The table, read both ways."""

import math

import pytest

from convert.models import shapes
from convert.published import PRESETS
from convert.random_nova import published_shapes
from convert.rules import RULES, Rule, match, torch_axes, torch_names, torch_shape
from par_jax.config import PhiConfig


def test_a_template_both_ways():
    rules = (Rule("a.{layer}.{part:x[12]}.w", "b.{part}.kernel"), Rule("a.{part:y}.w", "b.{part}.kernel"))
    ((rule, path, layer),) = match(rules, "a.7.x1.w")
    assert (rule, path, layer) == (rules[0], "b.x1.kernel", 7)
    assert match(rules, "a.7.x3.w") == match(rules, "a.7.x1.w.w") == match(rules, "a-7.x1.w") == []
    assert torch_names(rules, "b.x2.kernel", 2) == (rules[0], ["a.0.x2.w", "a.1.x2.w"])
    assert torch_names(rules, "b.y.kernel", 9) == (rules[1], ["a.y.w"])
    with pytest.raises(ValueError, match="0 rules make b.z"):
        torch_names(rules, "b.z.kernel", 1)


def test_old_names_are_read_and_never_made():
    ((rule, path, _),) = match(RULES["vae"], "encoder.mid_block.attentions.0.proj_attn.weight")
    assert rule.old and path == "encoder.mid_block.attentions.0.to_out.0.kernel"
    assert torch_names(RULES["vae"], path, 0)[1] == ["encoder.mid_block.attentions.0.to_out.0.weight"]


@pytest.mark.parametrize(
    ("form", "ours", "torchs"),
    [
        ("same", (7,), (7,)),
        ("kernel", (3, 5), (5, 3)),
        ("kernel", (1, 2, 3, 5), (5, 3, 1, 2)),
        ("kernel", (4, 1, 2, 3, 5), (5, 3, 4, 1, 2)),
        ("patch", (12, 5), (5, 3, 2, 2)),
        ("token", (7,), (1, 7)),
    ],
)
def test_forms(form, ours, torchs):
    assert torch_shape(form, ours, torchs[1] if len(torchs) > 1 else 0) == torchs
    assert sorted(torch_axes(form, len(torchs))) == list(range(len(torchs)))


@pytest.mark.parametrize("name", ["transformer", "vae", "text_encoder"])
def test_every_name_has_one_rule_and_every_path_one_name(name):
    made = published_shapes(name, PRESETS["tiny"][name])
    assert all(len(match(RULES[name], tensor)) == 1 for tensor in made)


def test_phi_2_at_full_size():
    """Every tensor of the published text encoder has its place: 2.78 billion parameters, none of them made."""
    made = published_shapes("text_encoder", PRESETS["nova-d48w1024-osp480"]["text_encoder"])
    assert (len(made), sum(map(math.prod, made.values()))) == (32 * 14 + 5, 2_779_683_840)
    assert made["model.layers.31.mlp.fc1.weight"] == (10240, 2560)
    assert made["lm_head.weight"] == made["model.embed_tokens.weight"] == (51200, 2560)
    assert shapes(PhiConfig())["stack.blocks.self_attn.dense.kernel"] == (32, 2560, 2560)
    assert len(shapes(PhiConfig())) == 19
