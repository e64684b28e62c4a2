import pytest
import torch
from hypothesis import given, settings, strategies as st
from msgspec.structs import replace

from atoll.config import RunConfig
from atoll.errors import ConfigError
from atoll.model.memory import CPU_CHUNK_LOGITS, Training, largest_micro_batch, trainer_bytes
from atoll.train.fit import (
    USABLE,
    MicroBatchFile,
    available_in,
    choose_micro_batch,
    free_memory,
    left_in,
)

ALL = Training(micro_batch=0, bf16=False, chunk_logits=CPU_CHUNK_LOGITS)


def needed(config: RunConfig, micro_batch: int, how: Training = ALL) -> int:
    """Return how much has to be free for so many samples at once."""
    total = trainer_bytes(config, how._replace(micro_batch=micro_batch)).total
    return int(total / USABLE) + 1


@settings(deadline=None, max_examples=50)
@given(free_bytes=st.integers(0, 10**7), batch=st.integers(1, 40))
def test_it_takes_the_most_that_fit(config, free_bytes, batch):
    config = replace(config, inner=replace(config.inner, batch_sequences=batch))
    room_bytes = round(USABLE * free_bytes)
    fits = largest_micro_batch(config, ALL, most=batch, room_bytes=room_bytes)
    each = [trainer_bytes(config, ALL._replace(micro_batch=n)).total for n in range(1, batch + 1)]
    assert fits == sum(total <= room_bytes for total in each)
    if fits:
        assert choose_micro_batch(config, ALL, free_bytes=free_bytes) == fits
    else:
        with pytest.raises(ConfigError, match="this run does not fit"):
            choose_micro_batch(config, ALL, free_bytes=free_bytes)


def test_several_devices_share_the_batch(config):
    assert choose_micro_batch(config, ALL._replace(devices=2), free_bytes=10**9) == 2
    assert choose_micro_batch(config, ALL._replace(devices=3), free_bytes=None) == 2


def test_what_was_chosen_before_stays_while_it_fits(config):
    assert choose_micro_batch(config, ALL, free_bytes=10**9, remembered=3) == 3
    assert choose_micro_batch(config, ALL, free_bytes=needed(config, 2), remembered=3) == 2
    assert choose_micro_batch(config, ALL, free_bytes=None, remembered=3) == 3


def test_what_the_user_wants_is_taken_or_refused(config):
    wanted = ALL._replace(micro_batch=4)
    assert choose_micro_batch(config, wanted, free_bytes=needed(config, 4)) == 4
    assert choose_micro_batch(config, wanted, free_bytes=None, remembered=2) == 4
    with pytest.raises(ConfigError, match="with 4 samples of 16 tokens at once") as caught:
        choose_micro_batch(config, wanted, free_bytes=needed(config, 3))
    assert caught.value.hint == "--micro-batch 3 fits"


def test_a_refusal_proposes_the_least_change_that_would_fit(config):
    deep = replace(config, model=replace(config.model, num_layers=12))
    recomputing = ALL._replace(recomputes=True)
    with pytest.raises(ConfigError) as caught:
        choose_micro_batch(deep, ALL, free_bytes=needed(deep, 1, recomputing))
    assert caught.value.hint == 'it would fit with recompute = "layers", micro_batch = 1'
    with pytest.raises(ConfigError) as caught:
        choose_micro_batch(deep, ALL, free_bytes=needed(deep, 1, ALL._replace(devices=4)))
    assert "devices = " in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        choose_micro_batch(deep, ALL, free_bytes=1000)
    assert "smaller model" in caught.value.hint


def test_a_file_remembers_the_choice_for_its_setting_alone(config, tmp_path):
    ours = MicroBatchFile(str(tmp_path), config, ALL, device="CPU")
    assert ours.read() == 0
    ours.write(6)
    assert MicroBatchFile(str(tmp_path), config, ALL, device="CPU").read() == 6
    assert MicroBatchFile(str(tmp_path), config, ALL, device="H100").read() == 0
    other = replace(config, data=replace(config.data, sequence_length=17))
    assert MicroBatchFile(str(tmp_path), other, ALL, device="CPU").read() == 0
    assert [ours.halve(), ours.halve(), ours.halve()] == [3, 1, 0]
    assert ours.read() == 1
    next(tmp_path.iterdir()).write_bytes(b"\xff")
    assert ours.read() == 0


def test_without_a_directory_nothing_is_remembered(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nowhere = MicroBatchFile("", config, ALL, device="CPU")
    nowhere.write(6)
    assert nowhere.read() == 0
    assert list(tmp_path.iterdir()) == []


def test_free_memory_of_a_machine_and_of_a_container(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8 kB\n")
    assert available_in(tmp_path / "meminfo") == 8192
    assert available_in(tmp_path / "nothing") is None
    assert left_in(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 250\n")
    assert left_in(tmp_path) == 550
    (tmp_path / "memory.max").write_text("max\n")
    assert left_in(tmp_path) is None
    free = free_memory(torch.device("cpu"))
    assert free is None or free > 0
