"""`make policies`: which commands it runs, told by a stand-in for Python that takes all of its standard input, too."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "policies.sh"


@pytest.fixture
def commands(tmp_path: Path) -> list[tuple[str, dict[str, str]]]:
    """Each command's module and flags, in order."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncat > /dev/null\necho "$@"\n')
    python.chmod(0o755)
    said = subprocess.run(["sh", str(SCRIPT), str(python)], capture_output=True, text=True, check=True).stdout
    parsed = []
    for line in said.splitlines():
        _, module, *given = line.split()
        parsed.append((module, dict(flag.lstrip("-").partition("=")[::2] for flag in given)))
    return parsed


def test_every_task_is_rolled_out_by_both_protocols(commands):
    rolled = [(flags["task"], flags["protocol"]) for module, flags in commands if module == "experiments.rollout"]
    tasks = ["pushcube", "pickcube", "stackcube"]
    assert rolled == [(task, protocol) for task in tasks for protocol in ("rdt", "maniskill")]


def test_nothing_is_used_before_it_is_made(commands):
    data, runs = {}, {}
    for module, flags in commands:
        if module == "experiments.collect":
            assert flags.get("policy") in {None, *runs}
            data[flags["out"]] = flags["task"], flags["cameras"]
        elif module == "experiments.finetune":
            assert flags.get("init") in {None, *runs}
            folders = flags["data"].split(",")
            assert [data[folder] for folder in folders] == [
                (task, flags["cameras"]) for task in flags["task"].split(",")
            ]
            runs[flags["workdir"]] = flags["cameras"]
        elif module == "experiments.rollout":
            assert flags["checkpoint"] in runs
    assert commands[-1][0] == "experiments.figures"
    assert set(commands[-1][1]["runs"].split(",")) == {
        flags["checkpoint"] for module, flags in commands if module == "experiments.rollout"
    }
