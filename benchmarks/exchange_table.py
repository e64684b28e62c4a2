"""Runs exchange.py for each kind of link and each system, and writes what came out into the docs.

    sudo python benchmarks/exchange_table.py [--systems atoll,gloo] [--cases "4 peers"]
                                                                          (make bench-exchange)

One case after the other, its systems one right after the other: on a shared machine, compare
figures of one case. Figures lie in docs/benchmarks/exchange.jsonl, where those of a case and
system replace the ones before; their table goes between the marks in exchange.md,
and the plot lies beside it.
"""

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib import pyplot

BENCHMARKS = Path(__file__).parent
PAGE = BENCHMARKS.parent / "docs" / "benchmarks" / "exchange.md"
KEPT = PAGE.with_suffix(".jsonl")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
SYSTEMS = ("atoll", "gloo", "torchft", "hivemind")
HEAD = (
    "| case | system | bits | wall, s | link limit, s | share of the link "
    "| MB per peer | CPU, s | peak, MB | error | error, heavy tails | identical | measured |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


class Case(NamedTuple):
    title: str
    options: str  # of exchange.py


FAR = "--link 100mbit --rtt 80ms --loss 0.1%"
CASES = (
    Case("2 peers, 4 M, 100 Mb/s", "--peers 2 --params 4e6 --link 100mbit"),
    Case("2 peers, 4 M, 100 Mb/s, BBR", "--peers 2 --params 4e6 --link 100mbit --congestion bbr"),
    Case("4 peers, 4 M, 100 Mb/s", "--peers 4 --params 4e6 --link 100mbit"),
    Case("4 peers, 4 M, 100 Mb/s, BBR", "--peers 4 --params 4e6 --link 100mbit --congestion bbr"),
    Case("8 peers, 4 M, 100 Mb/s", "--peers 8 --params 4e6 --link 100mbit"),
    Case("2 peers, 20 M, 100 Mb/s", "--peers 2 --params 20e6 --link 100mbit"),
    Case("4 peers, 20 M, 100 Mb/s", "--peers 4 --params 20e6 --link 100mbit"),
    Case("8 peers, 20 M, 100 Mb/s", "--peers 8 --params 20e6 --link 100mbit"),
    Case("2 peers, 4 M, 1 Gb/s", "--peers 2 --params 4e6 --link 1gbit"),
    Case("4 peers, 4 M, 1 Gb/s", "--peers 4 --params 4e6 --link 1gbit"),
    Case("8 peers, 4 M, 1 Gb/s", "--peers 8 --params 4e6 --link 1gbit"),
    Case("2 peers, 20 M, 1 Gb/s", "--peers 2 --params 20e6 --link 1gbit"),
    Case("4 peers, 20 M, 1 Gb/s", "--peers 4 --params 20e6 --link 1gbit"),
    Case("8 peers, 20 M, 1 Gb/s", "--peers 8 --params 20e6 --link 1gbit"),
    Case("4 peers, 4 M, 15/110 Mb/s", "--peers 4 --params 4e6 --link 15mbit/110mbit"),
    Case("4 peers, 4 M, far, Cubic", f"--peers 4 --params 4e6 {FAR} --congestion cubic"),
    Case("4 peers, 4 M, far, BBR", f"--peers 4 --params 4e6 {FAR} --congestion bbr"),
    Case("4 peers, 40 M, loopback", "--peers 4 --params 40e6 --link loopback"),
)


class Result(NamedTuple):
    case: Case
    figures: dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="which, with commas between")
    parser.add_argument("--cases", default="", help="only those with this in their title")
    given = parser.parse_args()
    for case in CASES:
        for system in given.systems.split(",") if given.cases in case.title else ():
            if figures := run(case, system):
                keep({"case": case.title, "day": str(datetime.now(UTC).date()), **figures})
    results = kept()
    if not results:
        sys.exit("exchange_table.py: nothing was measured")
    plot(results, PAGE.with_suffix(".svg"))
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}", encoding="utf-8")


def kept() -> list[Result]:
    """Return all that was measured, in the order of the cases and systems."""
    lines = KEPT.read_text(encoding="utf-8").splitlines() if KEPT.exists() else []
    by_place = {(of["case"], of["system"]): of for of in map(json.loads, lines)}
    return [
        Result(case, by_place[case.title, system])
        for case in CASES
        for system in SYSTEMS
        if (case.title, system) in by_place
    ]


def keep(figures: dict[str, Any]) -> None:
    """Put the figures of a case and system in the place of those that were there."""
    place = (figures["case"], figures["system"])
    others = [r.figures for r in kept() if (r.figures["case"], r.figures["system"]) != place]
    lines = [json.dumps(of) + "\n" for of in (*others, figures)]
    KEPT.write_text("".join(lines), encoding="utf-8")


def run(case: Case, system: str) -> dict[str, Any]:
    """Return the figures, which are printed too; none, if the system cannot do it."""
    command = [sys.executable, str(BENCHMARKS / "exchange.py"), "--system", system]
    done = subprocess.run(
        [*command, *case.options.split()], stdout=subprocess.PIPE, text=True, check=False
    )
    print(done.stdout, end="", flush=True)
    figures: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    return figures


def table(results: list[Result]) -> str:
    rows = [row(result) for result in results]
    return "\n".join((HEAD, *rows)) + "\n\n![wall time](exchange.svg)"


def row(result: Result) -> str:
    of = result.figures
    limit_s = of["link_limit_s"]
    cells = (
        result.case.title,
        of["system"],
        of["codec"],
        f"{of['wall_s']:.2f}",
        f"{limit_s:.2f}" if limit_s else "",
        f"{limit_s / of['wall_s']:.0%}" if limit_s else "",
        f"{of['bytes_per_peer'] / 1e6:.1f}",
        f"{of['cpu_s']:.2f}",
        f"{of['peak_mb']}",
        f"{of['error_gaussian']:.2g}",
        f"{of['error_student_t']:.2g}",
        "yes" if of["identical"] else "no",
        of["day"],
    )
    return f"| {' | '.join(cells)} |"


def plot(results: list[Result], path: Path) -> None:
    """Draw the wall time of each system in each case, on a logarithmic scale."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "atoll"  # equal figures, equal file
    titles = list(dict.fromkeys(result.case.title for result in results))
    systems = list(dict.fromkeys(result.figures["system"] for result in results))
    figure, axes = pyplot.subplots(figsize=(9, 0.5 + 0.8 * len(titles)))
    height = 0.8 / len(systems)
    for offset, system in enumerate(systems):
        of_system = [result for result in results if result.figures["system"] == system]
        places = [titles.index(result.case.title) + offset * height for result in of_system]
        walls = [result.figures["wall_s"] for result in of_system]
        axes.barh(places, walls, height, label=system)
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(titles))], titles)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("seconds for one exchange (less is better)")
    axes.legend()
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()
