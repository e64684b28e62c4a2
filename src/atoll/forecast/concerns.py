"""What will hurt, in plain words: each function looks at one thing, and says what helps."""

from collections.abc import Iterator
from math import ceil

from atoll.config import RunConfig
from atoll.exchange.dials import enough_reducers
from atoll.exchange.tree import is_divided
from atoll.forecast.exchange import AGENT_BYTES_PER_S, PAYLOAD_SHARE
from atoll.forecast.fleet import FleetConfig
from atoll.forecast.forecast import Forecast, GroupForecast
from atoll.forecast.memory import CUDA_BYTES, training_of
from atoll.host.state import REPLAY_ROUNDS
from atoll.model.memory import what_would_fit
from atoll.units import format_bytes, format_seconds, plural

MUCH = 0.05  # of the time
MANY_PEERS = 64  # that all send to all at once: beyond, nothing was measured (decision 12)
LEAST_WORK_S = 5.0  # below, what a round costs without any bytes counts (benchmarks/utilisation.md)


def concerns(config: RunConfig, fleet: FleetConfig, seen: Forecast) -> tuple[str, ...]:
    """Return what will hurt in this run on this fleet, the worst first."""
    return (
        *_too_small(seen),
        *_never_begins(config, seen),
        *_memory(config, fleet, seen),
        *_late(seen),
        *_unequal(seen),
        *_exchange(config, seen),
        *_host_carries(fleet, seen),
        *_slow_processes(fleet, seen),
        *_joiners(config, seen),
        *_few_reduce(config, fleet, seen),
        *_many(config, seen),
    )


def _too_small(seen: Forecast) -> Iterator[str]:
    num = sum(group.count for group in seen.groups if not group.memory.fits)
    if num:
        yield (
            f"{num} of {plural(seen.num_peers, 'peer')} cannot train, for want of memory: "
            "all times are as if they could"
        )


def _never_begins(config: RunConfig, seen: Forecast) -> Iterator[str]:
    least = config.sync.min_peers
    if least > seen.num_peers:
        yield (
            f"the run never begins: sync.min_peers = {least}, and the fleet has {seen.num_peers} "
            "peers"
        )
    punctual = sum(group.on_time for group in seen.groups)
    if punctual < least <= seen.num_peers:
        yield (
            f"sync.min_peers = {least}, and {punctual} peers deliver in time: whenever one of "
            "these is away, rounds wait for the slow ones"
        )


def _memory(config: RunConfig, fleet: FleetConfig, seen: Forecast) -> Iterator[str]:
    for group, cost in zip(fleet.groups, seen.groups, strict=True):
        memory = cost.memory
        if not memory.fits_device:
            way = what_would_fit(
                config, training_of(group, 1), room_bytes=(memory.device_has or 0) - CUDA_BYTES
            )
            proposal = f"it would fit with {way}" if way else "choose a smaller model"
            yield (
                f"{group.name}: the model does not fit into a device: training takes "
                f"{format_bytes(memory.device)} at micro_batch = {memory.micro_batch}, and there "
                f"are {format_bytes(memory.device_has or 0)}; {proposal}"
            )
        if not memory.fits_host:
            yield (
                f"{group.name}: the machine's memory is too small: {format_bytes(memory.host)} "
                f"are needed ({format_bytes(memory.agent.total)} of it by the agent), and it has "
                f"{format_bytes(memory.host_has)}"
            )
    host = seen.host
    if host.memory.total > host.memory_has:
        yield (
            "the host's machine is too small for its built-in member: "
            f"{format_bytes(host.memory.total)} are needed, and it has "
            f"{format_bytes(host.memory_has)}"
        )


def _late(seen: Forecast) -> Iterator[str]:
    for group in seen.groups:
        if group.on_time < group.count:
            some = f"{group.count - group.on_time} of " if group.on_time else ""
            yield (
                f"{some}{group.name}: late in each round: {format_seconds(group.steps_s)} of steps,"
                f" {format_seconds(group.send_s)} of sending, {format_seconds(group.fetch_s)} of "
                f"fetching, and the host closes {format_seconds(seen.close_after_s)} after the "
                "plan. What it does is carried, and counts in about one round of "
                f"{group.every}"
            )


def _unequal(seen: Forecast) -> Iterator[str]:
    punctual = [group for group in seen.groups if group.on_time]
    fast = min(punctual, key=lambda group: group.steps_s)
    slow = max(punctual, key=lambda group: group.steps_s)
    waits_s = slow.steps_s - fast.steps_s
    if waits_s > MUCH * seen.round_s:
        yield (
            f"{fast.name} waits for {slow.name}: {format_seconds(waits_s)} of each round of "
            f"{format_seconds(seen.round_s)}"
        )


def _exchange(config: RunConfig, seen: Forecast) -> Iterator[str]:
    steps_s = max(group.steps_s for group in seen.groups if group.on_time)
    overlaps = config.sync.mode == "overlap"
    if overlaps and seen.exchange_s > steps_s:
        yield (
            f"the exchange takes longer than the steps beside it: {format_seconds(seen.exchange_s)}"
            f" for {format_seconds(steps_s)}, so trainers stand still for the rest. More "
            "inner_steps, or a codec with fewer bits, would hide it"
        )
    elif not overlaps and seen.exchange_s > MUCH * seen.round_s:
        share = seen.exchange_s / seen.round_s
        yield (
            f"training stands still for {format_seconds(seen.exchange_s)} of each round "
            f'({share:.0%}); sync.mode = "overlap" would hide '
            + ("all of it" if seen.exchange_s < steps_s else "a part of it")
        )
    if steps_s < LEAST_WORK_S:
        least = ceil(LEAST_WORK_S / steps_s * seen.steps_per_round)
        yield (
            f"the steps of a round are over in {format_seconds(steps_s)}: what a round costs "
            "besides its bytes (disks, messages, processes) is not small beside that. Take "
            f"{least} steps between two rounds, or larger batches"
        )


def _host_carries(fleet: FleetConfig, seen: Forecast) -> Iterator[str]:
    host = seen.host
    if host.slices:
        yield (
            "nobody can be dialled, so the host's built-in member reduces everything: it receives "
            f"{format_bytes(host.down_bytes)} and sends {format_bytes(host.up_bytes)} in each "
            f"round, over a line of {fleet.host.down_mbps:g}/{fleet.host.up_mbps:g} Mb/s. A peer "
            "with an open port would share that"
        )
    others_s = max(group.fetch_s for group in seen.groups)
    if not host.slices and host.fetch_s > 1.5 * others_s:
        yield (
            "each commit waits until the host's built-in member has all updates: "
            f"{format_seconds(host.fetch_s)}, where the peers have them after "
            f"{format_seconds(others_s)}. A host with a faster line would help"
        )


def _slow_processes(fleet: FleetConfig, seen: Forecast) -> Iterator[str]:
    most_mbps = AGENT_BYTES_PER_S * 8 / 1e6
    for group, cost in zip(fleet.groups, seen.groups, strict=True):
        if min(group.up_mbps, group.down_mbps) * PAYLOAD_SHARE > most_mbps and _matters(cost, seen):
            yield (
                f"{group.name}: its line carries more than one agent moves, about "
                f"{most_mbps:.0f} Mb/s each way on one core: the exchange is as slow as that"
            )
        if cost.save_s > cost.send_s and cost.save_s > MUCH * seen.round_s:
            yield (
                f"{group.name}: its disk ({group.disk_mb_per_s:g} MB/s) is slower than its line: "
                f"the optimizer's moments take {format_seconds(cost.save_s)} to write before a "
                "commit"
            )


def _matters(cost: GroupForecast, seen: Forecast) -> bool:
    return cost.send_s + cost.fetch_s > MUCH * seen.round_s


def _joiners(config: RunConfig, seen: Forecast) -> Iterator[str]:
    turns = REPLAY_ROUNDS * config.sync.fragments
    for group in seen.groups:
        if group.joins_s is None or group.joins_rounds is None:
            yield (
                f"{group.name}: a joiner never catches up: the updates of the rounds that go by "
                "fill its line"
            )
        elif group.joins_s > seen.total_s / 2:
            yield (
                f"{group.name}: a joiner trains after {format_seconds(group.joins_s)}, of "
                f"{format_seconds(seen.total_s)} that the run takes"
            )
        elif group.joins_rounds > turns:
            yield (
                f"{group.name}: {group.joins_rounds:.0f} rounds go by while a joiner fetches the "
                f"state; beyond {turns} it has to fetch a newer one instead"
            )


def _few_reduce(config: RunConfig, fleet: FleetConfig, seen: Forecast) -> Iterator[str]:
    num_able = sum(group.count for group in fleet.groups if group.reachable)
    least = enough_reducers(seen.num_peers, config.sync.region_size)
    if num_able < least:
        able = f"{num_able} of the {seen.num_peers} peers" if num_able else "none of the peers"
        each = ceil(seen.num_peers / max(1, num_able))
        yield (
            f"{able} can be dialled: whoever reduces has connections with {each} members and more. "
            f"With {least} peers that have an open port (reachable = true; atoll join --port, and "
            "the router forwards that port) there are regions, and some dozens are enough"
        )


def _many(config: RunConfig, seen: Forecast) -> Iterator[str]:
    has_regions = is_divided(seen.num_peers, config.sync.region_size)
    if seen.num_peers > MANY_PEERS and not has_regions:
        yield (
            f"{seen.num_peers} peers send to all reducers at once; beyond {MANY_PEERS} what so "
            "many flows cost is not in these figures"
        )
