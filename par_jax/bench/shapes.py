"""Compilation for shapes alone: no weight is made, so that full-size models can be asked on any machine."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from par_jax.acting import acting
from par_jax.bench import subject, training
from par_jax.bench.compiling import compiled, memory
from par_jax.bench.question import gib, indented, say
from par_jax.config import Config, from_dict, to_dict
from par_jax.errors import UserError
from par_jax.policy import PhysicalStep


def measured(config: Config, batch: int, dtype: str) -> dict[str, Any]:
    """Compiles the acting step, twice, and the training step, and says how long that took and what memory they need.

    Args:
      config: of the model as it is trained, adapters included.
      batch: robots.
      dtype: of acting.
    """
    say(f"\n{config.name}: compiled for shapes alone")
    found: dict[str, Any] = {"preset": config.name, "batch": batch, "dtype": dtype}
    with tempfile.TemporaryDirectory() as cache:
        asked = json.dumps({"config": to_dict(config), "batch": batch, "dtype": dtype})
        for name in ("anew", "from the cache"):
            found[name] = _in_another_process(asked, cache)
            indented(f"acting step, batch {batch}, {dtype}, {name}: {found[name]['compile_s']:.1f} s")
    indented(f"acting step: {_parts(found['anew']['memory'])}")
    found["training"] = training_step(config)
    train = config.train
    indented(
        f"training step, batch {train.batch} of {train.packages} packages, {train.dtype}, remat {train.remat}: "
        f"{found['training']['compile_s']:.1f} s"
    )
    indented(f"training step: {_parts(found['training']['memory'])}")
    return found


def for_tpu(config: Config, batch: int, dtype: str, topology: str) -> dict[str, Any]:
    """Compiles both steps for a TPU that need not be there, one chip of it, and says what memory they need.

    Args:
      config, batch, dtype: as `measured` takes them.
      topology: as "v5p:2x2x1".

    Raises:
      UserError: libtpu is not installed, or knows no such topology.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu looks for the machine that it is not on
    try:
        chip = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    except Exception as error:  # whatever the plugin raises
        reason = str(error).strip().split("\n")[0][:160]
        raise UserError(
            f"cannot compile for --topology={topology} ({reason}): install libtpu (pip install 'jax[tpu]') and name a "
            "topology such as v5p:2x2x1"
        ) from error

    def there(tree: Any) -> Any:
        where = SingleDeviceSharding(chip)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree)

    say(f"\n{config.name}: compiled for one chip of {topology}, for shapes alone")
    found: dict[str, Any] = {
        "preset": config.name,
        "topology": topology,
        "acting": acting_step(config, batch, dtype, there),
        "training": training_step(config, there),
    }
    for name in ("acting", "training"):
        indented(f"{name} step: {found[name]['compile_s']:.1f} s, {_parts(found[name]['memory'])}")
    return found


def acting_step(
    config: Config, batch: int, dtype: str, there: Callable[[Any], Any] = lambda tree: tree
) -> dict[str, Any]:
    """Seconds that tracing and compiling the acting step take, and its memory; `there` says where its arrays lie."""
    config = acting(config)
    params, rest = there(subject.abstract(config, batch, dtype))
    program, seconds = compiled(jax.jit(PhysicalStep(config).act, donate_argnums=1), params, *rest)
    return {"compile_s": seconds, "memory": memory(program)}


def training_step(config: Config, there: Callable[[Any], Any] = lambda tree: tree) -> dict[str, Any]:
    """Seconds that tracing and compiling the training step take, and its memory; `there` says where its arrays lie."""
    step = training.whole_step(training.loss_of(subject.models(config)[0]), config.train)
    program, seconds = compiled(step, *there(training.abstract(config)))
    return {"compile_s": seconds, "memory": memory(program)}


def _in_another_process(asked: str, cache: str) -> dict[str, Any]:
    """`acting_step` where nothing is compiled yet but what the persistent cache holds."""
    platform = (jax.config.jax_default_device or jax.devices()[0]).platform
    settings = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    if platform == "cpu":
        settings["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, "-m", "par_jax.bench.shapes"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, env=os.environ | settings, check=False)
    if done.returncode:
        raise UserError(f"compiling in another process failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _parts(sizes: dict[str, int]) -> str:
    if not sizes:
        return "this backend tells no memory"
    each = ", ".join(f"{name} {gib(sizes[name])}" for name in ("arguments", "outputs", "aliased", "temporaries"))
    return f"{gib(sizes['peak'])} by the compiler ({each})"


if __name__ == "__main__":
    question = json.loads(sys.stdin.read())
    print(json.dumps(acting_step(from_dict(question["config"]), question["batch"], question["dtype"])))
