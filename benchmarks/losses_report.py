"""Table and plot of what losses.py has measured: loss at equal tokens.

    python benchmarks/losses_report.py      prints the table, writes docs/benchmarks/losses.png

A difference is taken between runs of one seed, which have the same first weights and samples.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

import matplotlib
import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure

REFERENCE = "fp32"
BASELINE = "adamw"
ALONE = "alone"
TARGET = 0.5  # percent
TICKS = [-1, -0.5, 0, 0.5, 1, 2, 5, 10, 20]
DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
COLOURS = {  # in the order of the table
    BASELINE: "black",
    ALONE: "grey",
    REFERENCE: "tab:blue",
    "fp64": "tab:brown",
    "int8": "tab:orange",
    "int4, int8 updates": "tab:green",
    "int4": "tab:olive",
    "sparse": "tab:red",
    "overlap": "tab:purple",
    "streaming": "tab:cyan",
}


class Line(msgspec.Struct, frozen=True):
    setting: str
    seed: int
    samples_per_step: int  # of all peers together
    sequence_length: int
    bits: float
    steps: list[int]
    losses: list[float]

    @property
    def num_tokens(self) -> int:
        return self.steps[-1] * self.samples_per_step * self.sequence_length


Runs = dict[str, dict[int, Line]]  # by setting, then by seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--file", type=Path, default=DOCS / "losses.jsonl")
    parser.add_argument("--plot", type=Path, default=DOCS / "losses.png")
    arguments = parser.parse_args()
    runs = read(arguments.file)
    print("\n".join(table(runs)))
    plot(runs, arguments.plot)


def read(path: Path) -> Runs:
    """Return the runs of a file; it holds one for each setting and seed."""
    runs: Runs = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        line = msgspec.json.decode(text, type=Line)
        runs.setdefault(line.setting, {})[line.seed] = line
    return {name: runs[name] for name in COLOURS if name in runs}


def table(runs: Runs) -> Iterator[str]:
    yield f"| setting | tokens | seeds | loss | above AdamW | above {REFERENCE} | bits |"
    yield "|---|---|---|---|---|---|---|"
    for name, by_seed in runs.items():
        lines = list(by_seed.values())
        final = [line.losses[-1] for line in lines]
        cells = [
            name,
            f"{lines[0].num_tokens / 1e6:.2f} M",
            len(lines),
            spread(final, ".3f"),
            *(difference(runs, name, other) for other in (BASELINE, REFERENCE)),
            f"{lines[0].bits:.3g}" if lines[0].bits else "",
        ]
        yield f"| {' | '.join(map(str, cells))} |"


def difference(runs: Runs, name: str, other: str) -> str:
    percent = [] if name == other else percents(runs, name, other)
    return spread(percent, "+.2f", unit=" %") if percent else ""


def spread(values: Sequence[float], form: str, *, unit: str = "") -> str:
    """Return the mean, and the range if there is one."""
    text = f"{mean(values):{form}}{unit}"
    return text if len(values) == 1 else f"{text} ({min(values):{form}} to {max(values):{form}})"


def percents(runs: Runs, name: str, other: str, *, point: int = -1) -> list[float]:
    """Return how much higher the loss is than that of another setting, for each common seed."""
    by_seed, others = runs[name], runs.get(other, {})
    return [
        100 * (by_seed[seed].losses[point] / others[seed].losses[point] - 1)
        for seed in sorted(by_seed.keys() & others.keys())
    ]


def plot(runs: Runs, path: Path) -> None:
    """Write the curves, and next to them how far each is from the reference."""
    matplotlib.rcParams.update({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, by_seed in runs.items():
        steps = next(iter(by_seed.values())).steps
        losses = [[line.losses[k] for line in by_seed.values()] for k in range(len(steps))]
        draw(left, name, steps, losses)
        if name not in (REFERENCE, BASELINE, ALONE):
            differences = [percents(runs, name, REFERENCE, point=k) for k in range(len(steps))]
            draw(right, name, steps, differences)
    left.set(xlabel="inner steps of each peer", ylabel="validation loss, nats per token")
    left.legend()
    right.axhline(TARGET, color="black", linewidth=0.8, linestyle=":")
    right.axhline(0, color=COLOURS[REFERENCE])
    right.set_yscale("symlog", linthresh=1)  # linear up to 1 %: what matters, and the rest
    right.set_yticks(TICKS, labels=[f"{tick:g}" for tick in TICKS])
    right.set(xlabel="inner steps of each peer", ylabel=f"loss above {REFERENCE}, %")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def draw(axes: Axes, name: str, steps: Sequence[int], values: Sequence[Sequence[float]]) -> None:
    """Draw the mean over the seeds, and the range of them."""
    axes.plot(steps, [mean(each) for each in values], label=name, color=COLOURS[name])
    low, high = [min(each) for each in values], [max(each) for each in values]
    axes.fill_between(steps, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)


if __name__ == "__main__":
    main()
