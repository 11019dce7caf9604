import json

import pytest

from par_jax.errors import UserError
from par_jax.evaluation import Trial
from par_jax.results import Results

_SETTINGS = {"task": "pushcube", "checkpoint": {"step": 3}, "picture_size": (128, 128)}


def _row(seed: int) -> dict:
    return {"seed": seed, "policy_seed": 0, "success": True}


def test_a_folder_goes_on_where_it_stopped(tmp_path):
    trials = [Trial(0, s) for s in range(3)]
    first = Results(tmp_path / "out", _SETTINGS)
    assert first.missing(trials) == trials
    first.append(_row(2))
    again = Results(tmp_path / "out", _SETTINGS)
    assert again.missing(trials) == trials[:2]
    again.append(_row(0))
    again.append(_row(1))
    assert again.of(trials) == [_row(0), _row(1), _row(2)]


def test_a_line_cut_short_is_made_again(tmp_path):
    results = Results(tmp_path, _SETTINGS)
    results.append(_row(0))
    results.append(_row(1))
    path = tmp_path / "rollouts.jsonl"
    path.write_text(path.read_text()[:-5])
    again = Results(tmp_path, _SETTINGS)
    assert again.rows == [_row(0)]
    again.append(_row(1))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [_row(0), _row(1)]


def test_other_settings_are_refused_with_the_differing_fields(tmp_path):
    Results(tmp_path, _SETTINGS).append(_row(0))
    with pytest.raises(UserError, match=r"checkpoint.step: 3 != 4; use --overwrite"):
        Results(tmp_path, _SETTINGS | {"checkpoint": {"step": 4}})
    fresh = Results(tmp_path, _SETTINGS | {"checkpoint": {"step": 4}}, overwrite=True)
    assert fresh.rows == []
    assert Results(tmp_path, _SETTINGS | {"checkpoint": {"step": 4}}).rows == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rollouts.jsonl", "nonsense\n", "rollouts.jsonl is damaged"),
        ("settings.json", "{", "settings.json is damaged"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, text, message):
    Results(tmp_path, _SETTINGS).append(_row(0))
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        Results(tmp_path, _SETTINGS)


def test_rollouts_without_settings_are_refused(tmp_path):
    (tmp_path / "rollouts.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="no settings.json beside it"):
        Results(tmp_path, _SETTINGS)


def test_an_out_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file"):
        Results(tmp_path / "out", _SETTINGS)
