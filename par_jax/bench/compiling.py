"""Compilation itself: how long it takes, and how much memory the compiler gives to what it made."""

import time
from typing import Any


def compiled(jitted: Any, *arguments: Any) -> tuple[Any, float]:
    """The program for these arguments, arrays or their shapes, and the seconds that making it took."""
    began = time.perf_counter()
    made = jitted.lower(*arguments).compile()
    return made, time.perf_counter() - began


def memory(program: Any) -> dict[str, int]:
    """Bytes by the compiler's own analysis: `arguments`, `outputs`, `aliased` (outputs in arguments' place),
    `temporaries`, and the `peak` that these make; empty where the backend tells nothing.
    """
    found = program.memory_analysis()
    if found is None:
        return {}
    parts = {
        "arguments": found.argument_size_in_bytes,
        "outputs": found.output_size_in_bytes,
        "aliased": found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
    }
    peak = parts["arguments"] + parts["outputs"] - parts["aliased"] + parts["temporaries"]
    return {name: int(size) for name, size in parts.items()} | {"peak": int(peak)}
