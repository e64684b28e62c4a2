"""Two hosts and one journal: in any order of what they do, there is one chain, and one leader."""

from contextlib import closing, suppress
from itertools import count

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tests.unit.host.scene import CONFIG, A, B

from atoll.config import run_digest, template
from atoll.errors import ConfigError, DamagedError, DeposedError, RunError
from atoll.host.file_store import FileStore
from atoll.host.journal import Journal, checked, led_in
from atoll.host.lead import Alone, lead_by_file
from atoll.host.postgres_store import PostgresStore
from atoll.host.store import Word
from atoll.host.stores import journal_url, keep_in, read_journal
from atoll.ids import RoundId, digest_of
from atoll.net.identity import Identity
from atoll.net.records import Committed, Planned

RUN = digest_of(b"run")
IDENTITY = Identity.create()
RECORDS = [Planned(round=RoundId(n), peers=(A, B)) for n in (1, 2, 3)]
PLACES = ("reef:1", "lagoon:2")
LONG_S = 1000.0


def commit(round_id):
    return Committed(
        round=round_id, fragment=0, codec="int8", update_codec="int8", roster=(), updates=()
    )


@pytest.fixture(params=["file", "postgres"])
def stores(request, tmp_path):
    """What opens the one journal, as often as one likes."""
    opened = []
    if request.param == "postgres":
        url = request.getfixturevalue("database")

    def opens():
        at_file = request.param == "file"
        store = FileStore(tmp_path / "journal.sqlite") if at_file else PostgresStore(url, run=RUN)
        opened.append(store)
        return store

    yield opens
    for store in opened:
        store.close()


def journal_in(store):
    return Journal(store, sign=IDENTITY.sign)


def test_what_was_appended_is_read_by_all(stores):
    one = journal_in(stores())
    one.append(RECORDS[:2])
    other = journal_in(stores())
    assert [entry.record for entry in other.entries] == RECORDS[:2]
    one.append(RECORDS[2:])
    assert [entry.record for entry in other.refresh()] == RECORDS[2:]
    assert other.entries == one.entries == stores().read()
    assert stores().read(start=2) == one.entries[2:]


def test_a_long_journal_is_read_whole(stores):
    journal = journal_in(stores())
    journal.append(RECORDS * 180)
    journal.append(RECORDS * 180)
    assert stores().read() == journal.entries
    assert stores().read(start=17) == journal.entries[17:]


def test_whoever_comes_second_has_appended_nothing(stores):
    one, other = journal_in(stores()), journal_in(stores())
    one.append(RECORDS[:1])
    with pytest.raises(RunError, match="another process writes to the journal"):
        other.append(RECORDS[1:])
    assert [entry.record for entry in stores().read()] == RECORDS[:1]


def test_an_append_is_whole_or_not_at_all(stores):
    one, other = journal_in(stores()), journal_in(stores())
    entries = one.signed(RECORDS)
    other.append(RECORDS[:2])
    assert not stores().append(entries[2:] + entries[:1]), "the second of them is taken"
    assert [entry.record for entry in stores().read()] == RECORDS[:2]


def test_a_host_that_is_deposed_learns_from_its_next_append_by_whom(stores):
    old = journal_in(stores())
    lead_by_file(old, PLACES[0])
    new = journal_in(stores())
    lead_by_file(new, PLACES[1])
    with pytest.raises(DeposedError, match="lagoon:2 leads this run by now, in epoch 2"):
        old.append(RECORDS[:1])
    new.append(RECORDS[1:])
    assert (new.epoch, led_in(new.led).address) == (2, PLACES[1])


def test_a_wrong_signature_is_found_by_the_others(stores):
    one, other = journal_in(stores()), journal_in(stores())
    Journal(one.store, sign=Identity.create().sign).append(RECORDS[:1])
    with pytest.raises(DamagedError, match="damaged at entry 0"):
        other.refresh()


# --- a file --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("address", "epoch"), [(PLACES[0], 1), (PLACES[1], 2)])
def test_a_copied_directory_that_is_started_elsewhere_has_a_higher_epoch(tmp_path, address, epoch):
    """Started again where it was, it has the same: an old copy must not overtake the new one."""
    for place in (PLACES[0], address, address):
        with closing(journal_in(FileStore(tmp_path / "journal.sqlite"))) as journal:
            with suppress(StopIteration):
                Alone(journal).take(place).send(None)
            assert journal.epoch == (1 if place == PLACES[0] else epoch)


def test_an_epoch_can_be_set_above_one_that_only_members_know_of(tmp_path):
    with closing(journal_in(FileStore(tmp_path / "journal.sqlite"))) as journal:
        lead_by_file(journal, PLACES[0], above=6)
        assert journal.epoch == 7
        lead_by_file(journal, PLACES[0], above=6)
        assert journal.epoch == 8


# --- a database ----------------------------------------------------------------------------------


def take(journal, place, *, lead_s=LONG_S, called=False):
    """Try to become the leader, as a host does."""
    journal.refresh()
    led = journal.next_led(place, at=0.0)
    return journal.store.take_lead(led, lead_s=lead_s, called=called) and bool(journal.refresh())


def let_the_lead_run_out(url):
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("UPDATE atoll_lead SET ends_at = clock_timestamp()")


@pytest.fixture
def two(database):
    """Two hosts that share a database."""
    with (
        closing(PostgresStore(database, run=RUN)) as one,
        closing(PostgresStore(database, run=RUN)) as other,
    ):
        yield journal_in(one), journal_in(other)


def test_a_lead_lasts_until_it_is_over_or_ended_or_the_operator_calls(two, database):
    one, other = two
    assert one.store.lead() is None
    assert take(one, PLACES[0])
    lead = one.store.lead()
    assert (lead.epoch, lead.address, lead.is_over) == (1, PLACES[0], False)
    assert not take(other, PLACES[1])
    let_the_lead_run_out(database)
    assert one.store.lead().is_over
    assert one.store.renew_lead(1, lead_s=LONG_S), "nobody was quicker"
    assert not take(other, PLACES[1])
    let_the_lead_run_out(database)
    assert take(other, PLACES[1])
    assert not one.store.renew_lead(1, lead_s=LONG_S)
    one.store.end_lead(1)
    assert not take(one, PLACES[0]), "only the leader ends its lead"
    other.store.end_lead(2)
    assert take(one, PLACES[0])
    assert take(other, PLACES[1], called=True)
    assert [led_in(entry).epoch for entry in other.entries] == [1, 2, 3, 4]


def test_a_renewed_lead_ends_later(two):
    one, _ = two
    assert take(one, PLACES[0], lead_s=10.0)
    before = one.store.lead().ends_at
    assert one.store.renew_lead(1, lead_s=100.0)
    assert 80 < one.store.lead().ends_at - before < 200


def test_standbys_are_known_while_they_stay_and_told_what_to_do(two):
    one, other = (journal.store for journal in two)
    assert one.standbys() == []
    assert other.stand_by(PLACES[1], stays_s=LONG_S) is Word.STAY
    assert one.standbys() == [PLACES[1]]
    assert not one.tell(PLACES[0], Word.LEAD)
    assert one.tell(PLACES[1], Word.LEAD)
    assert other.stand_by(PLACES[1], stays_s=LONG_S) is Word.LEAD
    other.leave(PLACES[1])
    assert one.standbys() == []
    assert other.stand_by(PLACES[1], stays_s=0.0) is Word.STAY, "what it was told is over"
    assert one.standbys() == []
    assert not one.tell(PLACES[1], Word.LEAD)


def test_one_database_holds_many_runs(two, database):
    one, _ = two
    assert take(one, PLACES[0])
    with closing(PostgresStore(database, run=digest_of(b"another"))) as store:
        another = journal_in(store)
        assert another.entries == []
        assert take(another, PLACES[1])
        assert (one.store.lead().address, store.lead().address) == PLACES


def test_an_entry_that_is_there_after_all_counts_as_appended(two):
    """The connection broke between the commit and the answer, so the same is sent again."""
    one, _ = two
    entries = one.signed(RECORDS)
    assert one.store.append(entries)
    assert one.store.append(entries)
    led = Journal(one.store, sign=IDENTITY.sign).next_led(PLACES[0], at=0.0)
    assert one.store.take_lead(led, lead_s=LONG_S, called=False)
    assert one.store.take_lead(led, lead_s=LONG_S, called=False)
    assert len(one.store.read()) == 4


def test_a_broken_connection_is_made_anew(two, database):
    one, _ = two
    with psycopg.connect(database, autocommit=True) as db:
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'atoll' AND datname = current_database()"
        )
    one.append(RECORDS)
    assert len(one.store.read()) == 3


def test_a_database_that_is_frozen_counts_as_gone_until_it_thaws(server, database):
    store = PostgresStore(database, run=RUN, answer_s=1)
    try:
        assert store.lead() is None
        with server.frozen(), pytest.raises(RunError, match="cannot be used"):
            store.lead()
        assert store.lead() is None
    finally:
        store.close()


def test_a_database_that_is_gone_is_an_error_that_names_it_without_its_password():
    with pytest.raises(RunError, match=r"run at 127\.0\.0\.1:1 ") as caught:
        PostgresStore("postgresql://me:hidden@127.0.0.1:1/run", run=RUN)
    assert "hidden" not in str(caught.value)
    assert "see whether the database runs" in caught.value.hint


def test_what_is_no_address_of_a_database_is_a_config_error():
    with pytest.raises(ConfigError, match="not the address"):
        PostgresStore("postgresql://[", run=RUN)


def test_the_database_of_a_run_is_remembered_and_not_changed_silently(tmp_path, database):
    (tmp_path / "run.toml").write_text(template(CONFIG), encoding="utf-8")
    assert read_journal(tmp_path) == []
    run = run_digest(CONFIG)
    keep_in(database, tmp_path, run=run)
    keep_in(database, tmp_path, run=run)
    with closing(PostgresStore(database, run=run_digest(CONFIG))) as store:
        journal_in(store).append(RECORDS)
        assert read_journal(tmp_path) == store.read()
    with pytest.raises(ConfigError, match="names another database"):
        keep_in(database + "2", tmp_path, run=run)


def test_a_journal_in_a_file_can_move_to_a_database_once(tmp_path, database):
    (tmp_path / "run.toml").write_text(template(CONFIG), encoding="utf-8")
    file, run = tmp_path / "journal.sqlite", run_digest(CONFIG)
    with closing(journal_in(FileStore(file))) as journal:
        journal.append(RECORDS)
        entries = journal.entries
    keep_in(database, tmp_path, run=run)
    assert read_journal(tmp_path) == entries
    assert not file.exists()
    with closing(journal_in(FileStore(file))) as journal:
        journal.append(RECORDS[::-1])
    (tmp_path / "journal.url").unlink()
    with pytest.raises(ConfigError, match="has another journal of this run"):
        keep_in(database, tmp_path, run=run)
    assert file.exists()


# --- any order -----------------------------------------------------------------------------------

MOVES = st.lists(
    st.tuples(
        st.sampled_from(["lead", "called", "sign", "send", "renew", "end", "time", "restart"]),
        st.sampled_from([0, 1]),
    ),
    max_size=40,
)
RUNS = count()


class Node:
    """A host that commits one round after the other while it believes that it leads."""

    def __init__(self, url, run, place):
        self.store = PostgresStore(url, run=run)
        self.place = place
        self.restart()

    def restart(self):
        self.journal = journal_in(self.store)
        self.leads = False
        self.signed = None  # what it has decided, and not sent to the database yet

    def lead(self, *, called):
        if not self.leads and take(self.journal, self.place, called=called):
            self.leads = True

    def sign(self):
        if self.leads and self.signed is None:
            rounds = [e.record.round for e in self.journal.entries if not e.is_led]
            self.signed = self.journal.signed([commit(RoundId(len(rounds) + 1))])

    def send(self):
        """Send what was signed, however long ago: the host may have been frozen in between."""
        if self.signed is None:
            return
        entries, self.signed = self.signed, None
        if self.store.append(entries):
            self.journal.refresh()
        else:
            self.restart()  # deposed


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(moves=MOVES)
def test_two_hosts_never_both_commit_a_round_whatever_the_order(server, moves):
    url, run = server.url("postgres"), digest_of(b"run %d" % next(RUNS))
    nodes = [Node(url, run, place) for place in PLACES]
    try:
        for move, index in moves:
            node = nodes[index]
            match move:
                case "lead" | "called":
                    node.lead(called=move == "called")
                case "renew" if node.leads:
                    if not node.store.renew_lead(node.journal.epoch, lead_s=LONG_S):
                        node.restart()
                case "end" if node.leads:
                    node.store.end_lead(node.journal.epoch)
                    node.restart()
                case "time":
                    let_the_lead_run_out(url)
                case "sign" | "send" | "restart":
                    getattr(node, move)()
                case _:
                    pass
            entries = list(checked(nodes[0].store.read(), place="it"))
            rounds = [entry.record.round for entry in entries if not entry.is_led]
            assert rounds == list(range(1, len(rounds) + 1))
            epochs = [led_in(entry).epoch for entry in entries if entry.is_led]
            assert epochs == list(range(1, len(epochs) + 1))
            lead = nodes[0].store.lead()
            assert (lead.epoch if lead else 0) == len(epochs)
    finally:
        for node in nodes:
            node.store.close()


@pytest.mark.parametrize("url", ["junk", "postgresql://me@127.0.0.1:1/run"])
def test_a_database_that_cannot_be_used_is_not_remembered(tmp_path, url):
    with pytest.raises((ConfigError, RunError)):
        keep_in(url, tmp_path, run=RUN)
    assert journal_url(tmp_path) == ""
