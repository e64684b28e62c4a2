"""Steps of a model that two processes share, for `test_ranks`: this module is the second of them.

    python -m tests.numerics.ranked STORE DATASET

Both call `answers`; what comes back on rank 0 is compared with one rank's.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from msgspec.structs import replace as changed
from numpy.typing import NDArray
from tests.numerics.diloco import CONFIG

from atoll.config import Recompute, RunConfig
from atoll.data.batches import Batches
from atoll.data.shards import Dataset
from atoll.model.flat import load_flat_, store_flat_, views
from atoll.model.initial import fill_initial_
from atoll.model.layout import layout_of
from atoll.train.channel import Seat
from atoll.train.device import Precision
from atoll.train.inner import Computing, InnerLoop
from atoll.train.optim import copy_moments, give_moments_
from atoll.train.parallel import ALONE, Ranks, join, mesh_of, whole
from atoll.train.recompute import recompute_
from atoll.train.trainer import build

CPU = torch.device("cpu")
# Odd sizes: ranks get shares of 4 and 3 of 7 rows, and 3 and 2 of the 5 key-value rows of a head.
ODD = changed(
    CONFIG,
    model=changed(
        CONFIG.model, vocab_size=301, width=60, num_heads=6, num_kv_heads=3, ffn_width=77
    ),
    inner=changed(CONFIG.inner, batch_sequences=7),
    sync=changed(CONFIG.sync, fragments=2, inner_steps=4),
)
# Two matrices of a layer gain by products in 8 bits; all sides are multiples of 16, as these need.
FP8 = changed(ODD, model=changed(ODD.model, width=64, num_heads=4, num_kv_heads=2, ffn_width=1040))
MUON = changed(ODD, inner=changed(ODD.inner, optimizer="muon"))


class Case(NamedTuple):
    config: RunConfig = ODD
    how: Computing = Computing()
    precision: Precision = "fp32"
    recompute: Recompute = "nothing"
    num_steps: int = 1


CASES = {
    "plain": Case(),
    "micro-batches": Case(how=Computing(micro_batch=3)),
    "micro-batches, reduced once": Case(how=Computing(micro_batch=1, accumulate="whole")),
    "selective": Case(recompute="selective"),
    "layers": Case(how=Computing(micro_batch=2), recompute="layers"),
    "compiled": Case(how=Computing(compiler="aot_eager"), recompute="layers"),
    "muon": Case(config=MUON, num_steps=2),
    "bf16": Case(precision="bf16", how=Computing(bf16=True)),
    "fp8": Case(FP8, Computing(micro_batch=2, bf16=True), "fp8", recompute="selective"),
    "fp8's model in bf16": Case(FP8, Computing(bf16=True), "bf16"),
    "four steps": Case(num_steps=4),
}


COPIED = ("micro-batches", "muon", "bf16", "four steps")


class Answer(NamedTuple):
    losses: list[float]
    gradient_N: NDArray[np.float32]  # of the last step; in the order of the model
    weights_N: NDArray[np.float32]  # what this rank holds of them; zeros elsewhere
    moments: dict[str, NDArray[np.float32]]


def answers(dataset: Dataset, ranks: Ranks = ALONE) -> dict[str, Answer]:
    torch.set_num_threads(1)
    return {name: answer(case, dataset, ranks) for name, case in CASES.items()}


def copied_answers(dataset: Dataset, ranks: Ranks) -> dict[str, Answer]:
    """Return what two ranks find that are on a machine each, with a copy of the model."""
    seat = Seat(rank=ranks.rank, num_ranks=2, store="", num_machines=2)
    apart = Ranks(ranks.rank, 2, mesh_of(seat, "cpu"))
    return {name: answer(CASES[name], dataset, apart) for name in COPIED}


def answer(case: Case, dataset: Dataset, ranks: Ranks) -> Answer:
    config, layout = case.config, layout_of(case.config)
    weights_N = np.zeros(layout.num_values, np.float32)
    fill_initial_(weights_N, layout, seed=config.seed)
    compiler = case.how.compiler
    model = build(config.model, CPU, ranks=ranks, precision=case.precision, compiler=compiler)
    recompute_(model, case.recompute)
    if ranks.is_copy:
        weights_N[:] = np.nan
    load_flat_(model, weights_N, layout)
    ranks.spread_(view for view, _ in views(model, layout, start=0, stop=layout.num_values))
    batches = Batches(dataset, seed=config.seed)
    loop = InnerLoop(model, batches, config, how=case.how, ranks=ranks)
    size = config.inner.batch_sequences
    losses = [
        loop.step([(step * size, (step + 1) * size)], step=step).loss
        for step in range(case.num_steps)
    ]
    gradients = [whole(p.grad) for p in model.parameters()]
    assert all(p.dtype == torch.float32 for p in (*model.parameters(), *gradients))
    moments = copy_moments(loop.optimizer, model=model)
    # What rank 0 has of the moments comes back to all.
    given = moments if ranks.leads else {}
    give_moments_(loop.optimizer, given, num_steps=case.num_steps, model=model)
    again = copy_moments(loop.optimizer, model=model)
    assert {n: m.tobytes() for n, m in moments.items()} == {
        n: m.tobytes() for n, m in again.items()
    }
    weights_N[:] = 0
    store_flat_(model, weights_N, layout)
    return Answer(losses, torch.cat([g.flatten() for g in gradients]).numpy(), weights_N, moments)


def main(store: str, folder: str) -> None:
    ranks = join(Seat(rank=1, num_ranks=2, store=store), CPU)
    found = answers(Dataset.open(Path(folder)), ranks)
    weights = {name: answer.weights_N for name, answer in found.items()}
    copies = copied_answers(Dataset.open(Path(folder)), ranks)
    weights |= {f"copy of {name}": answer.weights_N for name, answer in copies.items()}
    out = Path(store).with_suffix(".npz")
    np.savez(out.with_suffix(".partial.npz"), **weights)
    out.with_suffix(".partial.npz").rename(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
