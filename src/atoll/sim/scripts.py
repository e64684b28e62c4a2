"""Random cases from a seed: machines of all kinds, and what may go wrong with them."""

from collections.abc import Callable, Iterator
from random import Random

from msgspec.structs import replace

from atoll.sim.faults import (
    AtTime,
    ClockSkew,
    Crash,
    Cut,
    DiskFull,
    Fault,
    Flicker,
    Freeze,
    HostCrash,
    InRound,
    Leave,
    OnMessage,
    Partition,
    Pause,
    Slow,
    TakeOver,
    Tamper,
    TrainerDeath,
    TrainerHang,
    When,
)
from atoll.sim.links import LINKS
from atoll.sim.play import Case
from atoll.sim.setting import BUILT_IN, DATABASE, HOST, STANDBY, PeerSpec, RunSpec, Setting

NAMES = ("anna", "ben", "carl", "dora", "emil")
FIBRE = "home-fibre"
LINES = (FIBRE, FIBRE, "home-dsl", "lte", "datacenter", "intercontinental")
KINDS = (
    *("Hello", "AtState", "Contribution", "Delivered", "Reduced", "Held", "Heartbeat", "Welcome"),
    *("Plan", "Closed", "Reduce", "Commit", "Bring", "Holding", "Slice", "Taken", "FetchUpdates"),
    *("Update", "Fetch", "Blob", "Missing"),
)
SECONDS = (0.1, 0.3, 1.0, 3.0, 8.0, 15.0, 40.0, 80.0)
APPENDS = 40  # about as many as a short run writes
UPDATE_CODECS = {"int8": "int8", "int4": "int8", "sparse": "sparse8"}


def random_case(seed: int, *, in_flight: int = 1, standby: bool = False) -> Case:
    """Return the case of this seed; with so many rounds in flight, where they are more than one.

    `standby`: with a second host in any case, and faults for the two; else in one of three.
    """
    rng = Random(f"case {seed}")
    names = NAMES[: rng.randint(2, len(NAMES))]
    mode = rng.choice(("blocking", "overlap"))
    run = RunSpec(
        rounds=rng.randint(3, 6),
        inner_steps=4,
        mode="overlap" if mode == "overlap" else "blocking",
        fragments=rng.choice((1, 1, 2)),
        quorum=rng.choice((0.5, 0.6, 1.0)),
        vocab_size=rng.choice((512, 1024, 2048)),
    )
    if in_flight > 1:
        fragments = max(run.fragments, in_flight)
        inner_steps = 2 * fragments
        run = replace(
            run, mode="overlap", fragments=fragments, inner_steps=inner_steps, in_flight=in_flight
        )
    peers = tuple(
        PeerSpec(
            name=name,
            link=rng.choice(LINES),
            step_s=rng.choice((0.5, 0.5, 1.0, 1.5, 5.0)),
            joins_at_s=rng.choice((0.0, 0.0, 0.5, 5.0, 20.0)),
        )
        for name in names
    )
    # What follows has chance of its own, each time: the other cases stay what they were.
    regions = Random(f"{seed} regions")
    if regions.random() < 0.5:
        run = replace(run, region_size=regions.choice((1, 2)))
    run = _in_some_way(run, Random(f"{seed} ways"))
    is_far = Random(f"{seed} journal").random() < 0.5
    setting = Setting(seed=seed, peers=peers, run=run, far_journal=is_far)
    script = tuple(_random_fault(rng, setting) for _ in range(rng.randint(1, 6)))
    script = (*script, *_owners(Random(f"{seed} owners"), list(names)))
    pair = Random(f"{seed} standby")
    if pair.random() < 1 / 3 or standby:
        # From behind NAT nobody can give the state to the second host's built-in member.
        peers = tuple(replace(p, link=FIBRE) if LINKS[p.link].nat else p for p in peers)
        setting = replace(setting, standby=True, peers=peers)
        script += tuple(_pair_fault(pair, names) for _ in range(pair.randint(1, 3)))
    return Case(setting=setting, script=script)


def _in_some_way(run: RunSpec, rng: Random) -> RunSpec:
    """Return the run at a pace, and with codecs: few but fp64, by which alone sums can be told."""
    run = replace(run, pace=rng.choice(("steps", "steps", "time")))
    if rng.random() < 0.25:
        codec = rng.choice(tuple(UPDATE_CODECS))
        run = replace(run, codec=codec, update_codec=UPDATE_CODECS[codec])
    return run


def _owners(rng: Random, names: list[str]) -> Iterator[Fault]:
    """Yield what owners do with their machines meanwhile, now and then."""
    if rng.random() < 0.25:
        yield Pause(when=_when(rng, names), who=rng.choice(names), seconds=rng.choice(SECONDS))
    if rng.random() < 0.25:
        who, back_s = rng.choice(names), rng.choice(SECONDS)
        yield Leave(when=_when(rng, names), who=who, back_s=back_s, in_order=True)


def _random_fault(rng: Random, setting: Setting) -> Fault:
    makers: tuple[Callable[[Random, list[str]], Fault], ...] = (
        *(_crash, _crash, _host_crash, _host_crash, _freeze, _slow, _cut, _partition, _flicker),
        *(_tamper, _tamper, _tamper, _disk_full, _skew, _trainer, _trainer, _leave),
    )
    return rng.choice(makers)(rng, [peer.name for peer in setting.peers])


def _pair_fault(rng: Random, names: tuple[str, ...]) -> Fault:
    """Return what may make one of two hosts take the place of the other."""
    peers = list(names)
    when, seconds = _when(rng, peers), rng.choice(SECONDS)
    one, other = rng.sample((HOST, STANDBY), 2)
    match rng.choice(("crash", "freeze", "freeze", "cut", "cut", "side", "call", "full")):
        case "crash":
            return Crash(when=when, who=one, back_s=seconds, power=rng.random() < 0.7)
        case "freeze":
            return Freeze(when=when, who=one, seconds=seconds)
        case "cut":
            return Cut(
                when=when, one=one, other=rng.choice((DATABASE, DATABASE, other)), seconds=seconds
            )
        case "side":
            side = (one, *rng.sample(peers, rng.randint(0, len(peers))))
            return Partition(when=when, side=side, seconds=seconds)
        case "full":
            return DiskFull(when=when, who=STANDBY, seconds=seconds)
        case _:
            return TakeOver(when=when, who=one)


def _when(rng: Random, names: list[str]) -> When:
    match rng.choice(("time", "round", "message")):
        case "time":
            return AtTime(round(rng.uniform(0.0, 60.0), 3))
        case "round":
            return InRound(rng.randint(1, 5), round(rng.expovariate(1 / 3), 3))
        case _:
            return _on_message(rng, names)


def _on_message(rng: Random, names: list[str]) -> OnMessage:
    ends = ("", "", "", HOST, *names)
    return OnMessage(
        rng.choice(KINDS),
        count=rng.choice((1, 1, 2, 3, 5, 8)),
        sender=rng.choice(ends),
        receiver=rng.choice(ends),
    )


def _crash(rng: Random, names: list[str]) -> Fault:
    return Crash(
        when=_when(rng, names),
        who=rng.choice((HOST, BUILT_IN, *names, *names)),
        back_s=rng.choice(SECONDS),
        power=rng.random() < 0.7,
    )


def _host_crash(rng: Random, names: list[str]) -> Fault:  # noqa: ARG001 - as the others
    return HostCrash(
        append=rng.randint(1, APPENDS),
        moment=rng.choice(("before", "after")),
        back_s=rng.choice(SECONDS),
    )


def _freeze(rng: Random, names: list[str]) -> Fault:
    who = rng.choice((HOST, BUILT_IN, *names, *names))
    return Freeze(when=_when(rng, names), who=who, seconds=rng.choice(SECONDS))


def _slow(rng: Random, names: list[str]) -> Fault:
    return Slow(
        when=_when(rng, names),
        who=rng.choice(names),
        factor=rng.choice((2.0, 5.0, 20.0)),
        seconds=rng.choice(SECONDS),
    )


def _cut(rng: Random, names: list[str]) -> Fault:
    one, other = rng.sample((HOST, *names), 2)
    return Cut(when=_when(rng, names), one=one, other=other, seconds=rng.choice(SECONDS))


def _partition(rng: Random, names: list[str]) -> Fault:
    side = tuple(rng.sample(names, rng.randint(1, len(names))))
    return Partition(when=_when(rng, names), side=side, seconds=rng.choice(SECONDS))


def _flicker(rng: Random, names: list[str]) -> Fault:
    return Flicker(when=_when(rng, names), who=rng.choice((HOST, BUILT_IN, *names, *names)))


def _tamper(rng: Random, names: list[str]) -> Fault:
    return Tamper(
        when=_on_message(rng, names),
        harm=rng.choice(("lose", "repeat", "delay", "corrupt")),
        seconds=rng.choice(SECONDS),
    )


def _disk_full(rng: Random, names: list[str]) -> Fault:
    who = rng.choice((HOST, BUILT_IN, *names, *names))
    return DiskFull(when=_when(rng, names), who=who, seconds=rng.choice(SECONDS))


def _skew(rng: Random, names: list[str]) -> Fault:
    who = rng.choice((HOST, *names))
    return ClockSkew(when=_when(rng, names), who=who, by_s=rng.choice((-1e6, -60.0, 60.0, 1e6)))


def _trainer(rng: Random, names: list[str]) -> Fault:
    kind = rng.choice((TrainerDeath, TrainerDeath, TrainerHang))
    return kind(when=_when(rng, names), who=rng.choice(names))


def _leave(rng: Random, names: list[str]) -> Fault:
    return Leave(when=_when(rng, names), who=rng.choice(names), back_s=rng.choice(SECONDS))
