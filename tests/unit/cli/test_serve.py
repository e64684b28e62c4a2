"""What `atoll serve` refuses before it loads anything."""

import socket

import pytest


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "reef.example"])
def test_a_network_needs_a_key(atoll, host):
    outcome = atoll("serve", "my-run", "--listen", host)
    assert outcome.code == 2
    assert f"whoever reaches {host}" in outcome.err
    assert "--key" in outcome.err


def test_a_port_that_is_taken(atoll):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        outcome = atoll("serve", "my-run", "--port", taken.getsockname()[1])
    assert outcome.code == 1
    assert "cannot listen at 127.0.0.1" in outcome.err
    assert "--port" in outcome.err
