"""The plot of docs/benchmarks/scale.md, from the lines of docs/benchmarks/scale.jsonl.

Each is one of `host_decisions.py`, `host_load.py` or `swarm.py`, as these print it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"


def curve(axes: Axes, label: str, points: list[tuple[float, float]]) -> None:
    axes.loglog(*zip(*sorted(points), strict=True), marker="o", label=label)


def draw_seconds(axes: Axes, lines: list[dict[str, Any]]) -> None:
    decisions = [(line["peers"], line["s_per_round"]) for line in lines if "s_per_round" in line]
    curve(axes, "the host's decisions alone", decisions)
    real = "host_cpu_ms_per_member_and_round"
    loaded = [(x["members"], x[real] * x["members"] / 1e3) for x in lines if real in x]
    curve(axes, "a host process, real connections", loaded)
    of_host, of_all = "host_s_per_round", "cpu_s_per_round"
    swarms = [line for line in lines if of_all in line]
    for kind, some in (("in one region", False), ("in regions", True)):
        of_kind = [line for line in swarms if ("most_connections" in line) is some]
        curve(axes, f"a swarm {kind}: its host", [(x["peers"], x[of_host]) for x in of_kind])
        curve(axes, f"a swarm {kind}: all of it", [(x["peers"], x[of_all]) for x in of_kind])
    axes.set_ylabel("processor seconds for a round")


def draw_messages(axes: Axes, lines: list[dict[str, Any]]) -> None:
    counted = "host_messages_per_round"
    curve(axes, "counted", [(x["peers"], x[counted]) for x in lines if counted in x])
    members = [10, 10_000]
    axes.loglog(members, [10 * n for n in members], color="gray", ls=":", label="10 for each")
    axes.set_ylabel("messages of the host in a round")


def draw_connections(axes: Axes, lines: list[dict[str, Any]]) -> None:
    swarms = [line for line in lines if "most_connections" in line]
    of = {"of_a_peer": "the busiest", "of_one_in_a_hundred": "one in a hundred", "median": "median"}
    for key, label in of.items():
        curve(axes, label, [(x["peers"], x["most_connections"][key]) for x in swarms])
    axes.set_ylabel("connections of a peer at once, in regions of 64")


def main() -> int:
    lines = [json.loads(line) for line in (FOLDER / "scale.jsonl").read_text().splitlines()]
    figure, panels = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    seconds, messages, connections = panels
    draw_seconds(seconds, lines)
    draw_messages(messages, lines)
    draw_connections(connections, lines)
    for axes in (seconds, messages, connections):
        axes.set_xlabel("members")
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend()
    figure.savefig(FOLDER / "scale.svg", metadata={"Date": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
