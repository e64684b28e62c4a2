import string
from contextlib import suppress

import pytest
from hypothesis import given, settings, strategies as st

from atoll.errors import ConfigError
from atoll.ids import Digest, digest_of
from atoll.net.invite import Invite, new_token, token_digest

INVITE = Invite(host="atoll.example.org", port=4433, authority=Digest("d1" * 32), token="0a" * 16)
LINE = INVITE.format()

hosts = st.text(min_size=1, max_size=100).filter(str.isprintable)


def test_the_line_does_not_change():
    # Volunteers keep invites in mails: an older line must be read by newer code.
    assert LINE == (
        "atoll1iikf3iwr2hi5duor2hi5duor2hi5duor2hi5duor2hi5duor2hi5duor2efaucqk"
        "bifaucqkbifaucqkbifbculborxwy3bomv4gc3lqnrss433sm4"
    )


@settings(deadline=None)
@given(hosts, st.integers(0, 65535), st.binary(min_size=32, max_size=32))
def test_what_is_formatted_is_parsed(host, port, authority):
    invite = Invite(host=host, port=port, authority=Digest(authority.hex()), token=new_token())
    line = invite.format()
    assert Invite.parse(line) == invite
    assert set(line) <= set(string.ascii_lowercase + string.digits)


@pytest.mark.parametrize("line", [f"  {LINE}\n", LINE.upper(), f"{LINE[:40]}\r\n  {LINE[40:]}"])
def test_what_chat_programs_do_to_a_line_is_forgiven(line):
    assert Invite.parse(line) == INVITE


@settings(deadline=None)
@given(st.text() | st.text().map("atoll1".__add__) | st.binary().map(lambda b: b.decode("latin1")))
def test_anything_else_is_a_config_error_with_a_hint(line):
    with pytest.raises(ConfigError) as caught:
        Invite.parse(line)
    assert caught.value.hint


@settings(deadline=None)
@given(st.integers(0, len(LINE) - 1), st.characters())
def test_a_typing_error_is_told(position, character):
    line = LINE[:position] + character + LINE[position + 1 :]
    with suppress(ConfigError):
        assert Invite.parse(line) == INVITE  # another case, or bits that base32 does not use


@pytest.mark.parametrize("length", range(len(LINE)))
def test_a_cut_paste_is_told(length):
    with pytest.raises(ConfigError):
        Invite.parse(LINE[:length])


def test_an_invite_cannot_smuggle_control_characters_into_a_terminal():
    line = Invite(host="a\x1b[2J", port=1, authority=Digest("d1" * 32), token="00" * 16).format()
    with pytest.raises(ConfigError):
        Invite.parse(line)


def test_tokens_are_random_and_kept_as_a_digest():
    token = new_token()
    assert len(bytes.fromhex(token)) == 16
    assert token != new_token()
    assert token_digest(token) == digest_of(token.encode())


@settings(deadline=None)
@given(st.lists(st.tuples(hosts, st.integers(0, 65535)), max_size=3).map(tuple))
def test_an_invite_may_name_standbys(others):
    invite = Invite(
        host="reef", port=1, authority=Digest("d1" * 32), token=new_token(), others=others
    )
    assert Invite.parse(invite.format()) == invite
    assert invite.places == (("reef", 1), *others)


@pytest.mark.parametrize("other", [("", 1), ("a\x1b", 1), ("a", 65536), ("a", -1), ("a", "x")])
def test_a_standby_that_cannot_be_is_a_damaged_invite(other):
    line = Invite(
        host="reef", port=1, authority=Digest("d1" * 32), token="00" * 16, others=(other,)
    ).format()
    with pytest.raises(ConfigError):
        Invite.parse(line)
