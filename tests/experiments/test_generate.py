"""From a prompt to pixels, on a random checkpoint."""

from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from convert.nova_to_flax import convert
from convert.published import PRESETS
from convert.random_nova import write_random
from experiments import generate
from par_jax.errors import UserError

DEFAULTS = {
    "prompt": "push the cube",
    "negative_prompt": "",
    "frames": None,
    "image": None,
    "sets": 2,
    "steps": 2,
    "guidance": 3.0,
    "min_guidance": None,
    "guidance_truncation": 0.0,
    "guidance_renormalisation": 1.0,
    "image_guidance": 0.0,
    "shift": None,
    "motion": 5.0,
    "fps": 12,
    "seed": 0,
    "dtype": None,
    "overwrite": False,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    base = tmp_path_factory.mktemp("generate")
    write_random(PRESETS["tiny"], base / "source")
    words = {"push": 0, "the": 1, "cube": 2, "?": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (base / "source" / "tokenizer").mkdir()
    tokenizer.save(str(base / "source" / "tokenizer" / "tokenizer.json"))
    convert(str(base / "source"), base / "checkpoint")
    return base / "checkpoint"


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch):
    """Runs the command."""

    def command(name, **values):
        flags = DEFAULTS | {"checkpoint": str(checkpoint), "out": str(tmp_path / name)} | values
        monkeypatch.setattr(generate, "FLAGS", SimpleNamespace(**flags))
        generate.main()
        return tmp_path / name

    return command


def test_a_prompt_and_a_seed_make_a_picture(run):
    first, again, other_seed, other_prompt = (
        np.asarray(Image.open(run(f"{i}.png", **values)))
        for i, values in enumerate(({}, {}, {"seed": 1}, {"prompt": "cube cube"}))
    )
    assert first.shape[2] == 3 and first.std() > 1
    assert (first == again).all() and (first != other_seed).any() and (first != other_prompt).any()


@pytest.mark.slow
def test_a_picture_begins_a_clip(run, tmp_path):
    ramp = np.linspace(0, 255, 300 * 400 * 3).reshape(300, 400, 3).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "first.png")
    out = run("clip.mp4", image=str(tmp_path / "first.png"), frames=3, image_guidance=1.5, dtype="bfloat16")
    reader = imageio_ffmpeg.read_frames(str(out))
    assert next(reader)["fps"] == 12
    assert sum(1 for _ in reader) == 9


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("a.jpg", {}, "ends with .png"),
        ("a.png", {"frames": 2}, "do not fit into a picture"),
        ("a.mp4", {"frames": 0}, "give 1 or more"),
        ("a.png", {"image": "none.png"}, "--image begins a clip"),
        ("a.mp4", {"image": "none.png"}, "none.png cannot be read"),
        ("a.png", {"steps": 2000}, "give 1 to 1000"),
        ("a.png", {"checkpoint": "/none"}, "is no converted checkpoint"),
    ],
)
def test_bad_input_is_told_in_a_sentence(run, name, values, message):
    with pytest.raises(UserError, match=message):
        run(name, **values)


def test_a_file_that_exists_stays(run, tmp_path):
    (tmp_path / "a.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="exists: give --overwrite"):
        run("a.png")
    assert (tmp_path / "a.png").read_bytes() == b"mine"


def test_a_checkpoint_without_a_text_encoder_is_told(run, tmp_path):
    write_random({k: v for k, v in PRESETS["tiny"].items() if k != "text_encoder"}, tmp_path / "source")
    convert(str(tmp_path / "source"), tmp_path / "checkpoint")
    with pytest.raises(UserError, match="has no text encoder"):
        run("a.png", checkpoint=str(tmp_path / "checkpoint"))
