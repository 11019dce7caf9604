"""The house rule: imports point towards the plain and the small; torch stays behind the simulator's door."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent

# A module may import only from the rows above its own, and from its own package.
_LAYERS = (
    {"errors", "config"},
    {"types", "tasks", "diffusion", "variants", "metrics", "normalise", "evaluation", "quality", "locks"},
    {"video", "versions", "tokenizer", "processes"},
    {"nn", "trees", "workdir", "recording"},
    {"checkpoint"},
    {"best", "data", "results", "sharding", "pretrained", "initialise", "lora", "schedulers", "guidance"},
    {"model", "sim", "rollout"},
    {"sets", "losses_vae", "language", "acting"},
    {"sampling", "generation", "arithmetic", "release"},
    {"losses"},
    {"train"},
    {"loop"},
    {"runs", "policy", "costs"},
    {"beginning", "export", "bench", "looking", "corrections", "predictions"},
    {"stages"},
    {"experiments"},
    {"convert"},
)
_RANK = {name: rank for rank, names in enumerate(_LAYERS) for name in names}

# Only these may import torch and the simulator, in any function.
_TORCH = {"sim", "convert"}
_HEAVY = {"torch", "mani_skill", "sapien", "gymnasium", "h5py"}


def _modules() -> list[Path]:
    return sorted(
        path
        for folder in ("par_jax", "convert", "experiments")
        for path in (_ROOT / folder).rglob("*.py")
        if path != _ROOT / "par_jax" / "__init__.py"
    )


def _unit(dotted: list[str]) -> str:
    """par_jax.nn.masks -> nn; experiments.collect -> experiments."""
    return dotted[1] if dotted[0] == "par_jax" and len(dotted) > 1 else dotted[0]


def _imports(path: Path) -> set[str]:
    """Absolute dotted names that a module imports anywhere; `from a import b` counts as a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(_ROOT)))
def test_imports_point_one_way(path):
    own = _unit(list(path.relative_to(_ROOT).with_suffix("").parts))
    assert own in _RANK, f"{own} has no place in _LAYERS yet"
    for name in _imports(path):
        dotted = name.split(".")
        if dotted[0] in ("par_jax", "convert", "experiments"):
            other = _unit(dotted)
            assert other == own or _RANK[other] < _RANK[own], f"{path.name} ({own}) imports {name}"
        if dotted[0] in _HEAVY:
            assert own in _TORCH, f"{path.name} imports {name}"


_WITHOUT_TORCH = """
import importlib, pkgutil, sys
for name in {blocked!r}:
    sys.modules[name] = None  # importing it raises ImportError
import experiments, par_jax
for package in (par_jax, experiments):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.startswith("par_jax.sim."):
            importlib.import_module(module.name)
"""


def test_everything_can_be_imported_without_torch_and_simulator():
    subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH.format(blocked=sorted(_HEAVY))],
        cwd=_ROOT,
        check=True,
        timeout=120,
    )
