"""Only the operator, only once, never from another site, and never by accident."""

import json

import pytest
from hypothesis import given, settings, strategies as st
from starlette.testclient import TestClient
from tests.unit.web.cast import Seen, peer_id

from atoll.errors import ConfigError, RunError
from atoll.web.admin import MAX_BODY_BYTES, Admin
from atoll.web.app import application
from atoll.web.signature import GOOD_FOR_S, Guard, offered_nonce, sign
from atoll.web.stream import Stream

TOKEN = "f" * 64
JSON = {"content-type": "application/json"}
PAUSE = "/api/v1/admin/pause"


class Noting:
    """An operator that only notes what it was asked for."""

    def __init__(self):
        self.asked = []

    async def pause(self):
        self.asked.append("pause")

    async def resume(self):
        raise ConfigError("this host does not lead the run now")

    async def remove(self, peer, reason):
        self.asked.append(("remove", peer, reason))

    async def invite(self, *, uses, days):
        self.asked.append(("invite", uses, days))
        return "atoll1..."

    async def choose_reducers(self, peers):
        self.asked.append(("reducers", peers))

    def stop(self):
        self.asked.append("stop")


class Ending(Noting):
    """One whose host cannot write its journal any more."""

    async def pause(self):
        raise RunError("cannot append to the journal")


@pytest.fixture
def operator():
    return Noting()


@pytest.fixture
def client(operator):
    seen = Seen.new()
    app = application(seen.board, Stream(seen.board), Admin(operator, token=TOKEN))
    with TestClient(app, base_url="http://reef:7780") as client:
        yield client


def test_a_host_that_cannot_go_on_says_so():
    seen = Seen.new()
    app = application(seen.board, Stream(seen.board), Admin(Ending(), token=TOKEN))
    with TestClient(app, base_url="http://reef:7780") as client:
        answer = post(client, "pause")
        assert (answer.status_code, answer.json()["error"]) == (503, "cannot append to the journal")


def nonce_of(client):
    answer = client.post(PAUSE, content=b"{}", headers=JSON)
    assert answer.status_code == 401
    return offered_nonce(answer.headers["www-authenticate"])


def signed(client, path, body, *, token=TOKEN, nonce=None):
    header = sign(token, path=path, nonce=nonce or nonce_of(client), body=body)
    return {**JSON, "authorization": header}


def post(client, action, wanted=None, **headers):
    path, body = f"/api/v1/admin/{action}", json.dumps(wanted or {}).encode()
    return client.post(path, content=body, headers={**signed(client, path, body), **headers})


# --- what the operator wants is done -------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "wanted", "asked"),
    [
        ("pause", {}, "pause"),
        ("stop", {}, "stop"),
        ("remove", {"peer": peer_id(1)}, ("remove", peer_id(1), "")),
        ("remove", {"peer": peer_id(1), "reason": "x"}, ("remove", peer_id(1), "x")),
        ("reducers", {"peers": [peer_id(1)]}, ("reducers", (peer_id(1),))),
        ("reducers", {}, ("reducers", ())),
        ("invite", {"uses": 3, "days": 0.5}, ("invite", 3, 0.5)),
    ],
)
def test_an_action_is_done(client, operator, action, wanted, asked):
    answer = post(client, action, wanted)
    assert answer.status_code == 200, answer.text
    assert operator.asked == [asked]
    assert answer.json()["done"]
    assert answer.json()["invite"] == ("atoll1..." if action == "invite" else "")


def test_what_makes_no_sense_now_is_said_so(client):
    answer = post(client, "resume")
    assert (answer.status_code, answer.json()["error"]) == (
        409,
        "this host does not lead the run now",
    )


@pytest.mark.parametrize(
    ("action", "wanted"),
    [
        ("pause", {"for": 3}),
        ("remove", {}),
        ("remove", {"peer": "../../etc"}),
        ("invite", {"uses": 0}),
        ("invite", {"days": float("inf")}),
        ("reducers", {"peers": "all"}),
    ],
)
def test_what_is_no_such_request_is_refused(client, operator, action, wanted):
    answer = post(client, action, wanted)
    assert answer.status_code == 400
    assert operator.asked == []


# --- everybody else ------------------------------------------------------------------------------


def test_no_signature_a_wrong_one_and_one_of_another_token(client, operator):
    for headers in (
        {},
        {"authorization": "Bearer " + TOKEN},
        {"authorization": "Atoll nonce=, mac="},
        {"authorization": f"Atoll nonce={'0' * 64}, mac={'0' * 64}"},
        signed(client, PAUSE, b"{}", token="0" * 64),
        signed(client, PAUSE, b"{}", token=""),
    ):
        answer = client.post(PAUSE, content=b"{}", headers={**JSON, **headers})
        assert answer.status_code == 401
        assert answer.json()["error"]
    assert operator.asked == []


def test_a_request_that_was_overheard_cannot_be_made_again(client, operator):
    headers = signed(client, PAUSE, b"{}")
    assert client.post(PAUSE, content=b"{}", headers=headers).status_code == 200
    again = client.post(PAUSE, content=b"{}", headers=headers)
    assert (again.status_code, again.json()["error"]) == (
        401,
        "this request has been made before",
    )
    assert operator.asked == ["pause"]


def test_a_signature_is_good_for_its_request_alone(client, operator):
    headers = signed(client, PAUSE, b"{}")
    assert client.post("/api/v1/admin/stop", content=b"{}", headers=headers).status_code == 401
    assert client.post(PAUSE, content=b"{ }", headers=headers).status_code == 401
    assert operator.asked == []


def test_a_signature_for_another_host_process_is_refused(client):
    nonce = offered_nonce(Guard(TOKEN).challenge(now_s=0.0))
    headers = signed(client, PAUSE, b"{}", nonce=nonce)
    assert client.post(PAUSE, content=b"{}", headers=headers).status_code == 401


def test_an_action_is_never_a_get(client, operator):
    headers = signed(client, PAUSE, b"{}")
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        assert client.request(method, PAUSE, headers=headers).status_code == 405
    assert operator.asked == []


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "http://reef:1"}, 403),
        ({"origin": "null"}, 403),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"origin": "http://reef:7780", "sec-fetch-site": "same-origin"}, 200),
        ({"content-type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_another_site_cannot_make_a_browser_ask_even_with_a_signature(
    client, operator, header, status
):
    assert post(client, "pause", **header).status_code == status
    assert bool(operator.asked) == (status == 200)


def test_no_other_site_may_read_or_ask_with_a_preflight(client):
    asks = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    answer = client.options(PAUSE, headers=asks)
    assert answer.status_code == 405
    assert not any(key.startswith("access-control") for key in answer.headers)


def test_a_body_that_is_too_long_is_not_read(client, operator):
    def endless():
        while True:
            yield b" " * 10_000

    body = b" " * (MAX_BODY_BYTES + 1)
    assert client.post(PAUSE, content=body, headers=JSON).status_code == 413
    assert client.post(
        PAUSE, content=b"", headers={**JSON, "content-length": "-1"}
    ).status_code in (
        400,
        413,
    )
    chunks = (b" " * 10_000 for _ in range(20))
    assert client.post(PAUSE, content=chunks, headers=JSON).status_code == 413
    assert operator.asked == []


def test_an_action_that_there_is_not(client):
    answer = client.post("/api/v1/admin/train", content=b"{}", headers=JSON)
    assert answer.status_code == 404
    assert "pause" in answer.json()["error"]


def test_without_an_operator_there_are_no_actions():
    seen = Seen.new()
    with TestClient(application(seen.board, Stream(seen.board))) as client:
        assert client.post(PAUSE, content=b"{}", headers=JSON).status_code == 404


# --- signatures ----------------------------------------------------------------------------------


def test_a_nonce_is_good_for_a_minute():
    guard = Guard(TOKEN)
    for age_s, refused in ((0.0, False), (GOOD_FOR_S - 1, False), (GOOD_FOR_S + 2, True)):
        nonce = offered_nonce(guard.challenge(now_s=1000.0))
        header = sign(TOKEN, path="/p", nonce=nonce, body=b"")
        assert bool(guard.judge(header, path="/p", body=b"", now_s=1000.0 + age_s)) == refused


def test_a_used_nonce_is_remembered_for_as_long_as_it_would_be_good():
    guard = Guard(TOKEN)
    nonce = offered_nonce(guard.challenge(now_s=1000.9))
    header = sign(TOKEN, path="/p", nonce=nonce, body=b"")
    assert guard.judge(header, path="/p", body=b"", now_s=1001.0) == ""
    for tenth in range(700):
        assert guard.judge(header, path="/p", body=b"", now_s=1001.0 + tenth / 10)


@settings(deadline=None)
@given(st.text())
def test_any_header_is_judged(header):
    assert Guard(TOKEN).judge(header, path="/p", body=b"", now_s=0.0)
