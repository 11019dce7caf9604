"""Damaged folders: one sentence and no checkpoint, whatever the damage."""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert.nova_to_flax import convert
from par_jax import pretrained
from par_jax.errors import UserError

_JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-2, 70), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def _damage(path: Path, data: st.DataObject) -> str:
    """Spoils a file; what was done."""
    content = path.read_bytes()
    kinds = ["delete", "empty", "cut", "flip", "grow", "folder"] + (["edit"] * 6 if path.suffix == ".json" else [])
    kind = data.draw(st.sampled_from(kinds), "damage")
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "cut":
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1), "bytes left")])
    elif kind == "grow":
        path.write_bytes(content + data.draw(st.binary(min_size=1, max_size=8), "more"))
    elif kind == "flip":
        # Mostly where the structure is; among the weights themselves a changed bit is another number.
        end = data.draw(st.sampled_from([len(content), min(len(content), 3000), 10]), "where")
        spoilt = bytearray(content)
        for _ in range(data.draw(st.integers(1, 3), "flips")):
            at = data.draw(st.integers(0, end - 1), "at")
            spoilt[at] ^= data.draw(st.integers(1, 255), "bits")
        path.write_bytes(bytes(spoilt))
    elif kind == "edit":
        values = json.loads(content)
        key = data.draw(st.sampled_from([*values, "new_key"]), "key")
        values[key] = data.draw(_JUNK, "value")
        path.write_text(json.dumps(values))
    elif kind == "empty":
        path.write_bytes(b"")
    return kind


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_folders(published, data):
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "source", Path(scratch) / "flax"
        shutil.copytree(published, source)
        files = sorted(path for path in source.rglob("*") if path.is_file())
        path = data.draw(st.sampled_from(files), "file")
        kind = _damage(path, data)
        with contextlib.redirect_stdout(None):
            try:
                convert(str(source), out)
            except UserError as error:
                assert str(error)
                assert [path.name for path in Path(scratch).iterdir()] == ["source"]
                return
        # Only another number, or white space, can have been let through: the checkpoint is whole.
        assert kind == "flip" or (path.suffix == ".json" and kind in ("edit", "cut", "grow"))
        assert (out / "manifest.json").is_file()
        for component in pretrained.COMPONENTS:
            leaves = [pretrained.load(out, component)]
            while leaves:
                leaf = leaves.pop()
                leaves += leaf.values() if isinstance(leaf, dict) else []
                assert isinstance(leaf, dict) or np.isfinite(leaf).all()
