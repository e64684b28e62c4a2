"""How much of its time a peer trains, with real peers behind shaped links. Needs root.

    sudo python benchmarks/utilisation.py [--only overlap]           (make bench-utilisation)

Host, agents and trainers are processes as in any run. Each peer has a network namespace of its own
(lab/network.py), and all that it sends and receives goes over its link; the host's has no limit.
Prints one line of JSON for each case; the whole table also goes, with a plot, into the docs.

`utilisation`: seconds in inner steps over the wall time from the first commit to the last but one,
which is the last with something to train on behind it; mean over the peers, and `lowest` of them.
`speed`: inner steps per second in that time, over those of as many peers at once that exchange
nothing. `bits`: that a peer sends for contributions and updates, per parameter and inner step.
`loss`: of the last global parameters, on validation samples. `load`: of the machine, at the end.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any, NamedTuple

import matplotlib as mpl
import torch
from lab.links import LabError, Link, Rate, parse_rate
from lab.network import Lab, Node, lab, run
from matplotlib import pyplot

from atoll.cli.newest import open_newest
from atoll.cli.places import cache_directory
from atoll.cli.recipes import outer_config
from atoll.config import (
    Codec,
    DataConfig,
    InnerConfig,
    OuterConfig,
    RunConfig,
    SourceConfig,
    SyncConfig,
    TokenizerConfig,
    UpdateCodec,
    template,
)
from atoll.data.batches import Batches
from atoll.events import BytesMoved, PhaseTimed, RoundCommitted, Stamped, read_events
from atoll.model.flat import load_flat_
from atoll.model.layout import layout_of
from atoll.model.presets import PRESETS
from atoll.train.baseline import initial_model
from atoll.train.evaluate import validation_loss

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "utilisation.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
HEAD = (
    "| case | utilisation | lowest | speed | s per round | in the roster | bits | loss | load |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
HOST = "10.77.0.254"  # on the bridge that joins the links
PORT = 7777
ROUNDS = 6
INNER_STEPS = 40
WAIT_S = 120.0  # for the host to be there
RUN_S = 300.0
POLL_S = 0.1
VALIDATION_SAMPLES = 256
COLOURS = {"blocking": "tab:blue", "overlap": "tab:purple", "streaming": "tab:cyan"}


class Case(NamedTuple):
    """`up` and `down` as `parse_rate` takes them; the last peer's may be others."""

    mode: str
    codec: Codec = "int8"
    link: str = "40mbit"
    last_link: str = ""
    num_peers: int = 2

    @property
    def title(self) -> str:
        links = self.link.replace("mbit", "")
        slow = f", one {self.last_link.replace('mbit', '')}" if self.last_link else ""
        return f"{self.mode} {self.codec}, {links}{slow} Mb/s"


SLOW = ("40mbit", "4mbit", 3)
HOME = "15mbit/110mbit"
CASES = (
    Case("blocking"),
    Case("overlap"),
    Case("streaming"),
    Case("blocking", "sparse", HOME),
    Case("overlap", "sparse", HOME),
    Case("blocking", "int8", HOME),
    Case("overlap", "int4"),
    Case("overlap", "int8", *SLOW),
    Case("overlap", "sparse", *SLOW),
)
UPDATE_CODECS: dict[Codec, UpdateCodec] = {"int8": "int8", "int4": "int4", "sparse": "sparse8"}


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the lab is taken down
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="cases whose title contains this; no docs then")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    free_steps_per_s: dict[int, float] = {}
    results: list[tuple[Case, dict[str, Any]]] = []
    try:
        for case in (each for each in CASES if only in each.title):
            if case.num_peers not in free_steps_per_s:
                free_steps_per_s[case.num_peers] = without_exchange(case)
            figures = measure(case, free_steps_per_s=free_steps_per_s[case.num_peers])
            results.append((case, figures))
            print(json.dumps({"case": case.title, **figures}), flush=True)
            if not only:
                publish(results)
    except LabError as error:
        sys.exit(f"utilisation.py: {error}")


def config_of(case: Case, *, rounds: int = ROUNDS, inner_steps: int = INNER_STEPS) -> RunConfig:
    """Return a run of so many outer steps of the whole model."""
    fragments = 4 if case.mode == "streaming" else 1
    is_sparse = case.codec == "sparse"
    return RunConfig(
        name="utilisation",
        model=PRESETS["tiny"],
        data=DataConfig(
            sources=(SourceConfig(kind="preset", name="sotu"),),
            tokenizer=TokenizerConfig(vocab_size=PRESETS["tiny"].vocab_size),
        ),
        inner=InnerConfig(lr=4e-3, batch_sequences=4, warmup_steps=rounds * inner_steps // 8),
        outer=OuterConfig(lr=1.0, momentum=0.0)
        if is_sparse
        else outer_config(rounds, inner_steps=inner_steps, peers_expected=0),
        sync=SyncConfig(
            rounds=rounds * fragments,
            inner_steps=inner_steps,
            mode="blocking" if case.mode == "blocking" else "overlap",
            fragments=fragments,
            codec=case.codec,
            update_codec=UPDATE_CODECS[case.codec],
            min_peers=case.num_peers,
        ),
    )


# --- the run -------------------------------------------------------------------------------------


def without_exchange(case: Case) -> float:
    """Return the inner steps per second of as many peers, while none of them exchanges anything.

    Those of the second round count: in the first one torch warms up.
    """
    config = config_of(Case("blocking", num_peers=case.num_peers), rounds=2)
    with finished(case, config) as (_, peers):
        return mean(INNER_STEPS / steps_of(peer)[1][1].seconds for peer in peers)


def measure(case: Case, *, free_steps_per_s: float) -> dict[str, Any]:
    """Return the figures of one case.

    Raises:
        LabError: the lab or the run cannot do it.
    """
    config = config_of(case)
    last = config.sync.rounds - 1
    with finished(case, config) as (directory, peers):
        host = [stamped.event for stamped in read_events(directory / "events.jsonl")[0]]
        shares, speeds = [], []
        for peer in peers:
            timed = [(at, event) for at, event in steps_of(peer) if event.round <= last]
            wall_s = timed[-1][0] - timed[0][0]
            steps_s = sum(event.seconds for _, event in timed[1:])
            shares.append(steps_s / wall_s)
            speeds.append(num_tokens(host, upto=last) / case.num_peers / wall_s)
        tokens_per_step = config.inner.batch_sequences * config.data.sequence_length
        committed = [event for event in host if isinstance(event, RoundCommitted)]
        loss = loss_of(directory)
    return {
        "utilisation": round(mean(shares), 4),
        "lowest": round(min(shares), 4),
        "speed": round(mean(speeds) / tokens_per_step / free_steps_per_s, 3),
        "round_s": round(mean(event.seconds for event in committed[1:-1]), 2),
        "roster": round(mean(len(event.roster) for event in committed) / case.num_peers, 3),
        "bits": round(mean(bits_of(peer) for peer in peers), 4),
        "tokens": sum(event.num_tokens for event in committed),
        "loss": round(loss, 4),
        "load": round(os.getloadavg()[0], 1),
    }


def steps_of(peer: Sequence[Stamped]) -> list[tuple[float, PhaseTimed]]:
    """Return when the peer took each outer step, and how long it was in inner steps before it."""
    return [
        (stamped.at, stamped.event)
        for stamped in peer
        if isinstance(stamped.event, PhaseTimed) and stamped.event.phase == "steps"
    ]


def num_tokens(host: Sequence[object], *, upto: int) -> int:
    """Return the tokens of the rounds from the second to this one, of all peers."""
    return sum(
        event.num_tokens
        for event in host
        if isinstance(event, RoundCommitted) and 1 < event.round <= upto
    )


def bits_of(peer: Sequence[Stamped]) -> float:
    return mean(each.event.bits for each in peer if isinstance(each.event, BytesMoved))


def loss_of(directory: Path) -> float:
    """Return the validation loss of the last global parameters, in nats per token."""
    newest = open_newest(directory, cache=cache_directory())
    model = initial_model(newest.config, device=torch.device("cpu"))
    load_flat_(model, newest.state.params_N, layout_of(newest.config))
    batches = Batches(newest.dataset, seed=newest.config.seed)
    return validation_loss(model, batches, batch_sequences=8, num_samples=VALIDATION_SAMPLES)


# --- processes -----------------------------------------------------------------------------------


@contextmanager
def finished(case: Case, config: RunConfig) -> Iterator[tuple[Path, list[list[Stamped]]]]:
    """Let a run take place, and yield its directory and what each peer has reported.

    Raises:
        LabError: the lab cannot be made, a process fails, or the run takes too long.
    """
    link = Link(rate=parse_rate(case.link))
    with (
        TemporaryDirectory(prefix="atoll-utilisation-") as name,
        lab(link, num_peers=case.num_peers) as network,
    ):
        give_host_an_address(network.hub)
        if case.last_link:
            slow = parse_rate(case.last_link)
            assert slow
            change_last_link(network, slow)
        directory = Path(name) / "run"
        directory.mkdir()
        (directory / "run.toml").write_text(template(config), encoding="utf-8")
        homes = [Path(name) / f"peer-{number}" for number in range(case.num_peers)]
        let_run(network, directory, homes)
        yield directory, [read_events(home / "events.jsonl")[0] for home in homes]


def give_host_an_address(hub: Node) -> None:
    """Put the host where the links meet: every byte to and from it goes over a peer's link."""
    run("ip", "-n", hub.namespace, "addr", "add", f"{HOST}/24", "dev", "air")


def change_last_link(network: Lab, rate: Rate) -> None:
    """Give the last peer another rate than the others."""
    last = len(network.peers) - 1
    ends = (
        (network.peers[last].namespace, network.peers[last].interface, rate.up_bps),
        (network.hub.namespace, f"port{last}", rate.down_bps),
    )
    for namespace, device, bps in ends:
        run(
            *("tc", "-n", namespace, "class", "change", "dev", device),
            *("parent", "1:", "classid", "1:1", "htb", "rate", f"{round(bps)}bit"),
            *("burst", "16000b", "cburst", "16000b", "quantum", "60000"),
        )


def let_run(network: Lab, directory: Path, homes: Sequence[Path]) -> None:
    """Start the host and the peers, and return when all have ended by themselves."""
    place = ("--advertise", HOST, "--port", str(PORT), "--no-web")
    host = start(network.hub, directory, "host", str(directory), *place)
    processes = [(directory, host)]
    wait_for_file(directory / "invite.txt", directory, host)
    invite = (directory / "invite.txt").read_text(encoding="utf-8").strip()
    for node, home in zip(network.peers, homes, strict=True):
        home.mkdir()
        join = ("join", invite, "--dir", str(home), "--name", home.name, "--threads", "1")
        processes.append((home, start(node, home, *join)))
    give_up_at = monotonic() + RUN_S
    while any(process.poll() is None for _, process in processes):
        for home, process in processes:
            if process.poll() or monotonic() > give_up_at:
                raise LabError(f"{home.name} has failed, or is late: {last_words(home)}")
        sleep(POLL_S)


def start(node: Node, home: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Run a command of atoll in the namespace; the lab kills what is left of it at the end."""
    command = node.inside([sys.executable, "-P", "-m", "atoll.cli.main", *arguments])
    with (home / "output.log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def wait_for_file(path: Path, home: Path, process: subprocess.Popen[bytes]) -> None:
    give_up_at = monotonic() + WAIT_S
    while not path.exists():
        if process.poll() is not None or monotonic() > give_up_at:
            raise LabError(f"the host does not come up: {last_words(home)}")
        sleep(POLL_S)


def last_words(home: Path) -> str:
    lines = (home / "output.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-12:])


# --- table and plot ------------------------------------------------------------------------------


def publish(results: Sequence[tuple[Case, dict[str, Any]]]) -> None:
    """Write the table into the docs page, between its marks, and the plot beside it."""
    day = datetime.now(UTC).date()
    table = "\n".join((HEAD, *(row(case, figures) for case, figures in results)))
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    new = f"{BEGIN}\nMeasured on {day}.\n\n{table}\n\n![utilisation](utilisation.svg)\n{END}"
    PAGE.write_text(before + new + after, encoding="utf-8")
    plot(results, PAGE.with_suffix(".svg"))


def row(case: Case, of: dict[str, Any]) -> str:
    cells = (
        case.title,
        f"{of['utilisation']:.1%}",
        f"{of['lowest']:.1%}",
        f"{of['speed']:.0%}",
        f"{of['round_s']:.2f}",
        f"{of['roster']:.0%}",
        f"{of['bits']:.3g}",
        f"{of['loss']:.3f}",
        f"{of['load']}",
    )
    return f"| {' | '.join(cells)} |"


def plot(results: Sequence[tuple[Case, dict[str, Any]]], path: Path) -> None:
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "atoll"  # equal figures, equal file
    figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.35 * len(results)))
    titles = [case.title for case, _ in results]
    shares = [100 * figures["utilisation"] for _, figures in results]
    bars = axes.barh(titles, shares, color=[COLOURS[case.mode] for case, _ in results])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 110)
    axes.axvline(99, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel("share of the time in inner steps, %")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()
