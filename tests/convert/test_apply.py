"""The engine: stacking, permuting, and all that can be wrong, told at once."""

import ml_dtypes
import numpy as np
import pytest

from convert import apply as engine
from convert.apply import apply, places, revert, torch_shapes
from convert.rules import Rule
from par_jax.errors import UserError

RULES = (
    Rule("blocks.{layer}.weight", "stack.kernel", "kernel"),
    Rule("blocks.{layer}.bias", "stack.bias"),
    Rule("patch.weight", "patch.kernel", "patch"),
    Rule("begin", "begin", "token"),
    Rule("twice{part:.?}", "twice"),
    Rule("twice{part:b?}", "twice"),
)
SHAPES = {"stack.kernel": (2, 3, 5), "stack.bias": (2, 5), "patch.kernel": (12, 7), "begin": (4,)}


def _tensors(dtype=np.float32):
    random = np.random.default_rng(0)
    shapes = torch_shapes(RULES[:4], SHAPES, channels=3)
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def test_there_and_back():
    tensors = _tensors()
    assert tensors["patch.weight"].shape == (7, 3, 2, 2)
    made = apply(RULES, tensors, SHAPES)
    assert {path: array.shape for path, array in made.items()} == SHAPES
    np.testing.assert_array_equal(made["stack.kernel"][1], tensors["blocks.1.weight"].T)
    np.testing.assert_array_equal(made["begin"], tensors["begin"][0])
    # Row, column and channel of a patch, for the first output.
    by_hand = [tensors["patch.weight"][0, c, y, x] for y in range(2) for x in range(2) for c in range(3)]
    np.testing.assert_array_equal(made["patch.kernel"][:, 0], by_hand)
    back = dict(revert(RULES, made, tensors))
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_blocks_smaller_than_a_tensor(monkeypatch):
    monkeypatch.setattr(engine, "_BLOCK", 24)
    tensors, seen = _tensors(np.float16), []
    made = apply(RULES, tensors, SHAPES, progress=seen.append)
    np.testing.assert_array_equal(made["stack.kernel"][0], tensors["blocks.0.weight"].T)
    assert sum(seen) == sum(array.nbytes for array in made.values())
    assert len(seen) > len(tensors)


def test_types_are_changed_on_the_way():
    tensors = _tensors(ml_dtypes.bfloat16)
    assert apply(RULES, tensors, SHAPES)["begin"].dtype == np.float32
    half = apply(RULES, _tensors(), SHAPES, ml_dtypes.bfloat16)
    np.testing.assert_array_equal(half["begin"], tensors["begin"][0])


def test_all_mistakes_in_one_message():
    tensors = _tensors() | {
        "unknown": np.zeros(3, np.float32),
        "twice": np.zeros(3, np.float32),
        "blocks.2.bias": np.zeros(5, np.float32),
        "blocks.00.bias": np.zeros(5, np.float32),
        "begin": np.zeros((2, 2), np.float32),
    }
    del tensors["blocks.1.weight"], tensors["patch.weight"]
    with pytest.raises(UserError) as error:
        places(RULES, tensors, SHAPES)
    said = str(error.value).split(": ", 1)[1].split("; ")
    assert said == [
        "begin: shape (2, 2) does not fit begin (4,)",
        "blocks.00.bias: a second tensor for stack.bias, beside blocks.0.bias",
        "blocks.2.bias: the model has 2 layers of stack.bias",
        "patch.kernel: no tensor fills it",
        "stack.kernel: no tensor fills layers 1",
        "twice: matched by 2 rules",
        "unknown: matched by 0 rules",
    ]


@pytest.mark.parametrize("shape", [(), (7,), (7, 3, 4, 1), (7, 0, 2, 2), (7, 12, 1, 1, 1), (7, 4, 2, 2)])
def test_patches_of_other_shapes(shape):
    with pytest.raises(UserError, match="patch.weight: shape"):
        places(RULES, _tensors() | {"patch.weight": np.zeros(shape, np.float32)}, SHAPES)


def test_numbers_that_are_not_finite():
    tensors = _tensors()
    tensors["begin"][0, 1] = np.nan
    tensors["blocks.1.bias"][2] = np.inf
    with pytest.raises(UserError, match="not finite: begin; blocks.1.bias"):
        apply(RULES, tensors, SHAPES)
    with pytest.raises(UserError, match="not finite: begin$"):
        apply(RULES, _tensors() | {"begin": np.full((1, 4), 3.4e38, np.float32)}, SHAPES, ml_dtypes.bfloat16)
