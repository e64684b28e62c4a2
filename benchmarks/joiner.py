"""What joiners cost those who train: one exchange, with and without them. Needs root.

    sudo python benchmarks/joiner.py --peers 4 --params 4e6 --link 100mbit --joiners 1

As exchange.py, with further namespaces for those who join: they fetch chunks of a state from all
peers, as fast as these give them. Exchanges with and without take turns. Prints one line of JSON:
`alone_s` and `joined_s` are medians of an exchange, `ratio` the second over the first, and
`joiner_mbit` what each joiner got while the peers exchanged.
"""

import argparse
import json
import signal
import sys
from contextlib import ExitStack
from dataclasses import asdict, replace
from statistics import mean, median

from exchange import TIMED, Exchanged, Task, exchange, hub, link_limit_s, started
from lab.links import LabError, Link, parse_loss, parse_rate, parse_rtt_s
from lab.network import lab
from systems.peer import Setup

WARM_UP = 3  # exchanges: until then the peers do not know how fast their lines are


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the lab is taken down
    arguments = parse()
    link = Link(rate=parse_rate(arguments.link), rtt_s=arguments.rtt, loss=arguments.loss)
    task = Task(
        system="atoll",
        num_peers=arguments.peers,
        num_values=round(arguments.params),
        codec=arguments.codec,
        congestion=arguments.congestion,
        num_joiners=arguments.joiners,
    )
    try:
        figures = measure(task, link)
    except LabError as error:
        sys.exit(f"joiner.py: {error}")
    asked = {"link": arguments.link, "rtt_s": link.rtt_s, "loss": link.loss}
    print(json.dumps({**asdict(task), **asked, **figures}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--joiners", type=int, default=1)
    parser.add_argument("--params", type=float, default=4e6, help="values of the vector")
    parser.add_argument("--link", default="100mbit", help="1gbit or 15mbit/110mbit")
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--rtt", type=parse_rtt_s, default="0ms", help="for example 80ms")
    parser.add_argument("--loss", type=parse_loss, default="0%", help="for example 0.1%%")
    parser.add_argument("--congestion", choices=("cubic", "bbr"), default="bbr")
    return parser.parse_args()


def measure(task: Task, link: Link) -> dict[str, object]:
    """Return the figures of one task over one kind of link.

    Raises:
        LabError: the lab or the system cannot do it.
    """
    everyone = task.num_peers + task.num_joiners
    with lab(link, num_peers=everyone) as network, ExitStack() as stack:
        members, joining = network.peers[: task.num_peers], network.peers[task.num_peers :]
        setup = Setup(
            rank=0,
            addresses=[node.address for node in members],
            admin_addresses=[node.admin_address for node in members],
            interface=members[0].interface,
            num_values=task.num_values,
            codec=task.codec,
            congestion=task.congestion,
            hub=stack.enter_context(hub(task, network.hub, members, python=sys.executable)),
        )
        peers, joiners = (
            [
                stack.enter_context(
                    started(node, [sys.executable, "-m", module], replace(setup, rank=rank))
                )
                for rank, node in enumerate(nodes)
            ]
            for nodes, module in (
                (members, "systems.atoll_peer"),
                (joining, "systems.atoll_joiner"),
            )
        )
        for process in (*peers, *joiners):
            process.reply()
        for _ in range(WARM_UP):
            exchange(peers, network, "gaussian")
        alone: list[Exchanged] = []
        joined: list[Exchanged] = []
        mbit: list[float] = []
        for _ in range(TIMED):
            alone.append(exchange(peers, network, "gaussian"))
            for joiner in joiners:
                joiner.ask("go")
            joined.append(exchange(peers, network, "gaussian"))
            replies = [joiner.ask("stop") for joiner in joiners]
            mbit += [8e-6 * reply["num_bytes"] / reply["seconds"] for reply in replies]
        for process in (*peers, *joiners):
            process.stop()
    alone_s, joined_s = (median(each.wall_s for each in walls) for walls in (alone, joined))
    return {
        "alone_s": round(alone_s, 4),
        "joined_s": round(joined_s, 4),
        "ratio": round(joined_s / alone_s, 3),
        "alone_walls_s": [round(each.wall_s, 3) for each in alone],
        "joined_walls_s": [round(each.wall_s, 3) for each in joined],
        "link_limit_s": link_limit_s(task, link),
        "joiner_mbit": round(mean(mbit), 2),
    }


if __name__ == "__main__":
    main()
