import dataclasses
import errno
import json
import os
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from par_jax.checkpoint import Checkpoints
from par_jax.errors import UserError
from par_jax.locks import locked
from par_jax.train import decayed, init_state, make_optimizer, make_train_step, schedule
from par_jax.trees import flatten
from tests.toys import TOY, Trips, batches, first_state, loss, train


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "steps_per_second"} for line in lines]


def assert_same_run(a, b):
    """Two finished runs: equal metrics and equal last checkpoints, bit for bit."""
    assert losses(a) == losses(b)
    template = jax.eval_shape(first_state)
    left, right = (Checkpoints(folder).restore(template) for folder in (a, b))
    assert left[0] == right[0] == TOY.steps
    assert left[2] == right[2]
    jax.tree.map(np.testing.assert_array_equal, left[1], right[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stops."""
    workdir = tmp_path_factory.mktemp("whole")
    assert train(workdir, evaluate=evaluate, eval_every=5).signal is None
    return workdir


def evaluate(state):
    return {"size": float(jnp.abs(state.ema["out"]["kernel"]).sum())}


def test_loss_falls_and_lines_are_written(whole):
    lines = [line for line in losses(whole) if line["split"] == "train"]
    assert [line["step"] for line in lines] == [3, 6, 9, 12, 15, 18, 20]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[0]["half"] == pytest.approx(lines[0]["loss"] / 2)
    assert list((whole / "tensorboard").glob("events.*"))


@pytest.mark.parametrize(
    ("number", "at"), [(signal.SIGINT, 1), (signal.SIGTERM, 4), (signal.SIGTERM, 5), (signal.SIGINT, 19)]
)
def test_a_signal_stops_after_the_step_and_the_run_goes_on_bit_for_bit(whole, tmp_path, number, at):
    trips = Trips(at, lambda _: os.kill(os.getpid(), number))
    result = train(tmp_path, trips, evaluate=evaluate, eval_every=5)
    assert (result.step, result.signal) == (at, number)
    assert train(tmp_path, evaluate=evaluate, eval_every=5).signal is None
    assert_same_run(whole, tmp_path)


def test_a_crash_goes_on_from_the_last_checkpoint_bit_for_bit(whole, tmp_path):
    def crash(_):
        raise RuntimeError("crash")

    for at in (7, 3, 9):  # the second run ends before it reaches a checkpoint of its own
        with pytest.raises(RuntimeError, match="crash"):
            train(tmp_path, Trips(at, crash), evaluate=evaluate, eval_every=5)
    train(tmp_path, evaluate=evaluate, eval_every=5)
    assert_same_run(whole, tmp_path)


def test_a_damaged_checkpoint_is_passed_over_and_the_run_is_the_same(whole, tmp_path, capsys):
    train(tmp_path, Trips(13, lambda _: os.kill(os.getpid(), signal.SIGINT)), evaluate=evaluate, eval_every=5)
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert steps[-1] == 13
    for file in (tmp_path / "checkpoints" / "13").rglob("d/*"):
        file.write_bytes(b"")
    train(tmp_path, evaluate=evaluate, eval_every=5)
    assert "checkpoint of step 13" in capsys.readouterr().err
    assert_same_run(whole, tmp_path)


def test_a_finished_run_does_nothing_more(whole):
    before = (whole / "metrics.jsonl").read_bytes()
    result = train(whole)
    assert (result.step, result.signal) == (TOY.steps, None)
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_nan_stops_with_step_batch_and_last_good_checkpoint(tmp_path):
    def spoil(batch):
        batch["x"][0, 0] = np.nan

    with pytest.raises(UserError) as caught:
        train(tmp_path, Trips(10, spoil))
    message = str(caught.value)
    assert "not finite at step 10" in message and "--learning_rate" in message
    assert str(tmp_path / "checkpoints" / "8") in message
    with np.load(tmp_path / "nan_batch_10.npz") as dumped:
        assert np.isnan(dumped["x"][0, 0]) and dumped["y"].shape == (4, 1)
    step, state, _ = Checkpoints(tmp_path).restore(jax.eval_shape(first_state))
    assert step == 8
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("seen", ["before", "while writing"])
def test_a_full_disk_says_so_and_the_last_checkpoint_stands(tmp_path, monkeypatch, seen):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill(_):
        if seen == "before":
            monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
        else:
            monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", fail)

    with pytest.raises(UserError, match="is full: the last good checkpoint, of step 8, stands"):
        train(tmp_path, Trips(10, fill))


def test_two_processes_do_not_share_a_folder(tmp_path):
    with locked(tmp_path, ""), pytest.raises(UserError, match="another process"):
        train(tmp_path)


def test_schedule_warms_up_and_ends_at_zero():
    rate = schedule(dataclasses.replace(TOY, steps=100, warmup=10))
    values = [float(rate(step)) for step in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(values, [0.0, 0.005, 0.01, 0.005, 0.0], atol=1e-9)


def test_weight_decay_spares_biases_also_when_layers_are_stacked():
    params = {"blocks": {"kernel": jnp.ones((2, 3, 3)), "bias": jnp.ones((2, 3)), "scale": jnp.ones((2, 3))}}
    assert decayed(params) == {"blocks": {"kernel": True, "bias": False, "scale": False}}


def test_muon_moves_each_layers_kernel_by_an_orthogonal_matrix_and_adamw_the_rest():
    """Steps against Muon written out: momentum 0.95 looked ahead, Newton and Schulz's five rounds, AdamW's size."""
    config = dataclasses.replace(TOY, steps=100, warmup=1, optimizer="muon", clip=1e9, weight_decay=0.1)
    rng = np.random.default_rng(0)
    start = rng.normal(size=(2, 6, 9)).astype(np.float32)
    gradients = rng.normal(size=(3, 2, 6, 9)).astype(np.float32)
    others = {"bias": jnp.ones((2, 9)), "scale": jnp.ones((2, 9))}

    def tree(kernel, bare):
        return {"blocks": {"kernel": jnp.asarray(kernel), **others}, "out": {"kernel": bare}}

    def run(config):
        params, optimizer = tree(start, jnp.ones((9, 1))), make_optimizer(config)
        state = optimizer.init(params)
        for gradient in gradients:
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(tree(gradient, jnp.full((9, 1), 0.5)), state, params)
                params = jax.tree.map(jnp.add, params, updates)
        return params

    expected, momentum = start.astype(np.float64), 0.0
    for number, gradient in enumerate(gradients):
        momentum = 0.95 * momentum + 0.05 * gradient
        corrected = 1 - 0.95 ** (number + 1), 1 - 0.95 ** (number + 2)
        ahead = 0.95 * momentum / corrected[1] + 0.05 * gradient / corrected[0]
        x = ahead / np.linalg.norm(ahead, axis=(1, 2), keepdims=True)
        for _ in range(5):
            square = x @ x.swapaxes(1, 2)
            x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
        expected = expected - float(schedule(config)(number)) * (0.2 * np.sqrt(9) * x + 0.1 * expected)
    made, plain = run(config), run(dataclasses.replace(config, optimizer="adamw"))
    np.testing.assert_allclose(made["blocks"]["kernel"], expected, atol=2e-5)
    assert not np.allclose(plain["blocks"]["kernel"], expected, atol=2e-3)
    for name in others:
        np.testing.assert_allclose(made["blocks"][name], plain["blocks"][name], rtol=1e-6)
    np.testing.assert_allclose(made["out"]["kernel"], plain["out"]["kernel"], rtol=1e-6)


def test_moving_average_follows_the_parameters():
    step = make_train_step(loss, TOY)
    state = jax.jit(first_state)()
    start = np.array(state.params["out"]["kernel"])
    state, _ = step(state, next(batches()))
    moved, average = np.array(state.params["out"]["kernel"]), np.array(state.ema["out"]["kernel"])
    np.testing.assert_allclose(average, 0.1 * start + 0.9 * moved, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loss_computes_in_the_asked_dtype_and_masters_stay_float32(dtype):
    seen = []

    def spy(params, batch, key):
        seen.extend([params["out"]["kernel"].dtype, batch["x"].dtype, batch["number"].dtype])
        return loss(params, {name: batch[name].astype(dtype) for name in "xy"}, key)

    config = dataclasses.replace(TOY, dtype=dtype)
    batch = jax.tree.map(jnp.asarray, next(batches()))
    state, metrics = make_train_step(spy, config)(jax.jit(first_state)(), batch)
    assert seen[:3] == [jnp.dtype(dtype), jnp.dtype("float32"), jnp.dtype("int32")]
    assert metrics["loss"].dtype == jnp.float32
    floats = {leaf.dtype for leaf in jax.tree.leaves((state.params, state.ema))}
    assert floats == {jnp.dtype("float32")}


def steps(loss, config, state, count=3, **kwargs):
    """`count` steps from `state`: its parameters afterwards, by name, and the last step's metrics."""
    step, data = make_train_step(loss, config, **kwargs), batches()
    for _ in range(count):
        state, metrics = step(state, next(data))
    return flatten((state.params, state.ema)), metrics


def calm(params, batch, key):
    """The toy's loss without its noise: a mean over rows."""
    return loss(params, {**batch, "x": batch["x"]}, key, noise=0.0)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_the_batch_in_one(parts):
    once, metrics = steps(calm, TOY, jax.jit(first_state)())
    cut, others = steps(calm, dataclasses.replace(TOY, accumulate=parts), jax.jit(first_state)())
    for name, value in (once | metrics).items():
        np.testing.assert_allclose((cut | others)[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


def test_parts_are_all_rows_and_draw_differently():
    def spy(params, batch, key):
        return params["a"] * jnp.mean(batch), {"rows": jnp.sum(batch), "draw": jax.random.uniform(key)}

    config = dataclasses.replace(TOY, accumulate=2)
    draws = set()
    for seed in range(3):
        state = jax.jit(lambda seed=seed: init_state({"a": jnp.ones(())}, config, seed))()
        _, metrics = make_train_step(spy, config)(state, np.arange(4, dtype=np.float32))
        assert metrics["rows"] == 3.0 and metrics["loss"] == 1.5 == metrics["gradient_norm"]
        key = jax.random.fold_in(jax.random.key(seed), 0)
        pair = jax.vmap(jax.random.uniform)(jax.random.split(key))
        assert pair[0] != pair[1] and metrics["draw"] == pytest.approx(float(pair.mean()))
        draws.add(float(metrics["draw"]))
    assert len(draws) == 3


def test_a_batch_that_does_not_divide_into_parts_is_a_sentence():
    config = dataclasses.replace(TOY, accumulate=3)
    with pytest.raises(UserError, match="a batch of 4 rows does not divide into 3 parts over 1 devices.*multiple of 3"):
        make_train_step(loss, config)(jax.jit(first_state)(), next(batches()))


def test_frozen_parameters_are_seen_and_not_trained():
    """Training the last layer alone: of the first one there is no gradient, no moment and no average."""
    whole = first_state().params
    state = jax.jit(lambda: init_state({"out": whole["out"]}, TOY, 0))()
    names = flatten(state).keys()
    batch, key = jax.tree.map(jnp.asarray, next(batches())), jax.random.fold_in(jax.random.key(0), 0)
    gradient = jax.grad(lambda out: loss({**whole, "out": out}, batch, key)[0])(whole["out"])["kernel"]
    after, metrics = make_train_step(loss, TOY, frozen={"layers": whole["layers"]})(state, batch)
    assert flatten(after).keys() == names and not any("layers" in name for name in names)
    assert metrics["gradient_norm"] == pytest.approx(float(jnp.linalg.norm(gradient)), rel=1e-5)


def test_a_name_is_trained_or_frozen():
    state = jax.jit(first_state)()
    with pytest.raises(ValueError, match="both trained and frozen: out/kernel"):
        make_train_step(loss, TOY, frozen={"out": {"kernel": np.zeros((8, 1), np.float32)}})(state, next(batches()))


def test_gradient_is_clipped():
    config = dataclasses.replace(TOY, clip=1e-3, weight_decay=0.0)

    def steep(params, batch, key):
        value, parts = loss(params, batch, key)
        return 1e6 * value, parts

    state, metrics = make_train_step(steep, config)(jax.jit(first_state)(), next(batches()))
    first_moment = jax.tree.leaves(state.opt_state[1][0].mu)
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in first_moment))
    assert float(metrics["gradient_norm"]) > 1.0
    assert norm == pytest.approx(0.1 * config.clip, rel=1e-3)
