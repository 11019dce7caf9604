"""PAR's training step in PyTorch: all draws given, fused AdamW, the average in one kernel."""

import torch
from torch import nn

from tests.reference.par_blocks import patchify

# Numbers of which differences are taken before they are rounded.
EXACT = ("executed", "actions")


class Objective(nn.Module):
    """The loss of a `Par`, whose draws are given."""

    def __init__(self, par):
        super().__init__()
        self.par = par

    def forward(self, batch, draws):
        """The objective with its draws given: see `draws.policy_draws`."""
        n = batch["frame_valid"].shape[1]
        time = draws["first"] + torch.arange(n, device=draws["first"].device)
        past = batch["has_past"][:, None] | (torch.arange(n, device=time.device) > 0)
        known, base = past & ~draws["alone"][:, None], self.par.base(batch["executed"], past)
        z_o, z_a = self.par.encode(
            batch["latents"][:, :n], batch["executed"], known, batch["text"], time, draws["alone"]
        )
        frame = self.frame_loss(z_o, batch, draws) if self.par.config.model.predict_frames else 0.0
        return frame + self.action_loss(z_a, base, batch, draws)

    def action_loss(self, z_a, base, batch, draws):
        (b, n), m, t, noise = z_a.shape[:2], self.par.config.model, draws["action_t"], draws["action_noise"]
        following = [range(i, i + n) for i in range(m.lookahead)]
        target = torch.stack([batch["actions"][:, r.start : r.stop] for r in following], 2) - base[:, :, None]
        target = target.flatten(0, 1).flatten(1, 2).to(z_a.dtype)
        valid = torch.stack([batch["valid"][:, r.start : r.stop] for r in following], 2)
        z_a, count = z_a.flatten(0, 1), len(t)
        kv = self.par.action_head.condition(z_a, *self.drafts(z_a, base, b, n, draws))
        kv = [[part.repeat(count, 1, 1, 1) for part in pair] for pair in kv]
        each = target.expand(count, *target.shape)
        x = noised(each, noise, t[..., None, None])
        out = self.par.action_head(x.flatten(0, 1), 1000 * t.flatten(), kv).unflatten(0, (count, -1))
        error = (out.float() - (noise - each).float()).square().mean(-1).mean(0)
        return mean(error.flatten(), valid.flatten())

    def drafts(self, z_a, base, b, n, draws):
        """The model's own look-ahead from the package before: [B * N, (M-1) * L, A], and where there is one."""
        m, device, shift = self.par.config.model, z_a.device, self.par.config.diffusion.action_shift
        known = ((torch.arange(n, device=device) > 0) & ~draws["alone"][:, None]).flatten()
        none = torch.zeros(b * n, (m.lookahead - 1) * m.chunk, m.action_dim, dtype=z_a.dtype, device=device)
        if m.lookahead == 1 or n == 1:
            return none, known
        with torch.no_grad():
            kv = self.par.action_head.condition(z_a, none, torch.zeros_like(known))
            made = self.par.action_head.sample(kv, draws["draft_noise"], 2, shift)[:, m.chunk :]
        made = (made.float().unflatten(0, (b, n)) + base).roll(1, 1) - base
        return made.flatten(0, 1).to(z_a.dtype), known

    def frame_loss(self, z_o, batch, draws):
        m, some = self.par.config.model, draws["some"]
        frames = patchify(batch["latents"][:, 1:], m.frame_patch).flatten(0, 1)[some]
        z, there = z_o.flatten(0, 1)[some], batch["frame_valid"].flatten()[some]
        order, count, k = draws["order"], draws["count"], frames.shape[1]
        rank = order.argsort(1)
        hidden = (rank >= count[:, None]) & there[:, None]
        shown = order[:, : round((1 - m.mask_ratio[0]) * k) + 1]
        condition = self.par.frame_encoder(frames, z, shown, count, self.par.remat)
        t, noise = draws["frame_t"], draws["frame_noise"]
        each = frames.expand(len(t), *frames.shape)
        out = self.par.frame_head(
            noised(each, noise, t[..., None]), 1000 * t, condition.expand(len(t), *condition.shape)
        )
        return mean((out.float() - (noise - each).float()).square().mean(-1).mean(0), hidden)


def noised(x, noise, t):
    t = t.to(x.dtype)
    return t * noise + (1 - t) * x


def mean(values, where):
    return (values * where).sum() / where.sum().clamp(min=1)


class Trainer:
    """Training as `par_jax.train` has it: the loss computed in `train.dtype` of float32 parameters, clipping, AdamW
    with decay of the matrices alone, an average of the parameters. Parts with adapters are frozen but for those.
    Where `train.optimizer` says so, Muon moves the blocks' matrices; PyTorch's orthogonalises in bfloat16.

    Args:
      compiled: whether torch.compile makes forward and backward pass.
    """

    def __init__(self, par, train, compiled=False):
        self.objective, self.train = Objective(par), train
        adapted = {name.split(".")[0] for name in dict(par.named_parameters()) if "lora_" in name}
        for name, parameter in par.named_parameters():
            parameter.requires_grad_("lora_" in name or name.split(".")[0] not in adapted)
        trained = {name: parameter for name, parameter in par.named_parameters() if parameter.requires_grad}
        groups, blocks = [[], []], []
        for name, parameter in trained.items():
            matrix = name.endswith(".weight") and parameter.ndim > 1
            if matrix and train.optimizer == "muon" and ".stack." in name:
                blocks.append(parameter)
            else:
                groups[matrix].append(parameter)
        decays = 0.0, train.weight_decay
        groups = [{"params": ps, "weight_decay": decay} for ps, decay in zip(groups, decays, strict=True)]
        self.parameters = list(trained.values())
        self.average = [p.detach().clone() for p in self.parameters]
        rate = {"lr": train.learning_rate}
        self.optimizers = [torch.optim.AdamW(groups, **rate, betas=(0.9, 0.95), fused=True)]
        if blocks:
            sized = {"weight_decay": train.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
            self.optimizers.append(torch.optim.Muon(blocks, **rate, **sized))
        self.loss = torch.compile(self._loss) if compiled else self._loss

    def _loss(self, batch, draws):
        dtype = getattr(torch, self.train.dtype)
        parameters = {name: parameter.to(dtype) for name, parameter in self.objective.named_parameters()}
        batch, draws = (
            {k: x.to(dtype) if x.dtype == torch.float32 and k not in EXACT else x for k, x in d.items()}
            for d in (batch, draws)
        )
        return torch.func.functional_call(self.objective, parameters, (batch, draws))

    def step(self, batch, draws):
        """One step: the loss before it."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        value = self.loss(batch, draws)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.train.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        torch._foreach_lerp_(self.average, self.parameters, 1 - self.train.ema)
        return value.detach()
