"""`atoll eval`: how well a model predicts text that nobody trains on, or does given tasks."""

from math import exp, inf
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from atoll.cli.options import CacheOption, DeviceOption
from atoll.cli.places import cache_directory
from atoll.cli.show import console, errors
from atoll.errors import ConfigError

LARGEST_EXPONENT = 709.0  # of e, as a float


def eval(  # the command's name
    run: Annotated[
        Path,
        typer.Argument(
            help="The directory of a run, or of a peer; with --tasks also an exported folder."
        ),
    ],
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks of lm-evaluation-harness to do instead, by name: NAME[,NAME].",
            show_default=False,
        ),
    ] = None,
    task_data: Annotated[
        Path | None,
        typer.Option(
            help="The folder with their YAML files and data; nothing is downloaded.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Validation samples to read, at most.")] = 512,
    questions: Annotated[int, typer.Option(min=0, help="Cloze questions at most; 0: none.")] = 200,
    device: DeviceOption = "auto",
    json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    cache: CacheOption = None,
) -> None:
    """Evaluate the newest committed model of a run, without a network.

    On its held-out text; or, with --tasks, on what a folder has for lm-evaluation-harness.
    """
    cache = cache or cache_directory()
    if tasks is not None or task_data is not None:
        _do_tasks(run, tasks, task_data, device=device, cache=cache, json=json)
        return
    found, of = _held_out(run, samples, questions, device=device, cache=cache)
    if json:
        _print_json(found)
        return
    console.print(f"state {found['state']} of {of}", markup=False)
    loss, num_samples = found["validation_loss"], found["samples"]
    console.print(f"validation loss  {loss:.3f} nats per token, {num_samples} samples")
    console.print(f"perplexity       {found['perplexity']:.1f}")
    if questions:
        console.print(
            f"cloze            {found['cloze']:.1%} of {found['questions']} questions right, "
            f"{found['chance']:.0%} by chance"
        )


def _held_out(
    run: Path, samples: int, questions: int, *, device: str, cache: Path
) -> tuple[dict[str, int | float], str]:
    """Return what its held-out text says of the newest model, and the run's name."""
    # Imported here: torch takes seconds, which is too long for a --help.
    from atoll.cli.newest import open_newest
    from atoll.data.batches import Batches
    from atoll.data.cloze import NUM_CHOICES, cloze_questions
    from atoll.model.flat import load_flat_
    from atoll.model.layout import layout_of
    from atoll.model.llama import Llama
    from atoll.train.device import pick_device
    from atoll.train.evaluate import cloze_accuracy, validation_loss

    chosen = pick_device(device)
    newest = open_newest(run, cache=cache)
    config, dataset = newest.config, newest.dataset
    model = Llama(config.model).to(chosen)
    load_flat_(model, newest.state.params_N, layout_of(config))
    batches = Batches(dataset, seed=config.seed)
    num_samples = min(samples, dataset.num_validation_samples)
    errors.print(f"reading {num_samples} samples: on a slow machine this takes minutes")
    loss = validation_loss(
        model, batches, batch_sequences=config.inner.batch_sequences, num_samples=num_samples
    )
    found: dict[str, int | float] = {
        "state": newest.state.round,
        "samples": num_samples,
        "validation_loss": loss,
        "perplexity": exp(loss) if loss < LARGEST_EXPONENT else inf,
    }
    if questions:
        asked = cloze_questions(
            batches,
            num_samples=dataset.num_validation_samples,
            sequence_length=config.data.sequence_length,
            most=questions,
        )
        errors.print(f"answering {len(asked)} questions")
        found |= {
            "questions": len(asked),
            "cloze": cloze_accuracy(model, asked),
            "chance": 1 / NUM_CHOICES,
        }
    return found, config.name


def _do_tasks(
    run: Path, tasks: str | None, folder: Path | None, *, device: str, cache: Path, json: bool
) -> None:
    if tasks is None or folder is None:
        raise ConfigError(
            "--tasks and --task-data go together",
            hint="the names of tasks, and the folder with their YAML files and data",
        )
    if not folder.is_dir():
        raise ConfigError(f"no such folder: {folder}", hint="--task-data names a folder")
    from atoll.cli.harness import scores_of
    from atoll.cli.models import Place, opened
    from atoll.train.device import pick_device

    place = Place(str(run), directory=None, cache=cache, device=pick_device(device))
    with opened(place) as model:
        speaker = model.first
        scores = scores_of(speaker, tasks=tasks.split(","), folder=folder.resolve())
    if json:
        _print_json({"model": speaker.name, "version": speaker.version, "scores": scores})
        return
    console.print(f"{speaker.name} {speaker.version}".rstrip(), markup=False)
    table = Table("task", "metric", box=None)
    table.add_column("value", justify="right")
    table.add_column("standard error", justify="right")
    for score in scores:
        stderr = "" if score.stderr is None else f"{score.stderr:.4f}"
        table.add_row(escape(score.task), escape(score.metric), f"{score.value:.4f}", stderr)
    console.print(table)


def _print_json(found: object) -> None:
    console.print_json(msgspec.json.encode(found).decode())
