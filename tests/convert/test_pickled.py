"""PyTorch's .bin files: tensors, and nothing that runs."""

import os
import pickle

import numpy as np
import pytest

from convert.pickled import read_bin
from par_jax.errors import UserError

torch = pytest.importorskip("torch")


class _Code:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_tensors(tmp_path):
    large = torch.randn(300, 100)
    torch.save({"a": large, "b": large[:3].half(), "c": large[:, 0].bfloat16(), "d": large.T}, tmp_path / "x.bin")
    read = read_bin(tmp_path / "x.bin")
    for _ in range(2):  # pages that were given back are read again
        np.testing.assert_array_equal(read["a"][10:200], large[10:200])
    np.testing.assert_array_equal(read["b"][0:3], large[:3].half())
    np.testing.assert_array_equal(read["c"][:].astype(np.float32), large[:, 0].bfloat16().float())
    np.testing.assert_array_equal(read["d"][1:2], large.T[1:2])
    assert read["a"].shape == (300, 100)


def test_code_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(2), "b": _Code()}, tmp_path / "x.bin")
    with pytest.raises(UserError, match=r"may run code \(it names \S*system\)"):
        read_bin(tmp_path / "x.bin")
    (tmp_path / "y.bin").write_bytes(pickle.dumps(_Code()))
    with pytest.raises(UserError):
        read_bin(tmp_path / "y.bin")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([torch.zeros(2)], "no dictionary"),
        ({1: torch.zeros(2)}, "no dictionary"),
        ({"a": 3}, "a is of type int"),
        ({"a": {"b": torch.zeros(2)}}, "a is of type dict"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "a is of type torch.int64"),
        ({"a": torch.eye(2).to_sparse()}, "a is of type"),
    ],
)
def test_other_things_than_tensors(tmp_path, value, said):
    torch.save(value, tmp_path / "x.bin")
    with pytest.raises(UserError, match=said):
        read_bin(tmp_path / "x.bin")


def test_damage(tmp_path):
    path = tmp_path / "x.bin"
    torch.save({"a": torch.zeros(1000)}, path)
    data = path.read_bytes()
    for cut in (data[:1000], data[:-10], b"", b"nonsense"):
        path.write_bytes(cut)
        with pytest.raises(UserError):
            read_bin(path)
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="older than PyTorch 1.6"):
        read_bin(path)
