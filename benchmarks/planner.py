"""What `atoll plan` says, held against what was measured; and INTELLECT-1's fleet under atoll.

    python benchmarks/planner.py        (make bench-plan) writes the tables of the docs page

Nothing runs here: the measured figures are those of the pages beside it, as they stand, and of
INTELLECT-1's report. A test compares the tables that follow from the code alone.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from msgspec import structs

from atoll.config import RunConfig, load_run_config
from atoll.exchange.codec import CODECS
from atoll.exchange.plan import Link
from atoll.forecast.exchange import AGENT_BYTES_PER_S, PAYLOAD_SHARE, Sizes, exchange_of, ring_rate
from atoll.forecast.fleet import FleetConfig, GroupConfig, HostConfig, load_fleet
from atoll.forecast.forecast import Forecast, forecast, step_s
from atoll.forecast.timing import GAP_S
from atoll.ids import PeerId
from atoll.model.presets import PRESETS
from atoll.outer.layout import slice_bounds

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "benchmarks"
PAGE = DOCS / "planner.md"
RECORD = (("USA", 103.0, 95.7), ("USA and Europe", 382.0, 85.6), ("global", 469.0, 83.0))
RECORD_STEPS_S = 38 * 60.0  # of 100 inner steps, all by arXiv 2412.01152, table 2
RECORD_PEERS = 14
LAB_CORES = 2
MODES: tuple[tuple[str, dict[str, object]], ...] = (
    ("blocking int8", {}),
    ("overlap int8", {"mode": "overlap"}),
    ("streaming int8, F = 4", {"mode": "overlap", "fragments": 4}),
    ("streaming int8, F = 10", {"mode": "overlap", "fragments": 10}),
    ("blocking int4", {"codec": "int4", "update_codec": "int4"}),
    ("overlap int4", {"mode": "overlap", "codec": "int4", "update_codec": "int4"}),
    ("blocking sparse", {"codec": "sparse", "update_codec": "sparse8"}),
    ("overlap sparse", {"mode": "overlap", "codec": "sparse", "update_codec": "sparse8"}),
)
Row = Sequence[str]


class Compared(NamedTuple):
    case: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def main() -> None:
    page = written(PAGE.read_text(encoding="utf-8"), {**computed(), **compared()})
    PAGE.write_text(page, encoding="utf-8")


def compared() -> dict[str, list[str]]:
    """Return the tables that follow from what was measured."""
    return {
        "exchange": errors("exchange, s", list(exchanges()), digits=2),
        "utilisation": errors("utilisation, %", list(utilisations()), digits=1),
    }


def computed() -> dict[str, list[str]]:
    """Return the tables that follow from the code, and from INTELLECT-1's report."""
    return {"record": record(), "modes": modes()}


def written(page: str, tables: dict[str, list[str]]) -> str:
    """Return the page with these tables in their places."""
    for name, lines in tables.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, after = page.split(begin)[0], page.split(end)[1]
        page = before + "\n".join((begin, *lines, end)) + after
    return page


def table(head: Row, rows: Sequence[Row]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(row)} |" for row in cells]


# --- the record ----------------------------------------------------------------------------------


def run_and_fleet() -> tuple[RunConfig, FleetConfig]:
    configs = ROOT / "configs"
    fleet = load_fleet(configs / "fleets" / "intellect-1.toml")
    return load_run_config(configs / "intellect-1.toml"), fleet


def rates() -> Iterator[tuple[str, float]]:
    """Yield what each node moved, in bytes of values per second, at each quality of the links."""
    config, _ = run_and_fleet()
    num_values = forecast(*run_and_fleet()).num_values
    assert config.sync.codec == "int8", "a byte for each value"
    for name, seconds, _ in RECORD:
        yield name, ring_rate(num_bytes=num_values, num_peers=RECORD_PEERS, seconds=seconds)


def record() -> list[str]:
    config, fleet = run_and_fleet()
    steps_s = config.sync.inner_steps * step_s(config, fleet.groups[0])
    rows = []
    for (name, seconds, utilisation), (_, rate) in zip(RECORD, rates(), strict=True):
        ratio = RECORD_STEPS_S / (RECORD_STEPS_S + seconds)
        rows.append(
            (
                name,
                f"{seconds:.0f}",
                f"{utilisation} %",
                f"{ratio:.1%}".replace("%", " %"),
                f"{rate * 8 / 1e6:.0f} Mb/s",
            )
        )
    head = ("links", "all-reduce, s", "utilisation", "38 min / (38 min + it)", "explained by")
    mfu = fleet.groups[0].mfu
    return [
        *table(head, rows),
        "",
        f"100 steps at {mfu:.1%} of the peak of 8 H100: {steps_s / 60:.1f} min predicted, "
        "38 min reported.",
    ]


def modes() -> list[str]:
    """Return the table of the same fleet under atoll, at the rates that the record explains."""
    rows = []
    for title, changes in MODES:
        seen = [under(changes, mbps=rate * 8 / 1e6 / PAYLOAD_SHARE) for _, rate in rates()]
        cells = [title]
        for each in seen:
            cells += [f"{each.exchange_s:.0f}", f"{each.utilisation:.1%}".replace("%", " %")]
        cells += [f"{seen[-1].groups[0].up_bytes / 1e9:.2f}", f"{seen[-1].bits:.3g}"]
        rows.append(cells)
    places = [cell for name, _, _ in RECORD for cell in (f"{name}, s", "trains")]
    return table(("mode", *places, "GB sent in a round", "bits"), rows)


def under(changes: dict[str, object], *, mbps: float) -> Forecast:
    config, fleet = run_and_fleet()
    config = structs.replace(config, sync=structs.replace(config.sync, **changes))
    nodes = structs.replace(fleet.groups[0], up_mbps=mbps, down_mbps=mbps)
    return forecast(config, structs.replace(fleet, groups=(nodes,)))


# --- what was measured ---------------------------------------------------------------------------


def rows_of(page: Path) -> list[dict[str, str]]:
    """Return the rows of the first table of a page, by the titles of its columns."""
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = [dict(zip(cells[0], row, strict=False)) for row in cells[2:]]
    return [row for row in rows if len(row) == len(cells[0])]


def exchanges() -> Iterator[Compared]:
    """Compare each exchange of exchange.md without losses with the same, predicted."""
    codec = CODECS["int8"]
    for row in rows_of(DOCS / "exchange.md"):
        found = re.fullmatch(r"(\d+) peers, (\d+) M, ([\d/]+) ([MG])b/s", row["case"])
        if row["system"] != "atoll" or row["bits"] != "int8" or not found:
            continue
        num_peers, num_values = int(found[1]), int(found[2]) * 10**6
        unit = {"M": 1e6, "G": 1e9}[found[4]]
        bps = [float(number) * unit for number in found[3].split("/")]
        bounds = slice_bounds(num_values)
        encoded = tuple(codec.encoded_bytes(stop - start) for start, stop in bounds)
        sizes = Sizes(encoded, encoded, encoded, num_values)
        cpu = AGENT_BYTES_PER_S * min(1.0, LAB_CORES / num_peers)  # the peers share the cores
        up, down = (min(rate / 8 * PAYLOAD_SHARE, cpu) for rate in (bps[0], bps[-1]))
        lines = [
            Link(PeerId(str(number)), up, down, contributes=True, reduces=True)
            for number in range(num_peers)
        ]
        moved_s = exchange_of(lines, sizes, region_size=0).seconds()
        yield Compared(row["case"], moved_s + GAP_S, float(row["wall, s"]))


def utilisations() -> Iterator[Compared]:
    """Compare each case of utilisation.md with equal links with the same, predicted.

    The speed of the steps is taken from the case itself: what is predicted is the exchange.
    """
    for row in rows_of(DOCS / "utilisation.md"):
        found = re.fullmatch(r"(\w+) (\w+), ([\d/]+) Mb/s", row["case"])
        if not found:
            continue
        mode, codec, rates = found[1], found[2], found[3].split("/")
        share = float(row["utilisation"].strip("%"))
        fragments = 4 if mode == "streaming" else 1
        steps_s = share / 100 * float(row["s per round"]) * fragments
        seen = forecast(*lab_case(mode, codec, rates, fragments=fragments, steps_s=steps_s))
        yield Compared(row["case"], 100 * seen.utilisation, share)


def lab_case(
    mode: str, codec: str, rates: Sequence[str], *, fragments: int, steps_s: float
) -> tuple[RunConfig, FleetConfig]:
    """Return the run of benchmarks/utilisation.py, and its two peers behind links of their own."""
    config = load_run_config(ROOT / "configs" / "demo.toml")
    sync = structs.replace(
        config.sync,
        rounds=24,
        inner_steps=40,
        mode="blocking" if mode == "blocking" else "overlap",
        fragments=fragments,
        codec=codec,
        update_codec="sparse8" if codec == "sparse" else codec,
    )
    inner = structs.replace(config.inner, batch_sequences=4)
    config = structs.replace(config, model=PRESETS["tiny"], inner=inner, sync=sync)
    peers = GroupConfig(
        name="peers",
        count=2,
        device="own",
        peak_tflops=1.0,
        mfu=1.0,
        memory_gib=4.0,
        up_mbps=float(rates[0]),
        down_mbps=float(rates[-1]),
        rtt_ms=0.0,
        reachable=True,
    )
    tflops = 40 * step_s(config, peers) / steps_s
    host = HostConfig(up_mbps=1e5, down_mbps=1e5, rtt_ms=0.0)
    peers = structs.replace(peers, peak_tflops=tflops)
    return config, FleetConfig(host=host, groups=(peers,))


def errors(what: str, compared: Sequence[Compared], *, digits: int) -> list[str]:
    rows = [
        (
            each.case,
            f"{each.predicted:.{digits}f}",
            f"{each.measured:.{digits}f}",
            f"{each.error:+.0%}".replace("%", " %"),
        )
        for each in compared
    ]
    middle = median(abs(each.error) for each in compared)
    return [
        *table((f"{what}", "predicted", "measured", "error"), rows),
        "",
        f"Median of the errors, without their signs: {middle:.0%}.".replace("%", " %"),
    ]


if __name__ == "__main__":
    main()
