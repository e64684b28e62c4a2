"""What a dashboard with a thousand peers costs: the host, each viewer, and a browser.

    python benchmarks/dashboard.py --peers 1000 --viewers 200 --seconds 60
    python benchmarks/dashboard.py --peers 1000 --serve          # to look at it in a browser
    python benchmarks/dashboard.py --look URL --seconds 30       # a browser's time for each update

The host's own decisions make the rounds, fed by peers from a script; every peer reports its
training each second. Figures: bytes of the stream for each viewer and second, and how late a task
of the host's event loop runs, without viewers and with them (in turns, in one process).
"""

import argparse
import asyncio
import json
import random
import shutil
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.unit.host.scene import BUILT_IN, held, reduced
from tests.unit.web.cast import Seen

from atoll import events
from atoll.clock import wall_s
from atoll.web.server import serving

LOOK_S = 0.02  # how often the loop is asked whether it is late
TURN_S = 10.0  # without viewers, then with them, and so on
DEVICES = ("NVIDIA H100 80GB", "NVIDIA GeForce RTX 4090", "Apple M3 Max", "CPU", "Radeon RX 7900")
PLACES = (
    "Lisbon, PT",
    "Porto, Portugal",
    "Berlin, DE",
    "Austin, USA (30.27, -97.74)",
    "Oakland, USA (37.8, -122.27)",
    "São Paulo, Brazil",
    "Nairobi, Kenya",
    "Bengaluru 12.97, 77.59",
    "Kyoto, JP",
    "Wellington, New Zealand",
    "a boat",
    "",
)


class Swarm:
    def __init__(self, num_peers: int) -> None:
        self.rng = random.Random(1)
        self.seen = Seen.new(
            rounds=2000, inner_steps=50, min_peers=2, quorum=0.6, grace_floor_s=1.0
        )
        self.seen.began_at = wall_s()
        self.peers = self.seen.crowd(num_peers)
        self.speed = {peer: 10 ** self.rng.uniform(2.5, 5) for peer in self.peers}
        self.began_at = asyncio.get_running_loop().time()
        for peer in self.peers:
            self.seen.report(
                events.PeerJoined(
                    peer=peer,
                    name=self.seen.board.fold.names[peer],
                    device=self.rng.choice(DEVICES),
                    place=self.rng.choice(PLACES),
                    reachable=self.rng.random() < 0.3,
                )
            )
        self.seen.passes(3.0)

    async def train(self) -> None:
        """Let every peer say each second how it trains."""
        while True:
            self.seen.now = asyncio.get_running_loop().time() - self.began_at
            run = self.seen.run
            first = (run.next_round - 1) * run.config.steps_per_round
            rnd = run.round
            age_s = self.seen.now - rnd.opened_at if rnd else 0.0
            for number, peer in enumerate(self.peers):
                if not run.membership.is_connected(peer):
                    continue
                step = min(run.config.steps_per_round, int(3 * age_s) + 1)
                speed = self.speed[peer] * self.rng.uniform(0.9, 1.1)
                self.seen.train(peer, step=first + step, tokens_per_s=speed)
                run.membership.hear(peer, now=self.seen.now)
                if number % 50 == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(1.0)

    async def exchange(self, *, every_s: float) -> None:
        """Let a round come to its end again and again: all but a few deliver, in some seconds."""
        while True:
            await asyncio.sleep(every_s)
            rnd = self.seen.run.round
            if rnd is None:
                self.seen.tick()
                continue
            punctual = [p for p in sorted(rnd.invited) if self.rng.random() < 0.99]
            for number, peer in enumerate(punctual):
                self.seen.delivers(peer)
                if number % 5 == 0:
                    await asyncio.sleep(0.01)
            while self.seen.run.round is rnd and not rnd.roster:
                await asyncio.sleep(0.1)
                self.seen.tick()
            for k in range(self.seen.num_slices):
                self.seen.says(
                    rnd.assignment[k], reduced(k, version=rnd.roster_version, round_id=rnd.id)
                )
            for peer in (BUILT_IN, punctual[0]):
                self.seen.says(peer, held(version=rnd.roster_version, round_id=rnd.id))
            for number, member in enumerate(list(self.seen.run.membership.connected())):
                self.seen.at_state(member.peer, self.seen.run.committed)
                if number % 5 == 0:
                    await asyncio.sleep(0)


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]  # a writer that nobody holds is closed


async def viewer(port: int) -> Ends:
    """Return a stream that has brought its snapshot, and now brings deltas."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    writer.write(b"GET /api/v1/stream HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    await reader.readuntil(b"\n\n")  # the snapshot
    return reader, writer


async def count(reader: asyncio.StreamReader, counts: list[int], number: int) -> None:
    while content := await reader.read(65536):
        counts[number] += len(content)


async def lateness(seconds: float) -> list[float]:
    """Return by how many milliseconds a task of this loop came late, each time."""
    loop = asyncio.get_running_loop()
    late, end = [], loop.time() + seconds
    while loop.time() < end:
        due = loop.time() + LOOK_S
        await asyncio.sleep(LOOK_S)
        late.append(1000 * (loop.time() - due))
    return late


async def measure(port: int, arguments: argparse.Namespace) -> None:
    alone: list[float] = []
    watched: list[float] = []
    rates: list[float] = []
    for _ in range(max(1, int(arguments.seconds / (2 * TURN_S)))):
        alone += await lateness(TURN_S)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, "--watch", str(port), "--seconds", str(TURN_S)),
            *("--viewers", str(arguments.viewers)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        await process.stdout.readline()  # all have their snapshot
        watched += await lateness(TURN_S)
        rates.append(json.loads(await process.stdout.read())["bytes_per_s"])
        await process.wait()
    for name, late in (("alone", alone), ("watched", watched)):
        cuts = statistics.quantiles(late, n=100)
        line = {"viewers": arguments.viewers if name == "watched" else 0, "peers": arguments.peers}
        line |= {"late_ms_p50": cuts[49], "late_ms_p99": cuts[98], "late_ms_max": max(late)}
        print(json.dumps(line))
    print(json.dumps({"stream_bytes_per_s_and_viewer": statistics.mean(rates)}))


async def watch_all(arguments: argparse.Namespace) -> None:
    """Be so many viewers, in a process of their own."""
    counts = [0] * arguments.viewers
    viewers = await asyncio.gather(*(viewer(arguments.watch) for _ in counts))
    print("watching", flush=True)
    tasks = [asyncio.create_task(count(r, counts, number)) for number, (r, _) in enumerate(viewers)]
    await asyncio.sleep(arguments.seconds)
    rate = sum(counts) / arguments.seconds / arguments.viewers
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps({"bytes_per_s": rate}), flush=True)


def look(url: str, seconds: float) -> None:
    """Print how long Chromium's main thread takes for an update of the page, layout included."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1360, "height": 900})
        page.goto(url)
        page.wait_for_selector('[data-state="live"]')
        page.wait_for_timeout(3000)
        page.evaluate(
            """() => { window.took = [];
            new MutationObserver(() => { took.push(Number(document.documentElement.dataset.drawMs));
              document.body.offsetHeight; }).observe(document.documentElement,
              {attributes: true, attributeFilter: ["data-draw-ms"]}); }"""
        )
        browser.start_tracing(page=page, categories=["toplevel", "devtools.timeline"])
        page.wait_for_timeout(1000 * seconds)
        tasks = tasks_of(browser.stop_tracing())
        took = page.evaluate("window.took")
        browser.close()
    cuts = statistics.quantiles(took, n=100)
    line = {"updates": len(took), "draw_ms_p50": cuts[49], "draw_ms_p99": cuts[98]}
    line["tasks_over_50_ms"] = sum(wall > 50 for wall, _ in tasks)
    line["longest_task_ms"] = max(wall for wall, _ in tasks)
    line["longest_task_cpu_ms"] = max(cpu for _, cpu in tasks)
    print(json.dumps(line))


def tasks_of(trace: bytes) -> list[tuple[float, float]]:
    """Return how long each task of the page's main thread took, and its processor time, in ms.

    The two differ by what the thread waited for a core.
    """
    traced = json.loads(trace)["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in traced if e["name"] == "thread_name"}
    return [
        (event["dur"] / 1000, event.get("tdur", 0) / 1000)
        for event in traced
        if event["name"].endswith("RunTask")
        and event["ph"] == "X"
        and names.get((event["pid"], event["tid"])) == "CrRendererMain"
    ]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--viewers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--round", type=float, default=12.0, help="seconds of inner steps")
    parser.add_argument("--serve", action="store_true", help="only serve, for a browser")
    parser.add_argument("--watch", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--look", default="", help="measure the page at this URL in Chromium")
    arguments = parser.parse_args()
    if arguments.look:
        await asyncio.to_thread(look, arguments.look, arguments.seconds)
        return
    if arguments.watch:
        await watch_all(arguments)
        return
    swarm = Swarm(arguments.peers)
    tasks = [
        asyncio.create_task(swarm.train()),
        asyncio.create_task(swarm.exchange(every_s=arguments.round)),
    ]
    async with serving(swarm.seen.board, host="127.0.0.1", port=0, on_failure=print) as port:
        print(f"http://127.0.0.1:{port}/", flush=True)
        await (asyncio.sleep(arguments.seconds) if arguments.serve else measure(port, arguments))
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


if __name__ == "__main__":
    asyncio.run(main())
