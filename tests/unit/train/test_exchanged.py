"""Merges go in pieces: small parameters together, large ones in parts; so do snapshots of a GPU."""

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from atoll.model.flat import load_flat_, store_flat_
from atoll.model.layout import layout_of
from atoll.model.llama import Llama
from atoll.train import exchanged
from atoll.train.channel import How, Merge
from atoll.train.exchanged import merge_
from atoll.train.shared import SharedVectors


def merged(config, how: How):
    layout = layout_of(config)
    vectors = SharedVectors.private(Path(), layout.num_values)
    chance = np.random.default_rng(0)
    local_N = chance.normal(size=layout.num_values).astype(np.float32)
    vectors.global_N[:] = chance.normal(size=layout.num_values)
    vectors.snapshot_N[:] = chance.normal(size=layout.num_values)
    model = Llama(config.model)
    load_flat_(model, local_N, layout)
    part = {"start": 100, "stop": layout.num_values - 77}
    merge_(model, layout, vectors=vectors, merge=Merge(how=how, alpha=0.25, **part))
    store_flat_(model, local_N, layout)
    return local_N


@pytest.mark.parametrize("how", ["replace", "carry", "blend"])
@pytest.mark.parametrize("fragments", [1, 2])
@pytest.mark.parametrize("run_values", [97, 1000])  # less and more than most parameters have
def test_how_large_the_pieces_are_changes_nothing(config, monkeypatch, how, fragments, run_values):
    config = replace(config, sync=replace(config.sync, fragments=fragments, inner_steps=6))
    at_once_N = merged(config, how)
    monkeypatch.setattr(exchanged, "RUN_VALUES", run_values)
    assert np.array_equal(merged(config, how), at_once_N)


def test_no_piece_is_larger_and_none_is_missing(config, monkeypatch):
    layout = layout_of(config)
    views = list(exchanged.views(Llama(config.model), layout, start=5, stop=layout.num_values))
    monkeypatch.setattr(exchanged, "RUN_VALUES", 1000)
    places = []
    for run in exchanged._runs(views):
        sizes = [len(view_V) for view_V, _ in run]
        assert sum(sizes) <= 1000
        assert sizes == [place.stop - place.start for _, place in run]
        places += [place for _, place in run]
    edges = [5, *(place.stop for place in places)]
    assert edges == [*(place.start for place in places), layout.num_values]
    assert len(places) > len(views) > len(list(exchanged._runs(views))) // 2
