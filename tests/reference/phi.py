"""Phi's encoder in PyTorch, as one function of a dict of tensors under the published names.

It shares no code and no table with par_jax or convert. Configurations are dicts as in text_encoder/config.json.
"""

import torch
import torch.nn.functional as F


def random_state(config, seed=0):
    """A random tensor for every published name."""
    width, inner, words = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    linears = {"lm_head": (words, width)}
    norms = ["model.final_layernorm"]
    for layer in (f"model.layers.{i}" for i in range(config["num_hidden_layers"])):
        linears |= {f"{layer}.self_attn.{part}": (width, width) for part in ("q_proj", "k_proj", "v_proj", "dense")}
        linears |= {f"{layer}.mlp.fc1": (inner, width), f"{layer}.mlp.fc2": (width, inner)}
        norms.append(f"{layer}.input_layernorm")
    generator = torch.Generator().manual_seed(seed)
    state = {"model.embed_tokens.weight": torch.randn(words, width, generator=generator)}
    for name, shape in linears.items():
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * shape[1] ** -0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    for name in norms:
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(width, generator=generator)
    return state


def encode(state, config, ids):
    """Last hidden states [b, k, d] of ids [b, k]."""
    heads, epsilon = config["num_attention_heads"], config["layer_norm_eps"]

    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], epsilon)

    x = state["model.embed_tokens.weight"][ids]
    turned = int(config["partial_rotary_factor"] * (x.shape[-1] // heads))
    speeds = config["rope_theta"] ** -(torch.arange(0, turned, 2) / turned)
    turns = torch.polar(torch.ones(ids.shape[1], len(speeds)), torch.arange(ids.shape[1])[:, None] * speeds)

    def turn(y):
        """Component i and the one half the turned width behind it are a complex number's two parts."""
        parts = torch.complex(*y[..., :turned].contiguous().chunk(2, -1)) * turns
        return torch.cat((parts.real, parts.imag, y[..., turned:]), -1)

    for layer in (f"model.layers.{i}" for i in range(config["num_hidden_layers"])):
        y = norm(f"{layer}.input_layernorm", x)
        q, k, v = (
            linear(f"{layer}.self_attn.{part}_proj", y).unflatten(-1, (heads, -1)).transpose(1, 2) for part in "qkv"
        )
        scores = turn(q) @ turn(k).mT * q.shape[-1] ** -0.5
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
        seen = linear(f"{layer}.self_attn.dense", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        inner = F.gelu(linear(f"{layer}.mlp.fc1", y), approximate="tanh")
        x = x + seen + linear(f"{layer}.mlp.fc2", inner)
    return norm("model.final_layernorm", x)
