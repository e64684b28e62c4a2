import pytest
from msgspec.structs import replace
from tests.unit.host.scene import BUILT_IN, GENESIS, A, B, C, hello

from atoll.host.admission import Admission, judge_hello, judge_protocol
from atoll.ids import digest_of
from atoll.net import wire
from atoll.net.invite import token_digest
from atoll.net.records import Admitted, InviteMade, Planned

TOKEN = token_digest("token")
INVITE = InviteMade(token=TOKEN, uses=2, expires_at=1000.0)


def admitted(peer):
    return Admitted(peer=peer, public_key="00", name="n", token=TOKEN)


def reason_of(refused):
    return refused.reason if refused else "welcome"


@pytest.mark.parametrize(
    ("history", "token", "peer", "now_s", "expected"),
    [
        ([INVITE], TOKEN, A, 999.0, "welcome"),
        ([INVITE], TOKEN, A, 1000.0, "welcome"),
        ([INVITE], TOKEN, A, 1000.1, "has expired"),
        ([INVITE], token_digest("other"), A, 0.0, "does not know"),
        ([], TOKEN, A, 0.0, "does not know"),
        ([INVITE, admitted(A)], TOKEN, B, 0.0, "welcome"),
        ([INVITE, admitted(A), admitted(B)], TOKEN, C, 0.0, "used up"),
        ([INVITE, admitted(A), admitted(B)], TOKEN, A, 0.0, "welcome"),  # it has lost its answer
        ([INVITE, admitted(A)], token_digest("other"), A, 9999.0, "welcome"),
        ([], TOKEN, BUILT_IN, 0.0, "welcome"),
    ],
)
def test_who_may_come_in(history, token, peer, now_s, expected):
    admission = Admission.replay([GENESIS, *history])
    assert expected in reason_of(admission.judge(token, peer, now_s=now_s))


def test_a_replayed_admission_is_the_one_that_was():
    history = [GENESIS, INVITE, admitted(A), Planned(round=1, peers=(A,)), admitted(B)]
    live = Admission()
    for record in history:
        live.note(record)
    assert Admission.replay(history) == live
    assert set(live.members) == {A, B, BUILT_IN}
    assert live.uses[TOKEN] == 2


def test_the_older_program_is_to_be_updated():
    assert judge_protocol(wire.PROTOCOL) is None
    assert "that is yours" in judge_protocol(wire.PROTOCOL - 1).hint
    assert "that is the host's" in judge_protocol(wire.PROTOCOL + 1).hint


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "welcome"),
        ({"protocol": 99}, "you speak protocol 99"),
        ({"run": digest_of(b"other")}, "your run is"),
        ({"codecs": ("fp32",)}, "codecs that you lack: int8"),
    ],
)
def test_who_may_take_part(change, expected):
    refused = judge_hello(replace(hello(A), **change), run=GENESIS.run, codecs={"int8"})
    assert expected in reason_of(refused)
