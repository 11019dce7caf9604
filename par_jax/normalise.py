"""Actions to about -1..1 and back, by the demonstrations' quantiles. Nothing is clipped."""

from collections.abc import Sequence

import numpy as np

# Half of the least range that is stretched to -1..1: a dimension that never moves (PushCube's gripper) must
# not turn a model's small errors, or rounding, into large numbers.
LEAST_HALF_RANGE = 0.01


def centre_and_half(low: Sequence[float], high: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half range of each action dimension, float32 [A] each."""
    least, most = np.asarray(low, np.float32), np.asarray(high, np.float32)
    return (least + most) / 2, np.maximum((most - least) / 2, np.float32(LEAST_HALF_RANGE))


def scale_actions(actions: np.ndarray, low: Sequence[float], high: Sequence[float]) -> np.ndarray:
    """Actions [..., A] in the controller's units -> float32, `low` at -1 and `high` at 1."""
    centre, half = centre_and_half(low, high)
    return (np.asarray(actions, np.float32) - centre) / half


def unscale_actions(actions: np.ndarray, low: Sequence[float], high: Sequence[float]) -> np.ndarray:
    """The inverse of `scale_actions`."""
    centre, half = centre_and_half(low, high)
    return np.asarray(actions, np.float32) * half + centre
