"""What a run will cost on a fleet, before anything is started.

    run.toml, fleet.toml --exchange--> bytes, seconds --timing--> rounds --> groups, memory, joiners

All of it is arithmetic on sizes and rates; who reduces, and when a round closes, is decided by the
host's own pure code. What is not in it: lines whose rate changes or that lose packets, the work of
the host, and whatever else the machines do. docs/benchmarks/planner.md compares it with rounds that
were measured.
"""

from collections.abc import Sequence
from itertools import accumulate
from math import cos, isfinite, pi, sin
from typing import Final, NamedTuple

import numpy as np
from msgspec import Struct

from atoll.config import RunConfig
from atoll.errors import ConfigError
from atoll.exchange.plan import Link
from atoll.exchange.positions import Position
from atoll.exchange.sizes import encoded_slices, partial_codec
from atoll.forecast.exchange import Exchange, Floats, Sizes, exchange_of, payload_rate
from atoll.forecast.fleet import FleetConfig, GroupConfig
from atoll.forecast.joiner import STATE_BYTES, joiner_of, num_sources
from atoll.forecast.memory import AgentBytes, PeerMemory, agent_bytes, peer_memory
from atoll.forecast.timing import Course, Machines, Work, course_of, work_of
from atoll.ids import PeerId
from atoll.model.accounting import flops_per_token, fp8_flops_per_token
from atoll.model.layout import layout_of
from atoll.model.memory import moment_bytes
from atoll.model.shapes import require_fp8_shapes
from atoll.units import GIB

BUILT_IN = PeerId("host")  # sorts behind the peers, whose ids begin with digits
# Products in 8 bits, scaling and casting included, beside those in bf16: with it an 8 B model with
# 8192 tokens 1.25 times as fast, as torchao reports of H100s with a scale for each tensor.
FP8_SPEED: Final = 1.4


class Facts(NamedTuple):
    """What is known of all members, before it is said of each group."""

    sizes: Sizes
    exchange: Exchange
    work: Work
    course: Course
    all_values: int


class GroupForecast(Struct, frozen=True, kw_only=True):
    """One peer of a group: means over them for bytes, the worst of them for times and memory."""

    name: str
    place: str
    count: int
    step_s: float
    steps_s: float  # of a round
    save_s: float  # of the moments, beside the sending
    send_s: float  # what the line takes for the contribution
    fetch_s: float  # and for the updates
    on_time: int  # of them, in each round
    every: int  # the others: in the roster of every second, third, ... round; 1: there are none
    utilisation: float
    slices: float  # that it reduces
    up_bytes: float  # in a round
    down_bytes: float
    memory: PeerMemory
    joins_s: float | None  # one more such peer: until it trains; None: never
    joins_rounds: float | None


class HostForecast(Struct, frozen=True, kw_only=True):
    """The host's built-in member."""

    slices: int
    up_bytes: float
    down_bytes: float
    send_s: float
    fetch_s: float
    memory: AgentBytes
    memory_has: int


class Forecast(Struct, frozen=True, kw_only=True):
    run: str
    num_values: int
    num_peers: int
    steps_per_round: int
    round_s: float
    exchange_s: float
    close_after_s: float
    total_s: float  # of all rounds
    utilisation: float  # mean over the peers, of their time in inner steps
    tokens_per_s: float  # that are committed
    bits: float  # that a peer sends, for each parameter and inner step
    state_bytes: int  # that a joiner fetches
    source_bytes: float  # and each member that can be dialled sends
    slices: int
    groups: tuple[GroupForecast, ...]
    host: HostForecast


def forecast(config: RunConfig, fleet: FleetConfig) -> Forecast:
    """Return what a round, and the whole run, will cost on this fleet.

    Raises:
        ConfigError: some peers are to compute in fp8, and this model cannot.
    """
    _require_fp8(config, fleet)
    layout = layout_of(config)
    sizes = sizes_of(config)
    exchange = exchange_of(
        lines_of(fleet),
        sizes,
        region_size=config.sync.region_size,
        positions=positions_of(fleet),
    )
    steps_s_P = _spread(fleet, [config.steps_per_round * step_s(config, g) for g in fleet.groups])
    machines = Machines(
        disk_bytes_per_s_P=_spread(fleet, [group.disk_mb_per_s * 1e6 for group in fleet.groups]),
        rtt_s_P=_spread(fleet, [group.rtt_ms / 1000 for group in fleet.groups]),
    )
    work = work_of(
        sizes.num_values,
        all_values=layout.num_values,
        moments=moment_bytes(config),
        steps_s_P=steps_s_P,
        machines=machines,
    )
    course = course_of(exchange, work, config.sync)
    tokens = config.samples_per_round * config.data.sequence_length
    up_bytes = float(exchange.sent_bytes()[: fleet.num_peers].mean())
    return Forecast(
        run=config.name,
        num_values=layout.num_values,
        num_peers=fleet.num_peers,
        steps_per_round=config.steps_per_round,
        round_s=course.round_s,
        exchange_s=course.exchange_s,
        close_after_s=course.close_after_s,
        total_s=config.sync.rounds * course.round_s,
        utilisation=float(course.utilisation_P.mean()),
        tokens_per_s=float((tokens / course.every_P).sum()) / course.round_s,
        bits=8 * up_bytes / layout.num_values / config.steps_per_round,
        state_bytes=STATE_BYTES * layout.num_values,
        source_bytes=STATE_BYTES * layout.num_values / num_sources(exchange),
        slices=len(sizes.update),
        groups=tuple(
            _group(config, group, peers, Facts(sizes, exchange, work, course, layout.num_values))
            for group, peers in zip(fleet.groups, _places(fleet), strict=True)
        ),
        host=_host(config, fleet, exchange, sizes),
    )


def sizes_of(config: RunConfig) -> Sizes:
    """Return the sizes of the largest fragment, which decides about time and memory."""
    layout = layout_of(config)
    fragments = [fragment.stop - fragment.start for fragment in layout.fragments]
    largest = fragments.index(max(fragments))
    return Sizes(
        contribution=encoded_slices(layout, config.sync.codec)[largest],
        update=encoded_slices(layout, config.sync.update_codec)[largest],
        partial=encoded_slices(layout, partial_codec(config.sync.update_codec))[largest],
        num_values=fragments[largest],
    )


def lines_of(fleet: FleetConfig) -> list[Link]:
    """Return the lines of all peers, group by group, and of the host's built-in member.

    That one reduces if no peer can be dialled, as the host decides it.
    """
    lines = [
        Link(
            peer=_peer(number),
            up=payload_rate(group.up_mbps),
            down=payload_rate(group.down_mbps),
            contributes=True,
            reduces=group.reachable,
        )
        for group, peers in zip(fleet.groups, _places(fleet), strict=True)
        for number in range(peers.start, peers.stop)
    ]
    built_in = Link(
        peer=BUILT_IN,
        up=payload_rate(fleet.host.up_mbps),
        down=payload_rate(fleet.host.down_mbps),
        contributes=False,
        reduces=not any(line.reduces for line in lines),
    )
    return [*lines, built_in]


def positions_of(fleet: FleetConfig) -> dict[PeerId, Position]:
    """Return where the peers of groups with a place are on the host's map; others are anywhere.

    Those of one place are in one point, and places on a circle about as wide as the round trips to
    them are long. It is the cell of a point alone that says who is near whom (exchange/regions.py).
    """
    places = list(dict.fromkeys(group.place for group in fleet.groups if group.place))
    positions: dict[PeerId, Position] = {}
    for group, peers in zip(fleet.groups, _places(fleet), strict=True):
        if group.place:
            angle = 2 * pi * places.index(group.place) / len(places)
            rtt_s = min(g.rtt_ms for g in fleet.groups if g.place == group.place) / 1000
            point = Position(rtt_s / 2 * cos(angle), rtt_s / 2 * sin(angle), 0.0, 0.0)
            positions |= {_peer(number): point for number in range(peers.start, peers.stop)}
    return positions


def _peer(number: int) -> PeerId:
    return PeerId(f"{number:06}")


def step_s(config: RunConfig, group: GroupConfig) -> float:
    """Return the seconds of one inner step of a peer of this group."""
    length = config.data.sequence_length
    tokens = config.inner.batch_sequences * length
    token_flops: float = flops_per_token(config.model, sequence_length=length)
    if group.precision == "fp8":
        token_flops -= fp8_flops_per_token(config.model) * (1 - 1 / FP8_SPEED)
    return tokens * token_flops / group.flops


def _require_fp8(config: RunConfig, fleet: FleetConfig) -> None:
    for group in fleet.groups:
        if group.precision == "fp8":
            try:
                require_fp8_shapes(config.model, sequence_length=config.data.sequence_length)
            except ConfigError as error:
                raise ConfigError(f"{group.name}: {error}", hint=error.hint) from error


def _places(fleet: FleetConfig) -> list[slice]:
    """Return where the peers of each group stand among all."""
    stops = list(accumulate(group.count for group in fleet.groups))
    return [
        slice(stop - group.count, stop) for group, stop in zip(fleet.groups, stops, strict=True)
    ]


def _spread(fleet: FleetConfig, values: Sequence[float]) -> Floats:
    """Return for each peer the value of its group."""
    return np.repeat(np.array(values, np.float64), [group.count for group in fleet.groups])


def _group(config: RunConfig, group: GroupConfig, peers: slice, facts: Facts) -> GroupForecast:
    exchange, work, course = facts.exchange, facts.work, facts.course
    taken_M = exchange.contributions.down_bytes_M
    agent = agent_bytes(
        config,
        contribution=sum(facts.sizes.contribution),
        taken=float(taken_M[peers].max()),
        formed=float(exchange.formed_bytes_M[peers].max()),
        slice_values=facts.sizes.slice_values,
    )
    joiner = joiner_of(
        group,
        exchange,
        num_values=facts.all_values,
        update_bytes=sum(facts.sizes.update),
        round_s=course.round_s,
    )
    return GroupForecast(
        name=group.name,
        place=group.place,
        count=group.count,
        step_s=step_s(config, group),
        steps_s=float(work.steps_s_P[peers].max()),
        save_s=float(work.save_s_P[peers].max()),
        send_s=float(exchange.contributions.seconds()[peers].max()),
        fetch_s=float(exchange.updates.seconds()[peers].max()),
        on_time=int(course.on_time_P[peers].sum()),
        every=int(course.every_P[peers].max()),
        utilisation=float(course.utilisation_P[peers].mean()),
        slices=float(exchange.num_slices_M[peers].mean()),
        up_bytes=float(exchange.sent_bytes()[peers].mean()),
        down_bytes=float(exchange.received_bytes()[peers].mean()),
        memory=peer_memory(config, group, agent),
        joins_s=joiner.seconds if isfinite(joiner.seconds) else None,
        joins_rounds=joiner.rounds if isfinite(joiner.seconds) else None,
    )


def _host(config: RunConfig, fleet: FleetConfig, exchange: Exchange, sizes: Sizes) -> HostForecast:
    return HostForecast(
        slices=int(exchange.num_slices_M[-1]),
        up_bytes=float(exchange.sent_bytes()[-1]),
        down_bytes=float(exchange.received_bytes()[-1]),
        send_s=float(exchange.updates.up_s_M[-1]),
        fetch_s=float(exchange.contributions.down_s_M[-1] + exchange.updates.down_s_M[-1]),
        memory=agent_bytes(
            config,
            contribution=0,
            taken=float(exchange.contributions.down_bytes_M[-1]),
            formed=float(exchange.formed_bytes_M[-1]),
            slice_values=sizes.slice_values,
        ),
        memory_has=round(fleet.host.memory_gib * GIB),
    )
