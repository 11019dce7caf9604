"""All pictures of data folders as latents of the frame VAE, made once and kept in a memory-mapped file for each."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import grain
import numpy as np
from tqdm import tqdm

from par_jax.config import PictureConfig
from par_jax.data.mixture import Mixture
from par_jax.data.pictures import Demonstrations, crop, picture_counts
from par_jax.errors import UserError, is_full_disk
from par_jax.trees import flatten

ROWS = 16  # pictures a call of the encoder; an episode's last call is padded


def latents_dir(vae: Path) -> Path:
    """Where the latents that a VAE made are kept: beside it."""
    return vae / "latents"


def digest(tree: object) -> str:
    """Hash of a pytree of arrays: names, shapes and bytes, 16 hex digits."""
    made = hashlib.sha256()
    for name, leaf in sorted(flatten(tree).items()):
        leaf = np.ascontiguousarray(leaf)
        made.update(f"{name} {leaf.dtype} {leaf.shape}".encode())
        made.update(leaf.tobytes())
    return made.hexdigest()[:16]


def shifts(episodes: Demonstrations, training: np.ndarray, config: PictureConfig, seed: int) -> np.ndarray:
    """Where each episode's crop lies: int64 [E, 2] pixels, drawn for training episodes, 0 for the others."""
    drawn = np.random.default_rng([seed, 0x5417]).integers(-config.shift, config.shift + 1, (len(episodes), 2))
    moved = np.zeros_like(drawn)
    moved[training] = drawn[training]
    return moved


def encode_all(
    folder: Path,
    episodes: Demonstrations,
    encode: Callable[[np.ndarray], np.ndarray],
    vae: str,
    config: PictureConfig,
    shift: np.ndarray,
    latent_shape: tuple[int, int, int],
) -> np.ndarray:
    """The latents of every picture of every episode, from `folder` where they are kept.

    The file's name is a hash of all that they depend on. It grows episode by episode, and goes on where a
    kill has left it.

    Args:
      folder: of the file, made if needed.
      episodes: E episodes of P pictures each.
      encode: uint8 [ROWS, h, w, 3] -> latents [ROWS, *latent_shape].
      vae: digest of the VAE.
      config: the cameras and the crop.
      shift: [E, 2] pixels, of each episode's crop, the same for all cameras.
      latent_shape: (h, w, C).

    Returns:
      float16 [sum(P), h, w, C], memory-mapped, episode after episode.

    Raises:
      UserError: the disk is full.
    """
    counts = picture_counts(episodes)
    seeds = [int(np.ravel(episodes.numbers(i)["seed"])[0]) for i in range(len(episodes))]
    crops = [config.cameras, config.crop, config.offset, shift.tolist()]
    parts = [vae, episodes.meta, seeds, counts.tolist(), crops, latent_shape]
    name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"latents-{name}.npy"
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            _append(part, episodes, encode, config, shift, (int(counts.sum()), *latent_shape), counts)
            part.replace(path)
        except OSError as error:
            if not is_full_disk(error):
                raise
            raise UserError(
                f"the disk of {folder} is full: free some space and type the same command again, "
                "it goes on where it stopped"
            ) from error
    return np.load(path, mmap_mode="r")


def encode_parts(
    folder: Path,
    mixture: Mixture,
    encode: Callable[[np.ndarray], np.ndarray],
    vae: str,
    config: PictureConfig,
    shift: np.ndarray,
    latent_shape: tuple[int, int, int],
) -> list[np.ndarray]:
    """The latents of a mixture's episodes, each of its folders by `encode_all`.

    Where crops do not move, a folder that joins the others leaves their files as they are.

    Args:
      mixture: E episodes.
      folder, encode, vae, config, shift, latent_shape: as there.

    Returns:
      float16 [P, h, w, C] of each episode, memory-mapped.

    Raises:
      UserError: as there.
    """
    made: dict[int, np.ndarray] = {}
    for part, episodes in enumerate(mixture.folders):
        places = np.flatnonzero(mixture.parts == part)
        latents = np.asarray(encode_all(folder, episodes, encode, vae, config, shift[places], latent_shape))
        each = np.split(latents, np.cumsum(picture_counts(episodes))[:-1])
        made.update(zip(places.tolist(), each, strict=True))
    return [made[place] for place in range(len(mixture))]


def share(source: Path, target: Path) -> None:
    """Links the latents that one VAE's folder keeps into another's, where the file system can.

    Their names say all that they depend on, so that none is taken for another.

    Args:
      source: a VAE's folder.
      target: another's, of the same VAE or another one.
    """
    for path in latents_dir(source).glob("latents-*.npy"):
        latents_dir(target).mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # there already, or on another disk: then they are made again
            (latents_dir(target) / path.name).hardlink_to(path)


def _append(
    path: Path,
    episodes: Demonstrations,
    encode: Callable[[np.ndarray], np.ndarray],
    config: PictureConfig,
    shift: np.ndarray,
    shape: tuple[int, ...],
    counts: np.ndarray,
) -> None:
    with path.open("ab") as file:
        if file.tell() == 0:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, header | {"shape": shape})
            file.flush()
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        ends = file.tell() + np.cumsum(counts) * int(np.prod(shape[1:])) * 2
    size = path.stat().st_size
    done = int(np.searchsorted(ends, size, side="right"))

    def load(i: int) -> np.ndarray:
        return crop(episodes.pictures(i), config, tuple(shift[i]))

    rest = grain.MapDataset.range(done, len(episodes)).map(load)
    rest = rest.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    with path.open("r+b") as file:
        file.truncate(ends[done - 1] if done else ends[0] - counts[0] * int(np.prod(shape[1:])) * 2)
        file.seek(0, 2)
        for pictures in tqdm(
            rest, total=len(episodes), initial=done, desc="encoding pictures", unit="episode", disable=None
        ):
            file.write(_encode(pictures, encode).astype(np.float16).tobytes())
            file.flush()


def _encode(pictures: np.ndarray, encode: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """[n, h, w, 3] -> [n, ...], in calls of one size."""
    pieces = []
    for first in range(0, len(pictures), ROWS):
        piece = pictures[first : first + ROWS]
        missing = ROWS - len(piece)
        pieces.append(encode(np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)])))
    return np.concatenate([np.asarray(piece) for piece in pieces])[: len(pictures)]
