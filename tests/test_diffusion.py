import jax
import jax.numpy as jnp
import numpy as np
import pytest

from par_jax.diffusion import SCHEDULES, check_sampler, schedule_of
from par_jax.errors import UserError

MEAN, SPREAD = jnp.array([1.5, -0.7]), jnp.array([0.3, 0.05])


def _perfect(schedule, name):
    """The best denoiser of independent Gaussians, in closed form."""

    def denoise(x, timestep):
        if name == "flow":
            noise_scale, scale = timestep / 1000, 1 - timestep / 1000
        else:
            bar = jnp.asarray(schedule._alpha_bar())[timestep.astype(int)]
            noise_scale, scale = jnp.sqrt(1 - bar), jnp.sqrt(bar)
        variance = scale**2 * SPREAD**2 + noise_scale**2
        noise = noise_scale * (x - scale * MEAN) / variance
        clean = MEAN + scale * SPREAD**2 * (x - scale * MEAN) / variance
        return noise - clean if name == "flow" else noise

    return denoise


@pytest.mark.parametrize("name", ["flow", "ddpm", "ddim"])
def test_a_perfect_denoiser_samples_the_data(name):
    schedule = SCHEDULES[name]
    noise = jax.random.normal(jax.random.key(0), (20000, 2))
    x = schedule.chain(500).run(_perfect(schedule, name), noise, jax.random.key(1))
    np.testing.assert_allclose(x.mean(0), MEAN, atol=0.02)
    np.testing.assert_allclose(x.std(0), SPREAD, rtol=0.12)


@pytest.mark.parametrize("name", ["flow", "ddpm"])
def test_noised_runs_from_data_to_noise(name):
    schedule = SCHEDULES[name]
    x, noise = jnp.ones((2, 3)), -2.0 * jnp.ones((2, 3))
    ends = jnp.array([0.0, 1.0]) if name == "flow" else jnp.array([0, 999])
    first, last = schedule.noised(x, noise, ends)
    np.testing.assert_allclose(first, 1.0, atol=0.05)
    np.testing.assert_allclose(last, -2.0, atol=0.01)


def test_a_shift_moves_times_towards_noise_in_training_and_in_sampling():
    """SD3's eq. 23: where it was the middle, a shift of 4 stands at 4/5; the ends stay."""
    plain, moved = schedule_of("flow"), schedule_of("flow", 4.0)
    before, after = (schedule.draw(jax.random.key(0), (1000,)) for schedule in (plain, moved))
    np.testing.assert_allclose(after, 4 * before / (1 + 3 * before), rtol=1e-6)
    chain = moved.chain(2)
    np.testing.assert_allclose(chain.timesteps, [1000.0, 800.0])
    np.testing.assert_allclose(chain.push, [-0.2, -0.8], rtol=1e-6)
    noise = jax.random.normal(jax.random.key(0), (20000, 2))
    x = moved.chain(500).run(_perfect(moved, "flow"), noise, jax.random.key(1))
    np.testing.assert_allclose(x.mean(0), MEAN, atol=0.02)
    np.testing.assert_allclose(x.std(0), SPREAD, rtol=0.12)


def _samples_of_two_answers(shift, steps, apart):
    """Of a perfect denoiser, where the data is `apart` or `-apart`, in units of it."""
    flow = schedule_of("flow", shift)

    def denoise(x, timestep):
        t = timestep / 1000
        clean = apart * jnp.tanh((1 - t) * apart * x / t**2)
        return (x - clean) / t

    noise = jax.random.normal(jax.random.key(0), (20000,))
    return np.asarray(flow.chain(steps).run(denoise, noise, jax.random.key(1))) / apart


def test_few_steps_at_noisy_times_give_the_mean_of_two_answers_near_each_other():
    """Preset small's four steps regress (docs/results.md): the last one's noise hides which of the answers it is."""
    assert np.abs(_samples_of_two_answers(4.0, 4, 0.14)).mean() < 0.1
    apart = np.abs(_samples_of_two_answers(1.0, 10, 0.5))
    assert (np.abs(apart - 1) < 0.25).mean() > 0.95


def test_what_has_no_shift_refuses_one():
    with pytest.raises(UserError, match="'ddpm' has no shift: give --action_shift=1"):
        check_sampler("ddpm", None, action_shift=4.0, frame_shift=1.0)
    check_sampler("ddpm", None, action_shift=1.0, frame_shift=1.0)
    check_sampler("flow", None, action_shift=4.0, frame_shift=3.0)


def test_targets():
    x, noise = jnp.array([1.0]), jnp.array([3.0])
    assert SCHEDULES["flow"].target(x, noise) == 2.0
    assert SCHEDULES["ddpm"].target(x, noise) == 3.0


def test_times_are_drawn_in_range():
    flow = SCHEDULES["flow"].draw(jax.random.key(0), (1000,))
    assert 0 < flow.min() < 0.1 and 0.9 < flow.max() < 1
    ddpm = SCHEDULES["ddpm"].draw(jax.random.key(0), (5000,))
    assert ddpm.min() < 5 and 990 < ddpm.max() <= 999


def test_ddim_is_deterministic_and_meets_ddpm_in_the_mean():
    noise = jax.random.normal(jax.random.key(0), (4000, 2))
    run = [
        SCHEDULES["ddim"].chain(10).run(_perfect(SCHEDULES["ddim"], "ddim"), noise, jax.random.key(k)) for k in (1, 2)
    ]
    np.testing.assert_array_equal(*run)
    np.testing.assert_allclose(run[0].mean(0), MEAN, atol=0.1)


def test_samplers_of_other_schedules_are_refused():
    check_sampler("ddpm", "ddim")
    with pytest.raises(UserError, match="'ddim' cannot be used: with the noise schedule 'flow' choose one of flow"):
        check_sampler("flow", "ddim")
    with pytest.raises(UserError, match="unknown noise schedule 'edm'"):
        check_sampler("edm", None)
