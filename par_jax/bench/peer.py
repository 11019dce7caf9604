"""The same model in PyTorch (tests/reference/par.py), on the same weights and inputs: found equal, then timed.

PyTorch is imported here only when a `Peer` is made.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from par_jax.bench.subject import WHOLE, Subject
from par_jax.bench.training import step_key
from par_jax.config import Config
from par_jax.errors import UserError
from par_jax.losses import policy_loss
from par_jax.model.par import PAR
from par_jax.nn.functional import Functional, Params
from par_jax.train import TrainState, cast, join
from par_jax.trees import flatten

MODES = ("eager", "compile")
# How far the two may lie apart, relative to the numbers' size: float32 on a CPU, and everything else.
EXACT, ROUNDED = 1e-3, 5e-2
# Steps that are compared before any is timed; the cache is then in use.
COMPARED = 3


def modules() -> tuple[ModuleType, ...]:
    """torch and the reference's parts.

    Raises:
      UserError: one of them is not there.
    """
    names = ("torch", "tests.reference.par", "tests.reference.par_training", "tests.reference.draws")
    try:
        return tuple(importlib.import_module(name) for name in names)
    except ImportError as error:
        raise UserError(
            f"--peer=torch needs PyTorch and this repository's tests/ ({error}): "
            "install torch into the environment and run the command from the repository's root"
        ) from error


class Peer:
    """The PyTorch model beside ours.

    Args:
      config: of both.
      params: `{"par": ..., "vae": ...}`, float32 on the host.

    Raises:
      UserError: PyTorch, the reference or a GPU for it is missing, or the reference has no such model.
    """

    def __init__(self, config: Config, params: Params):
        self.torch, self._par, self._training, self._draws = modules()
        self.config = config
        device = jax.config.jax_default_device or jax.devices()[0]
        self.device = "cpu" if device.platform == "cpu" else "cuda"
        if self.device == "cuda" and not self.torch.cuda.is_available():
            raise UserError(
                "jax computes on a GPU and this PyTorch cannot: install a CUDA build of torch, or use --device=cpu"
            )
        self.torch.backends.cuda.matmul.allow_tf32 = True  # as XLA does
        try:
            made = self._par.make(config, *(flatten(params[name]) for name in ("par", "vae")))
        except ValueError as error:
            raise UserError(f"--peer=torch cannot run this model: {error}") from error
        self.actor = made.to(self.device)

    def tensor(self, array: Any) -> Any:
        """One of ours, on PyTorch's device; bfloat16 by way of float32."""
        host = np.asarray(array.astype("float32") if array.dtype == jnp.bfloat16 else array)
        made = self.torch.tensor(host, device=self.device)
        return made.to(self.torch.bfloat16) if array.dtype == jnp.bfloat16 else made

    def acting(self, subject: Subject, name: str, say: Callable[[str], None]) -> dict[str, Callable[[], Any]]:
        """The acting step or a part of it, in each mode that works, found equal to ours over three calls.

        Args:
          name: as `Subject.run` takes it.

        Raises:
          UserError: PyTorch's numbers are not ours.
        """
        run = subject.run(name)
        ours = [_numbers(run()) for _ in range(COMPARED)]

        def compared(mode: str) -> Callable[[], Any]:
            run = self._acting(subject, name, mode)
            self._same(ours, [_numbers(run()) for _ in ours], subject.dtype, f"{mode}: the {name}'s results", say)
            return run

        return _working(compared, say)

    def _acting(self, subject: Subject, name: str, mode: str) -> Callable[[], Any]:
        torch, dtype, par = self.torch, getattr(self.torch, subject.dtype), self.actor.par
        self.actor.to(dtype).requires_grad_(False)
        pictures, executed, latents = (self.tensor(x) for x in (subject.pictures, subject.executed, subject.latents))
        noise = self.tensor(self._draws.action_noise(self.config, subject.keys, subject.dtype))
        with torch.inference_mode():
            cache = par.start(self.tensor(subject.text))
        z_a, ahead = (self.tensor(x) for x in (subject.condition(), subject.ahead().actions))
        known = self.tensor(subject.ahead().known)
        function, arguments = {
            "frame encoding": (self.actor.vae.forward, (pictures,)),
            "transformer": (lambda *given: par.step(*given)[1:], (cache, latents, executed)),
            "action head": (par.decide, (z_a, ahead.to(dtype), known, noise)),
            WHOLE: (self.actor.act, (cache, pictures, executed, noise)),
        }[name]
        if mode == "compile":
            # On a GPU a step is hundreds of small kernels; CUDA graphs launch them at once.
            for buffer in cache.buffers():
                torch._dynamo.mark_static_address(buffer)
            function = torch.compile(function, mode="default" if self.device == "cpu" else "reduce-overhead")

        def run() -> Any:
            with torch.inference_mode():
                out = function(*arguments)
            self.wait()
            return out

        return run

    def training(
        self, state: TrainState, batch: Any, frozen: Params | None, say: Callable[[str], None]
    ) -> dict[str, Callable[[], Any]]:
        """The training step in each mode that works; the loss of the first step is found equal to ours.

        Args:
          state: ours, before its first step.
          batch, frozen: ours.

        Raises:
          UserError: the losses differ.
        """
        train, par = self.config.train, Functional(lambda rngs: PAR(self.config, rngs=rngs))
        key = step_key(state)

        @jax.jit
        def loss(params: Params, batch: Any) -> jax.Array:
            params = cast(params, train.dtype)
            return policy_loss(par.bind(params if frozen is None else join(params, frozen)), batch, key)[0]

        ours = _numbers(loss(state.params, batch))
        draws = self._draws.policy_draws(self.config, batch.has_past.shape[0], train.packages, key, train.dtype)
        given, drawn = ({n: self.tensor(x) for n, x in flatten(tree).items()} for tree in (batch, draws))

        def compared(mode: str) -> Callable[[], Any]:
            trainer = self._training.Trainer(self.actor.par, train, compiled=mode == "compile")
            self._same([ours], [_numbers(trainer.loss(given, drawn))], train.dtype, f"{mode}: the first loss", say)

            def run() -> Any:
                loss = trainer.step(given, drawn)
                self.wait()
                return loss

            return run

        return _working(compared, say)

    def wait(self) -> None:
        """Until the device is done."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def _same(self, ours: list, theirs: list, dtype: str, what: str, say: Callable[[str], None]) -> None:
        far = max(float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in zip(ours, theirs, strict=True))
        if not far <= (EXACT if self.device == "cpu" and dtype == "float32" else ROUNDED):
            raise UserError(f"PyTorch, {what} and ours differ by {far:.1e}: what differs is not timed")
        say(f"PyTorch, {what} and ours differ by {far:.1e}")


def _working(make: Callable[[str], Callable[[], Any]], say: Callable[[str], None]) -> dict[str, Callable[[], Any]]:
    """Each mode that works; torch.compile needs a C++ compiler on a CPU, and Triton on a GPU."""
    made = {}
    for mode in MODES:
        say(f"PyTorch, {mode}")
        try:
            made[mode] = make(mode)
        except UserError:
            raise
        except Exception as error:
            if mode == "eager":
                raise
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            say(f"torch.compile does not work here ({reason.strip()[:120]}): eager alone is timed")
    return made


def _numbers(tree: Any) -> np.ndarray:
    """All numbers of a robot, array by array, then those of the next: [B, ...]; a loss is one number."""
    leaves = tree if isinstance(tree, (list, tuple)) else [tree]
    arrays = [x.detach().float().cpu().numpy() if hasattr(x, "detach") else np.asarray(x, np.float32) for x in leaves]
    return np.concatenate([array.reshape(max(len(array.shape) and len(array), 1), -1) for array in arrays], axis=1)
