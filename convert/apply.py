"""The engine: parameters from torch-named tensors by a table of rules, and back, or all that is wrong in one go."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from flax import nnx

from convert.rules import Rule, match, torch_axes, torch_names, torch_shape
from par_jax.errors import UserError

# Tensors are copied in blocks of about this many bytes, so that the largest needs no second copy in memory.
_BLOCK = 2**22


class Shaped(Protocol):
    """What has a shape."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Torch's."""


class Tensor(Shaped, Protocol):
    """A torch tensor: a numpy array, or what reads one from a file when rows along the first axis are asked for."""

    @property
    def dtype(self) -> np.dtype:
        """Of its numbers."""

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Some rows."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a torch tensor goes.

    Attributes:
      rule: the table's line that says so.
      path: our array's name.
      layer: row of that array, where it stacks layers.
      shape: torch's.
    """

    rule: Rule
    path: str
    layer: int | None
    shape: tuple[int, ...]

    def view(self, array: np.ndarray) -> np.ndarray:
        """What of our array the tensor fills, in torch's order of axes; writing to it writes to the array."""
        axes = torch_axes(self.rule.form, len(self.shape))
        row = array if self.layer is None else array[self.layer]
        return row.reshape([self.shape[axis] for axis in axes]).transpose(np.argsort(axes))


def places(
    rules: tuple[Rule, ...], tensors: Mapping[str, Shaped], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Place]:
    """Finds every tensor's place, without reading any.

    Args:
      rules: the table.
      tensors: by torch name.
      shapes: our path -> shape that it must have.

    Raises:
      UserError: a name that no rule or more than one matches, two names for one place, a path or a layer that the
        model has not, a shape that does not fit, a place that nothing fills; all of them in one message.
    """
    found: dict[str, Place] = {}
    taken: dict[tuple[str, int | None], str] = {}
    wrong = []
    for name, tensor in tensors.items():
        matches = match(rules, name)
        if len(matches) != 1:
            wrong.append(f"{name}: matched by {len(matches)} rules")
            continue
        rule, path, layer = matches[0]
        if path not in shapes:
            wrong.append(f"{name}: the model has no {path}")
            continue
        if layer is not None and layer >= shapes[path][0]:
            wrong.append(f"{name}: the model has {shapes[path][0]} layers of {path}")
            continue
        if (path, layer) in taken:
            wrong.append(f"{name}: a second tensor for {path}, beside {taken[path, layer]}")
            continue
        taken[path, layer] = name
        ours = tuple(shapes[path][layer is not None :])
        wanted = torch_shape(rule.form, ours, tensor.shape[1] if len(tensor.shape) > 1 else 0)
        if tuple(tensor.shape) != wanted:
            wrong.append(f"{name}: shape {tuple(tensor.shape)} does not fit {path} {ours}")
            continue
        found[name] = Place(rule, path, layer, wanted)
    stacked = {path for path, layer in taken if layer is not None}
    for path, shape in shapes.items():
        if path in stacked:
            missing = [str(layer) for layer in range(shape[0]) if (path, layer) not in taken]
            wrong += [f"{path}: no tensor fills layers {', '.join(missing)}"] if missing else []
        elif (path, None) not in taken:
            wrong.append(f"{path}: no tensor fills it")
    if wrong:
        raise UserError("the weights do not fit the model: " + "; ".join(sorted(wrong)))
    return found


def apply(
    rules: tuple[Rule, ...],
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: Any = np.float32,
    progress: Callable[[int], Any] = lambda read: None,
) -> dict[str, np.ndarray]:
    """Renames, permutes and stacks tensors to parameters; reads them one after the other, in blocks.

    Args:
      rules: the table.
      tensors: by torch name.
      shapes: our path -> shape that it must have.
      dtype: of the parameters.
      progress: told how many bytes of parameters were filled since it was last called.

    Returns:
      Our path -> array, for every path of `shapes`.

    Raises:
      UserError: as `places`, and where numbers are not finite; all of them in one message.
    """
    found = places(rules, tensors, shapes)
    made = {path: np.empty(shape, dtype) for path, shape in shapes.items()}
    wrong = [name for name, place in found.items() if not _copy(tensors[name], place.view(made[place.path]), progress)]
    if wrong:
        raise UserError("the weights hold numbers that are not finite: " + "; ".join(sorted(wrong)))
    return made


def _copy(tensor: Tensor, view: np.ndarray, progress: Callable[[int], Any]) -> bool:
    """Fills `view`; False where a number is not finite, before or after its type was changed."""
    rows = max(1, _BLOCK // max(1, math.prod(view.shape[1:]) * tensor.dtype.itemsize))
    for start in range(0, view.shape[0], rows):
        with np.errstate(over="ignore"):  # seen below
            block = np.asarray(tensor[start : start + rows]).astype(view.dtype, copy=False)
        if not np.isfinite(block).all():
            return False
        view[start : start + rows] = block
        progress(block.nbytes)
    return True


def load(module: nnx.Module, rules: tuple[Rule, ...], tensors: Mapping[str, Tensor]) -> None:
    """Sets every parameter of `module` from torch-named tensors.

    Raises:
      UserError: as `apply`; the module is then unchanged.
    """
    state = nnx.state(module, nnx.Param)
    flat = {".".join(map(str, path)): param for path, param in nnx.to_flat_state(state)}
    made = apply(rules, tensors, {path: param.shape for path, param in flat.items()})
    for path, param in flat.items():
        param.set_value(made[path].astype(param.dtype, copy=False))
    nnx.update(module, state)


def revert(
    rules: tuple[Rule, ...], arrays: Mapping[str, np.ndarray], tensors: Mapping[str, Shaped]
) -> Iterator[tuple[str, np.ndarray]]:
    """The way back: torch names and tensors (views of `arrays`), one after the other.

    Args:
      rules: the table.
      arrays: our path -> array.
      tensors: the torch names that shall be made, with their shapes.

    Raises:
      UserError: as `places`.
    """
    found = places(rules, tensors, {path: array.shape for path, array in arrays.items()})
    for name, place in found.items():
        yield name, place.view(arrays[place.path])


def torch_shapes(
    rules: tuple[Rule, ...], shapes: Mapping[str, tuple[int, ...]], channels: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that PyTorch keeps for parameters of these shapes.

    Args:
      rules: the table.
      shapes: our path -> shape.
      channels: of the latents, which a patch convolution's shape tells and our matrix does not.
    """
    made = {}
    for path, shape in shapes.items():
        rule, names = torch_names(rules, path, shape[0] if shape else 0)
        made |= dict.fromkeys(names, torch_shape(rule.form, tuple(shape[rule.stacked :]), channels))
    return made
