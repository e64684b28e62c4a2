"""The model card: what a folder with a model says about how it came to be, as Markdown."""

from collections.abc import Sequence
from typing import NamedTuple

from atoll.config import RunConfig, run_digest
from atoll.model.accounting import count_parameters
from atoll.units import format_count


class Contributor(NamedTuple):
    """A peer whose work was committed."""

    name: str
    num_rounds: int
    num_tokens: int


class Origin(NamedTuple):
    """Where the parameters come from."""

    state: str  # "state 12 of 100", or how else they came to be
    digest: str = ""  # of that state
    contributors: Sequence[Contributor] | None = None  # None: the journal is elsewhere


def model_card(config: RunConfig, origin: Origin) -> str:
    """Return the content of README.md, with the metadata that hubs read at its top."""
    inner, sync = config.inner, config.sync
    facts = {
        "run": f"{config.name}, `{run_digest(config)}`",
        "state": origin.state + (f", `{origin.digest}`" if origin.digest else ""),
        "parameters": format_count(count_parameters(config.model).total),
        "text": ", ".join(_cell(source.name) for source in config.data.sources),
        "sequence length": f"{config.data.sequence_length} tokens",
        "inner optimizer": f"{inner.optimizer}, lr {inner.lr:g}, {inner.schedule} schedule, "
        f"{inner.batch_sequences} samples a step",
        "outer optimizer": f"Nesterov, lr {config.outer.lr:g}, momentum {config.outer.momentum:g}",
        "exchange": f"every {config.steps_per_round} inner steps, {sync.mode}, "
        f"{sync.codec} / {sync.update_codec}",
    }
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [atoll, diloco, llama]",
        "---",
        "",
        f"# {config.name}",
        "",
        "A Llama-style language model, trained with atoll. It continues text; it was not taught to",
        "follow instructions, and nobody has checked what it says.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {title} | {value} |" for title, value in facts.items()),
    ]
    return "\n".join([*lines, *_contributors(origin.contributors), ""])


def _contributors(contributors: Sequence[Contributor] | None) -> list[str]:
    if contributors is None:
        return []
    total = max(1, sum(each.num_tokens for each in contributors))
    most_first = sorted(contributors, key=lambda each: (-each.num_tokens, each.name))
    rows = [
        f"| {_cell(each.name)} | {each.num_rounds} | {format_count(each.num_tokens)} "
        f"| {each.num_tokens / total:.1%} |"
        for each in most_first
    ]
    return [
        "",
        "## Who trained it",
        "",
        "| peer | rounds | tokens | share |",
        "|---|---|---|---|",
        *rows,
    ]


def _cell(text: str) -> str:
    """Return a text that may hold anything, as one cell of a table that it cannot break."""
    plain = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\|<>[]`*_#!&" else c for c in plain)
