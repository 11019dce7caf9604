"""The engine: parameters from torch-named tensors by a table of rules, or all that is wrong, in one go."""

from collections.abc import Mapping

import numpy as np
from flax import nnx

from convert.rules import Rule, match
from par_jax.errors import UserError


def apply(
    rules: tuple[Rule, ...], tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Renames and permutes tensors to parameters.

    Args:
      rules: the table.
      tensors: torch name -> array.
      shapes: our path -> shape that it must have.

    Returns:
      Our path -> array (a view of the tensor), for every path of `shapes`.

    Raises:
      UserError: a name that no rule or more than one matches, two names for one path, a path that is unknown,
        unfilled or of another shape; all of them in one message.
    """
    made: dict[str, np.ndarray] = {}
    wrong = []
    for name, tensor in tensors.items():
        found = match(rules, name)
        if len(found) != 1:
            wrong.append(f"{name}: matched by {len(found)} rules")
            continue
        rule, path = found[0]
        if path not in shapes or path in made:
            wrong.append(f"{name}: {'a second tensor for' if path in made else 'the model has no'} {path}")
            continue
        axes = rule.axes.get(tensor.ndim)
        made[path] = tensor.transpose(axes) if axes else tensor
        if axes is None or made[path].shape != tuple(shapes[path]):
            wrong.append(f"{name}: shape {tensor.shape} does not fit {path} {tuple(shapes[path])}")
    wrong += [f"{path}: no tensor fills it" for path in shapes if path not in made]
    if wrong:
        raise UserError("the weights do not fit the model: " + "; ".join(sorted(wrong)))
    return made


def load(module: nnx.Module, rules: tuple[Rule, ...], tensors: Mapping[str, np.ndarray]) -> None:
    """Sets every parameter of `module` from torch-named tensors.

    Raises:
      UserError: as `apply`; the module is then unchanged.
    """
    state = nnx.state(module, nnx.Param)
    flat = {".".join(map(str, path)): param for path, param in nnx.to_flat_state(state)}
    made = apply(rules, tensors, {path: param.shape for path, param in flat.items()})
    for path, param in flat.items():
        param.set_value(np.ascontiguousarray(made[path]).astype(param.dtype))
    nnx.update(module, state)
