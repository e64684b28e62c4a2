"""What must hold at the end of every run, whatever happened on the way (design, section 8)."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from tests.loopback.cluster import Cluster, Process

from atoll.config import RunConfig, run_digest
from atoll.events import BytesMoved, RoundCommitted, StateDiffers, read_events
from atoll.ids import Digest, Lease, LeaseId, PeerId
from atoll.model.shapes import num_parameters
from atoll.net import records
from atoll.net.identity import verify
from atoll.outer.checkpoint import StateStore
from atoll.outer.manifest import manifest_of
from atoll.outer.state import PeerState
from atoll.traffic import Traffic


def assert_run_is_sound(cluster: Cluster, config: RunConfig, *, rounds: int) -> None:
    """Check the journal: signed, every round once, one state for all, no sample twice."""
    entries = cluster.entries()
    genesis = entries[0].record
    assert isinstance(genesis, records.Genesis)
    key = bytes.fromhex(genesis.public_key)
    assert genesis.run == run_digest(config)
    assert all(verify(key, bytes.fromhex(entry.hash), entry.signature) for entry in entries)
    committed = cluster.records(records.Committed)
    assert [commit.round for commit in committed] == list(range(1, rounds + 1))
    agreed = cluster.records(records.Agreed)
    assert len(agreed) >= rounds  # a run that is stopped may not have come to agree on the last
    assert [agreement.round for agreement in agreed] == list(range(len(agreed)))
    assert all(a.state != b.state for a, b in pairwise(agreed)), "a round that changed nothing"
    differing = [e for process in cluster.processes for e in process.find(StateDiffers)]
    assert not differing, "a member computed another state"
    assert_no_sample_counts_twice([entry.record for entry in entries])


def assert_no_sample_counts_twice(history: Iterable[records.Record]) -> None:
    """Follow every lease on its own, without the host's book."""
    leased: dict[LeaseId, Lease] = {}
    samples: Counter[int] = Counter()
    for record in history:
        match record:
            case records.Leased(leases=leases):
                leased |= {lease.id: lease for lease in leases}
            case records.Released(leases=ids):
                for lease_id in ids:
                    del leased[lease_id]
            case records.Committed(roster=roster):
                for lease_id in (i for entry in roster for i in entry.leases):
                    lease = leased.pop(lease_id)  # a second time, it is not there
                    samples.update(range(lease.start, lease.stop))
            case _:
                pass
    assert samples, "nothing was committed"
    assert set(samples.values()) == {1}


def state_on_disk(cluster: Cluster, name: str, config: RunConfig) -> PeerState:
    """Return the newest state that a peer keeps."""
    store = StateStore(cluster.peers / name / "states", keep=2)
    state = PeerState.initial(np.zeros(num_parameters(config.model), dtype=np.float32))
    store.load_(state, round=store.rounds()[-1], run=run_digest(config))
    return state


def digest_on_disk(cluster: Cluster, name: str, config: RunConfig) -> Digest:
    """Return the digest of the newest state that a peer keeps, from its values alone."""
    return manifest_of(state_on_disk(cluster, name, config), run=run_digest(config)).digest


def assert_all_hold_the_final_state(
    cluster: Cluster, config: RunConfig, names: Iterable[str]
) -> None:
    final = cluster.records(records.Agreed)[-1].state
    assert {name: digest_on_disk(cluster, name, config) for name in names} == dict.fromkeys(
        names, final
    )


def assert_every_byte_is_on_record(cluster: Cluster, peers: Iterable[Process]) -> None:
    """Check that the journal of a finished run has what its members reported that they moved."""
    on_record: dict[PeerId, Traffic] = {}
    told = (*cluster.records(records.Agreed), *cluster.records(records.Moved))
    for each in (each for record in told for each in record.traffic):
        on_record[each.peer] = on_record.get(each.peer, Traffic()) + each.traffic
    genesis = cluster.records(records.Genesis)[0]
    homes = {cluster.id_of(peer.name): peer.home for peer in peers}
    homes[genesis.built_in] = cluster.run / "built-in"
    assert on_record == {
        peer: sum(
            (
                stamped.event.traffic
                for stamped in read_events(home / "events.jsonl")[0]
                if isinstance(stamped.event, BytesMoved)
            ),
            Traffic(),
        )
        for peer, home in homes.items()
    }


def assert_finished(
    cluster: Cluster, config: RunConfig, processes: list[Process], *, names: list[str]
) -> None:
    """Check that these processes end well, with all rounds done, and what the peers then hold."""
    assert [process.wait() for process in processes] == [0] * len(processes)
    assert_run_is_sound(cluster, config, rounds=config.sync.rounds)
    assert_all_hold_the_final_state(cluster, config, names)


def assert_all_leave(
    cluster: Cluster, config: RunConfig, host: Process, peers: list[Process]
) -> None:
    """Let everybody end; check that all leave cleanly, and nothing committed is lost."""
    committed = cluster.committed()
    for process in (*peers, host):
        process.interrupt()
    assert [process.wait() for process in (*peers, host)] == [0] * (len(peers) + 1)
    assert cluster.committed() >= committed
    assert_run_is_sound(cluster, config, rounds=cluster.committed())


def assert_contributes(cluster: Cluster, host: Process, name: str) -> None:
    """Check that the peer is in a round that is committed from now on."""
    peer = cluster.id_of(name)
    host.wait_for_next(RoundCommitted, lambda event: peer in event.roster)
