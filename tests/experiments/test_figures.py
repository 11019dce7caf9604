"""The report of a made-up run: an untrained policy, two folders of made-up rollouts."""

import html.parser
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments import figures
from experiments.report import pictures, results
from experiments.report.frames import ending, strip
from par_jax import evaluation, quality, recording
from par_jax.config import to_dict
from par_jax.errors import UserError
from par_jax.evaluation import Trial
from par_jax.model.par import PAR
from par_jax.model.vae import VAE
from par_jax.video import Film
from par_jax.workdir import write_json
from tests.demos import SMALL, make_run

_META = {
    "stage": "policy",
    "tasks": ["pushcube"],
    "instructions": ["Push the cube."],
    "config": to_dict(SMALL),
    "statistics": {"low": [-1.0] * 8, "high": [1.0] * 8},
}


def _film(steps):
    """A square that moves a pixel a step; the prediction is a pixel behind."""

    def picture(step):
        out = np.full((32, 32, 3), 120, np.uint8)
        out[12:20, 1 + step % 20 : 9 + step % 20] = (20, 60, 250)
        return out

    def segments(step):
        out = np.zeros((32, 32), np.uint8)
        out[:6], out[12:20, 1 + step % 20 : 9 + step % 20], out[26:, 20:] = 1, 2, 3
        return out

    film = Film("", [picture(step) for step in range(steps + 1)])
    for made in range(0, steps, 8):
        film.look(made, np.full((8, 8), 0.01 * made, np.float32), segments(made))
        film.predict(picture(made + 7), made, made + 8)
    return film


def _rollouts(folder, protocol="rdt", rows=4):
    made = []
    for i in range(rows):
        row = {"seed": 20241201 + i, "policy_seed": 0, "success": i != 1, "steps": 20 + 4 * i, "return": 1.0}
        made.append(row | {"latencies_ms": [10.0 + i, 12.0, 11.0], "filmed": i < 2})
        if i < 2:
            path = folder / "videos" / f"{row['seed']}-0.npz"
            recording.write(_film(row["steps"]), path, Trial(0, row["seed"]), row["success"])
    settings = {"task": "pushcube", "protocol": protocol, "device": "cpu"}
    write_json(folder / "summary.json", evaluation.summarize(made) | settings)
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures") / "run"
    make_run(folder, lambda rngs: PAR(SMALL, rngs=rngs), _META)
    make_run(folder / "vae", lambda rngs: VAE(SMALL.vae, rngs=rngs), _META | {"stage": "vae"})
    rows = [{"step": s, "split": "train", "loss": 1 / (s + 1), "learning_rate": 0.1} for s in range(5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _rollouts(folder / "rdt")
    _rollouts(folder / "maniskill", "maniskill", rows=2)
    return folder


class _Parser(html.parser.HTMLParser):
    """Collects what is said, what is loaded, and whether tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.text, self.loaded, self.open = "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.loaded += [value for key, value in attributes if key in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + "\n"


def _make(monkeypatch, capsys, **changes) -> tuple[_Parser, str]:
    flags = {"runs": [], "out": "report", "films": 3, "look": True, "device": "auto"} | changes
    monkeypatch.setattr(figures, "FLAGS", SimpleNamespace(**flags))
    figures.main()
    page = _Parser((Path(flags["out"]) / "index.html").read_text())
    assert not page.open
    return page, capsys.readouterr().out


@pytest.fixture(scope="module")
def made(run):
    out = run.parent / "report"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *lines: printed.extend(lines))
        printed: list[str] = []
        flags = SimpleNamespace(runs=[str(run)], out=str(out), films=3, look=True, device="auto")
        patch.setattr(figures, "FLAGS", flags)
        figures.main()
    return out, _Parser((out / "index.html").read_text()), "\n".join(printed)


def test_a_frame_vae_that_was_taken_over_has_its_curves_elsewhere(made, run):
    assert f"{run} took its frame VAE over from where that was trained" in made[1].text
    assert "No curves" not in made[1].text


def test_all_sections_are_there_and_nothing_is_loaded_from_outside(made):
    out, page, _ = made
    for section in (
        "Success",
        "Learning curves",
        "Predicted and executed",
        "Quality of the predicted frames",
        "Attention",
        "Failures",
        "Latency",
    ):
        assert page.text.count(section + "\n") >= 2, "in the contents and above the section"
    linked = [value for value in page.loaded if value.startswith("#")]
    images = [value for value in page.loaded if not value.startswith("#")]
    assert len(linked) == 7
    assert sorted(images) == sorted(path.name for path in out.glob("*.png"))
    for name in images:
        with Image.open(out / name) as image:
            assert image.width > 200 and image.height > 50
            assert np.asarray(image.convert("L")).std() > 1, f"{name} is empty"
    text = (out / "index.html").read_text()
    assert not re.search(r"https?:|<script|@import|url\(", text)


def test_success_stands_beside_the_papers_table(made):
    _, page, printed = made
    assert "run, pushcube, rdt: success 3 of 4: 75.0% (95% interval 30.1 to 95.4%)" in printed
    for text in ("RDT (paper)", "PAR (paper)", "97.0 to 100.0%", "125 of 125, 25 states", "3 of 4, 4 states"):
        assert text in page.text
    assert "maniskill is not the protocol of the paper's table" in page.text


def test_the_numbers_of_the_frames_are_those_of_quality(made, run):
    _, page, printed = made
    films = [recording.read(path) for path in sorted((run / "rdt" / "videos").glob("*.npz"))]
    pairs = [np.concatenate(parts) for parts in zip(*(film.pairs() for film in films), strict=True)]
    scores = quality.compare(*pairs)
    assert scores["frames"] == 5 and scores["psnr_gain"] > 3
    for key in ("psnr_predicted", "psnr_repeated", "psnr_moving_predicted", "psnr_moving_repeated"):
        assert f"{scores[key]:.2f}" in printed and f"{scores[key]:.2f}" in page.text
    assert f"met with {scores['psnr_gain']:+.2f} dB" in page.text
    assert f"{scores['agreement']:.3f}" in page.text


def test_mass_on_the_things_is_printed_beside_their_share(made):
    _, page, printed = made
    lines = [line for line in printed.splitlines() if "run, pushcube, rdt: attention" in line]
    assert len(lines) == 3
    for line in lines:
        for thing in ("arm", "cube", "goal", "all three"):
            assert re.search(rf"{thing} \d+\.\d% \(\d+\.\d%\)", line)
        assert "(18.8%), cube" in line, "the arm's share: six of 32 rows"
        assert line in page.text


def test_failures_are_enlarged(made):
    out, page, _ = made
    assert "run, pushcube, rdt: 1 of 4 rollouts failed" in page.text
    assert "State 20241202, policy seed 0: no success after 24 steps" in page.text
    with Image.open(out / "run1-rdt-failure-0.png") as image:
        assert image.width == 4 * (32 * 9 + 6) - 6


def test_what_is_missing_is_said(tmp_path, run, monkeypatch, capsys):
    bare = tmp_path / "bare"
    write_json(bare / "config.json", _META)
    other = tmp_path / "other"
    write_json(other / "config.json", _META)
    _rollouts(other / "rdt")
    for path in (other / "rdt" / "videos").iterdir():
        path.unlink()
    page, _ = _make(monkeypatch, capsys, runs=[str(bare), str(other)], out=str(tmp_path / "out"))
    for text in ("has no finished rollouts", "No curves of the policy", "has no recordings", "None of them was filmed"):
        assert text in page.text
    page, printed = _make(monkeypatch, capsys, runs=[str(run)], out=str(tmp_path / "out"), look=False)
    assert "there are no maps" in page.text and "attention" not in printed


def test_a_run_whose_checkpoint_is_gone_is_shown_without_attention(tmp_path, monkeypatch, capsys):
    write_json(tmp_path / "run" / "config.json", _META)
    _rollouts(tmp_path / "run" / "rdt")
    page, printed = _make(monkeypatch, capsys, runs=[str(tmp_path / "run")], out=str(tmp_path / "out"))
    assert "is shown without attention" in printed and "next frame PSNR" in printed
    assert "there are no maps" in page.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"runs": []}, "say which runs to show"),
        ({"runs": ["/no/such/run"]}, "holds no checkpoint: .* is missing"),
        ({"runs": ["x"], "out": __file__}, "is a file: give a folder"),
    ],
)
def test_mistakes_are_one_sentence(monkeypatch, capsys, flags, message):
    with pytest.raises(UserError, match=message):
        _make(monkeypatch, capsys, **flags)


def test_damaged_rollouts_are_one_sentence(tmp_path, monkeypatch, capsys):
    write_json(tmp_path / "config.json", _META)
    _rollouts(tmp_path / "rdt")
    (tmp_path / "rdt" / "rollouts.jsonl").write_text("{")
    with pytest.raises(UserError, match="holds no whole rollouts"):
        _make(monkeypatch, capsys, runs=[str(tmp_path)], out=str(tmp_path / "out"))


def test_the_strip_is_aligned_in_time(tmp_path):
    recording.write(_film(20), tmp_path / "one.npz", Trial(0, 1), True)
    film = recording.read(tmp_path / "one.npz")
    drawn, tile = strip(film), 32 * 6
    assert drawn.shape == (3 * (20 + tile + 6) - 6, 3 * (tile + 6) - 6, 3)
    rows = [20 + row * (20 + tile + 6) for row in range(3)]
    for column in range(3):
        left = column * (tile + 6)
        tiles = [drawn[top : top + tile : 6, left : left + tile : 6] for top in rows]
        np.testing.assert_array_equal(tiles[0], film.predicted[column])
        np.testing.assert_array_equal(tiles[1], film.at(np.minimum(film.due[column], 20)))
        # The last prediction is for step 24, and the rollout ended at 20.
        apart = pictures.difference(film.predicted[column], tiles[1])
        np.testing.assert_array_equal(tiles[2], apart if column < 2 else 255 + 0 * apart)


def test_the_ending_shows_the_last_step_and_the_cube_from_near(tmp_path):
    recording.write(_film(19), tmp_path / "one.npz", Trial(0, 1), False)
    film = recording.read(tmp_path / "one.npz")
    drawn, tile = ending(film), 32 * 9
    np.testing.assert_array_equal(drawn[20 : 20 + tile : 9, -tile::9], film.executed[-1])
    near = drawn[20 + tile + 6 :, -tile:]
    assert (near == (20, 60, 250)).all(-1).mean() > (film.executed[-1] == (20, 60, 250)).all(-1).mean()


def test_heat_is_red_where_the_map_is_high_and_grey_elsewhere():
    picture = np.full((8, 8, 3), 100, np.uint8)
    hot = pictures.heat(picture, np.array([[0.7, 0.1], [0.1, 0.1]])).astype(int)
    assert hot[0, 0, 0] - hot[0, 0, 2] > 80
    assert (np.ptp(hot[7, 7]) < 10).all()
    even = pictures.heat(picture, np.full((2, 2), 0.25)).astype(int)
    assert np.ptp(even) == 0


def test_rollouts_through_other_cameras_than_the_papers_say_so():
    summary = {"task": "pushcube", "protocol": "rdt", "cameras": ["render"]}
    made = SimpleNamespace(folder=Path("runs/two/rdt"), summary=summary)
    assert results.name(made) == "runs/two, pushcube, rdt"
    summary["cameras"].append("base")
    assert results.name(made) == "runs/two, pushcube, rdt, cameras render and base"
