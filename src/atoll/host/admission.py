"""Who may come in: invites, and the members that came with them. A function of the journal.

An invite is a token with an expiry (by the host's clock) and a number of uses; the journal has only
its digest. Coming back with the same key needs no new one.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from atoll.ids import Digest, PeerId
from atoll.net import wire
from atoll.net.records import Admitted, Genesis, InviteMade, Record, Removed

ASK_AGAIN = "ask the operator of the run for a new invite"
REMOVED = wire.Refused(
    reason="the operator has removed this machine from the run", hint="ask the operator why"
)


@dataclass(slots=True)
class Admission:
    invites: dict[Digest, InviteMade] = field(default_factory=dict)
    uses: Counter[Digest] = field(default_factory=Counter)
    members: dict[PeerId, str] = field(default_factory=dict)  # to their public keys, hex
    removed: set[PeerId] = field(default_factory=set)  # by the operator, for good

    @classmethod
    def replay(cls, entries: Iterable[Record]) -> "Admission":
        admission = cls()
        for record in entries:
            admission.note(record)
        return admission

    def note(self, record: Record) -> None:
        match record:
            case Genesis(built_in=peer, built_in_key=key):
                self.members[peer] = key
            case InviteMade(token=token):
                self.invites[token] = record
            case Admitted(peer=peer, public_key=key, token=token):
                self.members[peer] = key
                self.uses[token] += 1
            case Removed(peer=peer):
                self.members.pop(peer, None)
                self.removed.add(peer)
            case _:
                pass

    def judge(self, token: Digest, peer: PeerId, *, now_s: float) -> wire.Refused | None:
        """Return why this newcomer may not come in; None: it may."""
        if peer in self.removed:
            return REMOVED
        if peer in self.members:
            return None
        invite = self.invites.get(token)
        if invite is None:
            return wire.Refused(reason="the host does not know this invite", hint=ASK_AGAIN)
        if now_s > invite.expires_at:
            return wire.Refused(reason="this invite has expired", hint=ASK_AGAIN)
        if self.uses[token] >= invite.uses:
            return wire.Refused(reason="this invite has been used up", hint=ASK_AGAIN)
        return None


def judge_protocol(protocol: int) -> wire.Refused | None:
    """Return why the host cannot talk to a program of this protocol; None: it can."""
    if protocol == wire.PROTOCOL:
        return None
    older = "yours" if protocol < wire.PROTOCOL else "the host's"
    return wire.Refused(
        reason=f"you speak protocol {protocol}, the host speaks {wire.PROTOCOL}",
        hint=f"update atoll where it is older: that is {older}",
    )


def no_member(hosts: tuple[wire.HostAddress, ...]) -> wire.Refused:
    """Return what somebody is told whose admission is not in the journal as we know it.

    With other hosts it is not the last word: one of them may have admitted it, and lead by now, as
    long as we have not heard of it.
    """
    return wire.Refused(
        reason="you are no member of this run",
        hint="join with an invite",
        final=not hosts,
        hosts=hosts,
    )


def judge_hello(hello: wire.Hello, *, run: Digest, codecs: set[str]) -> wire.Refused | None:
    """Return why the peer cannot take part; None: it can."""
    if refused := judge_protocol(hello.protocol):
        return refused
    if hello.run != run:
        return wire.Refused(
            reason=f"your run is {hello.run[:12]}, this one is {run[:12]}",
            hint="one of the two has another run.toml: join again, in a new directory, "
            "with an invite of this run",
        )
    if missing := codecs - set(hello.codecs):
        return wire.Refused(
            reason=f"this run uses codecs that you lack: {', '.join(sorted(missing))}",
            hint="update atoll",
        )
    return None
