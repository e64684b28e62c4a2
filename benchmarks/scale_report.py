"""The plot of docs/benchmarks/scale.md, from the lines of docs/benchmarks/scale.jsonl.

Each is one of `host_decisions.py`, `host_load.py` or `swarm.py`, as these print it.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"


def main() -> int:
    lines = [json.loads(line) for line in (FOLDER / "scale.jsonl").read_text().splitlines()]
    curves = {
        "the host's decisions alone": ("peers", "s_per_round", 1.0),
        "a host process, real connections": ("members", "host_cpu_ms_per_member_and_round", None),
        "a simulated swarm, all of it": ("peers", "cpu_s_per_round", 1.0),
    }
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for label, (count, seconds, scale) in curves.items():
        points = sorted(
            (line[count], line[seconds] * (scale or line[count] / 1e3))
            for line in lines
            if seconds in line
        )
        axes.loglog(*zip(*points, strict=True), marker="o", label=label)
    axes.set_xlabel("members")
    axes.set_ylabel("processor seconds for a round")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(FOLDER / "scale.svg", metadata={"Date": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
