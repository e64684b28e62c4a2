"""The plot of docs/benchmarks/scale.md, from the lines of docs/benchmarks/scale.jsonl.

Each is one of `host_decisions.py`, `host_load.py` or `swarm.py`, as these print it.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"


def curve(axes: Axes, label: str, points: list[tuple[float, float]]) -> None:
    axes.loglog(*zip(*sorted(points), strict=True), marker="o", label=label)


def draw_seconds(axes: Axes, lines: list[dict[str, float]]) -> None:
    decisions = [(line["peers"], line["s_per_round"]) for line in lines if "s_per_round" in line]
    curve(axes, "the host's decisions alone", decisions)
    real = "host_cpu_ms_per_member_and_round"
    loaded = [(x["members"], x[real] * x["members"] / 1e3) for x in lines if real in x]
    curve(axes, "a host process, real connections", loaded)
    of_host, of_all = "host_s_per_round", "cpu_s_per_round"
    swarms = [line for line in lines if of_all in line]
    curve(axes, "a simulated swarm: its host", [(x["peers"], x[of_host]) for x in swarms])
    curve(axes, "a simulated swarm: all of it", [(x["peers"], x[of_all]) for x in swarms])
    axes.set_ylabel("processor seconds for a round")


def draw_messages(axes: Axes, lines: list[dict[str, float]]) -> None:
    counted = "host_messages_per_round"
    curve(axes, "counted", [(x["peers"], x[counted]) for x in lines if counted in x])
    members = [10, 10_000]
    axes.loglog(members, [10 * n for n in members], color="gray", ls=":", label="10 for each")
    axes.set_ylabel("messages of the host in a round")


def main() -> int:
    lines = [json.loads(line) for line in (FOLDER / "scale.jsonl").read_text().splitlines()]
    figure, (seconds, messages) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    draw_seconds(seconds, lines)
    draw_messages(messages, lines)
    for axes in (seconds, messages):
        axes.set_xlabel("members")
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend()
    figure.savefig(FOLDER / "scale.svg", metadata={"Date": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
