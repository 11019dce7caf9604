"""Every setting of a scheduler_config.json against tests/reference/nova.py, without a model."""

import numpy as np
import pytest

from par_jax.schedulers import DDPM, FLOW, make_scheduler

torch = pytest.importorskip("torch")
from tests.reference import nova  # noqa: E402  (needs torch)

SETTINGS = [
    {"_class_name": FLOW},
    {"_class_name": FLOW, "shift": 3.0},
    {"_class_name": DDPM},
    {"_class_name": DDPM, "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"},
    {"_class_name": DDPM, "beta_schedule": "scaled_linear", "timestep_spacing": "linspace"},
    {"_class_name": DDPM, "beta_schedule": "sigmoid", "steps_offset": 1, "variance_type": "fixed_large"},
    {"_class_name": DDPM, "prediction_type": "sample", "variance_type": "fixed_small_log"},
    {"_class_name": DDPM, "trained_betas": np.linspace(0.001, 0.03, 1000).tolist(), "beta_end": 0.5},
    {
        "_class_name": DDPM,
        "beta_schedule": "scaled_linear",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "prediction_type": "v_prediction",
    },
]


def _error(ours, wanted):
    return np.linalg.norm(np.asarray(ours) - np.asarray(wanted)) / np.linalg.norm(wanted)


@pytest.mark.parametrize("steps", [1, 7, 25, 100])
@pytest.mark.parametrize("setting", SETTINGS, ids=range(len(SETTINGS)))
def test_chain(setting, steps):
    setting = setting | {"num_train_timesteps": 1000}
    theirs, ours = nova.scheduler(setting), make_scheduler(setting).chain(steps)
    told = theirs.plan(steps)
    np.testing.assert_allclose(ours.timesteps, told, rtol=1e-5)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, generator=generator)
    y = x.numpy()
    for step in range(steps):
        predicted, noise = torch.randn(2, 64, generator=generator)
        x = theirs.step(x, predicted, step, noise)
        push, spread = ours.push[step] * predicted.numpy(), ours.spread[step] * noise.numpy()
        y = ours.keep[step] * y + push + spread
        assert theirs.draws(step) == (ours.spread[step] > 0)
    assert _error(y, x) <= 2e-5


@pytest.mark.parametrize("setting", SETTINGS, ids=range(len(SETTINGS)))
def test_training(setting):
    setting = setting | {"num_train_timesteps": 1000}
    theirs, ours = nova.scheduler(setting), make_scheduler(setting)
    x, noise = torch.randn(2, 1000, 3, generator=torch.Generator().manual_seed(0))
    index = np.arange(1000)
    np.testing.assert_allclose(ours.timestep(index), theirs.told(torch.as_tensor(index)), rtol=1e-6)
    wanted = theirs.noised(x, noise, torch.as_tensor(index))
    assert _error(ours.noised(x.numpy(), noise.numpy(), index), wanted) <= 1e-5
    np.testing.assert_array_equal(ours.target(x.numpy(), noise.numpy()), theirs.target(x, noise))


def test_generation_may_have_a_shift_of_its_own():
    setting = {"_class_name": FLOW, "num_train_timesteps": 1000, "shift": 3.0}
    told = nova.scheduler(setting, 2.0).plan(9)
    np.testing.assert_allclose(make_scheduler(setting, 2.0).chain(9).timesteps, told, rtol=1e-6)
