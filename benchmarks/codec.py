"""How fast each codec is, next to a plain copy of as many bytes, and how much it gets wrong.

    python benchmarks/codec.py --values 131072 --values 1048576

Prints one line of JSON for each codec, operation and size, on one thread, best of many tries:
`ns_per_value`, and `ratio`: to `np.copyto`, tried in turn with it, of as many bytes as the
operation has to read and write. Then one line for each codec: bits per value, and the relative L2
error of one encoding of 4 M values, `gaussian` and `student_t` (2 degrees of freedom).
"""

import argparse
import json
from collections.abc import Callable, Iterator

import numpy as np

from atoll.clock import monotonic_s
from atoll.exchange.codec import CODECS, Codec

TRIES = 20
BATCH_S = 0.002  # one try repeats the operation for so long
NUM_ERROR_VALUES = 4_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codec", action="append", choices=CODECS)
    parser.add_argument("--values", type=int, action="append")
    options = parser.parse_args()
    names = options.codec or list(CODECS)
    for name in names:
        for num_values in options.values or [131_072, 1_048_576]:
            for operation, run, touched in operations(CODECS[name], num_values):
                taken_s, copy_s = side_by_side(run, copy_of(touched))
                print_line(
                    codec=name,
                    operation=operation,
                    num_values=num_values,
                    ns_per_value=round(taken_s / num_values * 1e9, 4),
                    ratio=round(taken_s / copy_s, 2),
                )
    for name in names:
        rng = np.random.default_rng(0)
        gaussian, student_t = (
            rng.standard_normal(NUM_ERROR_VALUES),
            rng.standard_t(2, NUM_ERROR_VALUES),
        )
        print_line(
            codec=name,
            bits_per_value=CODECS[name].encoded_bytes(2**20) * 8 / 2**20,
            gaussian=relative_error(CODECS[name], gaussian),
            student_t=relative_error(CODECS[name], student_t),
        )


def operations(codec: Codec, num_values: int) -> Iterator[tuple[str, Callable[[], object], int]]:
    """Yield (name, what to run, bytes that it has to read and write)."""
    rng = np.random.default_rng(0)
    global_N, local_N, residual_N = rng.standard_normal((3, num_values)).astype(np.float32)
    total_N = rng.standard_normal(num_values)
    payload = codec.encode_difference(global_N, local_N)
    num_bytes = len(payload)
    pair = 8 * num_values
    yield "encode_difference", lambda: codec.encode_difference(global_N, local_N), pair + num_bytes
    if codec.FEEDBACK is not None:
        yield (
            "encode_difference with residual",
            lambda: codec.encode_difference(global_N, local_N, residual_N),
            pair + 4 * num_values + num_bytes,
        )
        yield (
            "leave_",
            lambda: codec.leave_(residual_N, payload, global_N=global_N, local_N=local_N),
            pair + 8 * num_values + num_bytes,
        )
    yield "encode", lambda: codec.encode(total_N), 8 * num_values + num_bytes
    yield "check", lambda: codec.check(payload, num_values), num_bytes
    yield (
        "accumulate_",
        lambda: codec.accumulate_(total_N, payload, share=0.25),
        16 * num_values + num_bytes,
    )


def copy_of(touched: int) -> Callable[[], object]:
    source, target = np.ones((2, touched), np.uint8)
    return lambda: np.copyto(target, source)


def side_by_side(*runs: Callable[[], object]) -> list[float]:
    """Return the least seconds that each took, all of them tried in turn."""
    repeats = [max(1, int(BATCH_S / seconds_of(run, 1))) for run in runs]
    tries = [
        [seconds_of(run, times) / times for run, times in zip(runs, repeats, strict=True)]
        for _ in range(TRIES)
    ]
    return [min(taken) for taken in zip(*tries, strict=True)]


def seconds_of(run: Callable[[], object], times: int) -> float:
    start = monotonic_s()
    for _ in range(times):
        run()
    return monotonic_s() - start


def relative_error(codec: Codec, x_N: np.ndarray) -> float:
    decoded_N = codec.decode(codec.encode(x_N), len(x_N))
    return round(float(np.linalg.norm(decoded_N - x_N) / np.linalg.norm(x_N)), 6)


def print_line(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    main()
