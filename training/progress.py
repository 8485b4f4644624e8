"""What happens beside the training: a bar, a line an evaluation, checkpoints, logs."""

import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from slm_judge.errors import require
from slm_judge.progress import progress_bar
from slm_judge.screen import say


class TrainingProgress(TrainerCallback):
    """A context manager, so that the bar ends when training breaks off."""

    def __init__(self, console: Console) -> None:
        """Write to `console`."""
        self._bar = progress_bar("steps", console=console)
        self._console = console
        self._task: Any = None

    def __enter__(self) -> "TrainingProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the bar, where a resumed run stopped."""
        if state.is_world_process_zero:
            self._task = self._bar.add_task(
                "training", total=state.max_steps, completed=state.global_step
            )
            self._bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the loss beside the bar."""
        if self._task is not None and logs and "loss" in logs:
            self._bar.update(self._task, description=f"training, loss {float(logs['loss']):.3f}")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        """Print one line."""
        if not state.is_world_process_zero or "eval_alpha" not in metrics:
            return
        prefix = "eval_alpha_"
        parts = [
            f"{key.removeprefix(prefix)} {value:.3f}"
            for key, value in metrics.items()
            if key.startswith(prefix)
        ]
        detail = f" ({', '.join(parts)})" if len(parts) > 1 else ""
        line = (
            f"epoch {state.epoch or 0:g}: validation loss {metrics['eval_loss']:.3f}, "
            f"alpha {metrics['eval_alpha']:.3f}{detail}"
        )
        say(self._console, [line], "")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """End the bar."""
        self._bar.stop()


class CheckpointClock(TrainerCallback):
    """Asks for a checkpoint when the last one is too old, so that a crash costs minutes."""

    def __init__(self, seconds: float) -> None:
        """Let no checkpoint be older than `seconds`."""
        self._seconds = seconds
        self._last = time.monotonic()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock again."""
        self._last = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a checkpoint; all processes do as the first one's clock says."""
        process = PartialState()
        due = time.monotonic() - self._last > self._seconds
        if process.num_processes > 1:
            due = bool(broadcast(torch.tensor(int(due), device=process.device)).item())
        control.should_save = control.should_save or due


def tensorboard(folder: Path) -> TrainerCallback:
    """Logs for TensorBoard in `folder`."""
    from transformers.integrations import TensorBoardCallback

    require("tensorboard", "logging")
    from torch.utils.tensorboard import SummaryWriter

    return TensorBoardCallback(SummaryWriter(str(folder)))
