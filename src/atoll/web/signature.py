r"""Requests that only the operator can make: each is signed, and good once.

    POST without a signature  ->  401, WWW-Authenticate: Atoll nonce=NONCE
    POST, Authorization: Atoll nonce=NONCE, mac=HEX
         mac = HMAC-SHA256(token, "POST\npath\nNONCE\n" + body)

The token itself never travels, so it is safe on plain HTTP, too: whoever listens can read what was
asked, and the answer (an invite, if that was asked for), but cannot ask again. A nonce is good for
a minute, once, and for this host process alone; no clock but the host's has a say.
"""

import hmac
import re
from dataclasses import dataclass, field
from hashlib import sha256
from secrets import token_bytes, token_hex

GOOD_FOR_S = 60.0
SIGNED = re.compile(r"Atoll nonce=([0-9a-f]{64}), mac=([0-9a-f]{64})\Z")
OFFERED = re.compile(r"Atoll nonce=([0-9a-f]{64})\Z")


def sign(token: str, *, path: str, nonce: str, body: bytes) -> str:
    """Return the header `Authorization` of a POST request."""
    mac = _hmac(token.encode(), f"POST\n{path}\n{nonce}\n".encode() + body)
    return f"Atoll nonce={nonce}, mac={mac}"


def offered_nonce(header: str) -> str:
    """Return the nonce in a header `WWW-Authenticate`; empty: there is none."""
    match = OFFERED.match(header)
    return match[1] if match else ""


def _hmac(key: bytes, text: bytes) -> str:
    return hmac.new(key, text, sha256).hexdigest()


@dataclass(slots=True)
class Guard:
    """Knows the token, and which requests there have been. The clock comes in.

    A nonce says itself when it was made, and that we made it: 12 digits of the time, 20 at random,
    32 of a mac. So strangers who ask for nonces cost no memory.
    """

    token: str
    _key: bytes = field(default_factory=lambda: token_bytes(32))
    _used: dict[str, float] = field(default_factory=dict)  # nonces, with the end of their time

    def challenge(self, *, now_s: float) -> str:
        """Return the header `WWW-Authenticate`, with a fresh nonce."""
        start = f"{int(now_s):012x}{token_hex(10)}"
        return f"Atoll nonce={start}{_hmac(self._key, start.encode())[:32]}"

    def judge(self, header: str, *, path: str, body: bytes, now_s: float) -> str:
        """Return why this request is refused; empty: it is the operator's, for the first time."""
        parts = SIGNED.match(header)
        if parts is None:
            return "this needs the operator's signature"
        nonce = parts[1]
        # Compared first, and in constant time: a stranger learns nothing from what follows.
        if not hmac.compare_digest(header, sign(self.token, path=path, nonce=nonce, body=body)):
            return "this is not the operator's signature"
        if not hmac.compare_digest(nonce[32:], _hmac(self._key, nonce[:32].encode())[:32]):
            return "this nonce is not of this host process: ask for another one"
        made_at = int(nonce[:12], 16)
        if now_s - made_at > GOOD_FOR_S:
            return "this nonce is too old: ask for another one"
        self._used = {known: end for known, end in self._used.items() if end >= now_s}
        if nonce in self._used:
            return "this request has been made before"
        self._used[nonce] = made_at + GOOD_FOR_S + 1.0
        return ""
