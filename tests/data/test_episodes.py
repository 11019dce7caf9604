import io
import json
import subprocess
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from par_jax.data import episodes as disk
from par_jax.data.episodes import Episodes
from par_jax.errors import UserError

META = {
    "format": disk.FORMAT,
    "task": "pushcube",
    "control_mode": "pd_joint_pos",
    "picture_size": [8, 12],
    "episodes_wanted": 5,
    "complete": True,
}


def episode(seed, steps=3, actions=2):
    """Synthetic arrays and the pictures they hold."""
    random = np.random.default_rng(seed)
    pictures = random.integers(0, 256, (steps + 1, 8, 12, 3), np.uint8)
    files = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        files.append(file.getvalue())
    arrays = {
        "action": random.normal(size=(steps, actions)).astype(np.float32),
        "executed": random.normal(size=(steps, actions)).astype(np.float32),
        "qpos": random.normal(size=(steps + 1, 9)).astype(np.float32),
        "seed": np.array([seed]),
        **disk.join_pictures(files),
    }
    return arrays, pictures


@pytest.fixture
def folder(tmp_path):
    """Two shards of three and two episodes, of different lengths."""
    disk.write_shard(tmp_path, 0, [episode(seed, 3 + seed)[0] for seed in (0, 1, 2)])
    disk.write_shard(tmp_path, 20, [episode(seed, 2)[0] for seed in (20, 22)])
    disk.write_meta(tmp_path, {**META, "shards": {"0": 3, "20": 2}})
    return tmp_path


def change(folder, **fields):
    disk.write_meta(folder, {**disk.read_meta(folder), **fields})


def test_numbers_and_pictures_come_back_bit_for_bit(folder):
    data = Episodes(folder, task="pushcube", picture_size=(8, 12), control_mode="pd_joint_pos")
    assert len(data) == 5
    for index, (seed, steps) in enumerate([(0, 3), (1, 4), (2, 5), (20, 2), (22, 2)]):
        arrays, pictures = episode(seed, steps)
        numbers = data.numbers(index)
        assert set(numbers) == {"action", "executed", "qpos", "seed"}
        for key, value in numbers.items():
            np.testing.assert_array_equal(value, arrays[key])
        np.testing.assert_array_equal(data.pictures(index), pictures)
        np.testing.assert_array_equal(data.pictures(index, [2, 0]), pictures[[2, 0]])


def test_lengths(folder):
    np.testing.assert_array_equal(Episodes(folder).lengths(), [3, 4, 5, 2, 2])


def test_reader_stops_at_what_was_wanted(folder):
    change(folder, episodes_wanted=4)
    data = Episodes(folder)
    assert len(data) == 4
    with pytest.raises(IndexError):
        data.numbers(4)
    with pytest.raises(IndexError):
        data.pictures(-1)


def test_statistics_read_numbers_only(folder, monkeypatch):
    monkeypatch.setattr(Episodes, "pictures", None)
    monkeypatch.setattr(disk, "Image", None)
    statistics = disk.statistics(Episodes(folder))
    actions = np.concatenate([episode(s, n)[0]["action"] for s, n in [(0, 3), (1, 4), (2, 5), (20, 2), (22, 2)]])
    assert statistics["count"] == 16
    np.testing.assert_allclose(statistics["mean"], actions.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics["std"], actions.std(0), rtol=1e-5)
    np.testing.assert_allclose(statistics["low"], np.quantile(actions, 0.005, axis=0), rtol=1e-5)
    np.testing.assert_allclose(statistics["high"], np.quantile(actions, 0.995, axis=0), rtol=1e-5)
    assert json.loads(json.dumps(statistics)) == statistics


def test_statistics_of_differences_reach_from_where_episodes_begin():
    """Two episodes that begin at 1 and 3 and then go 0.5 a step: a chunk of 4 reaches 2 from the last action."""

    class Two:
        meta: ClassVar[dict] = {}

        def __len__(self):
            return 2

        def numbers(self, i):
            arm = 1.0 + 2 * i + 0.5 * np.arange(200, dtype=np.float32)
            action = np.stack([arm, np.sign(arm - 50)], axis=1)
            return {"action": action, "executed": action, "qpos": np.full((201, 3), 1.0 + 2 * i, np.float32)}

    statistics = disk.statistics(Two(), chunk=4)
    assert statistics["low"] == [0.0, -1.0] and statistics["high"] == [4.0, 1.0]


def test_one_scale_is_the_widest_range_of_the_arm_and_spares_the_gripper():
    """Joints that reach 2 about 1 and 0.5 about 3, and a gripper: the second joint's range becomes the first's."""

    class One:
        meta: ClassVar[dict] = {}

        def __len__(self):
            return 1

        def numbers(self, i):
            ramp = np.linspace(-1.0, 1.0, 2001)
            return {"action": np.stack([1.0 + 2.0 * ramp, 3.0 + 0.5 * ramp, ramp], axis=1)}

    statistics = disk.statistics(One(), one_scale=True)
    np.testing.assert_allclose(statistics["low"], [1 - 1.98, 3 - 1.98, -0.99])
    np.testing.assert_allclose(statistics["high"], [1 + 1.98, 3 + 1.98, 0.99])
    np.testing.assert_allclose(disk.statistics(One())["high"], [1 + 1.98, 3 + 0.495, 0.99])


def test_statistics_do_not_read_picture_records(folder, monkeypatch):
    data, read = Episodes(folder), []
    source = data._source
    monkeypatch.setattr(data, "_source", type("Spy", (), {"__getitem__": lambda _, i: read.append(i) or source[i]})())
    disk.statistics(data)
    assert read == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"task": "pickcube"}, "has task pushcube, but pickcube"),
        ({"picture_size": (64, 64)}, r"picture_size \[8, 12\], but \[64, 64\]"),
        ({"control_mode": "pd_ee_delta_pose"}, "control_mode"),
    ],
)
def test_other_data_is_refused(folder, wanted, says):
    with pytest.raises(UserError, match=says):
        Episodes(folder, **wanted)


@pytest.mark.parametrize(
    ("there", "wanted", "says"),
    [
        (["render"], ("render", "hand"), "has no pictures of camera hand: train with --cameras=render, or collect "
         "other data with --cameras=render,hand$"),
        (["render"], ("base", "hand"), "no pictures of camera base, hand:"),
        (["render", "hand"], ("render",), "shows render,hand, and so the arm panda_wristcam, where render alone is "
         "with panda: train with --cameras=render,hand, or collect"),
    ],
)  # fmt: skip
def test_other_cameras_are_refused(folder, there, wanted, says):
    change(folder, cameras=there)
    with pytest.raises(UserError, match=says):
        Episodes(folder, cameras=wanted)
    assert Episodes(folder, cameras=there).meta["cameras"] == there


def test_some_of_the_cameras_in_any_order(folder):
    change(folder, cameras=["render", "base"])
    both = Episodes(folder, cameras=("render", "base")).pictures(2)
    for wanted, shown in (("base",), both[:, :, 6:]), (("render",), both[:, :, :6]):
        data = Episodes(folder, cameras=wanted)
        np.testing.assert_array_equal(data.pictures(2), shown)
        assert data.meta["cameras"] == list(wanted)
    turned = Episodes(folder, cameras=("base", "render")).pictures(2, [1])
    np.testing.assert_array_equal(turned, np.roll(both[1:2], 6, axis=2))


def test_folders_from_before_there_were_cameras_saw_through_the_render_camera(folder):
    assert "cameras" not in json.loads((folder / disk.META).read_text())
    assert Episodes(folder, cameras=("render",)).meta["cameras"] == ["render"]
    with pytest.raises(UserError, match="no pictures of camera hand"):
        Episodes(folder, cameras=("render", "hand"))


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="no data folder.*experiments.collect"):
        Episodes(tmp_path / "nothing")


def test_folder_that_holds_nothing(tmp_path):
    with pytest.raises(UserError, match=r"holds no dataset\.json"):
        Episodes(tmp_path)


def test_folder_with_no_finished_shard(tmp_path):
    disk.write_meta(tmp_path, {**META, "complete": False, "shards": {}})
    with pytest.raises(UserError, match="is empty"):
        Episodes(tmp_path)


def test_half_written_folder(folder):
    change(folder, complete=False, episodes_wanted=100)
    with pytest.raises(UserError, match="half-written: 5 of 100.*again"):
        Episodes(folder)


def test_lost_shard(folder):
    (folder / disk.shard_name(20)).unlink()
    with pytest.raises(UserError, match="lacks the file episodes-00000020"):
        Episodes(folder)


@pytest.mark.parametrize("keep", [0, 1000, 65536])
def test_cut_off_shard(folder, keep):
    shard = folder / disk.shard_name(20)
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(UserError, match="damaged or cut off"):
        Episodes(folder)


def test_damaged_meta(folder):
    (folder / disk.META).write_text('{"format": 1, ')
    with pytest.raises(UserError, match="damaged"):
        Episodes(folder)
    (folder / disk.META).write_text('{"format": 99}')
    with pytest.raises(UserError, match="format 1"):
        Episodes(folder)


class FullDisk:
    """A writer that finds out, as array_record's does, when it flushes."""

    def __init__(self, path, options):
        self.path = path

    def write(self, record):
        pass

    def close(self):
        disk.Path(self.path).write_bytes(b"half")
        raise RuntimeError("write() failed: No space left on device; writing x; at byte 1048576")


def test_full_disk_leaves_finished_shards_and_no_debris(folder, monkeypatch):
    before = sorted(folder.iterdir())
    monkeypatch.setattr(disk, "ArrayRecordWriter", FullDisk)
    with pytest.raises(UserError, match="the disk is full.*finished shards stay"):
        disk.write_shard(folder, 40, [episode(40)[0]])
    assert sorted(folder.iterdir()) == before
    assert len(Episodes(folder)) == 5


def test_full_disk_for_the_meta_keeps_the_old_one(folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.Path, "write_text", full)
    with pytest.raises(UserError, match="the disk is full"):
        change(folder, complete=False)
    assert disk.read_meta(folder)["complete"]


def test_a_really_full_disk(tmp_path):
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", tmp_path], capture_output=True)
    if mount.returncode != 0:
        pytest.skip("may not mount a small file system")
    try:
        random = np.random.default_rng(0)
        big = {**episode(0)[0], "picture_bytes": random.integers(0, 256, 1 << 20, np.uint8)}
        disk.write_shard(tmp_path, 0, [episode(0)[0]])
        with pytest.raises(UserError, match="the disk is full"):
            disk.write_shard(tmp_path, 20, [big])
        assert [path.name for path in tmp_path.iterdir()] == [disk.shard_name(0)]
        assert disk.count(tmp_path / disk.shard_name(0)) == 1
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_unwritable_folder_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="could not write"):
        disk.write_shard(tmp_path / "gone", 0, [episode(0)[0]])
