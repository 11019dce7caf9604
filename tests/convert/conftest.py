"""A small checkpoint in the published layout, made once, and copies of it to spoil."""

import json
import shutil

import pytest

from convert.published import PRESETS
from convert.random_nova import write_random


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A tiny checkpoint with every component but the tokenizer."""
    folder = tmp_path_factory.mktemp("published") / "tiny"
    write_random(PRESETS["tiny"], folder)
    return folder


@pytest.fixture
def copy(published, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(published, tmp_path / "source")


@pytest.fixture
def edit():
    """Changes keys of a JSON file; a value of `...` removes its key."""

    def change(path, **keys):
        values = json.loads(path.read_text()) | keys
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))

    return change
