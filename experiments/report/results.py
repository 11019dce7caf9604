"""The report's sections on numbers that are there already: success, learning curves, latency."""

import numpy as np

from experiments import curves
from experiments.report import plots
from experiments.report.page import Page
from experiments.report.read import Rollouts, Run
from par_jax.errors import UserError
from par_jax.evaluation import PROTOCOLS, sentence, wilson

# Success in percent: table 2 of the PAR paper (arXiv 2508.09822).
PAPER: dict[str, dict[str, float]] = {
    "ACT": {"pushcube": 76, "pickcube": 20, "stackcube": 30},
    "BC-T": {"pushcube": 98, "pickcube": 4, "stackcube": 14},
    "Diffusion Policy": {"pushcube": 88, "pickcube": 40, "stackcube": 80},
    "ICRT": {"pushcube": 77, "pickcube": 78, "stackcube": 30},
    "RDT": {"pushcube": 100, "pickcube": 77, "stackcube": 74},
    "PAR": {"pushcube": 100, "pickcube": 72.8, "stackcube": 48},
}
_PAPERS_ROLLOUTS = 125


def name(rollouts: Rollouts) -> str:
    """What a folder of rollouts is called on the page; the papers' table is of the render camera alone."""
    cameras = rollouts.summary.get("cameras", ["render"])
    seen = "" if cameras == ["render"] else f", cameras {' and '.join(cameras)}"
    return f"{rollouts.folder.parent}, {rollouts.summary['task']}, {rollouts.summary['protocol']}{seen}"


def success(page: Page, runs: list[Run]) -> list[str]:
    """Success with its interval beside the paper's table, one picture a task; the results in lines to print."""
    page.section("Success")
    found = [rollouts for run in runs for rollouts in run.rollouts]
    for task in dict.fromkeys(rollouts.summary["task"] for rollouts in found):
        ours = [rollouts for rollouts in found if rollouts.summary["task"] == task]
        bars: list[plots.Bar] = []
        rows = []
        for rollouts in ours:
            s = rollouts.summary
            low, high = s["wilson_95"]
            bars.append((name(rollouts), s["success_rate"], (low, high), True))
            counts = f"{s['successes']} of {s['episodes']}, {s['states']} states"
            rows.append((name(rollouts), f"{100 * s['success_rate']:.1f}%", _interval(low, high), counts))
        for method, rates in PAPER.items():
            rate, interval, counts = rates[task] / 100, None, ""
            if method == "PAR":
                wins = round(rate * _PAPERS_ROLLOUTS)
                interval, counts = wilson(wins, _PAPERS_ROLLOUTS), f"{wins} of {_PAPERS_ROLLOUTS}, 25 states"
            bars.append((f"{method} (paper)", rate, interval, False))
            cells = (f"{100 * rate:.4g}%", _interval(*interval) if interval else "", counts)
            rows.append((f"{method} (paper)", *cells))
        page.heading(task)
        path = page.picture(
            f"success-{task}.png",
            f"Success on {task}. Blue: measured here; grey: the PAR paper's table 2. Lines are 95% Wilson "
            "intervals; the paper's own is computed from its 125 rollouts, and the others' counts are not given there.",
        )
        plots.success(bars, path)
        page.table(("", "success", "95% interval", "rollouts"), rows)
        for rollouts in ours:
            wanted = PROTOCOLS[rollouts.summary["protocol"]].episodes
            if rollouts.summary["episodes"] < wanted:
                page.say(f"{name(rollouts)} is a quick look: the protocol asks for {wanted} rollouts.")
            if rollouts.summary["protocol"] != "rdt":
                page.say(f"{name(rollouts)} is not the protocol of the paper's table (rdt).")
    for run in runs:
        if not run.rollouts:
            page.say(f"{run.folder} has no finished rollouts: experiments.rollout makes them.")
    return [f"{name(rollouts)}: {sentence(rollouts.summary)}" for rollouts in found]


def _interval(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}%"


def learning(page: Page, runs: list[Run]) -> None:
    """Learning curves of the policies and of their frame VAEs."""
    page.section("Learning curves")
    for run in runs:
        for folder, what in ((run.folder, "policy"), (run.folder / "vae", "frame VAE")):
            if what != "policy" and (folder / "config.json").exists() and not (folder / "metrics.jsonl").exists():
                page.say(f"{run.folder} took its frame VAE over from where that was trained; its curves are there.")
                continue
            try:
                series = curves.series(curves.read(folder / "metrics.jsonl"))
            except UserError as error:
                page.say(f"No curves of the {what} of {run.folder}: {error}.")
                continue
            file = f"{run.key}-curves-{what.split()[-1].lower()}.png"
            curves.draw(series, f"{run.folder}: {what}", page.picture(file, _CURVES if what == "policy" else _VAE))


_CURVES = (
    "Training of the policy. chunk_0, history_masked and teacher_forced are mean absolute errors of sampled actions on "
    "held-out episodes, in units of half an action's range: on the first chunk, with the history hidden, with the true "
    "history given. The last looks good when a policy merely copies."
)
_VAE = "Training of the frame VAE, which stands before and behind the policy."


def latency(page: Page, runs: list[Run]) -> None:
    """How long a policy step takes."""
    page.section("Latency")
    times, rows = {}, []
    for rollouts in (rollouts for run in runs for rollouts in run.rollouts):
        # As in summary.json: calls that also predicted frames count only where there are no others.
        timed = [row for row in rollouts.rows if not row["filmed"]] or rollouts.rows
        times[name(rollouts)] = np.concatenate([row["latencies_ms"] for row in timed])
        s = rollouts.summary["latency_ms"]
        frames = "yes" if s["with_predicted_frames"] else "no"
        device = rollouts.summary["device"]
        rows.append((name(rollouts), f"{s['median']:.1f}", f"{s['p99']:.1f}", str(s["calls"]), frames, device))
    if not times:
        page.say("No rollouts, no latency.")
        return
    header = ("", "median, ms", "99th percentile, ms", "calls", "with predicted frames", "device")
    page.table(header, rows, "One call looks, encodes the picture and decides on a chunk of actions.")
    path = page.picture(
        "latency.png",
        "Time of a policy step. Solid line: median; dashed line: 99th percentile. The last bar is all above.",
    )
    plots.latency(times, path)
