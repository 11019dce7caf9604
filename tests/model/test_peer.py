"""PAR in Flax against PAR in PyTorch (tests/reference/par.py): float32, the same weights, inputs and draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from par_jax import lora, losses, sampling
from par_jax.config import LoRAConfig, PictureConfig
from par_jax.model.par import PAR
from par_jax.model.vae import VAE
from par_jax.nn.functional import Functional
from par_jax.policy import PhysicalStep, prepared
from par_jax.train import join, make_optimizer
from par_jax.trees import flatten
from tests.model.conftest import SMALL, both_conditions, make_batch, random_params
from tests.reference.draws import action_noise, policy_draws
from tests.reference.par import make
from tests.reference.par_training import Trainer

# Two threads that share a core with other tests wait for each other most of the time.
torch.set_num_threads(1)
STEPS = 5
# Ours and theirs; in a stack, one layer's.
PARAMETERS = {
    "patch_embed/kernel": "patch_embed.weight",
    "action_tokenizer/begin": "action_tokenizer.begin",
    "text_embed/proj/kernel": "text_embed.proj.weight",
    "video_encoder/stack/blocks/attn/qkv/kernel": "video_encoder.stack.2.attn.qkv.weight",
    "video_encoder/stack/blocks/attn/qkv/lora_b": "video_encoder.stack.2.attn.qkv.lora_b",
    "frame_encoder/mask_token": "frame_encoder.mask_token",
    "frame_encoder/stack/blocks/mlp/fc2/kernel": "frame_encoder.stack.1.mlp.fc2.weight",
    "frame_head/head/bias": "frame_head.head.bias",
    "action_head/position": "action_head.position",
    "action_head/stack/blocks/modulation/kernel": "action_head.stack.0.modulation.weight",
}
# What differs in the presets: positions, the prompt's kind, relative actions, look-ahead, adapters, rematerialisation,
# the shift of denoising times, the optimizer.
VARIANTS = {
    "tiny": SMALL,
    "par": dataclasses.replace(
        SMALL,
        text=dataclasses.replace(SMALL.text, kind="phi"),
        model=dataclasses.replace(SMALL.model, positions="absolute"),
        train=dataclasses.replace(SMALL.train, remat="full", optimizer="muon"),
    ),
    "physgen": dataclasses.replace(
        SMALL,
        picture=PictureConfig(cameras=("render", "hand"), size=(56, 40), crop=(32, 24)),
        model=dataclasses.replace(SMALL.model, positions="rotary", lookahead=3, relative_actions=True),
        diffusion=dataclasses.replace(SMALL.diffusion, action_shift=4.0, frame_shift=3.0),
        lora=LoRAConfig(rank=2, alpha=3.0),
    ),
}


def close(ours, theirs, limit=1e-5):
    """Relative to the whole array's size."""
    ours, theirs = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x) for x in (ours, theirs))
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= limit * np.linalg.norm(theirs)


def tensors(tree):
    return {name: torch.tensor(np.asarray(leaf)) for name, leaf in flatten(tree).items()}


class Case:
    """Both models, with the same weights, and inputs."""

    def __init__(self, config):
        self.config = config
        self.par = Functional(lambda rngs: PAR(config, rngs=rngs))
        vae = Functional(lambda rngs: VAE(config.vae, rngs=rngs))
        self.params = {"par": random_params(self.par), "vae": random_params(vae, seed=2)}
        self.batch = make_batch(config, n=STEPS)
        if config.text.kind == "phi":
            text = np.random.default_rng(3).normal(size=(2, config.text.tokens, config.text.dim))
            self.batch = dataclasses.replace(self.batch, text=jnp.asarray(text, jnp.float32))
        self.given = tensors(self.batch)
        self.peer = make(
            config, *({n: np.asarray(x) for n, x in flatten(self.params[k]).items()} for k in ("par", "vae"))
        )


@pytest.fixture(scope="module", params=VARIANTS)
def case(request):
    return Case(VARIANTS[request.param])


def test_the_cached_pass_and_the_whole_step_beyond_the_context(case):
    """From pictures to actions, five packages through a window of three; the look-ahead travels in the cache. Our
    weights are prepared for acting, as a policy's are.
    """
    config, m, physical = case.config, case.config.model, PhysicalStep(case.config)
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (STEPS, 2, *config.picture.stitched, 3), np.uint8)
    start, act = jax.jit(physical.start), jax.jit(physical.act)
    frame = jax.jit(lambda p, *waiting: sampling.frame_condition(case.par.bind(p["par"]), *waiting))
    params = prepared(case.params)
    cache = start(params, case.batch.text)
    executed = jnp.zeros((2, m.chunk, m.action_dim))
    with torch.no_grad():
        kept = case.peer.par.start(case.given["text"])
        for step, seen in enumerate(pictures):
            keys = jax.random.split(jax.random.key(step), 2)
            noise = torch.tensor(np.asarray(action_noise(config, keys)))
            theirs, z_o = case.peer(kept, torch.tensor(seen), torch.tensor(np.asarray(executed)), noise)
            cache, executed, ahead, waiting = act(params, cache, seen, executed, keys)
            close(frame(params, cache, waiting), z_o)
            close(jnp.concatenate([executed, ahead], 1), theirs)


def test_the_pass_over_all_packages_and_the_cached_one_agree(case):
    batch, n = case.batch, STEPS
    z = jax.jit(lambda p: losses.encode(case.par.bind(p), batch, jnp.array([False, True])))(case.params["par"])
    time = torch.arange(n).float().expand(2, -1)
    alone = torch.tensor([False, True])
    known = (case.given["has_past"][:, None] | (torch.arange(n) > 0)) & ~alone[:, None]
    given = case.given["latents"][:, :n], case.given["executed"][:, :n], known, case.given["text"], time, alone
    with torch.no_grad():
        for ours, theirs in zip(z, case.peer.par.encode(*given), strict=True):
            close(ours, theirs)

    cache = jax.jit(lambda p: sampling.start(case.par.bind(p), batch.text))(case.params["par"])
    step = jax.jit(lambda p, *args: both_conditions(case.par.bind(p), *args))
    with torch.no_grad():
        kept = case.peer.par.start(case.given["text"])
        for i in range(n):
            cache, *ours = step(case.params["par"], cache, batch.latents[:, i], batch.executed[:, i])
            theirs = case.peer.par.step(kept, case.given["latents"][:, i], case.given["executed"][:, i])
            for a, b in zip(ours, theirs, strict=True):
                close(a, b)


# One always: adapters, look-ahead, two cameras. The passes above compare the others' positions and prompts; that
# rematerialisation has PyTorch's gradients is for the slow tests.
@pytest.mark.parametrize(
    "case", ["physgen", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tiny", "par"))], indirect=True
)
def test_the_loss_its_gradients_and_what_the_optimizer_makes_of_them(case):
    config, batch, key = case.config, case.batch, jax.random.key(4)
    draws = tensors(jax.jit(lambda key: policy_draws(config, 2, STEPS, key))(key))
    trained, frozen = lora.split(case.params["par"])

    @jax.jit
    def differentiate(trained):
        def loss(trained):
            params = join(trained, frozen) if frozen else trained
            return losses.policy_loss(case.par.bind(params), batch, key)[0]

        value, slopes = jax.value_and_grad(loss)(trained)
        return value, slopes, optax.global_norm(slopes)

    value, slopes, norm = differentiate(trained)
    train = dataclasses.replace(config.train, warmup=1, steps=10)
    optimizer, after = make_optimizer(train), trained
    state = jax.jit(optimizer.init)(trained)

    @jax.jit
    def update(state, params):
        updates, state = optimizer.update(slopes, state, params)
        return state, optax.apply_updates(params, updates)

    with jax.numpy_dtype_promotion("standard"):
        for _ in range(2):  # the warm-up's first step is of length 0
            state, after = update(state, after)

    trainer = Trainer(case.peer.par, train)
    names = {ours: theirs for ours, theirs in PARAMETERS.items() if ours in flatten(trained)}
    found = dict(case.peer.par.named_parameters())
    before = {name: found[name].detach().clone() for name in names.values()}
    for rate in (0.0, train.learning_rate):
        for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        assert float(value) == pytest.approx(trainer.step(case.given, draws).item(), rel=1e-5)
    for ours, name in names.items():
        slope, moved = found[name].grad * max(1.0, float(norm) / train.clip), found[name].detach() - before[name]
        slope, moved = (x.T if ours.endswith("kernel") else x for x in (slope, moved))
        layer = int(name.split(".")[2]) if "stack" in name else ...
        close(flatten(slopes)[ours][layer], slope, 3e-5)
        change = np.asarray(flatten(after)[ours][layer] - flatten(trained)[ours][layer])
        if train.optimizer == "muon" and "stack" in name and ours.endswith("kernel"):
            # PyTorch's Muon counts in bfloat16, in which a gradient's small directions are lost.
            moved = moved.numpy()
            assert (change * moved).sum() > 0.85 * np.linalg.norm(change) * np.linalg.norm(moved)
            assert np.linalg.norm(change) == pytest.approx(np.linalg.norm(moved), rel=0.1)
        else:  # Adam divides by the gradient's own size, also where that is all rounding
            close(change, moved, 1e-3)
