"""Objects that live in processes of their own: one simulator a process, driven through a socket.

A worker is a fresh interpreter (not a fork, and not multiprocessing's spawn, which imports the caller's main module,
jax and all). It serves one object: a method's arguments go in, its result comes out; a generator's items come out one
by one. Workers ignore Ctrl-C, which their parent handles, and end when the parent's end of the socket closes, however
the parent died.
"""

import dataclasses
import importlib
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from par_jax.errors import UserError


@dataclasses.dataclass
class Message:
    """What a worker says: `kind` is item (of a generator), result, user_error or error."""

    kind: str
    value: Any


class Worker:
    """One object in a process of its own.

    Attributes:
      connection: readable when a message waits; for `multiprocessing.connection.wait`.
    """

    def __init__(self, factory: str, **arguments: Any):
        """Starts the process; the object's construction goes on while the caller does.

        Args:
          factory: `module:Class` of the object.
          **arguments: of its construction; an error there answers the first call.
        """
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from par_jax.sim import workers; workers.serve({theirs.fileno()})"],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.connection.send((factory, arguments))

    def submit(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Asks for `method(*args, **kwargs)`; one call at a time."""
        try:
            self.connection.send((method, args, kwargs))
        except OSError as error:
            raise self._dead() from error

    def receive(self) -> Message:
        """Waits for the next message; errors of the object are raised here.

        Raises:
          UserError: the object raised it, or the process died.
          RuntimeError: the object raised anything else; the text is its traceback.
        """
        try:
            message = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._dead() from error
        if message.kind == "user_error":
            raise UserError(message.value)
        if message.kind == "error":
            raise RuntimeError(f"in a worker process:\n{message.value}")
        return message

    def result(self) -> Any:
        """Waits for the result of the call under way."""
        while True:
            message = self.receive()
            if message.kind == "result":
                return message.value

    def stop(self) -> None:
        """Ends the process at once."""
        self.connection.close()
        self.process.terminate()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _dead(self) -> UserError:
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return UserError("a simulator process closed its connection: see its messages above")
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        return UserError(
            f"a simulator process died with {how}; if it ran out of memory, use fewer workers; finished work is kept, "
            "so type the same command again"
        )


def serve(descriptor: int) -> None:
    """A worker's main loop: see the module's head.

    Args:
      descriptor: of the socket.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    try:
        factory, arguments = connection.recv()
        module, name = factory.split(":")
        served, failure = None, None
        try:
            served = getattr(importlib.import_module(module), name)(**arguments)
        except Exception as error:  # noqa: BLE001  every failure travels to the caller
            failure = _failure(error)
        while True:
            method, args, kwargs = connection.recv()
            if failure is not None:
                connection.send(failure)
                continue
            try:
                value = getattr(served, method)(*args, **kwargs)
                if hasattr(value, "__next__"):
                    for item in value:
                        connection.send(Message("item", item))
                    value = None
                answer = Message("result", value)
            except BrokenPipeError:
                raise
            except Exception as error:  # noqa: BLE001
                answer = _failure(error)
            connection.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The parent is gone. SAPIEN's own clean-up may hang or crash at exit; there is nothing to save.
        os._exit(0)


def _failure(error: Exception) -> Message:
    if isinstance(error, UserError):
        return Message("user_error", str(error))
    return Message("error", "".join(traceback.format_exception(error)))


@dataclasses.dataclass
class Chunk:
    """What came of executing some actions.

    Attributes:
      pictures: u8 [K, H, n*W, 3], all n cameras': after the last executed action (K = 1), or after each (K = steps).
      success: whether a state was a success.
      steps: actions executed.
      reward: their rewards' sum (ManiSkill's normalised dense reward, at most 1 a step).
      elapsed: actions executed since the reset.
      done: success (if it stops the episode) or the step limit is reached.
      qpos: f32 [J], joint positions at the end.
    """

    pictures: np.ndarray
    success: bool
    steps: int
    reward: float
    elapsed: int
    done: bool
    qpos: np.ndarray


class SimulatorServer:
    """A simulator that speaks numpy; lives in a worker process. Methods as `par_jax.sim.simulator.Simulator`."""

    def __init__(self, **simulator: Any):
        """Args: **simulator: as `par_jax.sim.simulator.Simulator`."""
        from par_jax.sim.simulator import Simulator

        self.simulator = Simulator(**simulator)

    def describe(self) -> int:
        """A."""
        return self.simulator.action_dim

    def reset(self, seeds: Sequence[int]) -> None:
        """Starts the episodes of `seeds`."""
        self.simulator.reset(seeds)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Executes f32 [B, A]; reward f32 [B] and success bool [B]."""
        return tuple(x.cpu().numpy() for x in self.simulator.step(actions))

    def picture(self) -> np.ndarray:
        """u8 [B, H, W, 3]."""
        return self.simulator.picture().cpu().numpy()


class Processes:
    """Simulators in processes of their own, stepped together as one batch; the interface of `Simulator` in numpy."""

    def __init__(self, shares: Sequence[int], **simulator: Any):
        """Starts the processes.

        Args:
          shares: environments of each process.
          **simulator: as `par_jax.sim.simulator.Simulator`, without num_envs.

        Raises:
          UserError: as there.
        """
        factory = "par_jax.sim.workers:SimulatorServer"
        self.ends = np.cumsum(shares)[:-1]
        self.workers = [Worker(factory, num_envs=share, **simulator) for share in shares]
        try:
            self.action_dim = int(self._all("describe", [()] * len(shares))[0])
        except BaseException:
            self.close()
            raise

    def reset(self, seeds: Sequence[int]) -> None:
        """As `Simulator.reset`."""
        self._all("reset", [(part.tolist(),) for part in np.split(np.asarray(seeds), self.ends)])

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Simulator.step`."""
        outcomes = self._all("step", [(part,) for part in np.split(actions, self.ends)])
        rewards, successes = zip(*outcomes, strict=True)
        return np.concatenate(rewards), np.concatenate(successes)

    def picture(self) -> np.ndarray:
        """As `Simulator.picture`."""
        return np.concatenate(self._all("picture", [()] * len(self.workers)))

    def close(self) -> None:
        """Ends the processes."""
        for worker in self.workers:
            worker.stop()

    def _all(self, method: str, arguments: Sequence[tuple]) -> list[Any]:
        for worker, args in zip(self.workers, arguments, strict=True):
            worker.submit(method, *args)
        return [worker.result() for worker in self.workers]


class EnvServer:
    """One environment for rollouts; lives in a worker process and speaks numpy."""

    def __init__(self, max_steps: int = 400, **simulator: Any):
        """Args: max_steps: an episode's limit; **simulator: as `par_jax.sim.simulator.Simulator`."""
        from par_jax.sim.simulator import Simulator

        self.simulator = Simulator(**simulator)
        self.max_steps = max_steps
        self.elapsed = 0

    def reset(self, seed: int) -> np.ndarray:
        """Starts the episode of a seed; its picture, u8 [H, W, 3]."""
        self.simulator.reset([seed])
        self.elapsed = 0
        return self._picture()

    def step_chunk(self, actions: np.ndarray, render: str = "last", stop_on_success: bool = True) -> Chunk:
        """Executes up to L actions, fewer if the step limit or a success ends the episode.

        Args:
          actions: f32 [L, A], in the control mode's units.
          render: `last` picture only, or `all`, one an action.
          stop_on_success: whether a success ends the episode.
        """
        pictures: list[np.ndarray] = []
        total, success, steps = 0.0, False, 0
        limit = self.elapsed >= self.max_steps
        for action in actions:
            if limit or (success and stop_on_success):
                break
            reward, now = self.simulator.step(np.asarray(action, np.float32)[None])
            total += float(reward[0])
            success = success or bool(now[0])
            steps += 1
            self.elapsed += 1
            limit = self.elapsed >= self.max_steps
            if render == "all":
                pictures.append(self._picture())
        if not pictures:
            pictures.append(self._picture())
        done = limit or (success and stop_on_success)
        qpos = self.simulator.qpos()[0].cpu().numpy().astype(np.float32).copy()
        return Chunk(np.stack(pictures), success, steps, total, self.elapsed, done, qpos)

    def segments(self) -> np.ndarray:
        """What the last picture shows: u8 [H, n*W], as `par_jax.sim.segments.segments`."""
        from par_jax.sim.segments import segments

        return segments(self.simulator)[0].cpu().numpy()

    def _picture(self) -> np.ndarray:
        return self.simulator.picture()[0].cpu().numpy().copy()


class EnvPool:
    """N environments in N processes, each driven by itself.

    pool = EnvPool(2, task="pushcube", control_mode="pd_joint_pos")
    pool.submit(0, "reset", seed)                      # returns at once
    picture = pool.result(0)                           # u8 [H, W, 3]
    pool.submit(0, "step_chunk", actions)              # f32 [L, A]
    chunk = pool.result(0)                             # Chunk
    """

    def __init__(self, n: int, **arguments: Any):
        """Starts the processes.

        Args:
          n: how many.
          **arguments: as `EnvServer`: task, control_mode, picture_size, cameras, max_steps, device, reward.
        """
        self.workers = [Worker("par_jax.sim.workers:EnvServer", **arguments) for _ in range(n)]

    def __len__(self) -> int:
        """N."""
        return len(self.workers)

    def submit(self, i: int, method: str, *args: Any, **kwargs: Any) -> None:
        """Asks environment `i` for `EnvServer.method(...)`; returns at once. One call at a time for each."""
        self.workers[i].submit(method, *args, **kwargs)

    def result(self, i: int) -> Any:
        """Waits for what was asked of environment `i`.

        Raises:
          UserError: no Vulkan, no GPU, unknown task, or the process died.
        """
        return self.workers[i].result()

    def ready(self, indices: Sequence[int], timeout: float | None = None) -> list[int]:
        """Those of `indices` whose result waits; blocks until there is one, or `timeout` seconds."""
        by_connection: dict[Any, int] = {self.workers[i].connection: i for i in indices}
        return sorted(by_connection[connection] for connection in wait(list(by_connection), timeout))

    def reset(self, i: int, seed: int) -> np.ndarray:
        """`EnvServer.reset` and its result."""
        self.submit(i, "reset", seed)
        return self.result(i)

    def step_chunk(self, i: int, actions: np.ndarray, render: str = "last", stop_on_success: bool = True) -> Chunk:
        """`EnvServer.step_chunk` and its result."""
        self.submit(i, "step_chunk", actions, render, stop_on_success)
        return self.result(i)

    def segments(self, i: int) -> np.ndarray:
        """`EnvServer.segments` and its result."""
        self.submit(i, "segments")
        return self.result(i)

    def close(self) -> None:
        """Ends the processes."""
        for worker in self.workers:
            worker.stop()

    def __enter__(self) -> "EnvPool":
        """For `with`."""
        return self

    def __exit__(self, *exception: object) -> None:
        """For `with`."""
        self.close()
