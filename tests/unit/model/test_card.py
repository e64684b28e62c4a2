from atoll.config import (
    DataConfig,
    InnerConfig,
    RunConfig,
    SourceConfig,
    SyncConfig,
    run_digest,
)
from atoll.model.card import Contributor, Origin, model_card
from atoll.model.presets import PRESETS

CONFIG = RunConfig(
    name="reef",
    model=PRESETS["tiny"],
    data=DataConfig(sources=(SourceConfig(kind="path", name="texts"),)),
    inner=InnerConfig(lr=1e-3, batch_sequences=8),
    sync=SyncConfig(rounds=9, inner_steps=20),
)


def test_it_tells_the_facts_and_thanks_the_busiest_first():
    peers = [Contributor("ben", 1, 1000), Contributor("ada", 2, 3000)]
    card = model_card(CONFIG, Origin("9 of 9", "ab" * 32, peers))
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert run_digest(CONFIG) in card
    assert f"| state | 9 of 9, `{'ab' * 32}` |" in card
    assert card.index("| ada | 2 | 3.0 k | 75.0% |") < card.index("| ben | 1 | 1.0 k | 25.0% |")


def test_without_the_journal_it_names_nobody():
    assert "Who trained it" not in model_card(CONFIG, Origin("9 of 9"))


def test_a_name_cannot_break_out_of_its_cell():
    peers = [Contributor("a|b\n# [x](y)\r\n---", 1, 1)]
    (row,) = [
        line for line in model_card(CONFIG, Origin("1", "", peers)).split("\n") if "a\\|b" in line
    ]
    assert row.startswith("| a\\|b \\# \\[x\\](y) --- | 1 |")
