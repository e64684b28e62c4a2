"""What this machine does for a run, shown: a picture that changes in place, or plain lines."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from functools import partial
from typing import Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from atoll.cli.live import STYLES, in_place, is_plain, lines
from atoll.cli.part import Doing, Flow, News, Part
from atoll.cli.show import sparkline
from atoll.clock import wall_s
from atoll.model.shapes import num_parameters
from atoll.units import format_bytes, format_count, format_seconds, plural

MAX_WIDTH: Final = 110
CURVE_COLUMNS: Final = 32
NEWS_LINES: Final = 8
DOING_STYLES: Final[dict[Doing, str]] = {
    "connecting": "yellow",
    "downloading": "cyan",
    "starting": "cyan",
    "waiting for a round": "cyan",
    "training": "bold green",
    "exchanging": "cyan",
    "paused": "bold yellow",
    "resting": "yellow",
    "done": "dim",
}
# What a newcomer may wonder about while nothing seems to happen.
WHY: Final[dict[Doing, str]] = {
    "connecting": "to the host of the run",
    "starting": "the trainer: this takes some seconds, on a slow disk a minute",
    "waiting for a round": "the next one begins when all peers are ready",
    "exchanging": "what was learnt, with the other peers",
    "paused": "no round waits for this machine; go on with: atoll resume",
    "resting": "outside the hours that you named",
}


def shown(
    part: Part, console: Console, *, alone: bool = True
) -> AbstractContextManager[Callable[[], None]]:
    """Yield what shows the part as it stands by now; to be called often, and once at the end.

    Where it is not `alone` on the terminal, it leaves that to lines.
    """
    if not alone or is_plain(console):
        return nullcontext(lines(part.news, partial(line, clock="%Y-%m-%d %H:%M:%S"), console))
    return in_place(lambda: picture(part, console), console)


def line(news: News, *, clock: str) -> Text:
    moment = datetime.fromtimestamp(news.at).astimezone().strftime(clock)
    return Text.assemble((f"{moment}  ", "dim"), (news.text, STYLES[news.tone]))


# --- the picture ---------------------------------------------------------------------------------


def picture(part: Part, console: Console) -> RenderableType:
    """Return the part as it stands, as high as the terminal at most."""
    facts, size = _facts(part), format_count(num_parameters(part.config.model))
    room = console.height - facts.row_count - 6
    news = [_news(one) for one in part.news[-max(2, min(NEWS_LINES, room)) :]]
    return Panel(
        Group(_headline(part), facts, "", *news),
        title=f"[bold]atoll[/]: {part.config.name}, {size} parameters",
        title_align="left",
        subtitle=_keys(part),
        subtitle_align="left",
        border_style="blue",
        box=box.ROUNDED,
        width=min(console.width, MAX_WIDTH),
        padding=(0, 1),
    )


def _news(news: News) -> Text:
    """Return a line; of one that asks for something, all of it, however many lines that takes."""
    text = line(news, clock="%H:%M")
    if news.tone in ("plain", "good"):
        text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _keys(part: Part) -> str:
    if part.doing == "done":
        return ""
    if part.is_leaving:
        return "leaving after this round · Ctrl-C: at once"
    rest = "atoll resume: go on" if part.doing == "paused" else "atoll pause: rest"
    return f"Ctrl-C: leave after the round · twice: at once · {rest}"


def _headline(part: Part) -> RenderableType:
    """Return what it is doing, and how far that is."""
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    doing = Text(part.doing, style=DOING_STYLES[part.doing])
    if part.download is not None and part.doing == "downloading":
        download = part.download
        bar = ProgressBar(total=max(1, download.total_bytes), completed=download.flow.num_bytes)
        left = download.seconds_left
        rest = "" if left is None else f"{format_seconds(left)} left"
        grid.add_row(doing, bar, rest)
    elif part.doing == "training":
        steps = part.config.steps_per_round
        done = min(part.step, steps)
        bar = ProgressBar(total=steps, completed=done, complete_style="green")
        grid.add_row(doing, bar, f"{done} of {steps} steps")
    else:
        why = Text(WHY.get(part.doing, ""), style="dim", no_wrap=True, overflow="ellipsis")
        grid.add_row(doing, why, "")
    return grid


def _facts(part: Part) -> Table:
    """Return what is known so far, a line for each; nothing where there is nothing to say yet."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True, min_width=8)
    table.add_column(no_wrap=True, overflow="ellipsis")
    if part.download is not None:
        table.add_row("download", part.download.in_words())
    table.add_row("host", _host(part))
    if part.has_connected:
        table.add_row("run", _round(part))
    if part.device:
        speed = f", {format_count(part.tokens_per_s)} tokens/s" if part.tokens_per_s else ""
        table.add_row("device", f"{part.device}{speed}")
    if part.loss is not None:
        table.add_row("loss", _loss(part))
    if part.num_rounds:
        table.add_row("yours", _yours(part))
    if part.sent.num_bytes or part.received.num_bytes:
        up, down = _flow(part.sent), _flow(part.received)
        table.add_row("line", f"{up} sent, {down} received")
    return table


def _host(part: Part) -> Text:
    if not part.host:
        return Text("not reached yet", style="yellow")
    if part.doing == "resting":
        return Text(f"{part.host}, left for now", style="dim")
    if part.is_cut_off:
        return Text(f"{part.host} does not answer: trying again", style="yellow")
    return Text(part.host)


def _round(part: Part) -> str:
    peers = part.num_contributors
    who = f", by {plural(peers, 'peer')}" if peers else ""
    beside = f"; exchanging round {min(part.exchanges)} meanwhile" if part.exchanges_beside else ""
    return f"{part.committed} of {part.config.sync.rounds} rounds done{who}{beside}"


def _loss(part: Part) -> Text:
    now = (f"{part.loss:.3f}", "bold")
    if len(part.losses) < 2:
        return Text.assemble(now)
    curve = sparkline(part.losses, columns=CURVE_COLUMNS)
    return Text.assemble(f"{part.losses[0]:.3f} ", (curve, "magenta"), " ", now)


def _yours(part: Part) -> str:
    share = "" if part.share is None else f"{part.share:.0%} of the last round; "
    now = format_count(part.num_tokens)
    ever = ""
    if part.total_tokens > part.num_tokens:
        ever = f", {format_count(part.total_tokens)} ever"
    since = format_seconds(max(0.0, wall_s() - part.began_at))
    return f"{share}{now} tokens in {since}{ever}"


def _flow(flow: Flow) -> str:
    rate = flow.bytes_per_s
    return format_bytes(flow.num_bytes) + (f" ({format_bytes(rate)}/s)" if rate >= 1000 else "")
