"""What every command shares."""

import subprocess
import sys

import pytest


def ended(body: str) -> subprocess.CompletedProcess[str]:
    """A command of its own process: Ctrl-C ends it at once."""
    code = f"from experiments import app\nfrom par_jax.errors import UserError\ndef main():\n    {body}\n"
    return subprocess.run([sys.executable, "-c", code + "app.run(main, resumes=False)"], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("print('done')", 0, ""),
        ("raise KeyboardInterrupt", 130, "stopped; the same command begins again\n"),
        ("raise UserError('no such task: name another')", 2, "error: no such task: name another\n"),
    ],
)
def test_a_command_ends_with_one_sentence(body, status, said):
    run = ended(body)
    assert (run.returncode, run.stderr) == (status, said)


def test_what_was_printed_before_ctrl_c_is_not_lost():
    run = ended("print('half of it'); raise KeyboardInterrupt")
    assert run.stdout == "half of it\n"
