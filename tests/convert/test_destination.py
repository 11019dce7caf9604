"""A folder appears whole or not at all."""

import errno
import fcntl
import os

import pytest

from convert.destination import refuse_nested, whole
from par_jax.errors import UserError


def _write(out, text, overwrite=False):
    with whole(out, overwrite, "mark") as folder:
        (folder / "mark").write_text(text)


def _names(path):
    return sorted(one.name for one in path.iterdir())


def test_new_and_replaced(tmp_path):
    out = tmp_path / "deep" / "out"
    _write(out, "first")
    with pytest.raises(UserError, match="exists: add --overwrite"):
        _write(out, "second")
    assert (out / "mark").read_text() == "first"
    _write(out, "second", overwrite=True)
    assert (out / "mark").read_text() == "second"
    assert _names(out.parent) == ["out"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, UserError, RuntimeError])
def test_what_stood_there_stands_after_an_error(tmp_path, stop):
    out = tmp_path / "out"
    _write(out, "first")
    with pytest.raises(stop), whole(out, True, "mark") as folder:
        (folder / "mark").write_text("half")
        raise stop("no")
    assert (out / "mark").read_text() == "first"
    assert _names(tmp_path) == ["out"]


def test_left_by_a_kill(tmp_path):
    """Before the renames, and between the two of them."""
    out = tmp_path / "out"
    (tmp_path / ".out.part" / "params").mkdir(parents=True)
    (tmp_path / ".out.part" / "params" / "half").write_text("half")
    _write(out, "first")
    assert _names(out) == ["mark"] and _names(tmp_path) == ["out"]
    out.rename(tmp_path / ".out.old")
    (tmp_path / ".out.part").mkdir()
    with pytest.raises(UserError, match="exists"):
        _write(out, "second")
    assert (out / "mark").read_text() == "first"
    assert _names(tmp_path) == ["out"]


def test_other_folders_are_never_replaced(tmp_path):
    (tmp_path / "holiday.jpg").write_text("dear")
    for out in (tmp_path, tmp_path / "holiday.jpg"):
        with pytest.raises(UserError, match="is not what this command makes"):
            _write(out, "x", overwrite=True)
    assert (tmp_path / "holiday.jpg").read_text() == "dear"


def test_two_at_once(tmp_path):
    (tmp_path / ".out.part").mkdir()
    handle = os.open(tmp_path / ".out.part", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process writes"):
        _write(tmp_path / "out", "x")
    os.close(handle)
    _write(tmp_path / "out", "x")


def test_full_disk_and_no_folder(tmp_path):
    with pytest.raises(UserError, match="is full"), whole(tmp_path / "out", False, "mark"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert _names(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        _write(tmp_path / "file" / "out", "x")


def test_nested(tmp_path):
    for src, out in (("a", "a"), ("a", "a/b"), ("a/b", "a")):
        with pytest.raises(UserError, match="or around it"):
            refuse_nested(tmp_path / src, tmp_path / out)
    refuse_nested(tmp_path / "a", tmp_path / "ab")
