"""Samples as arrays for the model, in the order of the run.

Shapes: B samples, T = sequence_length, S = T + 1 tokens of a sample, K sources.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll.data.order import SampleOrder, permute
from atoll.data.shards import Dataset, Stream


class Batch(NamedTuple):
    """`documents_BT` numbers the documents within each sample: a token sees its own document only.

    The target of a document's last token is the start token of the next document: so a model learns
    where a text ends. Hence every token has a target, and whoever grants a lease knows its tokens.
    """

    tokens_BT: NDArray[np.int64]
    targets_BT: NDArray[np.int64]
    documents_BT: NDArray[np.int64]


class Batches:
    def __init__(self, dataset: Dataset, *, seed: int) -> None:
        self._train = dataset.streams["train"]
        self._validation = dataset.streams["validation"]
        self._num_validation_samples = dataset.num_validation_samples
        self._sequence_length = dataset.sequence_length
        self._start_token = dataset.start_token
        self._order = SampleOrder(dataset.num_samples, weights=dataset.weights, seed=seed)

    def batch(self, start: int, stop: int) -> Batch:
        """Return the samples `start` to `stop - 1` of the run's order, which has no end."""
        source_B, sample_B = self._order.locate(np.arange(start, stop))
        return self._batch(self._train, source_B, sample_B)

    def validation(self, start: int, stop: int) -> Batch:
        """Return the validation samples `start` to `stop - 1`, in one order for all runs.

        It mixes the sources, so that the first few samples stand for all of them.
        """
        size = self._num_validation_samples
        assert 0 <= start <= stop <= size, f"{start} to {stop} of {size}"
        place_B = permute(
            np.arange(start, stop), np.zeros(stop - start, np.int64), size=size, key=()
        )
        stops_K = np.cumsum([stream.num_samples for stream in self._validation])
        source_B = np.searchsorted(stops_K, place_B, side="right")
        starts_K = np.concatenate(([0], stops_K[:-1]))
        return self._batch(self._validation, source_B, place_B - starts_K[source_B])

    def _batch(
        self, streams: list[Stream], source_B: NDArray[np.int64], sample_B: NDArray[np.int64]
    ) -> Batch:
        tokens_BS = np.empty((len(source_B), self._sequence_length + 1), np.int64)
        for source in np.unique(source_B):
            here_B = source_B == source
            tokens_BS[here_B] = streams[source].gather(sample_B[here_B])
        tokens_BT = tokens_BS[:, :-1]
        documents_BT = np.cumsum(tokens_BT == self._start_token, axis=1)
        return Batch(tokens_BT, tokens_BS[:, 1:], documents_BT)
