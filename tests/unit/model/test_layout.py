import msgspec
import numpy as np
import pytest

from atoll.config import ModelConfig
from atoll.model.layout import Entry, in_layout_, in_model_order, lay_out
from atoll.model.presets import PRESETS
from atoll.model.shapes import num_parameters, parameter_specs

CONFIG = ModelConfig(
    vocab_size=16, num_layers=4, width=8, num_heads=2, num_kv_heads=1, ffn_width=12
)
patterns = pytest.mark.parametrize("pattern", ["strided", "sequential"])


@pytest.mark.parametrize("name", PRESETS)
def test_with_one_fragment_parameters_lie_one_after_the_other(name):
    layout = lay_out(PRESETS[name])
    assert [entry.spec for entry in layout.entries] == list(parameter_specs(PRESETS[name]))
    assert all(entry.row_stop - entry.row_start == entry.spec.num_rows for entry in layout.entries)
    (fragment,) = layout.fragments
    assert (fragment.index, fragment.start, fragment.stop) == (0, 0, num_parameters(PRESETS[name]))


@patterns
@pytest.mark.parametrize("num_fragments", [1, 2, 3, 4])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("preset", [CONFIG, *PRESETS.values()], ids=["test", *PRESETS])
def test_every_row_is_in_one_fragment_and_nothing_lies_between(
    preset, tied, num_fragments, pattern
):
    config = msgspec.structs.replace(preset, tied_embeddings=tied)
    layout = lay_out(config, num_fragments, pattern)
    entries, fragments = layout.entries, layout.fragments
    assert [0, *(e.stop for e in entries)] == [*(e.start for e in entries), layout.num_values]
    assert [0, *(f.stop for f in fragments)] == [*(f.start for f in fragments), layout.num_values]
    assert layout.num_values == num_parameters(config)
    next_row = dict.fromkeys(range(len(parameter_specs(config))), 0)
    for entry in entries:
        assert entry.row_start == next_row[entry.index], "rows of a parameter come in order"
        next_row[entry.index] = entry.row_stop
    assert list(next_row.values()) == [spec.num_rows for spec in parameter_specs(config)]
    borders = {fragment.start for fragment in fragments}
    assert borders <= {entry.start for entry in entries}, "a fragment ends with an entry"


@patterns
@pytest.mark.parametrize("num_fragments", [2, 3, 4])
@pytest.mark.parametrize("name", PRESETS)
def test_fragments_are_of_nearly_one_size(name, num_fragments, pattern):
    sizes = [f.stop - f.start for f in lay_out(PRESETS[name], num_fragments, pattern).fragments]
    assert max(sizes) <= 1.001 * min(sizes)


def layers_of(num_fragments, pattern):
    layout = lay_out(PRESETS["small"], num_fragments, pattern)
    return [
        sorted({e.spec.layer for e in layout.entries if f.start <= e.start < f.stop} - {None})
        for f in layout.fragments
    ]


def test_blocks_are_dealt_one_by_one_or_in_runs():
    assert layers_of(3, "strided") == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert layers_of(3, "sequential") == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_a_layout_does_not_change():
    # A change here is another protocol: peers of one run must lay out alike.
    layout = lay_out(PRESETS["tiny"], 3)
    embedding, *_, norm = parameter_specs(PRESETS["tiny"])
    shared = [entry for entry in layout.entries if entry.spec.layer is None]
    assert shared == [
        Entry(embedding, 0, 0, 340, 0),
        Entry(norm, 37, 0, 10, 437_248),
        Entry(embedding, 0, 340, 2218, 437_258),
        Entry(norm, 37, 10, 69, 874_506),
        Entry(embedding, 0, 2218, 4096, 874_565),
        Entry(norm, 37, 69, 128, 1_311_813),
    ]


def test_in_the_order_of_the_model_it_is_the_layout_of_one_fragment():
    layout = lay_out(CONFIG, 2)
    flat_N = np.zeros(layout.num_values, np.float32)
    for entry in layout.entries:
        flat_N[entry.start : entry.stop] = 1000 * entry.index + entry.row_start
    ordered_N = in_model_order(flat_N, layout)
    assert np.array_equal(ordered_N, np.sort(flat_N))
    in_layout_(ordered_N, layout)
    assert np.array_equal(ordered_N, flat_N), "there and back"
    assert in_model_order(flat_N, lay_out(CONFIG)) is flat_N


def test_more_fragments_than_layers_are_a_bug():
    with pytest.raises(AssertionError, match="at least"):
        lay_out(CONFIG, 5)
