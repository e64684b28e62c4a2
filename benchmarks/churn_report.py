"""Tables and plot of what churn.py has measured.

    python benchmarks/churn_report.py      prints the tables, writes docs/benchmarks/churn.png

A difference is taken between runs of one seed, which have the same first weights.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

import matplotlib
import msgspec
from losses_report import spread
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STEADY, LONG = "steady", "steady, H = 40"
DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
PLOTTED = ("10 to 1", "10 to 1, momentum 0.9")


class Line(msgspec.Struct, frozen=True):
    case: str
    seed: int
    rule: str
    rounds: int
    tokens: list[int]
    losses: list[float]

    @property
    def millions(self) -> list[float]:
        return [tokens / 1e6 for tokens in self.tokens]

    @property
    def percents(self) -> list[float]:
        """How much higher each loss is than the first one."""
        return [100 * (loss / self.losses[0] - 1) for loss in self.losses]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--file", type=Path, default=DOCS / "churn.jsonl")
    parser.add_argument("--plot", type=Path, default=DOCS / "churn.png")
    arguments = parser.parse_args()
    lines = [
        msgspec.json.decode(text, type=Line)
        for text in arguments.file.read_text(encoding="utf-8").splitlines()
    ]
    print("\n".join([*runs_table(lines), "", *losses_table(lines)]))
    plot(lines, arguments.plot)


def grouped(lines: Sequence[Line]) -> dict[tuple[str, str], list[Line]]:
    """Return the lines of each case and rule, in the order of the file."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.case, line.rule), []).append(line)
    return groups


def runs_table(lines: Sequence[Line]) -> Iterator[str]:
    """Yield the table of whole runs, each against the one in which everybody is always there."""
    at_end = {(line.case, line.seed): line.losses[-1] for line in lines}
    yield f"| case | seeds | rounds | loss | above {STEADY} |"
    yield "|---|---|---|---|---|"
    for (case, _), group in grouped(lines).items():
        if " to " in case:
            continue
        steady = steady_of(case)
        above = [100 * (line.losses[-1] / at_end[steady, line.seed] - 1) for line in group]
        cells = [
            case,
            len(group),
            spread([line.rounds for line in group], ".0f"),
            spread([line.losses[-1] for line in group], ".3f"),
            "" if case == steady else spread(above, "+.2f", unit=" %"),
        ]
        yield f"| {' | '.join(map(str, cells))} |"


def steady_of(case: str) -> str:
    """Return the case without churn that has rounds as long."""
    length = re.search(r", H = \d+", case)
    return STEADY + (length[0] if length else "")


def losses_table(lines: Sequence[Line]) -> Iterator[str]:
    """Yield the table of many peers lost at once: how the loss goes on from then."""
    yield "| peers | rule | seeds | at most | at the end |"
    yield "|---|---|---|---|---|"
    for (case, rule), group in grouped(lines).items():
        if " to " not in case:
            continue
        at_most = spread([max(line.percents[1:]) for line in group], "+.2f", unit=" %")
        at_end = spread([line.percents[-1] for line in group], "+.2f", unit=" %")
        yield f"| {case} | {rule} | {len(group)} | {at_most} | {at_end} |"


def plot(lines: Sequence[Line], path: Path) -> None:
    """Write the curves of whole runs, and those of the rules after 9 of 10 peers are lost."""
    matplotlib.rcParams.update({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
    figure = Figure(figsize=(17, 4.6), layout="constrained")
    short, long, *others = figure.subplots(1, 4)
    for axes, steady in ((short, STEADY), (long, LONG)):
        for (case, _), group in grouped(lines).items():
            if " to " not in case and steady_of(case) == steady:
                draw(axes, case, group)
        axes.set(xlabel="million tokens committed", ylabel="validation loss, nats per token")
        axes.legend(fontsize=7, loc="upper right")
    for axes, case in zip(others, PLOTTED, strict=True):
        for (its_case, rule), group in grouped(lines).items():
            if its_case == case:
                percents = [
                    mean(values) for values in zip(*(g.percents for g in group), strict=True)
                ]
                axes.plot(percents, label=rule)
        axes.set(
            title=case, xlabel="rounds after the loss", ylabel="validation loss against before, %"
        )
    others[-1].legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def draw(axes: Axes, name: str, group: Sequence[Line]) -> None:
    """Draw each seed's curve in one colour."""
    (first, *rest) = group
    (drawn,) = axes.plot(first.millions, first.losses, label=name)
    for line in rest:
        axes.plot(line.millions, line.losses, color=drawn.get_color())


if __name__ == "__main__":
    main()
