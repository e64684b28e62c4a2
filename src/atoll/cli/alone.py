"""What `atoll train` does: train without a network, say how well, and keep the model if asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from atoll.cli.show import console, errors
from atoll.cli.weights import Exported, export_weights, require_free
from atoll.config import RunConfig
from atoll.data.batches import Batches
from atoll.data.manifest import TOKENIZER_FILE
from atoll.data.shards import Dataset
from atoll.model.card import Origin
from atoll.model.flat import store_flat_
from atoll.model.layout import layout_of
from atoll.model.llama import Llama
from atoll.train.baseline import OnStep, train_alone, with_batch_factor
from atoll.train.evaluate import validation_loss
from atoll.train.inner import StepResult

LAST_STEPS = 20  # whose mean is the training loss: that of one step is noise
VALIDATION_SAMPLES = 512  # at most


def train_and_report(
    config: RunConfig,
    dataset: Dataset,
    *,
    model: Llama,
    num_steps: int,
    batch_factor: int,
    out: Path | None,
) -> None:
    """Train a model that has the run's first weights, print its losses, and write it to `out`.

    Raises:
        ConfigError: the folder has something in it.
        NotFinite: training has diverged.
    """
    if out is not None:
        require_free(out)
    batch_sequences = config.inner.batch_sequences
    with _progress(num_steps) as on_step:
        trained = train_alone(
            with_batch_factor(config, batch_factor),
            dataset,
            model=model,
            num_steps=num_steps,
            micro_batch=batch_sequences,  # a larger batch takes more time, not more memory
            on_step=on_step,
        )
    loss = validation_loss(
        trained.model,
        Batches(dataset, seed=config.seed),
        batch_sequences=batch_sequences,
        num_samples=min(VALIDATION_SAMPLES, dataset.num_validation_samples),
    )
    last = trained.losses[-LAST_STEPS:]
    console.print(f"{num_steps} steps of {batch_factor * batch_sequences} sequences")
    console.print(f"training loss    {fmean(last):.3f}  mean of the last {len(last)} steps")
    console.print(f"validation loss  {loss:.3f}")
    if out is not None:
        layout = layout_of(config)
        params_N = np.empty(layout.num_values, np.float32)
        store_flat_(trained.model, params_N, layout)
        tokenizer = dataset.folder / TOKENIZER_FILE
        origin = Origin(f"{num_steps} steps of {batch_factor * batch_sequences} samples, alone")
        export_weights(out, Exported(config, params_N, tokenizer, origin))
        console.say(f"the model is in {out}")


@contextmanager
def _progress(num_steps: int) -> Iterator[OnStep]:
    """Show a bar on a terminal; elsewhere a line, ten times in all."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as bar:
        task = bar.add_task("training", total=num_steps)

        def on_step(step: int, result: StepResult) -> None:
            bar.update(task, completed=step + 1, description=f"loss {result.loss:.3f}")
            if not errors.is_terminal and (step + 1) % max(1, num_steps // 10) == 0:
                errors.print(f"step {step + 1} of {num_steps}: loss {result.loss:.3f}")

        yield on_step
