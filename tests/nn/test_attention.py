import jax
import jax.numpy as jnp
import numpy as np
import pytest

from par_jax.nn import attention


def _plain(q, k, v, mask):
    """One query at a time."""
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    for b, s, h in np.ndindex(*q.shape[:3]):
        scores = k[b, :, h] @ q[b, s, h] * q.shape[-1] ** -0.5
        shares = np.where(np.ones(len(k[b]), bool) if mask is None else mask[b % len(mask), s], np.exp(scores), 0)
        out[b, s, h] = shares @ v[b, :, h] / shares.sum()
    return out


@pytest.mark.parametrize("masks", [None, 1, 2])
@pytest.mark.parametrize(
    "limits", [(2**18, 2**21, 64), (1, 2**21, 64), (1, 60, 2), (1, 1, 5)], ids=["all", "heads", "pieces", "few queries"]
)
def test_however_it_is_cut_attention_is_the_same(limits, masks, monkeypatch):
    """The 12 queries of a head are cut in 3 pieces, where no more than 60 scores of 15 keys are to be had at once."""
    for name, limit in zip(("_MANY_SCORES", "_MOST_SCORES", "_FEW_QUERIES"), limits, strict=True):
        monkeypatch.setattr(attention, name, limit)
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, tokens, 3, 8)).astype(np.float32) for tokens in (12, 15, 15))
    mask = None if masks is None else (rng.random((masks, 12, 15)) < 0.5) | (np.arange(15) == 0)
    given = None if mask is None else jnp.asarray(mask)
    found = jax.jit(attention.attend)(q, k, v, given)
    np.testing.assert_allclose(found, _plain(q, k, v, mask), rtol=1e-4, atol=1e-5)
