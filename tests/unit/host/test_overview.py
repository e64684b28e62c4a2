import pytest
from tests.unit.host.conftest import ANNA, BEN, CONFIG, SAMPLES

from atoll import events
from atoll.events import Stamped
from atoll.host.overview import overview
from atoll.model.accounting import flops_per_token
from atoll.net.records import Moved, PeerTraffic
from atoll.traffic import Traffic

TOKENS = SAMPLES * CONFIG.data.sequence_length  # of one peer in one round


def records(run):
    return [entry.record for entry in run.opened.journal.entries]


def stamp(*reported: events.Event) -> list[Stamped]:
    return [Stamped(at=1000.0 + index, event=event) for index, event in enumerate(reported)]


def joined(peer, name):
    return events.PeerJoined(peer=peer, name=name, device="CPU", reachable=True)


def trained(peer, *, tokens_per_s):
    return events.Training(peer=peer, round=1, step=1, loss=5.0, tokens_per_s=tokens_per_s)


def test_what_counts_comes_from_the_journal(recorded):
    recorded.commit_round()
    recorded.commit_round()
    view = overview(records(recorded), [])
    assert (view.name, view.rounds, view.committed, view.agreed) == ("recorded", 5, 2, 2)
    assert view.num_tokens == 4 * TOKENS
    assert view.losses == pytest.approx([3.85, 3.65])  # 4 - lease / 10, of two leases each
    assert [(p.name, p.rounds, p.num_tokens, p.token_share) for p in view.peers] == [
        ("anna", 2, 2 * TOKENS, 0.5),
        ("ben", 2, 2 * TOKENS, 0.5),
    ]
    assert [peer.is_in for peer in view.peers] == [False, False]


@pytest.mark.parametrize(
    ("device", "peak_flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("8 x NVIDIA H100 80GB HBM3", 8 * 989e12),
        ("2 machines with 4 x NVIDIA GeForce RTX 4090", 8 * 165e12),
        ("2 x CPU", None),
        ("", None),
    ],
)
def test_a_known_device_has_a_utilisation(recorded, device, peak_flops):
    here = events.PeerJoined(peer=ANNA, name="anna", device=device, reachable=True)
    view = overview(records(recorded), stamp(here, trained(ANNA, tokens_per_s=100.0)))
    length = CONFIG.data.sequence_length
    flops = 100.0 * flops_per_token(CONFIG.model, sequence_length=length)
    assert view.peers[0].mfu == (None if peak_flops is None else pytest.approx(flops / peak_flops))


@pytest.mark.parametrize(
    ("device", "says", "peak_flops"),
    [
        ("CPU", 3e11, 3e11),
        ("NVIDIA H100 80GB HBM3", 60e12, 60e12),  # in fp32, as it has measured
        ("CPU", 0.0, None),
        ("CPU", 1e6, None),  # a million times its peak: not true
    ],
)
def test_a_peer_says_what_its_devices_do_at_most(recorded, device, says, peak_flops):
    here = events.PeerJoined(peer=ANNA, name="anna", device=device, reachable=True, peak_flops=says)
    view = overview(records(recorded), stamp(here, trained(ANNA, tokens_per_s=100.0)))
    length = CONFIG.data.sequence_length
    flops = 100.0 * flops_per_token(CONFIG.model, sequence_length=length)
    assert view.peers[0].mfu == (None if peak_flops is None else pytest.approx(flops / peak_flops))


def test_the_bytes_of_all_records_add_up(recorded):
    told = Moved(traffic=(PeerTraffic(peer=ANNA, traffic=Traffic(state_sent=5)),))
    before = overview(records(recorded), [])
    view = overview([*records(recorded), told, told], [])
    assert view.traffic == before.traffic + Traffic(state_sent=10)
    assert [peer.traffic.state_sent for peer in view.peers] == [10, 0]


def test_who_is_in_comes_from_the_events(recorded):
    started = events.HostStarted(run="recorded", address="x:1", committed=0)
    left = events.PeerLeft(peer=BEN, name="ben", reason="it left")
    seen = stamp(
        started,
        joined(ANNA, "anna again"),
        joined(BEN, "ben"),
        trained(ANNA, tokens_per_s=100.0),
        trained(BEN, tokens_per_s=200.0),
        left,
    )
    anna, ben = overview(records(recorded), seen).peers
    assert (anna.name, anna.is_in, anna.tokens_per_s, anna.seen_at) == (
        "anna again",
        True,
        100.0,
        1003.0,
    )
    assert (ben.is_in, ben.tokens_per_s, ben.seen_at) == (False, 0.0, 1004.0)


def test_a_host_that_starts_anew_has_nobody_in(recorded):
    started = events.HostStarted(run="recorded", address="x:1", committed=0)
    view = overview(records(recorded), stamp(started, joined(ANNA, "anna"), started))
    assert [peer.is_in for peer in view.peers] == [False, False]


def test_events_of_members_that_the_journal_does_not_know_change_nothing(recorded):
    view = overview(records(recorded), stamp(joined("0" * 32, "built-in")))
    assert [peer.name for peer in view.peers] == ["anna", "ben"]


def test_a_run_without_a_commit_has_no_curve(recorded):
    view = overview(records(recorded), [])
    assert (view.committed, view.agreed, view.losses, view.num_tokens) == (0, 0, [], 0)
    assert view.agreed_state is not None
