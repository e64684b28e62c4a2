"""What came out of a run that is over: one state on all disks, and what the model has learnt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from atoll.cli.demo_config import PROMPT
from atoll.cli.story import Actor
from atoll.config import RunConfig, run_digest
from atoll.data.batches import Batches
from atoll.data.shards import Dataset
from atoll.errors import AtollError, RunError
from atoll.host.stores import read_journal
from atoll.ids import Digest, RoundId
from atoll.model.flat import load_flat_
from atoll.model.generate import Sampling, generate
from atoll.model.initial import initial_of
from atoll.model.layout import layout_of
from atoll.model.llama import Llama
from atoll.net.records import Agreed
from atoll.outer.saved import read_saved, saved_rounds
from atoll.outer.state import PeerState
from atoll.train.evaluate import validation_loss
from atoll.units import format_bytes

VALIDATION_SAMPLES: Final = 512  # at most, as in `atoll train`
SAMPLE_TOKENS: Final = 60
SHOWN_DIGITS: Final = 24  # of a digest


# --- one state -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """The last agreed state of a run, and the newest one on each member's disk, hashed anew."""

    agreed: Agreed
    held: dict[str, tuple[PeerState, Digest]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def compare(directory: Path, homes: Mapping[str, Path], config: RunConfig) -> Comparison:
    """Compare the journal of a host's directory with what the members have in theirs.

    Raises:
        DamagedError: the journal is not what was written.
    """
    records = (entry.record for entry in read_journal(directory))
    agreed = [record for record in records if isinstance(record, Agreed)]
    comparison = Comparison(agreed[-1])
    if agreed[-1].round != config.sync.rounds:
        comparison.problems.append(f"the last agreed state is that of round {agreed[-1].round}")
    for name, home in homes.items():
        try:
            state, digest = comparison.held[name] = _newest(home, run=run_digest(config))
        except AtollError as error:
            comparison.problems.append(f"{name}: {error}")
            continue
        if digest != agreed[-1].state:
            comparison.problems.append(f"{name} has another state: that of round {state.round}")
    return comparison


def _newest(home: Path, *, run: Digest) -> tuple[PeerState, Digest]:
    rounds: tuple[RoundId, ...] = saved_rounds(home / "states")
    if not rounds:
        raise RunError(f"no state in {home}")
    return read_saved(home / "states", rounds[-1], run=run)


def states_table(comparison: Comparison, actors: Mapping[str, Actor]) -> Table:
    """Return who holds which state, and what each sent and received."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    table.add_column("member")
    table.add_column(f"state {comparison.agreed.round}")
    table.add_column("sent", justify="right")
    table.add_column("received", justify="right")
    for name, (_, digest) in comparison.held.items():
        style = "green" if digest == comparison.agreed.state else "bold red"
        actor = actors[name]
        exchanged = (format_bytes(actor.num_sent), format_bytes(actor.num_received))
        table.add_row(name, Text(digest[:SHOWN_DIGITS], style=style), *exchanged)
    table.add_row("journal", Text(comparison.agreed.state[:SHOWN_DIGITS], style="green"))
    return table


# --- what the model has learnt -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quality:
    loss: float  # in nats per token, of text that nobody trained on
    sample: str  # what follows the prompt


def quality(params_N: NDArray[np.float32], config: RunConfig, dataset: Dataset) -> Quality:
    """Return how well the model predicts the first validation samples, and what it writes."""
    model = Llama(config.model)
    load_flat_(model, params_N, layout_of(config))
    loss = validation_loss(
        model,
        Batches(dataset, seed=config.seed),
        batch_sequences=config.inner.batch_sequences,
        num_samples=min(VALIDATION_SAMPLES, dataset.num_validation_samples),
    )
    tokenizer = dataset.tokenizer
    tokens = generate(
        model,
        [tokenizer.start_token, *tokenizer.encode(PROMPT)],
        max_new_tokens=SAMPLE_TOKENS,
        sampling=Sampling(seed=0),
        stop_token=tokenizer.start_token,
    )
    text = " ".join((PROMPT + tokenizer.decode(tokens)).split())
    return Quality(loss, text.removeprefix(PROMPT))


def initial_quality(config: RunConfig, dataset: Dataset) -> Quality:
    """Return the quality of the weights that every peer began with."""
    return quality(initial_of(layout_of(config), seed=config.seed), config, dataset)


def quality_table(before: Quality, after: Quality) -> RenderableType:
    """Return both, one above the other."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right")
    table.add_column()
    for when, one in (("before", before), ("after", after)):
        sample = Text.assemble((PROMPT, "bold"), one.sample)
        table.add_row(when, f"{one.loss:.3f}", sample)
    return table
