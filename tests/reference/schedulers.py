"""NOVA's noise schedules in PyTorch, from a scheduler_config.json, written from their behaviour."""

import math

import torch


class Flow:
    """Flow matching: Euler steps along straight lines between data and noise."""

    def __init__(self, config, shift=None):
        self.total = config["num_train_timesteps"]
        self.shift = config.get("shift", 1.0)
        levels = torch.arange(self.total, 0, -1, dtype=torch.float32) / self.total
        self.levels = self._shifted(levels)
        self.shift = shift or self.shift

    def _shifted(self, levels):
        return self.shift * levels / (1 + (self.shift - 1) * levels)

    def plan(self, steps):
        ends = self.total * self.levels[0].item(), self.total * self.levels[-1].item()
        levels = self._shifted(torch.linspace(*ends, steps, dtype=torch.float64).float() / self.total)
        self.path = [*levels.tolist(), 0.0]
        return levels * self.total

    def draws(self, step):
        return False

    def step(self, x, prediction, step, noise=None):
        return x + (self.path[step + 1] - self.path[step]) * prediction

    def told(self, index):
        return self.levels[index] * self.total

    def noised(self, x, noise, index):
        level = self.levels[index][..., None]
        return level * noise + (1 - level) * x

    def target(self, x, noise):
        return noise - x


class DDPM:
    """Ho et al.'s chain, respaced."""

    def __init__(self, config):
        self.config = config
        self.total = config["num_train_timesteps"]
        self.bars = torch.cumprod(1 - self._betas(), 0)

    def _betas(self):
        c, total = self.config, self.total
        kind, ends = c.get("beta_schedule", "linear"), (c.get("beta_start", 1e-4), c.get("beta_end", 0.02))
        if c.get("trained_betas") is not None:
            betas = torch.tensor(c["trained_betas"])
        elif kind == "linear":
            betas = torch.linspace(*ends, total)
        elif kind == "scaled_linear":
            betas = torch.linspace(ends[0] ** 0.5, ends[1] ** 0.5, total) ** 2
        elif kind == "sigmoid":
            betas = torch.linspace(-6, 6, total).sigmoid() * (ends[1] - ends[0]) + ends[0]
        else:
            grid = [math.cos((i / total + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(total + 1)]
            betas = torch.tensor([min(1 - b / a, 0.999) for a, b in zip(grid, grid[1:], strict=False)])
        if not c.get("rescale_betas_zero_snr"):
            return betas
        roots = torch.cumprod(1 - betas, 0).sqrt()
        roots = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
        bars = roots**2
        return 1 - torch.cat((bars[:1], bars[1:] / bars[:-1]))

    def plan(self, steps):
        spacing = self.config.get("timestep_spacing", "leading")
        if spacing == "linspace":
            times = torch.linspace(0, self.total - 1, steps, dtype=torch.float64).round().flip(0)
        elif spacing == "leading":
            times = torch.arange(steps).flip(0) * (self.total // steps) + self.config.get("steps_offset", 0)
        else:
            times = torch.round(self.total - torch.arange(steps, dtype=torch.float64) * (self.total / steps)) - 1
        self.times, self.stride = times.long().tolist(), self.total // steps
        return torch.tensor(self.times)

    def draws(self, step):
        return self.times[step] > 0

    def step(self, x, prediction, step, noise=None):
        time = self.times[step]
        now, then = (self.bars[t] if t >= 0 else torch.tensor(1.0) for t in (time, time - self.stride))
        kept = now / then
        kind = self.config.get("prediction_type", "epsilon")
        if kind == "epsilon":
            clean = (x - (1 - now) ** 0.5 * prediction) / now**0.5
        else:
            clean = prediction if kind == "sample" else now**0.5 * x - (1 - now) ** 0.5 * prediction
        x = (then**0.5 * (1 - kept) * clean + kept**0.5 * (1 - then) * x) / (1 - now)
        if time <= 0:
            return x
        small = ((1 - then) / (1 - now) * (1 - kept)).clamp(min=1e-20)
        kind = self.config.get("variance_type", "fixed_small")
        return x + noise * (1 - kept if kind == "fixed_large" else small) ** 0.5

    def told(self, index):
        return index

    def noised(self, x, noise, index):
        bars = self.bars[index][..., None]
        return bars**0.5 * x + (1 - bars) ** 0.5 * noise

    def target(self, x, noise):
        return noise if self.config.get("prediction_type", "epsilon") == "epsilon" else noise - x


def scheduler(config, shift=None):
    """Of a scheduler_config.json; `shift` is a flow schedule's for generation, where it differs from training's."""
    return DDPM(config) if config["_class_name"].startswith("DDPM") else Flow(config, shift)
