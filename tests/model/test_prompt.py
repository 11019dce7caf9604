"""Prompts to embeddings, with a tokenizer of words made here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from par_jax.config import PhiConfig
from par_jax.errors import UserError
from par_jax.model import prompt
from par_jax.model.phi import Phi
from par_jax.nn.functional import Functional
from par_jax.tokenizer import load_tokenizer, token_ids
from tests.model.conftest import random_params

WORDS = ["a", "robot", "pushes", "the", "cube", "to", "goal"]
LENGTH = 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def phi():
    config = PhiConfig(vocab_size=11, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2)
    made = Functional(lambda rngs: Phi(config, rngs=rngs))
    return made, random_params(made)


def test_embeddings_then_positions(tokenizer, phi):
    functional, params = phi
    position = jax.random.normal(jax.random.key(0), (9, 24))
    prompts = ["pushes the", "", "the robot pushes the cube to a goal"]
    compiled = prompt._embed._cache_size()
    out = prompt.encode_prompts(tokenizer, functional, params, position, prompts, LENGTH)
    assert out.shape == (3, LENGTH, 24)
    ids, counts = token_ids(tokenizer, prompts, LENGTH)
    assert counts.tolist() == [2, 0, 4]
    wanted = jax.jit(lambda params, ids: functional.bind(params)(ids))(params, ids)
    for row, seen, count in zip(out, wanted, counts, strict=True):
        np.testing.assert_allclose(row[:count], seen[:count], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(row[count:], position[count:LENGTH])
    prompt.encode_prompts(tokenizer, functional, params, position, ["cube to goal"], LENGTH)
    assert prompt._embed._cache_size() == compiled + 1


def test_type_of_the_positions(tokenizer, phi):
    functional, params = phi
    out = prompt.encode_prompts(tokenizer, functional, params, jnp.zeros((LENGTH, 24), jnp.bfloat16), ["cube"], LENGTH)
    assert out.dtype == jnp.bfloat16


def test_tokenizer_of_another_model(phi):
    functional, params = phi
    large = Tokenizer(models.WordLevel({"cube": 50}, unk_token="cube"))
    with pytest.raises(UserError, match="the id 50 but the language model knows 11 tokens"):
        prompt.encode_prompts(large, functional, params, jnp.zeros((LENGTH, 24)), ["cube"], LENGTH)
