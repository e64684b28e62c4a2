"""What a person is told of a run, event by event."""

import re
from collections.abc import Sequence

import msgspec
import pytest
from rich.console import Console

from atoll import events
from atoll.cli.demo_config import demo_config
from atoll.cli.live import picture, shown
from atoll.cli.story import Actor, Story
from atoll.events import Event, Stamped
from atoll.ids import Digest, PeerId, RoundId
from atoll.traffic import Traffic

ADA, BEN, BUILT_IN = (PeerId(digit * 32) for digit in "abc")
NAMES = {ADA: "ada", BEN: "ben", BUILT_IN: "built-in"}


@pytest.fixture
def story() -> Story:
    actors = {name: Actor(name, trains=name != "built-in") for name in NAMES.values()}
    story = Story(demo_config(peers=2, rounds=4), actors, began_at=1000.0)
    hear(story, *(joined(peer) for peer in NAMES))
    return story


def hear(story: Story, *reported: Event, by: str = "", at: float = 1065.0) -> None:
    for event in reported:
        line = Stamped(at=at, event=event)
        if by:
            story.hear_peer(by, line)
        else:
            story.hear_host(line)


def joined(peer: PeerId) -> Event:
    device = "" if peer == BUILT_IN else "CPU"
    return events.PeerJoined(peer=peer, name=NAMES[peer], device=device, reachable=True)


def training(peer: PeerId, *, round: int, step: int) -> Event:
    return events.Training(
        peer=peer, round=RoundId(round), step=step, loss=5.5, tokens_per_s=2000.0
    )


def planned(round: int, reason: str = "a new round") -> Event:
    return events.RoundPlanned(
        round=RoundId(round), peers=(ADA, BEN), reducers=(BUILT_IN,), reason=reason
    )


def committed(round: int, loss: float = 6.0) -> Event:
    return events.RoundCommitted(
        round=RoundId(round),
        roster=(ADA, BEN),
        num_tokens=20_000,
        mean_loss=loss,
        update_bytes=1,
        seconds=4.0,
    )


def phase(name: str, *, round: int = 1) -> Event:
    return events.PhaseTimed(round=RoundId(round), phase=name, seconds=0.1)


def moved(**traffic: int) -> Event:
    return events.BytesMoved(round=RoundId(1), traffic=Traffic(**traffic), bits=0.0)


def told(story: Story, since: int = len(NAMES)) -> list[str]:
    return [news.text for news in story.news[since:]]


def test_who_is_in_and_what_they_do(story: Story):
    assert told(story, since=0) == [
        "ada joined, it trains on CPU",
        "ben joined, it trains on CPU",
        "built-in joined",
    ]
    hear(story, planned(1), training(ADA, round=1, step=4), training(BEN, round=1, step=10))
    assert [actor.doing for actor in story.actors.values()] == ["training", "exchanging", "serving"]
    assert [actor.step for actor in story.actors.values()] == [4, 10, 0]
    assert story.tokens_per_s == 4000.0
    assert story.progress == pytest.approx((4 + 10) / (2 * 10) / 4)


def test_a_heartbeat_from_the_round_before_changes_nothing(story: Story):
    hear(story, planned(1), training(ADA, round=1, step=10), committed(1), planned(2))
    hear(story, training(ADA, round=1, step=10))
    assert story.actors["ada"].step == 0
    assert story.progress == 0.25


def test_rounds_in_words(story: Story):
    hear(story, planned(1))
    hear(story, planned(1, reason="1 of the reducers are gone"))
    missed = events.RoundClosed(round=RoundId(1), roster=(ADA,), missing=(BEN,), reason="")
    complete = events.RoundClosed(round=RoundId(2), roster=(ADA, BEN), missing=(), reason="")
    hear(story, missed, committed(1, loss=7.25), planned(2), complete)
    assert told(story) == [
        "round 1 is planned anew: 1 of the reducers are gone",
        "round 1 goes on without ben",
        "round 1 of 4 committed: loss 7.250, 2 peers, 5.0 k tokens/s",
    ]
    assert story.losses == [7.25]


def test_a_peer_that_goes_and_comes_back(story: Story):
    hear(story, events.PeerLeft(peer=BEN, name="ben", reason="its connection ended"))
    hear(story, training(BEN, round=1, step=3))  # said before, heard after
    assert (story.actors["ben"].doing, story.actors["ben"].step) == ("gone", 0)
    hear(story, committed(1), committed(2), joined(BEN))
    hear(story, phase("outer_step", round=1), phase("outer_step", round=2), by="ben")
    fetched = events.StateSynced(round=RoundId(2), how="fetched", num_bytes=2_000_000, seconds=0.3)
    hear(story, fetched, msgspec.structs.replace(fetched, kept_bytes=6_000_000), by="ben")
    assert [text for text in told(story) if "ben" in text] == [
        "ben is gone: its connection ended",
        "ben is back, it trains on CPU",
        "ben catches up: round 1",
        "ben fetched state 2: 2.0 MB in 0.3 s",
        "ben fetched state 2: 2.0 MB, the rest of 8.0 MB, in 0.3 s",
    ]


def test_a_peer_that_is_paused_and_goes_on(story: Story):
    hear(story, planned(1), training(ADA, round=1, step=4))
    hear(story, events.PeerRests(peer=ADA, name="ada", rests=True))
    hear(story, training(ADA, round=1, step=5))  # said before, heard after
    assert (story.actors["ada"].doing, story.tokens_per_s) == ("paused", 0.0)
    hear(story, events.PeerRests(peer=ADA, name="ada", rests=False))
    assert story.actors["ada"].doing == "training"
    assert told(story) == ["ada is paused by its owner", "ada goes on"]


def test_how_good_a_state_is_and_what_it_writes(story: Story):
    said = events.Evaluated(round=RoundId(2), peer=BEN, loss=5.25, text="the sea\n\x1b[2J  is")
    hear(story, said, events.Evaluated(round=RoundId(3), peer=BEN, loss=5.0, text=""))
    assert story.validation_loss == 5.0
    assert told(story) == [
        "state 2: validation loss 5.250, says ben; it writes: the sea [2J is",
        "state 3: validation loss 5.000, says ben",
    ]


def test_a_trainer_that_dies(story: Story):
    hear(story, events.TrainerStarted(pid=7, device="CPU"), by="ada")
    hear(story, events.TrainerDied(reason="Killed", in_a_row=1), by="ada")
    hear(story, events.TrainerStarted(pid=8, device="CPU"), by="ada")
    assert told(story) == ["ada starts another trainer: Killed", "ada has a trainer again"]
    assert story.actors["ada"].trainer == 8


def test_bytes_add_up(story: Story):
    hear(story, moved(contributions_sent=5, updates_received=7), by="ada")
    hear(story, moved(updates_sent=2), phase("train"), by="ada")
    hear(story, moved(state_received=1), by="built-in")
    assert (story.actors["ada"].num_sent, story.actors["ada"].num_received) == (7, 7)
    assert (story.num_sent, story.num_received) == (7, 8)


def test_a_state_that_differs_is_an_alarm(story: Story):
    here, there = Digest("0" * 64), Digest("1" * 64)
    hear(story, events.StateDiffers(round=RoundId(3), peer=ADA, digest=here, agreed=there))
    assert (story.news[-1].text, story.news[-1].tone) == ("ada has another state 3", "alarm")


def test_the_end_is_no_departure(story: Story):
    hear(story, events.Stopped(reason="the run is complete"))
    hear(story, events.Stopped(reason="the run is complete"), by="ada")
    hear(story, events.PeerLeft(peer=ADA, name="ada", reason="its connection ended"))
    assert told(story) == []
    assert story.actors["ada"].doing == "done"


def test_the_time_that_is_left(story: Story):
    assert story.seconds_left(now=1000.0) is None
    hear(story, planned(1), training(ADA, round=1, step=1), at=1010.0)
    hear(story, committed(1), at=1020.0)
    assert story.seconds_left(now=1020.0) == pytest.approx(30.0)


# --- on the terminal -----------------------------------------------------------------------------


def rendered(story: Story, *, width: int, height: int) -> Sequence[str]:
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(picture(story, console))
    return captured.get().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 30)])
def test_the_picture_fits_the_terminal_whatever_happens(story: Story, width: int, height: int):
    hear(story, moved(contributions_sent=987_654_321, updates_received=10**9), by="ada")
    hear(story, events.Evaluated(round=RoundId(1), peer=BEN, loss=10.25, text="long " * 50))
    for number in range(1, 40):
        hear(story, committed(number), training(ADA, round=number + 1, step=10 * number + 5))
        hear(story, events.Warned(text="a long line that says what is wrong, " * 5), by="ben")
        lines = rendered(story, width=width, height=height)
        assert any("10.250 held out" in line for line in lines)
        assert len(lines) < height
        assert {len(line) for line in lines} == {min(width, 100)}
    row = r"│ ada +■■■■■·····  5   5\.500     2\.0 k  987\.7 MB    1\.0 GB  training +│"
    assert any(re.fullmatch(row, line) for line in lines)


def test_without_a_terminal_each_piece_of_news_is_one_line(story: Story, capsys):
    with shown(story, Console(force_terminal=False)) as show:
        show()
        hear(story, committed(1))
        show()
        show()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(NAMES) + 1
    assert lines[0] == " 1:05  ada joined, it trains on CPU"
    assert lines[-1] == " 1:05  round 1 of 4 committed: loss 6.000, 2 peers, 5.0 k tokens/s"
