"""The run's sample order: which sample of which source the global index 0, 1, 2, ... stands for.

    index --mixture--> source, rank within it --divmod--> epoch, position --permutation--> sample

Every epoch of every source has its own order. Nothing is stored per sample, so a lease is two
numbers whatever the size of the corpus, and any machine finds any sample in the same time.

Shapes: N indices, P slots of the mixture's pattern, K sources, R rounds of the Feistel network.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import floor

import msgspec
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

PATTERN_SLOTS = 4096  # weights are rounded to so many parts
FEISTEL_ROUNDS = 6


class SampleOrder:
    """The endless order of the training samples of a run."""

    def __init__(self, num_samples: Sequence[int], *, weights: Sequence[float], seed: int) -> None:
        assert all(n > 0 for n in num_samples)
        self._num_samples = tuple(num_samples)
        self._seed = seed
        self._source_P = mixture_pattern(weights, num_slots=PATTERN_SLOTS)
        is_source_PK = self._source_P[:, None] == np.arange(len(num_samples))
        self._earlier_PK = np.cumsum(is_source_PK, axis=0) - is_source_PK
        self._per_pattern_K = is_source_PK.sum(axis=0)

    def locate(self, index_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the source of each index, and the sample within the source."""
        pattern_N, slot_N = np.divmod(index_N, len(self._source_P))
        source_N = self._source_P[slot_N]
        rank_N = pattern_N * self._per_pattern_K[source_N] + self._earlier_PK[slot_N, source_N]
        sample_N = np.empty_like(rank_N)
        for source in np.unique(source_N):
            here_N = source_N == source
            sample_N[here_N] = self._shuffled(int(source), rank_N[here_N])
        return source_N, sample_N

    def _shuffled(self, source: int, rank_N: NDArray[np.int64]) -> NDArray[np.int64]:
        size = self._num_samples[source]
        epoch_N, position_N = np.divmod(rank_N, size)
        return permute(position_N, epoch_N, size=size, key=(self._seed, source))


def permute(
    position_N: NDArray[np.int64],
    epoch_N: NDArray[np.int64],
    *,
    size: int,
    key: tuple[int, ...],
) -> NDArray[np.int64]:
    """Return the images under permutations of 0 ... size - 1, one for each key and epoch.

    A Feistel network permutes the next larger 2^(2b) (Luby and Rackoff, 1988); what lands outside
    goes through it again until it is inside, which keeps it a permutation (cycle walking: Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). It mixes; it is not meant to be secret.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    digest = blake3(msgspec.json.encode(key)).digest(length=8 * FEISTEL_ROUNDS)
    key_R = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    key_RN = _scramble(key_R[:, None] + epoch_N.astype(np.uint64))
    image_N = position_N.astype(np.uint64)
    outside = np.arange(len(image_N))
    while len(outside):
        image_N[outside] = _feistel(image_N[outside], key_RN[:, outside], half_bits=half_bits)
        outside = outside[image_N[outside] >= size]
    return image_N.astype(np.int64)


def _feistel(
    value_N: NDArray[np.uint64], key_RN: NDArray[np.uint64], *, half_bits: int
) -> NDArray[np.uint64]:
    bits = np.uint64(half_bits)
    mask = np.uint64(2**half_bits - 1)
    left_N, right_N = value_N >> bits, value_N & mask
    for key_N in key_RN:
        left_N, right_N = right_N, left_N ^ (_scramble(right_N + key_N) & mask)
    return (left_N << bits) | right_N


def _scramble(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the values mixed by the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def mixture_pattern(weights: Sequence[float], *, num_slots: int) -> NDArray[np.int64]:
    """Return the source of each slot of a pattern that repeats for ever.

    Among the first n indices, whatever n, a source is less than one sample away from its (rounded)
    share; hence less than two in any window. Item k of a source with c of P slots may stand in the
    slots floor(kP/c) to ceil((k+1)P/c) - 1, and each slot goes to the open item whose window ends
    first: then all fit (Baruah et al., "Proportionate Progress", 1996; also Tijdeman's chairman
    assignment problem, 1980).
    """
    counts = _apportion(weights, num_slots=num_slots)
    used = [0] * len(counts)
    pattern = []
    for slot in range(num_slots):
        open_items = [
            (-(-(used[k] + 1) * num_slots // count), k)
            for k, count in enumerate(counts)
            if used[k] < count and used[k] * num_slots // count <= slot
        ]
        _, source = min(open_items)
        used[source] += 1
        pattern.append(source)
    return np.array(pattern, np.int64)


def _apportion(weights: Sequence[float], *, num_slots: int) -> list[int]:
    """Return whole slots for each weight, at least one, in all `num_slots` (largest remainders)."""
    assert 0 < len(weights) <= num_slots
    exact = [Fraction(weight) for weight in weights]  # no sum of floats: the same on all machines
    free_slots = num_slots - len(exact)
    quotas = [weight * free_slots / sum(exact) for weight in exact]
    counts = [1 + floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda k: (floor(quotas[k]) - quotas[k], k))
    for k in by_remainder[: num_slots - sum(counts)]:
        counts[k] += 1
    return counts
