"""What others wrote is shown, and does nothing else."""

from atoll import events
from atoll.ids import PeerId
from atoll.sentences import one_line, plain, sentence

A = PeerId("a" * 32)
HOSTILE = "\x1b]0;owned\x07\x1b[2J\nround 9: committed\r\u202e"


def is_harmless(text: str) -> bool:
    return all(c.isprintable() for c in text)


def test_no_sentence_has_what_a_terminal_would_obey():
    joined = events.PeerJoined(peer=A, name=HOSTILE, device=HOSTILE, reachable=True, place=HOSTILE)
    left = events.PeerLeft(peer=A, name=HOSTILE, reason=HOSTILE)
    agreed = events.StateDiffers(round=1, peer=A, digest="d" * 64, agreed="e" * 64)
    warned = events.Warned(text=f"cannot catch up yet: {HOSTILE}", hint=HOSTILE)
    for event in (joined, left, agreed, warned):
        words = sentence(event, names={A: HOSTILE})
        assert "owned" in words or "another state" in words
        assert is_harmless(words)


def test_what_is_plain_stays_as_it_is():
    assert plain("  Zoë: 3 % \u2013 ok") == "  Zoë: 3 % \u2013 ok"
    assert one_line(" a \n\t b\x1b ") == "a b"
