"""A picture of one round: when each group's device trains, and when its line is busy. SVG.

group   | steps ................ | stands still |        the device
                          | send |   | fetch |           the line: of this round, or, where
                                                         training goes on, of the one before
"""

from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from atoll.forecast.forecast import Forecast, GroupForecast
from atoll.units import format_seconds

WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 900, 140, 30, 60, 52, 18
COLOURS = {"steps": "#2b8a5b", "stands still": "#d0d0d0", "send": "#3567b0", "fetch": "#d98b2b"}
MARKS = 4  # on the axis


class Bar(NamedTuple):
    what: str
    start_s: float
    stop_s: float


def drawing(seen: Forecast, *, overlaps: bool) -> str:
    """Return the SVG of a round; the same forecast gives the same text."""
    height = TOP + ROW * len(seen.groups) + 40
    body = [*_legend(seen), *_axis(seen, height)]
    for number, group in enumerate(seen.groups):
        top = TOP + ROW * number
        name = f"{group.count} x {group.name}"
        body.append(_text(LEFT - 10, top + BAR, name, anchor="end"))
        body += [_bar(seen, bar, top) for bar in _device(seen, group)]
        body += [_bar(seen, bar, top + BAR + 2) for bar in _line(seen, group, overlaps=overlaps)]
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            'font-family="sans-serif" font-size="13">',
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
            *body,
            "</svg>\n",
        )
    )


def _device(seen: Forecast, group: GroupForecast) -> Iterator[Bar]:
    trains_s = group.utilisation * seen.round_s
    yield Bar("steps", 0.0, trains_s)
    yield Bar("stands still", trains_s, seen.round_s)


def _line(seen: Forecast, group: GroupForecast, *, overlaps: bool) -> Iterator[Bar]:
    begins_s = 0.0 if overlaps else min(group.steps_s, seen.round_s)
    closes_s = seen.exchange_s - max(other.fetch_s for other in seen.groups)
    closes_s = closes_s if overlaps else seen.close_after_s
    yield Bar("send", begins_s, begins_s + group.send_s)
    yield Bar("fetch", closes_s, closes_s + group.fetch_s)


def _legend(seen: Forecast) -> Iterator[str]:
    title = f"one round of {seen.run}: {format_seconds(seen.round_s)}"
    yield _text(LEFT, 22, title, weight="bold")
    for number, (what, colour) in enumerate(COLOURS.items()):
        x = LEFT + 120 * number
        yield f'<rect x="{x}" y="32" width="12" height="12" fill="{colour}"/>'
        yield _text(x + 17, 43, what)


def _axis(seen: Forecast, height: int) -> Iterator[str]:
    for mark in range(MARKS + 1):
        seconds = seen.round_s * mark / MARKS
        x = _x(seen, seconds)
        yield f'<path d="M{x:.1f} {TOP - 6}V{height - 30}" stroke="#e8e8e8"/>'
        yield _text(x, height - 12, format_seconds(seconds), anchor="middle")


def _bar(seen: Forecast, bar: Bar, top: float) -> str:
    x, stop = _x(seen, bar.start_s), _x(seen, min(bar.stop_s, seen.round_s))
    title = f"<title>{bar.what}: {format_seconds(bar.stop_s - bar.start_s)}</title>"
    return (
        f'<rect x="{x:.1f}" y="{top}" width="{max(stop - x, 0):.1f}" height="{BAR}" '
        f'fill="{COLOURS[bar.what]}">{title}</rect>'
    )


def _x(seen: Forecast, seconds: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * seconds / seen.round_s


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )
