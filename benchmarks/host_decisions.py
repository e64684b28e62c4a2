"""What the decisions of a host cost when there are many peers: the pure functions, fed directly.

    benchmarks/host_decisions.py 100 1000 3000     a line of JSON for each number of peers

A run of N peers and the built-in member, one slice, `--rounds` rounds after a first one. Each line
says the microseconds for a message of each kind, those to see what is due (`advance`: once for all
messages of a moment, see host/run.py), and the seconds for all messages of a round.
"""

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable

from atoll.config import (
    DataConfig,
    InnerConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    SyncConfig,
    canonical,
    run_digest,
)
from atoll.host import run as decisions
from atoll.host.due import advance
from atoll.host.effects import Effect, Send, SendCommits
from atoll.host.membership import Member
from atoll.ids import INITIAL, PeerId, RoundId, digest_of
from atoll.net import records, wire

BUILT_IN = PeerId("f" * 32)


class Timed:
    """A run in memory, and how long its decisions take."""

    def __init__(self, num_peers: int, *, region_size: int) -> None:
        config = RunConfig(
            name="decisions",
            model=ModelConfig(
                vocab_size=4096, num_layers=1, width=8, num_heads=1, num_kv_heads=1, ffn_width=8
            ),
            data=DataConfig(sources=(SourceConfig(kind="preset", name="sotu"),)),
            inner=InnerConfig(lr=1e-3, batch_sequences=2),
            sync=SyncConfig(
                rounds=1000, inner_steps=2, min_peers=num_peers, region_size=region_size
            ),
        )
        genesis = records.Genesis(
            run=run_digest(config),
            config=canonical(config).decode(),
            dataset=digest_of(b""),
            authority=digest_of(b""),
            public_key="",
            built_in=BUILT_IN,
            built_in_key="",
            at=0.0,
        )
        self.run = decisions.replay([genesis], slice_bytes=((1,),))
        self.now = 0.0
        self.peers = [PeerId(f"{digest_of(b'%d' % n)[:31]}0") for n in range(num_peers)]
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self.plans: dict[PeerId, wire.Plan] = {}

    def do(self, what: str, decide: Callable[..., list[Effect]], *given: object) -> None:
        began_at = time.perf_counter()
        effects = decide(self.run, *given, now=self.now)
        self.seconds[what] += time.perf_counter() - began_at
        self.calls[what] += 1
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, wire.Plan):
                self.plans[effect.peer] = effect.message
        self.sent += sum(isinstance(effect, Send | SendCommits) for effect in effects)

    sent = 0

    def says(self, peer: PeerId, message: wire.Message) -> None:
        self.do(type(message).__name__, decisions.on_message, peer, message)

    def settle(self) -> None:
        self.do("advance", advance)

    def join(self) -> None:
        for peer in (*self.peers, BUILT_IN):
            hello = wire.Hello(
                protocol=wire.PROTOCOL,
                run=digest_of(b""),
                name="",
                trains=peer != BUILT_IN,
                listen_host="",
                listen_port=0,
                codecs=(),
                round=INITIAL,
                state=digest_of(b"0"),
            )
            member = Member(peer=peer, name="", trains=peer != BUILT_IN)
            self.do("Hello", decisions.on_hello, member, hello)
            is_reachable = peer == BUILT_IN or peer < "4"  # a quarter
            address = wire.Address(peer=peer, host="h", port=1) if is_reachable else None
            self.do("probed", decisions.on_probed, peer, address)
        for peer in (*self.peers, BUILT_IN):
            self.at_state(peer, INITIAL)
        self.settle()

    def at_state(self, peer: PeerId, round_id: RoundId) -> None:
        state = digest_of(b"%d" % round_id)
        self.says(peer, wire.AtState(round=round_id, state=state, device=""))

    def round(self) -> None:
        """Let all contribute to the open round, and it be committed and agreed on."""
        rnd = self.run.round
        assert rnd is not None, "all have joined"
        for peer in self.peers:
            self.says(peer, wire.Heartbeat())
        for peer in self.peers:
            digest = digest_of(peer.encode())
            claim = wire.Contribution(
                round=rnd.id,
                leases=tuple(lease.id for lease in self.plans[peer].leases),
                num_steps=2,
                mean_loss=2.0,
                digests=(digest,),
            )
            self.says(peer, claim)
            delivered = wire.Delivered(
                round=rnd.id, contributor=peer, slice=0, digest=digest, squared_norm=1.0
            )
            self.says(rnd.assignment[rnd.tree.place(rnd.group_of(peer), 0)], delivered)
        self.settle()
        update, version = digest_of(b"update"), rnd.roster_version
        for group in sorted(rnd.populated):
            reduced = wire.Reduced(
                round=rnd.id,
                roster_version=version,
                slice=0,
                digest=update,
                group=None if group == rnd.tree.root else group,
                parts=(update,) * len(rnd.below(group)),
            )
            self.says(rnd.assignment[rnd.tree.place(group, 0)], reduced)
        for peer in (*self.peers, BUILT_IN):
            held = wire.Held(round=rnd.id, roster_version=version, digests=(update,))
            self.says(peer, held)
        self.settle()
        for peer in (*self.peers, BUILT_IN):
            self.at_state(peer, rnd.id)
        self.settle()
        assert self.run.committed == rnd.id
        self.settle()
        self.now += 10.0
        for peer in (*self.peers, BUILT_IN):
            self.run.membership.hear(peer, now=self.now)
        self.do("tick", decisions.on_tick)


def measured(num_peers: int, *, rounds: int, region_size: int) -> dict[str, object]:
    timed = Timed(num_peers, region_size=region_size)
    timed.join()
    timed.round()
    joining = {kind: timed.seconds[kind] / timed.calls[kind] for kind in ("Hello", "probed")}
    timed.seconds.clear()
    timed.calls.clear()
    timed.sent = 0
    for _ in range(rounds):
        timed.round()
    each = {kind: timed.seconds[kind] / count for kind, count in timed.calls.items()}
    return {
        "peers": num_peers,
        "region_size": region_size,
        "us_per_call": {kind: round(1e6 * s, 1) for kind, s in {**joining, **each}.items()},
        "s_per_round": round(sum(timed.seconds.values()) / rounds, 4),
        "sent_per_round_and_peer": round(timed.sent / rounds / num_peers, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--region-size", type=int, default=64, help="0: one region")
    given = parser.parse_args()
    for num_peers in given.peers:
        line = measured(num_peers, rounds=given.rounds, region_size=given.region_size)
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
