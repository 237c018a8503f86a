"""The training loop: warm-up and cosine, clipping, EMA, exact resume, early stop, and a stop that loses nothing.

`batches.py` says what batches and losses are. Weighted losses are divided by the summed weights of a step's batches on
all ranks: eight batches of one document give the step of one batch of eight, however unequal their lengths, and two
ranks give the step of one.

An interruption (Ctrl-C or SIGTERM) saves a checkpoint and raises ``Interrupted``. The same command goes on from there,
with the losses of a run that was never stopped.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Generic

import torch
from torch import Tensor, nn

from unimodal.training.activations import checkpoint_activations
from unimodal.training.batches import BatchSource, BatchT, LossFunction, RankedSource, WeightedLoss
from unimodal.training.checkpoint import (
    LAST,
    State,
    check_disk,
    drop_checkpoints,
    get_random_state,
    has_checkpoint,
    name_checkpoint,
    set_aside,
    set_random_state,
)
from unimodal.training.distributed import Parallel
from unimodal.training.identity import IDENTITY_FILE, check_identity, read_identity, write_identity
from unimodal.training.metrics import MetricsLog, Sums, add_sums, compute_means
from unimodal.training.optimizers import find_learning_rate, make_optimizers
from unimodal.training.plot import plot_losses
from unimodal.training.processor import tell_slow_precision
from unimodal.training.progress import Progress
from unimodal.training.settings import DEFAULT_BEST, LoopConfig
from unimodal.training.trackers import TRACKERS, Tracker
from unimodal.training.watching import Watch, look

BEST = "best.pt"


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is saved."""


class Trainer(Generic[BatchT]):
    """One run in one folder. ``run`` trains for ``cfg.steps`` steps, from the folder's checkpoint if there is one.

    loss: (batch, step) → `WeightedLoss`, or a scalar loss and numbers to log. on_log: called with each record of
    metrics. validation: batches to validate on every ``evaluate_every`` steps; the weights with the best loss are kept
    as ``best.pt``. watch: looks at the model then, too (`watching.py`). parallel: that of this process
    (`distributed.py`); the module that ``loss`` calls must be wrapped already. identity: what the run is made of
    (`identity.py`); a checkpoint of another identity is refused. restart: move an earlier run's files aside and begin
    anew.
    Raises ValueError, in one line, for a run that cannot be continued, a disk that is too full, and a gradient that is
    not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: BatchSource[BatchT],
        loss: LossFunction[BatchT],
        cfg: LoopConfig,
        folder: Path,
        on_log: Iterable[Callable[[dict[str, float]], None]] = (),
        validation: Sequence[BatchT] | None = None,
        parallel: Parallel | None = None,
        identity: Mapping[str, str] | None = None,
        restart: bool = False,
        watch: Watch | None = None,
    ):
        if cfg.threads:
            torch.set_num_threads(cfg.threads)
        torch.manual_seed(cfg.seed)
        self.model, self.batches, self.loss, self.cfg, self.folder = model, batches, loss, cfg, folder
        self.parallel = parallel or Parallel()
        self.identity = identity
        if not cfg.steps:
            raise ValueError("epochs is set, but this training does not count them; give steps")
        if cfg.evaluate_every and validation is None and watch is None:
            raise ValueError("evaluate_every is set but this training has nothing to validate on; leave it out")
        self.validation, self.watch = validation or (), watch
        if watch is not None and self.parallel.splits_weights:
            raise ValueError("a model whose weights are split over processes cannot be watched; leave watch out")
        if cfg.activation_checkpointing:
            checkpoint_activations(model)
        self.optimizers = make_optimizers(model, cfg, self.parallel.splits_weights)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("nothing of the model is trained; unfreeze something or add an adapter")
        self.device = self.parameters[0].device
        self.ema = [p.detach().clone() for p in self.parameters] if cfg.ema_decay else None
        if restart:
            self._set_aside()
        elif identity is not None and has_checkpoint(folder):
            check_identity(folder, identity)
        self.metrics = MetricsLog(folder)
        self.on_log = list(on_log)
        self.trackers: list[Tracker] = []
        if self.parallel.is_main:
            settings = {f"loop.{name}": value for name, value in cfg.model_dump(mode="json").items()}
            self.trackers = [TRACKERS[name](folder, {**(identity or {}), **settings}) for name in cfg.trackers]
        self.step = 0
        self.batches_per_step = cfg.accumulation * self.parallel.num_ranks
        self.best: float | None = None
        self.since_best = 0  # validations without a better loss
        self.stopped_early = False
        self._stop = False

    def _set_aside(self) -> None:
        if self.parallel.is_main:
            earlier = set_aside(self.folder)
            if earlier is not None:
                print(f"moved the earlier run to {earlier}", file=sys.stderr, flush=True)
        self.parallel.wait_for_all()

    # -- state ------------------------------------------------------------------------------------------------------
    def _collect_shared(self) -> State:
        """The part of a checkpoint that is the same on all ranks."""
        return {
            "step": self.step,
            "model": self._collect_weights(),
            "optimizers": self.parallel.get_optimizer_state(self.model, self.optimizers),
            "ema": self.ema,
            "early": [self.best, self.since_best, self.stopped_early],
            "batches_per_step": self.batches_per_step,
        }

    def _collect_weights(self) -> dict[str, Tensor]:
        """The trained weights and the buffers; nothing that is frozen, such as the scales of a base in 8 bits."""
        trained = {name for name, p in self.model.named_parameters(remove_duplicate=False) if p.requires_grad}
        kept = trained | {name for name, _ in self.model.named_buffers(remove_duplicate=False)}
        return {name: tensor for name, tensor in self.model.state_dict().items() if name in kept}

    def save(self, name: str = LAST) -> None:
        local = {"random": get_random_state(), "batches": self.batches.state_dict()}
        self.parallel.save(self.folder, self._collect_shared(), local, name)

    def _save_numbered(self) -> None:
        """Save a numbered checkpoint, which later ones do not replace; remove the oldest beyond `save_total_limit`."""
        self.save(name_checkpoint(self.step))
        if self.cfg.save_total_limit is not None and self.parallel.is_main:
            drop_checkpoints(self.folder, self.cfg.save_total_limit)

    def resume(self) -> bool:
        """Load the folder's checkpoint, if there is one; return whether there was."""
        state = self.parallel.load(self.folder, self._collect_shared)
        if state is None:
            return False
        if "ranks" in state and not isinstance(self.batches, RankedSource):
            raise ValueError(
                f"the checkpoint in {self.folder} is of {len(state['ranks'])} processes; resume it with as many, not "
                f"{self.parallel.num_ranks}"
            )
        if self.identity is not None and "ranks" not in state and state["batches_per_step"] != self.batches_per_step:
            old = state["batches_per_step"] // self.parallel.num_ranks
            raise ValueError(
                f"{self.folder} holds a run of something else: loop.accumulation {old} → {self.cfg.accumulation}. "
                "Put that back, begin anew with --restart (the old run is moved aside), or choose another run"
            )
        try:
            self._load_model(state["model"])
            self.parallel.load_optimizer_state(self.model, self.optimizers, state["optimizers"])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"the checkpoint in {self.folder} is of another model: {reason}") from None
        if self.ema is not None and state["ema"] is not None:
            for average, saved in zip(self.ema, state["ema"], strict=True):
                average.copy_(saved)
        self.step = state["step"]
        if "ranks" in state:
            self._resume_other_ranks(state["ranks"], state["batches_per_step"])
        else:
            set_random_state(state["random"])
            self.batches.load_state_dict(state["batches"])
        self.best, self.since_best, _ = state["early"]
        self.stopped_early = 0 < self.cfg.patience <= self.since_best  # with more patience it goes on
        if self.parallel.is_main:
            self.metrics.cut_after(self.step)
        return True

    def _resume_other_ranks(self, ranks: Sequence[State], batches_per_step: int) -> None:
        """Go on from a run with another number of ranks: its weights and averages, and about its place in the data."""
        assert isinstance(self.batches, RankedSource)
        self.batches.load_other_ranks([rank["batches"] for rank in ranks])
        torch.manual_seed(self.cfg.seed + 7919 * self.step + self.parallel.rank)
        if self.parallel.is_main:
            print(
                f"{self.folder} was made by {len(ranks)} processes and goes on with {self.parallel.num_ranks}: a step "
                f"has {self.batches_per_step} batches, before {batches_per_step}; some documents may come again",
                file=sys.stderr,
                flush=True,
            )

    def _load_model(self, state: dict[str, Tensor]) -> None:
        expected = set(self._collect_weights())
        odd = sorted(expected - set(state)) + sorted(set(state) - set(self.model.state_dict()))
        if odd:
            raise ValueError(f"{len(odd)} tensors differ, such as {odd[0]}")
        self.model.load_state_dict(state, strict=False)

    def use_ema(self) -> None:
        """Copy the averaged weights into the model, for evaluation and export at the end."""
        if self.ema is not None:
            with torch.no_grad():
                for parameter, average in zip(self.parameters, self.ema, strict=True):
                    parameter.copy_(average)

    def use_best(self) -> bool:
        """Copy the weights of the best validation into the model, if there was one; return whether there was."""
        if self.best is None:  # a file of that name is an earlier run's
            return False
        state = self.parallel.load(self.folder, lambda: {"model": self._collect_weights()}, BEST)
        if state is None:
            return False
        self._load_model(state["model"])
        return True

    # -- the loop ---------------------------------------------------------------------------------------------------
    def _compute(self, batch: BatchT) -> WeightedLoss:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cfg.precision == "bfloat16"):
            result = self.loss(batch, self.step)
        if isinstance(result, WeightedLoss):
            return result
        loss, numbers = result
        return WeightedLoss(loss, 1.0, {name: (value, 1.0) for name, value in numbers.items()})

    def train_step(self) -> dict[str, float | tuple[float, float]]:
        """One optimizer step over ``accumulation`` batches of every rank; returns the numbers to log."""
        rate = find_learning_rate(self.step, self.cfg)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        logged: dict[str, float | tuple[float, float]] = {}
        sums: Sums = {}
        weight = 0.0
        for number in range(self.cfg.accumulation):
            batch = self.batches.next_batch()
            with self.parallel.accumulate(more=number + 1 < self.cfg.accumulation):
                result = self._compute(batch)
                result.total.backward()
            weight += result.weight
            self._tokens += result.num_tokens
            add_sums(sums, {"loss": (float(result.total.detach()), result.weight), **result.sums})
        scale = self.parallel.num_ranks / max(self.parallel.sum_over_ranks([weight])[0], 1e-12)
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        norm = self.parallel.clip_gradients(self.parameters, self.cfg.grad_clip)
        if not torch.isfinite(norm):
            raise ValueError(
                f"the gradient is not finite at step {self.step}; lower learning_rate ({self.cfg.learning_rate})"
            )
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        if self.ema is not None:
            decay = min(self.cfg.ema_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - decay)
        logged.update(sums)
        return {**logged, "grad_norm": float(norm), "learning_rate": rate}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The validation losses, `validation_loss` first: the means over all validation batches."""
        self.model.eval()
        sums: Sums = {}
        for batch in self.validation:
            result = self._compute(batch)
            add_sums(sums, {"loss": (float(result.total), result.weight), **result.sums})
        self.model.train()
        return {f"validation_{name}": value for name, value in compute_means(sums).items()}

    def run(self) -> None:
        """Train until the last step. Raises ``Interrupted`` if asked to stop before."""
        check_disk(self.folder, self.cfg, sum(p.numel() * p.element_size() for p in self.parameters))
        self._begin()
        if self.step >= self.cfg.steps or self.stopped_early:
            for tracker in self.trackers:
                tracker.close()
            return
        tell_slow_precision(self.cfg.precision, self.parallel)
        previous = {number: signal.signal(number, self._ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        progress = Progress(self.cfg.steps, self.step, shown=self.parallel.is_main)
        saved_at = logged_at = time.monotonic()
        logged_step, self._tokens = self.step, 0
        every = self.cfg.evaluate_every if self.validation or self.watch else 0
        try:
            self.model.train()
            while self.step < self.cfg.steps and not self.stopped_early:
                self.metrics.add(self.train_step())
                progress.step(self.step)
                last = self.step == self.cfg.steps
                if every and (last or self.step % every == 0):
                    self._validate(progress)
                if self.step % self.cfg.log_every == 0 or last or self.stopped_early:
                    now = time.monotonic()
                    seconds = (now - logged_at) / (self.step - logged_step)
                    tokens = self.parallel.sum_over_ranks([self._tokens])[0] / max(now - logged_at, 1e-9)
                    self._report(progress, round(seconds, 4), tokens)
                    logged_at, logged_step, self._tokens = now, self.step, 0
                # Ranks agree: if one is asked to stop, or to save, all do.
                due = time.monotonic() - saved_at > self.cfg.checkpoint_every_s
                stop, due_anywhere = self.parallel.sum_over_ranks([float(self._stop), float(due)])
                if stop or due_anywhere:
                    self.save()
                    saved_at = time.monotonic()
                if self.cfg.save_steps and self.step % self.cfg.save_steps == 0:
                    self._save_numbered()
                if stop:
                    raise Interrupted(f"stopped at step {self.step}; run the same command to go on")
            self.save()
            if self.cfg.plot and self.parallel.is_main:
                plot_losses(self.folder)
        finally:
            progress.close()
            for tracker in self.trackers:
                tracker.close()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _begin(self) -> None:
        """Resume the run in the folder, or begin a new one, and say which on stderr."""
        resumed = self.resume()
        said = ""
        if resumed and self.step >= self.cfg.steps:
            said = (
                f"already finished: {self.folder} is at step {self.step} and steps is {self.cfg.steps}; nothing is "
                "trained. Give more steps to go on, or --restart to begin anew"
            )
        elif resumed and self.stopped_early:
            said = (
                f"already finished: {self.folder} stopped early at step {self.step}, without a better "
                f"{self.cfg.best_name} than {self.best:.4g}; nothing is trained. Give more patience to go on, or "
                "--restart to begin anew"
            )
        elif resumed:
            said = f"resumed {self.folder} at step {self.step}"
        elif self.identity is not None and read_identity(self.folder) is not None:
            said = f"{self.folder} holds {IDENTITY_FILE} but no checkpoint; nothing is resumed, the run begins anew"
        if self.parallel.is_main:
            if not resumed:
                self.metrics.cut_after(0)  # lines of a run that was ended before its first checkpoint
            if self.cfg.evaluate_every and not (self.validation or self.watch):
                print("nothing is held out: evaluate_every and patience do nothing", file=sys.stderr, flush=True)
            if self.identity is not None:
                write_identity(self.folder, self.identity)
            if said:
                print(said, file=sys.stderr, flush=True)

    def _validate(self, progress: Progress) -> None:
        """Log the validation losses and what is watched, keep the best weights, and decide whether to stop early."""
        found = self.evaluate() if self.validation else {}
        if self.watch is not None:
            found |= look(self.watch, self.model, self.step, self.trackers, self.parallel)
        self.metrics.add(found)
        name, least = self.cfg.best_by, self.cfg.best_is == "least"
        if name not in found and name == DEFAULT_BEST:  # nothing is held out: it is only watched
            return
        if name not in found:
            raise ValueError(f"loop.best_by is {name!r}, which is not measured; there are {', '.join(sorted(found))}")
        ahead = None if self.best is None else (self.best - found[name] if least else found[name] - self.best)
        if ahead is None or ahead > self.cfg.min_improvement:
            self.best, self.since_best = found[name], 0
            self.parallel.save(self.folder, {"model": self._collect_weights()}, {}, BEST)
        else:
            self.since_best += 1
            self.stopped_early = 0 < self.cfg.patience <= self.since_best
        if self.stopped_early:
            progress.say(f"stopped early at step {self.step}: no better {self.cfg.best_name} than {self.best:.4g}")

    def _ask_to_stop(self, *_: object) -> None:
        if self._stop:  # asked twice: do not wait for the step
            raise KeyboardInterrupt
        self._stop = True

    def _report(self, progress: Progress, seconds_per_step: float, tokens_per_second: float) -> None:
        fields: dict[str, float] = {"step": self.step, "seconds_per_step": seconds_per_step}
        if tokens_per_second:
            fields["tokens_per_second"] = round(tokens_per_second, 1)
        parts = self.parallel.gather(self.metrics.take())
        if self.parallel.is_main:
            record = self.metrics.write(parts, **fields)
            progress.record(record)
            for callback in (*self.on_log, *(tracker.log for tracker in self.trackers)):
                callback(record)

    _tokens = 0
