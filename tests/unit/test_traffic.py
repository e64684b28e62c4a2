import msgspec
import pytest

from atoll.traffic import Traffic

COUNTED = Traffic(
    contributions_sent=1,
    contributions_received=20,
    updates_sent=300,
    updates_received=4_000,
    state_sent=50_000,
    state_received=600_000,
    control_sent=7_000_000,
    control_received=80_000_000,
)


def test_all_that_was_sent_and_all_that_was_received():
    assert COUNTED.sent == 7_050_301
    assert COUNTED.received == 80_604_020
    assert Traffic().sent == Traffic().received == 0


def test_what_was_counted_since_and_before_is_all():
    before = Traffic(updates_sent=100, state_received=600_000)
    since = COUNTED.since(before)
    assert since == msgspec.structs.replace(COUNTED, updates_sent=200, state_received=0)
    assert before + since == COUNTED
    assert COUNTED.since(COUNTED) == Traffic()
    assert before == Traffic(updates_sent=100, state_received=600_000)


@pytest.mark.parametrize("count", [-1, 2**63, 0.5])
def test_what_is_no_count_of_bytes_does_not_decode(count):
    encoded = msgspec.json.encode({"updates_sent": count})
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(encoded, type=Traffic)


def test_sums_stay_what_can_be_read_again():
    most = Traffic(state_sent=2**63 - 1)
    total = most + most
    assert msgspec.json.decode(msgspec.json.encode(total), type=Traffic) == most
