"""Safetensors files: read and written as the library does, damage recognised."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from convert.tensors import Kind, read_safetensors, write_safetensors
from par_jax.errors import UserError

TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.arange(5, dtype=np.float16),
    "brain": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(1, 2, 3),
}


@pytest.fixture
def path(tmp_path):
    kinds = {name: Kind(tensor.dtype, tensor.shape) for name, tensor in TENSORS.items()}
    path = tmp_path / "x.safetensors"
    # In another order than declared, and in blocks.
    blocks = [(name, [tensor[:1], tensor[1:]]) for name, tensor in reversed(TENSORS.items())]
    write_safetensors(path, kinds, blocks)
    return path


def test_as_the_library_reads_and_writes(path, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    read = load_file(path)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(read[name].float().numpy(), tensor.astype(np.float32))
    save_file({"x": torch.arange(6).reshape(2, 3).bfloat16(), "y": torch.ones(2)}, tmp_path / "y.safetensors")
    ours = read_safetensors(tmp_path / "y.safetensors")
    np.testing.assert_array_equal(ours["x"][1:2], np.array([[3, 4, 5]], ml_dtypes.bfloat16))
    assert (ours["y"].dtype, ours["y"].shape) == (np.float32, (2,))


def test_rows_are_read(path):
    for name, tensor in read_safetensors(path).items():
        assert (tensor.dtype, tensor.shape) == (TENSORS[name].dtype, TENSORS[name].shape)
        np.testing.assert_array_equal(tensor[0:2], TENSORS[name][0:2])
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def _header(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _rewrite(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("size", [0, 5, 8, 100, -1])
def test_truncated(path, size):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match="truncated or damaged"):
        read_safetensors(path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data_offsets", [0, 40], "begins at byte"),
        ("data_offsets", [4, 48], "begins at byte 4"),
        ("data_offsets", [-8, 40], "natural number"),
        ("data_offsets", [0], "header"),
        ("shape", [3, 5], "does not fill"),
        ("shape", [True, 12], "natural number"),
        ("shape", None, "header"),
        ("dtype", "I64", "weights are F32, F16 or BF16"),
        ("dtype", "F16", "does not fill"),
        ("more", 1, "an entry has the keys"),
    ],
)
def test_tampered_header(path, key, value, said):
    header, data = _header(path)
    header["a.weight"][key] = value
    _rewrite(path, header, data)
    with pytest.raises(UserError, match=said):
        read_safetensors(path)


@pytest.mark.parametrize("header", [b"", b"[]", b"{", b'{"a": 1}', b"\xff\xff", b'{"a":{},"a":{}}', b"[" * 5000])
def test_no_header(path, header):
    _rewrite(path, header, b"")
    with pytest.raises(UserError, match="header cannot be understood"):
        read_safetensors(path)


def test_more_data_than_tensors(path):
    path.write_bytes(path.read_bytes() + b"1234")
    with pytest.raises(UserError, match="its tensors take"):
        read_safetensors(path)


def test_a_file_that_shrinks_later(path):
    tensor = read_safetensors(path)["brain"]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="become shorter"):
        tensor[0:1]
