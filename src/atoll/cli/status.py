"""`atoll status`: how a run stands, read beside the host that serves it."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from atoll.cli.places import run_directory
from atoll.cli.show import console, sparkline
from atoll.clock import wall_s
from atoll.config import load_run_config
from atoll.errors import DamagedError
from atoll.events import GrowingLog, Stamped
from atoll.host.overview import Overview, PeerView, overview
from atoll.host.stores import read_journal
from atoll.sentences import one_line, plain
from atoll.traffic import Traffic
from atoll.units import format_bytes, format_count, format_seconds

CURVE_COLUMNS = 60
WIDE_COLUMNS = 100  # of a terminal: less has no room for all that is known of a peer
LEFT_OUT = ("peer", "MFU", "sent", "received")


def status(
    run: Annotated[Path, typer.Argument(help="The run's directory, or its run.toml.")],
    json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Show how a run stands: rounds, loss, and who is in. It may be served meanwhile, or not."""
    directory = run_directory(run)
    view = read_overview(directory)
    if json:
        console.print_json(msgspec.json.encode(view).decode())
    elif view is None:
        config = load_run_config(directory / "run.toml")
        console.print(f"{config.name}: not begun, of {config.sync.rounds} rounds", markup=False)
        console.print(f"\n    atoll host {directory}", markup=False)
    else:
        _print_run(view)
        _print_peers(view, now=wall_s())


def read_overview(directory: Path) -> Overview | None:
    """Return how the run in this host's directory stands; None: it has not begun.

    Raises:
        DamagedError: its journal or its events are not what was written.
    """
    records = [entry.record for entry in read_journal(directory)]
    return overview(records, _events(directory / "events.jsonl")) if records else None


def _events(path: Path) -> list[Stamped]:
    try:
        return GrowingLog(path).read()
    except msgspec.DecodeError as error:
        raise DamagedError(
            f"{path} is damaged: {error}", hint="delete that file: nothing depends on it"
        ) from error


def _print_run(view: Overview) -> None:
    num_in = sum(peer.is_in and peer.trains for peer in view.peers)
    num_ever = sum(peer.trains for peer in view.peers)
    state = f"state {view.agreed} is {view.agreed_state[:12]}" if view.agreed_state else "no state"
    facts = {
        "run": f"{view.name}, {view.run[:12]}",
        "rounds": f"{view.committed} of {view.rounds} committed; {state}",
    }
    if view.losses:
        curve = sparkline(view.losses, columns=min(CURVE_COLUMNS, console.width - 30))
        facts["loss"] = f"{view.losses[0]:.3f} {curve} {view.losses[-1]:.3f}"
    if view.evaluations:
        newest, names = view.evaluations[-1], {peer.peer: peer.name for peer in view.peers}
        facts["held out"] = (
            f"{newest.loss:.3f} at state {newest.round}, says {plain(names[newest.peer])}"
        )
    facts |= {
        "tokens": format_count(view.num_tokens),
        "bytes": _traffic(view.traffic),
        "bits": f"{view.bits:.3f} sent for each parameter and inner step",
        "peers": f"{num_in} in, {num_ever} ever",
    }
    if view.sample:
        facts["writes"] = one_line(view.sample)
    grid = Table.grid(padding=(0, 1))  # what is too long for a line goes on below its beginning
    for name, text in facts.items():
        grid.add_row(name, escape(text))
        if not console.is_terminal:
            console.say(f"{name:<8} {text}")
    if console.is_terminal:
        console.print(grid)


def _traffic(traffic: Traffic) -> str:
    parts = {
        "contributions": traffic.contributions_sent,
        "updates": traffic.updates_sent,
        "states": traffic.state_sent,
        "control": traffic.control_sent,
    }
    return ", ".join(f"{format_bytes(num_bytes)} of {kind}" for kind, num_bytes in parts.items())


def _print_peers(view: Overview, *, now: float) -> None:
    titles = (
        "peer",
        "name",
        "in",
        "rounds",
        "tokens",
        "share",
        "loss",
        "tokens/s",
        "MFU",
        "sent",
        "received",
        "last seen",
    )
    rows = [_row(peer, now=now) for peer in view.peers]
    if not console.is_terminal:
        for row in rows:
            cells = (f"{title} {cell}" for title, cell in zip(titles[1:], row[1:], strict=True))
            console.say(f"{row[0]}  {'  '.join(cells)}")
    elif rows:
        is_wide = console.width >= WIDE_COLUMNS
        shown = [n for n, title in enumerate(titles) if is_wide or title not in LEFT_OUT]
        table = Table(box=None, header_style="bold")
        for number in shown:
            table.add_column(titles[number], justify="left" if number < 3 else "right")
        for row in rows:
            table.add_row(*(escape(row[number]) for number in shown))
        console.print(table)


def _row(peer: PeerView, *, now: float) -> tuple[str, ...]:
    return (
        peer.peer[:8],
        plain(peer.name),
        ("yes" if peer.trains else "reads") if peer.is_in else "no",
        str(peer.rounds),
        format_count(peer.num_tokens),
        f"{peer.token_share:.0%}",
        f"{peer.loss:.3f}" if peer.rounds else "-",
        format_count(peer.tokens_per_s) if peer.tokens_per_s else "-",
        f"{peer.mfu:.0%}" if peer.mfu and peer.tokens_per_s else "-",
        format_bytes(peer.traffic.sent),
        format_bytes(peer.traffic.received),
        f"{format_seconds(max(0.0, now - peer.seen_at))} ago" if peer.seen_at else "never",
    )
