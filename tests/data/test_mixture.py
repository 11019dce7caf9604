import dataclasses

import numpy as np
import pytest

from par_jax.data.episodes import Episodes, read_meta, write_meta
from par_jax.data.mixture import Mixture
from par_jax.data.pictures import picture_counts, split_episodes
from par_jax.data.windows import validation_batches
from par_jax.errors import UserError
from par_jax.runs import Run
from par_jax.stages import make_windows
from par_jax.tasks import get_task
from tests.demos import SMALL, make_demos

COUNTS = {"pushcube": 40, "stackcube": 20}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("mixture")
    return [make_demos(base / task, count=count, task=task) for task, count in COUNTS.items()]


@pytest.fixture
def mixture(folders):
    return Mixture([Episodes(folder) for folder in folders])


def test_every_episode_is_there_once(mixture, folders):
    assert len(mixture) == 60 and np.bincount(mixture.parts).tolist() == [40, 20]
    each = [Episodes(folder) for folder in folders]
    seen = [(part, int(mixture.numbers(i)["seed"][0])) for i, part in enumerate(mixture.parts)]
    assert sorted(seen) == [(part, int(e.numbers(i)["seed"][0])) for part, e in enumerate(each) for i in range(len(e))]
    for index in (0, 17, 59):
        own = each[mixture.parts[index]]
        seed = seen[index][1]
        np.testing.assert_array_equal(mixture.numbers(index)["action"], own.numbers(seed)["action"])
        np.testing.assert_array_equal(mixture.pictures(index, [1, 3]), own.pictures(seed, [1, 3]))
        assert mixture.lengths()[index] == len(own.numbers(seed)["action"])


def test_both_parts_of_a_split_hold_all_tasks_by_their_share(mixture):
    train, held_out = split_episodes(len(mixture))
    assert np.bincount(mixture.parts[held_out]).tolist() == [2, 1]
    assert np.bincount(mixture.parts[train[:30]]).tolist() == [20, 10]


def test_one_folder_is_itself(folders):
    alone = Episodes(folders[0])
    assert Mixture([alone]).meta == alone.meta


def test_fewer_pictures_beside_all(mixture, folders):
    few = Episodes(folders[1])
    few.picture_every = 4
    both = Mixture([Episodes(folders[0]), few])
    assert both.strides().tolist() == [(1, 4)[part] for part in both.parts]
    wanted = [-(-length // stride) + 1 for length, stride in zip(both.lengths(), both.strides(), strict=True)]
    assert picture_counts(both).tolist() == wanted
    assert picture_counts(mixture).tolist() == [len(mixture.pictures(i)) for i in range(len(mixture))]


def test_a_task_of_two_folders_is_one_task(folders, tmp_path):
    more = make_demos(tmp_path / "more")
    run = Run(("pushcube", "pushcube"), SMALL, (folders[0], more), tmp_path / "run")
    episodes = run.episodes()
    assert len(episodes) == 46
    told = run.meta("policy", episodes)
    assert (told["tasks"], told["instructions"]) == (["pushcube"], [get_task("pushcube").instruction])


def test_pictures_that_miss_a_chunk_s_ends_are_refused(tmp_path):
    folder = make_demos(tmp_path / "data")
    write_meta(folder, {**read_meta(folder), "picture_every": 3})
    with pytest.raises(
        UserError, match="a picture every 3 control steps, which does not divide the model's chunk of 8"
    ):
        Run(("pushcube",), SMALL, (folder,), tmp_path / "run").episodes()


def test_what_differs_is_told(mixture, folders, tmp_path):
    assert [part["task"] for part in mixture.meta["parts"]] == list(COUNTS)
    other = make_demos(tmp_path / "wide", task="pickcube", size=(48, 40))
    with pytest.raises(UserError, match=r"has picture_size \[40, 40\] and .*wide \[48, 40\]: data that is trained on"):
        Mixture([Episodes(folders[0]), Episodes(other)])


def test_a_window_is_told_its_own_task(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("par_jax.stages.encode_parts", lambda *_: [np.zeros((99, 2, 2, 4), np.float16)] * 60)
    monkeypatch.setattr("par_jax.stages.make_encode", lambda *_: None)
    run = Run(tuple(COUNTS), SMALL, tuple(folders), tmp_path / "run")
    episodes = run.episodes()
    windows = make_windows(run, episodes, {})
    texts = {task: windows.texts[number].tolist() for number, task in enumerate(COUNTS)}
    assert texts["pushcube"] != texts["stackcube"] and run.instructions[1] == get_task("stackcube").instruction
    (batch,) = validation_batches(windows, np.arange(60), 60, 1)
    names = [list(COUNTS)[episodes.parts[row // 2]] for row in range(60)]
    assert batch.text.tolist() == [texts[name] for name in names]
    same = dataclasses.replace(windows, tasks=np.zeros(60, int))
    assert same.cut(np.array([0]), np.array([0])).text[0].tolist() == texts["pushcube"]
