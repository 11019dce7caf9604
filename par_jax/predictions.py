"""What a policy predicts and answers on a demonstration, whose true history it is given chunk by chunk."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from par_jax.data.mixture import Mixture
from par_jax.normalise import centre_and_half
from par_jax.policy import Policy
from par_jax.recording import Recording


def watch(policy: Policy, episodes: Mixture, index: int, instruction: str) -> Recording:
    """Shows a policy a demonstration: at each chunk what was seen there, then what was done in place of its answer.

    Args:
      policy: that predicts frames.
      episodes: demonstrations with a picture at the end of every chunk.
      index: of the one to show, which also seeds the policy's noise.
      instruction: what the policy is told.

    Returns:
      Its answers and predictions at the demonstration's whole chunks; what is left at the end is not shown. Nobody has
      told apart what is seen: `segments` are 0.
    """
    record, chunk = episodes.numbers(index), policy.config.model.chunk
    executed = record.get("executed", record["action"])
    steps = np.arange(len(executed) // chunk + 1, dtype=np.int32) * chunk
    pictures = episodes.pictures(index, list(steps // episodes.strides()[index]))
    carry, answers, predicted = policy.init(jax.random.key(index), instruction), [], []
    for look, picture in zip(steps[:-1], pictures, strict=False):
        carry, actions, info = policy.act(carry, picture, predict_frame=True)
        carry = policy.overruled(carry, executed[look : look + chunk])
        answers.append(np.asarray(actions))
        predicted.append(info.predicted)
    seen = np.stack([np.asarray(policy.view(picture)) for picture in pictures])
    return Recording(
        seed=record["seed"][0].astype(np.int32),
        policy_seed=np.array(index, np.int32),
        success=np.array(True),
        steps=steps,
        executed=seen,
        predicted=np.array(predicted, np.uint8).reshape(-1, *seen.shape[1:]),
        made=steps[:-1],
        due=steps[1:],
        looks=steps[:-1],
        actions=np.array(answers, np.float32).reshape(-1, chunk, executed.shape[1]),
        segments=np.zeros((len(steps) - 1, *seen.shape[1:3]), np.uint8),
    )


def action_errors(film: Recording, taught: np.ndarray, statistics: Mapping[str, Sequence[float]]) -> np.ndarray:
    """How far a policy's answers are from what the demonstration teaches.

    Args:
      film: of `watch`.
      taught: the demonstration's actions, float32 [T, A], in the controller's units.
      statistics: `low` and `high` of the policy's training.

    Returns:
      Absolute differences in halves of each action's range, as validation's, float32 [answers, chunk, A].
    """
    _, half = centre_and_half(statistics["low"], statistics["high"])
    answers = film.actions
    return np.abs(answers - taught[: len(answers) * answers.shape[1]].reshape(answers.shape)) / half
