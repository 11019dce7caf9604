import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from par_jax.checkpoint import Checkpoints, load_params
from par_jax.config import TINY, to_dict
from par_jax.errors import UserError, is_full_disk
from par_jax.trees import checksum, flatten, nest
from par_jax.workdir import claim, write_json

RNG = np.random.default_rng(0)


def layers():
    return {
        "layers": {
            0: {"kernel": RNG.normal(size=(100, 300)).astype(np.float32)},
            1: {"kernel": RNG.normal(size=2).astype(np.float32)},
        }
    }


STATE = {
    "params": layers(),
    "ema": layers(),
    "step": np.array(3, np.int32),
    "key": np.array([1, 2], np.uint32),
}


@pytest.fixture
def run(tmp_path):
    """A folder with the checkpoints of steps 1, 2 and 3; step s holds STATE with its key increased by s."""
    write_json(tmp_path / "config.json", {"config": to_dict(TINY), "stage": "policy"})
    save(tmp_path, 1, 2, 3)
    return tmp_path


def save(folder, *steps):
    checkpoints = Checkpoints(folder)
    for step in steps:
        state = {**STATE, "key": STATE["key"] + np.uint32(step)}
        checkpoints.save(step, state, {"data": {"next_index": step}, "sums": {"loss": 0.1}})
    checkpoints.wait()
    checkpoints.close()


def restore(folder, template=STATE):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(template)
    finally:
        checkpoints.close()


def damage(folder, step, how):
    files = [file for file in (folder / "checkpoints" / str(step) / "state").rglob("d/*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    if how == "empty":
        largest.write_bytes(b"")
    elif how == "cut":
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    elif how == "gone":
        for file in files:
            file.unlink()
    elif how == "meta":
        (folder / "checkpoints" / str(step) / "meta" / "metadata").write_text("{")
    elif how == "bit":
        meta = folder / "checkpoints" / str(step) / "meta" / "metadata"
        content = json.loads(meta.read_text())
        content["checksums"]["key"] += 1
        meta.write_text(json.dumps(content))


def test_names_and_nested_dicts_are_inverse():
    tree = {"a": {0: 1, 1: {"b": 2}}, "c": 3}
    assert flatten(tree) == {"a/0": 1, "a/1/b": 2, "c": 3}
    assert nest(flatten(tree)) == tree


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.bool_, jnp.bfloat16])
def test_checksum_sees_any_byte(dtype):
    array = np.arange(35).reshape(5, 7).astype(dtype)
    sums = {checksum(array)}
    for at in range(array.nbytes):
        changed = array.copy()
        changed.reshape(-1).view(np.uint8)[at] ^= 64
        sums.add(checksum(changed))
    assert checksum(array.copy()) in sums
    assert len(sums) > 1 and sum(checksum(array) == s for s in sums) == 1


def test_what_is_saved_comes_back_exactly(run):
    step, state, progress = restore(run, jax.eval_shape(lambda: STATE))
    assert step == 3
    assert progress == {"data": {"next_index": 3}, "sums": {"loss": 0.1}}
    jax.tree.map(np.testing.assert_array_equal, state, {**STATE, "key": STATE["key"] + np.uint32(3)})
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, STATE)


def test_saved_arrays_may_change_at_once(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    array = np.zeros(1000, np.float32)
    checkpoints.save(1, {"a": array}, {})
    array[:] = 5
    checkpoints.wait()
    checkpoints.close()
    assert restore(tmp_path, {"a": array})[1]["a"].max() == 0


def test_only_the_last_ones_are_kept(run):
    save(run, 4, 5)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["3", "4", "5"]


@pytest.mark.parametrize("how", ["empty", "cut", "gone", "meta", "bit"])
def test_a_damaged_checkpoint_is_moved_aside_for_the_one_before(run, how, capsys):
    damage(run, 3, how)
    assert restore(run)[0] == 2
    assert "step 3" in capsys.readouterr().err
    assert (run / "damaged-3").exists()
    save(run, 3)
    assert restore(run)[0] == 3


def test_a_half_written_checkpoint_is_not_seen(run):
    (run / "checkpoints" / "3").rename(run / "checkpoints" / "3.orbax-checkpoint-tmp")
    assert restore(run)[0] == 2


def test_all_damaged_is_a_sentence(run):
    for step in (1, 2, 3):
        damage(run, step, "gone")
    with pytest.raises(UserError, match="every checkpoint in .* is damaged"):
        restore(run)
    with pytest.raises(UserError, match="every checkpoint in .* is damaged"):
        load_params(run)


def test_no_checkpoint_is_none(tmp_path):
    assert restore(tmp_path) is None


def test_another_model_is_refused_by_name_and_shape(run):
    other = {**STATE, "params": {"layers": {0: {"kernel": np.zeros((2, 4), np.float32)}}}}
    with pytest.raises(UserError, match=r"params/layers/0/kernel: float32\[100, 300\] != float32\[2, 4\]"):
        restore(run, other)


@pytest.mark.parametrize("kind", ["ema", "params"])
def test_load_params_gives_what_flax_takes(run, kind):
    config, meta, params = load_params(run, kind)
    assert config == TINY
    assert (meta["step"], meta["stage"]) == (3, "policy")
    jax.tree.map(np.testing.assert_array_equal, params, STATE[kind])


def test_load_params_says_what_is_wrong(run, tmp_path_factory):
    with pytest.raises(UserError, match="config.json is missing"):
        load_params(tmp_path_factory.mktemp("empty"))
    (run / "config.json").write_text('{"config": {"name": "tiny", "unknown": 1}}')
    with pytest.raises(UserError, match="does not fit this version"):
        load_params(run)
    (run / "config.json").write_text('{"config": ')
    with pytest.raises(UserError, match="is damaged"):
        load_params(run)
    fresh = tmp_path_factory.mktemp("fresh")
    write_json(fresh / "config.json", {"config": to_dict(TINY)})
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_params(fresh)


def test_claim_names_what_differs(tmp_path):
    meta = {"config": to_dict(TINY), "task": "pushcube", "versions": {"jax": "1"}, "complete": False}
    claim(tmp_path, meta)
    claim(tmp_path, {**meta, "versions": {"jax": "2"}})
    claim(tmp_path, {**meta, "complete": True}, ignore=("complete",))
    changed = {**meta, "task": "pickcube", "config": {**meta["config"], "name": "small"}}
    with pytest.raises(UserError, match="config.name: tiny != small; task: pushcube != pickcube"):
        claim(tmp_path, changed)


def test_a_run_of_before_a_field_was_there_has_its_default(run):
    meta = {"config": to_dict(TINY), "stage": "policy"}
    old = json.loads(json.dumps(meta))
    del old["config"]["model"]["see_actions"], old["config"]["model"]["lookahead"]
    write_json(run / "config.json", old)
    assert load_params(run)[0] == TINY
    assert claim(run, meta) == old
    blind = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, see_actions=False))
    with pytest.raises(UserError, match="config.model.see_actions: True != False"):
        claim(run, meta | {"config": to_dict(blind)})


def test_full_disks_are_recognised_in_their_disguises():
    inner = OSError(28, "No space left on device")
    assert is_full_disk(inner)
    assert is_full_disk(ValueError("RESOURCE_EXHAUSTED: ... No space left on device [os_error_code]"))
    outer = RuntimeError("save failed")
    outer.__cause__ = inner
    assert is_full_disk(outer)
    assert not is_full_disk(OSError(2, "No such file"))
