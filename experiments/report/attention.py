"""The report's section on attention: which packages, and what in the picture, the predicted actions look at."""

import numpy as np

from experiments.report import pictures, plots
from experiments.report.page import Page
from experiments.report.read import Rollouts, Run
from experiments.report.results import name
from par_jax.errors import UserError
from par_jax.looking import READINGS, Look, Looker, on_things
from par_jax.video import write_png

_COLUMNS = 4
_MOST_ROWS = 64


def attention(page: Page, runs: list[Run], lookers: dict[str, Looker], most: int) -> list[str]:
    """Maps of the recordings; mass on arm, cube and goal beside their share of the picture, in lines to print.

    Args:
      lookers: by the run's key, of the runs that could be loaded.
      most: recordings of a folder whose maps are drawn.
    """
    page.section("Attention")
    page.say(
        "Where the action tokens look whose outputs condition the next chunk of actions, computed again from the "
        "recorded pictures and actions, in three readings. Last layer: the attention of the last layer, averaged over "
        "heads; but what a token holds there, earlier layers have mixed from others. Rollout (Abnar and Zuidema "
        "2020): attention averaged over heads and multiplied through all layers, half of each step being the residual "
        "branch's. Influence: how strongly a small change of a token at the bottom changes what the action head gets, "
        "by the gradient's norm; it counts what attention leads to and not only where it goes."
    )
    lines = []
    for run in runs:
        if run.key not in lookers:
            page.say(f"{run.folder}: the policy was not loaded, and so there are no maps.")
            continue
        for rollouts in run.rollouts:
            if not rollouts.films:
                page.say(f"{name(rollouts)} has no recordings: experiments.rollout makes them where it films.")
                continue
            try:
                looks = [lookers[run.key](film, rollouts.summary["task"]) for film in rollouts.films]
            except UserError as error:
                page.say(f"{name(rollouts)}: {error}.")
                break
            page.heading(name(rollouts))
            _tokens(page, rollouts, looks)
            lines += _things(page, rollouts, looks)
            for number, look in enumerate(looks[:most]):
                path = page.picture(f"{rollouts.key}-attention-{number}.png", _pixels_caption(rollouts, number))
                write_png(path, pixels(look))
    return lines


def _tokens(page: Page, rollouts: Rollouts, looks: list[Look]) -> None:
    """The token-level map: layers and heads against text, and frames and actions by age."""
    heads = np.mean([look.by_age(look.heads) for look in looks], axis=0)
    if heads.shape[0] * heads.shape[1] > _MOST_ROWS:
        heads = heads.mean(1, keepdims=True)
        names = [f"layer {layer + 1}" for layer in range(len(heads))]
    else:
        names = [f"layer {layer + 1}, head {head + 1}" for layer, head in np.ndindex(heads.shape[:2])]
    readings = [np.mean([look.by_age(look.tokens[reading]) for look in looks], axis=0) for reading in READINGS]
    columns = ["text", "earlier"]
    for age in range(looks[0].context - 1, -1, -1):
        columns += [f"frame\n{_ago(age)}", f"actions\n{_ago(age)}"]
    rows = np.concatenate([heads.reshape(-1, heads.shape[-1]), np.stack(readings)])
    path = page.picture(
        f"{rollouts.key}-tokens.png",
        "Token-level map: percent of what the predicted actions look at that lies on the instruction, and on the "
        "frame and the action tokens of each package of the context. A package's actions are those that led to its "
        "frame; the newest ones' tokens are those that look. The last three rows are the readings; rollout and "
        "influence also reach packages before the context.",
    )
    plots.token_map(rows, [*names, *READINGS], columns, name(rollouts), path)


def _ago(age: int) -> str:
    return "now" if age == 0 else f"{age} before"


def _things(page: Page, rollouts: Rollouts, looks: list[Look]) -> list[str]:
    """The table of mass and share; a line a reading."""
    segments = np.concatenate([look.segments for look in looks])
    found = {r: on_things(np.concatenate([look.frames(r) for look in looks]), segments) for r in READINGS}
    rows = []
    for thing, (_, share) in found[READINGS[0]].items():
        cells = [f"{100 * share:.1f}%"]
        for reading in READINGS:
            mass = found[reading][thing][0]
            cells += [f"{100 * mass:.1f}%", f"{mass / share:.2f}" if share else ""]
        rows.append((thing, *cells))
    header = ["", "share of the picture", *(cell for r in READINGS for cell in (r, "over share"))]
    page.table(
        header,
        rows,
        f"How much of the map over the newest frame lies on each thing, mean over {len(segments)} looks of "
        f"{len(looks)} rollouts, beside the share of the picture's pixels that show it, by the simulator's own "
        "segmentation. A map that knew nothing would have 1 in the columns over share.",
    )
    lines = []
    for reading, things in found.items():
        parts = [f"{thing} {100 * mass:.1f}% ({100 * share:.1f}%)" for thing, (mass, share) in things.items()]
        lines.append(f"{name(rollouts)}: attention, {reading} (share of the picture): {', '.join(parts)}")
    return lines


def pixels(look: Look) -> np.ndarray:
    """The pixel-level map: pictures, what they show, and each reading over them; uint8 [H, W, 3]."""
    chosen = np.unique(np.linspace(0, len(look.pictures) - 1, _COLUMNS).round().astype(int))
    rows = [
        [(f"look {n + 1}", look.pictures[n]) for n in chosen],
        [
            ("arm, cube, goal" if n == chosen[0] else "", pictures.outlined(look.pictures[n], look.segments[n]))
            for n in chosen
        ],
    ]
    for reading in READINGS:
        maps = look.frames(reading)
        rows.append([(reading if n == chosen[0] else "", pictures.heat(look.pictures[n], maps[n])) for n in chosen])
    return pictures.sheet(rows)


def _pixels_caption(rollouts: Rollouts, number: int) -> str:
    film = rollouts.films[number]
    return (
        f"Pixel-level map, state {film.seed}, policy seed {film.policy_seed}. What the camera shows at some of the "
        "looks; the simulator's segmentation (arm blue, cube orange, goal green); and where in the newest frame the "
        "predicted actions look, redder for more, grey for the mean or less."
    )
