"""`atoll eval`: how well the newest model of a run predicts text that nobody trains on."""

from math import exp
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from atoll.cli.places import cache_directory
from atoll.cli.show import console


def eval(  # the command's name
    run: Annotated[Path, typer.Argument(help="The directory of a run, or of a peer.")],
    samples: Annotated[int, typer.Option(min=1, help="Validation samples to read, at most.")] = 512,
    questions: Annotated[int, typer.Option(min=0, help="Cloze questions at most; 0: none.")] = 200,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Where tokenised datasets are kept.", show_default=False)
    ] = None,
) -> None:
    """Evaluate the newest committed model of a run on its held-out text, without a network."""
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
    newest = open_newest(run, cache=cache or cache_directory())
    config, dataset = newest.config, newest.dataset
    model = Llama(config.model).to(chosen)
    load_flat_(model, newest.state.params_N, layout_of(config))
    batches = Batches(dataset, seed=config.seed)
    num_samples = min(samples, dataset.num_validation_samples)
    loss = validation_loss(
        model, batches, batch_sequences=config.inner.batch_sequences, num_samples=num_samples
    )
    found: dict[str, int | float] = {
        "state": newest.state.round,
        "samples": num_samples,
        "validation_loss": loss,
        "perplexity": exp(loss),
    }
    if questions:
        asked = cloze_questions(
            batches,
            num_samples=dataset.num_validation_samples,
            sequence_length=config.data.sequence_length,
            most=questions,
        )
        found |= {
            "questions": len(asked),
            "cloze": cloze_accuracy(model, asked),
            "chance": 1 / NUM_CHOICES,
        }
    if json:
        console.print_json(msgspec.json.encode(found).decode())
        return
    console.print(f"state {newest.state.round} of {config.name}", markup=False)
    console.print(f"validation loss  {loss:.3f} nats per token, {num_samples} samples")
    console.print(f"perplexity       {exp(loss):.1f}")
    if questions:
        console.print(
            f"cloze            {found['cloze']:.1%} of {found['questions']} questions right, "
            f"{found['chance']:.0%} by chance"
        )
