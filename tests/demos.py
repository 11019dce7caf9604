"""Demonstrations made without a simulator: a bright square that the actions move over a grey floor; untrained runs."""

import dataclasses
import io
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from PIL import Image

from par_jax import config as config_lib
from par_jax.checkpoint import Checkpoints
from par_jax.config import Config
from par_jax.data import episodes as disk
from par_jax.tasks import get_scene
from par_jax.workdir import write_json

SIZE = (40, 40)
COLOURS = ((250, 40, 20), (30, 60, 240), (40, 220, 60))

# The tiny preset's classes at a fraction of its size: compiles in seconds, steps in milliseconds.
SMALL: Config = dataclasses.replace(
    config_lib.TINY,
    name="small-test",
    picture=config_lib.PictureConfig(size=SIZE, crop=(32, 32), shift=2),
    vae=dataclasses.replace(config_lib.TINY.vae, block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4),
    model=dataclasses.replace(
        config_lib.TINY.model,
        width=32,
        heads=1,
        context=2,
        video_depth=1,
        frame_depth=2,
        frame_head_width=32,
        frame_head_depth=1,
        action_head_width=32,
        action_head_depth=1,
        action_head_heads=1,
    ),
    diffusion=dataclasses.replace(config_lib.TINY.diffusion, draws=2, action_steps=2),
    train=dataclasses.replace(config_lib.TINY.train, steps=12, batch=4, packages=2, warmup=2),
    vae_train=dataclasses.replace(config_lib.TINY.vae_train, steps=4, batch=4, warmup=1),
)

# The same model, looking through two cameras.
TWO_CAMERAS: Config = dataclasses.replace(SMALL, picture=dataclasses.replace(SMALL.picture, cameras=("render", "hand")))


def make_demos(
    folder: Path,
    count: int = 6,
    task: str = "pushcube",
    size: tuple[int, int] = SIZE,
    actions: int = 8,
    cameras: tuple[str, ...] = ("render",),
    source: str = "expert",
) -> Path:
    """Writes a whole demonstration folder of `count` episodes of 12 to 30 actions.

    The square is `COLOURS[k]` in the part of camera k; every second camera sees the floor upside down.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    made = []
    for seed in range(count):
        length = int(rng.integers(12, 31))
        action = np.cumsum(rng.normal(0, 0.1, (length, actions)), axis=0).astype(np.float32)
        place = np.concatenate([[[0.0, 0.0]], action[:, :2]])
        made.append(
            {
                "action": action,
                "qpos": np.zeros((length + 1, 9), np.float32),
                "seed": np.array([seed], np.int64),
                **disk.join_pictures([_picture(y, x, size, len(cameras)) for y, x in place]),
            }
        )
    disk.write_shard(folder, 0, made)
    disk.write_meta(
        folder,
        {
            "format": disk.FORMAT,
            "source": source,
            "task": task,
            "env_id": get_scene(task).env_id,
            "instruction": get_scene(task).instruction,
            "control_mode": "pd_joint_pos",
            "cameras": list(cameras),
            "picture_size": list(size),
            "episodes_wanted": count,
            "complete": True,
            "shards": {"0": count},
        },
    )
    return folder


def make_run(folder: Path, make: Callable[[nnx.Rngs], Any], meta: dict) -> None:
    """A run's folder with random parameters; drawing those that training starts from would be compiled first."""
    random = np.random.default_rng(0)
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: make(nnx.Rngs(0)))))
    params = jax.tree.map(lambda leaf: random.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)
    write_json(folder / "config.json", meta)
    with closing(Checkpoints(folder)) as checkpoints:
        checkpoints.save(1, {"ema": params}, {})


def _picture(y: float, x: float, size: tuple[int, int], cameras: int) -> bytes:
    parts = []
    for number in range(cameras):
        part = np.full((*size, 3), 90, np.uint8)
        top, left = int(size[0] * (0.4 + 0.2 * np.tanh(y))), int(size[1] * (0.4 + 0.2 * np.tanh(x)))
        part[top : top + 6, left : left + 6] = COLOURS[number]
        parts.append(part[::-1] if number % 2 else part)
    file = io.BytesIO()
    Image.fromarray(np.concatenate(parts, axis=1)).save(file, "PNG")
    return file.getvalue()
