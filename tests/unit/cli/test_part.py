"""What the owner of a machine is told of its part in a run, event by event."""

from datetime import UTC, datetime

import pytest
from rich.console import Console

from atoll import events
from atoll.cli.demo_config import demo_config
from atoll.cli.part import Part
from atoll.cli.part_view import picture, shown
from atoll.events import Event
from atoll.ids import PeerId, RoundId

ME = PeerId("a" * 32)
CONFIG = demo_config(peers=2, rounds=8)


@pytest.fixture
def part() -> Part:
    part = Part(CONFIG, began_at=1000.0, host="reef.example")
    part.hear(events.Connected(host="reef.example", committed=RoundId(2)), at=1001.0)
    return part


def words(part: Part) -> list[str]:
    return [news.text for news in part.news]


def training(step: int, *, round: int = 3, loss: float = 5.5) -> Event:
    first = (round - 1) * CONFIG.steps_per_round
    return events.Training(
        peer=ME, round=RoundId(round), step=first + step, loss=loss, tokens_per_s=2000.0
    )


def taken(round: int, *, num_tokens: int = 1000) -> Event:
    return events.RoundTaken(
        round=RoundId(round),
        num_contributors=3,
        num_tokens=num_tokens,
        round_tokens=4000 if num_tokens else 0,
        total_tokens=5000 if num_tokens else 0,
    )


def drawn(part: Part, *, width: int, height: int = 24) -> str:
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(picture(part, console))
    return capture.get()


def test_from_the_first_word_to_the_first_round(part: Part):
    assert part.doing == "starting"
    for second, num_bytes in enumerate((0, 10_000_000, 20_000_000, 40_000_000)):
        note = events.Downloading(what="the data", num_bytes=num_bytes, total_bytes=40_000_000)
        part.hear(note, at=1002.0 + second)
        if num_bytes == 20_000_000:
            assert part.doing == "downloading"
            assert part.download.in_words() == "the data: 20.0 MB of 40.0 MB, 10.0 MB/s"
            assert "2.0 s left" in drawn(part, width=80)
    assert (part.doing, part.download) == ("starting", None)
    part.hear(events.TrainerStarted(pid=1, device="RTX 4090"), at=1010.0)
    part.hear(training(4), at=1011.0)
    assert (part.doing, part.round, part.step) == ("training", 3, 4)
    part.hear(events.PhaseTimed(round=RoundId(3), phase="snapshot", seconds=0.1), at=1012.0)
    assert part.doing == "exchanging"
    part.hear(taken(3), at=1013.0)
    assert (part.doing, part.share, part.total_tokens) == ("waiting for a round", 0.25, 5000)
    assert words(part) == [
        "connected to reef.example: 2 of 8 rounds are done",
        "downloading the data: 0 B of 40.0 MB",
        "downloaded the data: 40.0 MB in 3.0 s",
        "ready to train on RTX 4090",
        "round 3 of 8: loss 5.500, your share 25%, 5.0 k tokens so far",
    ]


def test_a_step_that_is_told_twice_is_no_news(part: Part):
    part.hear(training(4), at=1010.0)
    part.hear(events.PhaseTimed(round=RoundId(3), phase="snapshot", seconds=0.1), at=1011.0)
    part.hear(training(4), at=1012.0)
    assert part.doing == "exchanging"


def test_in_a_long_round_there_is_a_line_each_minute(part: Part):
    part.hear(taken(2), at=1000.0)
    for step in range(6):
        part.hear(training(step), at=1000.0 + 25 * step)
    lines = [text for text in words(part) if "step" in text]
    assert lines == ["round 3: step 3 of 10, loss 5.500, 2.0 k tokens/s"]


def test_work_that_a_round_lacks_is_not_lost(part: Part):
    part.hear(events.TrainerStarted(pid=1, device="CPU"), at=1002.0)
    for round_id in (1, 2, 3):
        part.hear(taken(round_id, num_tokens=0), at=1003.0)
    assert words(part)[-2] == "caught up with the rounds before"
    assert words(part)[-1] == "round 3 of 8: your work comes into a later one"


def test_a_warning_says_what_to_do_and_is_shown_whole(part: Part):
    part.hear(events.Disconnected(reason="reef.example:7 does not answer in time"), at=1020.0)
    assert part.is_cut_off
    assert "does not answer: trying again" in drawn(part, width=80)
    whole = " ".join(drawn(part, width=80).replace("│", " ").split())
    assert "check this machine's line if it lasts" in whole
    part.hear(events.Warned(text="the disk is slow", hint="nothing to do"), at=1021.0)
    assert words(part)[-1] == "the disk is slow; nothing to do"
    part.hear(events.Connected(host="reef.example", committed=RoundId(2)), at=1022.0)
    assert not part.is_cut_off


def test_a_pause_and_its_end(part: Part):
    part.hear(training(4), at=1010.0)
    part.hear(events.PeerRests(peer=ME, name="anna", rests=True), at=1011.0)
    part.hear(training(5), at=1011.5)  # the step that was under way
    assert (part.doing, part.tokens_per_s) == ("paused", 0.0)
    assert "go on with: atoll resume" in drawn(part, width=80)
    part.hear(events.PhaseTimed(round=RoundId(3), phase="snapshot", seconds=0.1), at=1011.6)
    part.hear(taken(3, num_tokens=0), at=1011.7)  # rounds go on, also those with work of before
    assert (part.doing, words(part)[-1]) == ("paused", "round 3 of 8: the others' work")
    part.hear(events.PeerRests(peer=ME, name="anna", rests=False), at=1012.0)
    assert part.doing == "waiting for a round"


def test_a_machine_that_is_missing_is_named_and_waited_for(part: Part):
    part.hear(events.MachineLost(name="emil", reason="its line has ended"), at=1010.0)
    why = "machines of this peer that are missing: 1"
    part.hear(events.PeerRests(peer=ME, name="anna", rests=True, why=why), at=1010.0)
    part.hear(events.MachineCame(name="emil", num_missing=0), at=1020.0)
    assert words(part)[-3:] == [
        "machine emil of this peer is gone: its line has ended",
        f"it follows the run, and waits for {why}",
        "machine emil of this peer is there",
    ]


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("height", [12, 24, 60])
def test_the_picture_fits_the_terminal(part: Part, width, height):
    for round_id in range(3, 8):
        part.hear(training(9, round=round_id, loss=6.0 - round_id / 8), at=1000.0 + round_id)
        part.hear(taken(round_id), at=1000.5 + round_id)
    lines = drawn(part, width=width, height=height).rstrip("\n").splitlines()
    assert max(map(len, lines)) <= min(width, 110)
    assert len(lines) <= max(height, 15)


def test_plain_lines_have_their_time_and_come_once(part: Part, capsys):
    console = Console(force_terminal=False, width=80)
    with shown(part, console) as show:
        show()
        show()
    (line,) = capsys.readouterr().out.splitlines()
    day = datetime.fromtimestamp(1001.0, tz=UTC).astimezone()
    assert line == f"{day:%Y-%m-%d %H:%M:%S}  connected to reef.example: 2 of 8 rounds are done"


def test_a_download_that_the_rounds_have_overtaken_is_not_shown(part: Part):
    part.hear(events.Downloading(what="the model", num_bytes=8, total_bytes=10), at=1005.0)
    assert "8 B of 10 B" in drawn(part, width=80)
    part.hear(taken(3), at=1006.0)
    assert part.download is None
