import string
from contextlib import suppress

import pytest
from hypothesis import given, settings, strategies as st

from atoll.errors import ConfigError, DamagedError, RunError
from atoll.net.identity import signed_key
from atoll.net.site import KEY_FILE, SiteKey, split_site

KEY = SiteKey(address="10.0.0.1", port=7790, secret=bytes(range(32)))
LINE = KEY.format()
addresses = st.text(min_size=1, max_size=100).filter(str.isprintable)


@settings(deadline=None)
@given(addresses, st.integers(0, 65535), st.binary(min_size=32, max_size=32))
def test_what_is_formatted_is_parsed(address, port, secret):
    key = SiteKey(address=address, port=port, secret=secret)
    assert SiteKey.parse(f"  {key.format()}\n") == key
    assert set(key.format()) <= set(string.ascii_lowercase + string.digits)


@settings(deadline=None)
@given(st.text() | st.text().map("atollsite1".__add__))
def test_anything_else_is_a_config_error_with_a_hint(line):
    with pytest.raises(ConfigError) as caught:
        SiteKey.parse(line)
    assert caught.value.hint


@settings(deadline=None)
@given(st.integers(0, len(LINE) - 1), st.characters())
def test_a_typing_error_is_told(position, character):
    line = LINE[:position] + character + LINE[position + 1 :]
    with suppress(ConfigError):
        assert SiteKey.parse(line) == KEY


def test_all_machines_of_a_site_are_one_identity_and_no_other_site_is_it():
    here, there = KEY.identity(), SiteKey.parse(LINE).identity()
    assert (here.certificate, here.authority) == (there.certificate, there.authority)
    assert here.pem() == there.pem()
    other = SiteKey(address=KEY.address, port=KEY.port, secret=bytes(32)).identity()
    with pytest.raises(Exception, match="another authority"):
        signed_key(other.certificate, authority=here.authority)


def test_a_peer_keeps_its_secret_and_takes_a_new_address(tmp_path):
    first = SiteKey.of_peer(tmp_path, "10.0.0.1:7790")
    assert SiteKey.of_peer(tmp_path, "10.0.0.1:7790") == first
    moved = SiteKey.of_peer(tmp_path, "10.0.0.2:7791")
    assert moved == SiteKey(address="10.0.0.2", port=7791, secret=first.secret)
    file = tmp_path / KEY_FILE
    assert SiteKey.parse(file.read_text()) == moved
    assert file.stat().st_mode & 0o777 == 0o600
    assert SiteKey.create("10.0.0.1:7790").secret != first.secret
    file.write_text("x")
    with pytest.raises(DamagedError, match="damaged") as caught:
        SiteKey.of_peer(tmp_path, "10.0.0.1:7790")
    assert isinstance(caught.value, RunError)


def test_several_machines_need_a_site():
    with pytest.raises(ConfigError, match="several machines need a --site"):
        split_site("")


@pytest.mark.parametrize("site", ["7790", "10.0.0.1", "10.0.0.1:", ":7790", "a:b", "a:0"])
def test_a_site_has_an_address_and_a_port(site):
    with pytest.raises(ConfigError, match="not an address and a port"):
        split_site(site)


def test_an_address_with_colons_may_stand_in_brackets():
    assert split_site("[2001:db8::1]:7779") == ("2001:db8::1", 7779)
