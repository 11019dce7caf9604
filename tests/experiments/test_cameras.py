"""Two cameras from the simulator to a model and back: collected, opened for training, rolled out."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

pytest.importorskip("mani_skill")

from experiments import rollout  # noqa: E402
from par_jax import evaluation  # noqa: E402
from par_jax.data import episodes as disk  # noqa: E402
from par_jax.data.episodes import Episodes  # noqa: E402
from par_jax.model.par import PAR  # noqa: E402
from par_jax.model.vae import VAE  # noqa: E402
from par_jax.runs import Run  # noqa: E402
from par_jax.sim import collect  # noqa: E402
from tests import demos  # noqa: E402
from tests.demos import TWO_CAMERAS  # noqa: E402
from tests.flags import ROLLOUT_FLAGS  # noqa: E402


@pytest.mark.slow
def test_two_cameras_all_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "BLOCK", 1)
    cameras, size = TWO_CAMERAS.picture.cameras, TWO_CAMERAS.picture.size
    collect.collect(collect.Settings("pushcube", picture_size=size, cameras=cameras), tmp_path / "data", 1, 1)
    data = Episodes(tmp_path / "data", cameras=cameras, picture_size=size)
    assert data.meta["cameras"] == ["render", "hand"]
    pictures = data.pictures(0)
    assert pictures.shape == (data.lengths()[0] + 1, 40, 80, 3)

    run = Run(("pushcube",), TWO_CAMERAS, (tmp_path / "data",), tmp_path / "run")
    demos.make_run(run.workdir, lambda rngs: PAR(TWO_CAMERAS, rngs=rngs), run.meta("policy", run.episodes()))
    make_vae = lambda rngs: VAE(TWO_CAMERAS.vae, rngs=rngs)  # noqa: E731
    demos.make_run(run.workdir / "vae", make_vae, run.meta("vae", run.episodes()))
    monkeypatch.setitem(evaluation.PROTOCOLS, "rdt", dataclasses.replace(evaluation.PROTOCOLS["rdt"], max_steps=9))
    flags = ROLLOUT_FLAGS | {"checkpoint": str(run.workdir), "task": "pushcube", "episodes": 1, "workers": 1}
    monkeypatch.setattr(rollout, "FLAGS", SimpleNamespace(**flags))
    seen = []
    monkeypatch.setattr(rollout.video, "write", lambda film, stem, fps: seen.append(film))
    rollout.main()
    assert json.loads((run.workdir / "rdt" / "summary.json").read_text())["cameras"] == ["render", "hand"]
    (film,) = seen
    assert len(film.executed) == 10 and len(film.predicted) == 2
    assert {picture.shape for picture in [*film.executed, *film.predicted]} == {(32, 64, 3)}
