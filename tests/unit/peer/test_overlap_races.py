"""Commits that come at a bad moment: while a snapshot is taken, or while the line is broken."""

from tests.unit.peer.scripted import ScriptedTrainer
from tests.unit.peer.test_overlap import (
    a_run,
    check_model,
    ended,
    in_all_ways,
    run,
    scripted,  # noqa: F401 - a fixture of all tests here
    until,
)

from atoll.net import records


@in_all_ways
def test_a_commit_that_comes_while_the_snapshot_is_taken_leaves_nothing_of_it(
    tmp_path, config, monkeypatch
):
    taken = ScriptedTrainer.snapshot
    serving_now = []

    async def late(self, start, stop):
        if self.name == "carl" and serving_now:
            serving = serving_now.pop()
            while not serving.recorded(records.Committed):
                await self._lives_through(0.5)
            await self._lives_through(0.5)
        return await taken(self, start, stop)

    monkeypatch.setattr(ScriptedTrainer, "snapshot", late)

    async def main():
        async with a_run(tmp_path, config, "anna", "ben", "carl") as scene:
            serving_now.append(scene[0])
            await ended(*scene)
            check_model(*scene[:2])

    run(main())


@in_all_ways
def test_a_line_that_breaks_just_as_ones_own_work_is_committed_costs_no_work(
    tmp_path, config, monkeypatch
):
    async def main():
        async with a_run(tmp_path, config, "anna", "ben") as scene:
            serving, _, peers = scene
            anna = peers["anna"].peer
            sending, cut = serving.host._send_commit, []

            def send(peer, round_id):
                if peer == anna and not cut:
                    session = serving.host._sessions[peer]
                    cut.append(session)
                    session.connection.cut()
                    session.ended.set()
                else:
                    sending(peer, round_id)

            monkeypatch.setattr(serving.host, "_send_commit", send)
            await until(lambda: cut)
            trained = ScriptedTrainer.alive["anna"].trained
            await ended(*scene)
            check_model(*scene[:2])
            assert len(trained) == len(set(trained)), "it did some work twice"

    run(main())
