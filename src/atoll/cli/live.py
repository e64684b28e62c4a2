"""A story on the terminal: a picture that changes in place, or plain lines where there is none."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Final, TypeVar

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from atoll import system
from atoll.cli.show import sparkline
from atoll.cli.story import Actor, Doing, News, Story, Tone
from atoll.clock import wall_s
from atoll.model.shapes import num_parameters
from atoll.units import format_bytes, format_count

T = TypeVar("T")
MAX_WIDTH: Final = 100
CURVE_COLUMNS: Final = 36
STYLES: Final[dict[Tone, str]] = {
    "plain": "",
    "good": "green",
    "bad": "yellow",
    "alarm": "bold red",
}
DOING_STYLES: Final[dict[Doing, str]] = {
    "starting": "dim",
    "training": "green",
    "exchanging": "cyan",
    "serving": "cyan",
    "paused": "yellow",
    "gone": "bold yellow",
    "done": "dim",
}


def shown(story: Story, console: Console) -> AbstractContextManager[Callable[[], None]]:
    """Yield what shows the story as it stands by now; to be called often."""
    if is_plain(console):
        return nullcontext(lines(story.news, _line, console))
    return in_place(lambda: picture(story, console), console)


def is_plain(console: Console) -> bool:
    """Return whether nothing can change in place here."""
    return not console.is_terminal or console.is_dumb_terminal


@contextmanager
def in_place(draw: Callable[[], RenderableType], console: Console) -> Iterator[Callable[[], None]]:
    """Yield what draws the picture anew where it was.

    A `^C` or an empty line that the terminal writes in between would shift it.
    """
    live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
    with system.unseen_keys(), live:
        yield lambda: live.update(draw(), refresh=True)


def lines(news: Sequence[T], line: Callable[[T], Text], console: Console) -> Callable[[], None]:
    """Return what prints the news that have come since the last time, a line for each."""
    num_printed = 0

    def show() -> None:
        nonlocal num_printed
        for one in news[num_printed:]:
            console.print(line(one), soft_wrap=True)
        num_printed = len(news)

    return show


def _line(news: News) -> Text:
    moment = (f"{_minutes(news.at_s):>5}  ", "dim")
    return Text.assemble(moment, (news.text, STYLES[news.tone]), no_wrap=True, overflow="ellipsis")


# --- the picture ---------------------------------------------------------------------------------


def picture(story: Story, console: Console) -> RenderableType:
    """Return the story as it stands, as high as the terminal at most."""
    rest = console.height - len(story.actors) - 11  # all lines but the news, and one below
    news = story.news[-max(3, rest) :]
    return Panel(
        Group(_rounds(story), _loss(story), "", _members(story), "", *map(_line, news)),
        title=f"[bold]atoll demo[/]: {_subject(story)}",
        title_align="left",
        border_style="blue",
        box=box.ROUNDED,
        width=min(console.width, MAX_WIDTH),
        padding=(0, 1),
    )


def _subject(story: Story) -> str:
    size = format_count(num_parameters(story.config.model))
    return f"{size} parameters, text: {Path(story.config.data.sources[0].name).name}"


def _rounds(story: Story) -> RenderableType:
    rounds = story.config.sync.rounds
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    grid.add_row(
        f"round [bold]{min(story.committed + 1, rounds)}[/] of {rounds}",
        ProgressBar(total=1.0, completed=story.progress, complete_style="blue"),
        _clock(story),
    )
    return grid


def _clock(story: Story) -> str:
    now = wall_s()
    left_s = None if story.is_complete else story.seconds_left(now=now)
    left = "" if left_s is None else f", about {_minutes(left_s)} left"
    return _minutes(now - story.began_at) + left


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _loss(story: Story) -> RenderableType:
    if not story.losses:
        return Text("loss     after the first round", style="dim")
    curve = sparkline(story.losses, columns=CURVE_COLUMNS)
    first, last = story.losses[0], story.losses[-1]
    text = Text.assemble(f"loss     {first:.3f} ", (curve, "magenta"), (f" {last:.3f}", "bold"))
    if story.validation_loss is not None:
        text.append(f", {story.validation_loss:.3f} held out")
    return text


def _members(story: Story) -> Table:
    table = Table(box=None, expand=True, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    table.add_column("member", no_wrap=True, ratio=1)
    table.add_column("inner steps", width=13)
    for title, width in (("loss", 6), ("tokens/s", 8), ("sent", 8), ("received", 8)):
        table.add_column(title, justify="right", no_wrap=True, width=width)
    table.add_column(width=10)
    actors = story.actors.values()
    for actor in actors:
        table.add_row(*_row(actor, inner_steps=story.config.sync.inner_steps))
    table.add_row(
        "in all",
        "",
        f"{story.losses[-1]:.3f}" if story.losses else "",
        format_count(story.tokens_per_s) if story.tokens_per_s else "",
        format_bytes(story.num_sent),
        format_bytes(story.num_received),
        f"{sum(actor.is_in for actor in actors)} are in",
        style="bold",
    )
    return table


def _row(actor: Actor, *, inner_steps: int) -> tuple[RenderableType, ...]:
    return (
        actor.name,
        _steps(actor.step, inner_steps) if actor.trains else "",
        "" if actor.loss is None else f"{actor.loss:.3f}",
        format_count(actor.tokens_per_s) if actor.tokens_per_s else "",
        format_bytes(actor.num_sent) if actor.num_sent else "",
        format_bytes(actor.num_received) if actor.num_received else "",
        Text(actor.doing, style=DOING_STYLES[actor.doing]),
    )


def _steps(done: int, inner_steps: int) -> Text:
    """Return a bar of ten cells, and the number."""
    full = 10 * done // inner_steps
    return Text.assemble(("■" * full, "green"), ("·" * (10 - full), "dim"), f" {done:2}")
