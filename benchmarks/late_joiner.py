"""What the moments of another peer save one that joins late: real inner loop, text and exchange.

    python benchmarks/late_joiner.py --rounds 20 --seeds 0 1 2

Three peers train together for some rounds. Then the third is replaced by one that has the
state and

    own      its own moments, as if it had been there all the time
    donor    the moments of the first peer
    fresh    none: it warms up over `fresh_warmup_steps`
    rough    none, and no warm-up

Prints a line of JSON for each seed and start. `losses`: the third peer's training loss in each
inner step of its first round, on the same samples. `validation`: that of the states after its
first rounds.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import torch
from losses import DEMO, VALIDATION_SAMPLES, run_config
from replicas import CPU, Replica, peer_id, reduce, shares_of, steps_of

from atoll.cli.places import cache_directory
from atoll.config import RunConfig
from atoll.data.batches import Batches
from atoll.data.prepare import prepare
from atoll.data.shards import Dataset
from atoll.exchange.codec import CODECS
from atoll.exchange.step import apply_updates_
from atoll.ids import RoundId
from atoll.model.flat import load_flat_
from atoll.model.initial import fill_initial_
from atoll.model.layout import layout_of
from atoll.outer.state import PeerState
from atoll.train.baseline import initial_model
from atoll.train.evaluate import validation_loss
from atoll.train.optim import copy_moments, load_optimizer_, save_optimizer

STARTS = ("own", "donor", "fresh", "rough")
PEERS = 3
ROUNDS_AFTER = 3
H = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="before the third peer is replaced")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        config = run_config("int8", rounds=2 * arguments.rounds, inner_steps=H, seed=seed)
        dataset = prepare(
            config,
            base_directory=DEMO.parent,
            directory=cache_directory(),
            on_progress=lambda *_: None,
        )
        run = Run(config, dataset)
        for _ in range(arguments.rounds):
            run.round()
        for start in STARTS:
            losses, validation = run.continued(start)
            line = {"seed": seed, "start": start, "losses": losses, "validation": validation}
            print(json.dumps(line), flush=True)


class Run:
    """Three peers, and the state that they share."""

    def __init__(self, config: RunConfig, dataset: Dataset) -> None:
        self.config = config
        self.dataset = dataset
        self.layout = layout_of(config)
        self.batches = Batches(dataset, seed=config.seed)
        self.state = PeerState.initial(np.empty(self.layout.num_values, np.float32))
        fill_initial_(self.state.params_N, self.layout, seed=config.seed)
        self.peers = [self._peer(config, place) for place in range(PEERS)]

    def _peer(self, config: RunConfig, place: int) -> Replica:
        return Replica(config, self.batches, steps_of(config, place=place, num_peers=PEERS))

    def round(self) -> list[float]:
        """Do one round; return the losses of the third peer's inner steps."""
        round_id = RoundId(self.state.round + 1)
        fragment = self.layout.fragment_of(round_id)
        losses: list[float] = []
        for peer in self.peers:
            losses = peer.train(upto=H * round_id)
            peer.snapshot(fragment)
        contributions = {
            peer_id(place): peer.contribution(self.state) for place, peer in enumerate(self.peers)
        }
        tokens_per_peer = self.config.samples_per_round * self.config.data.sequence_length
        num_tokens = dict.fromkeys(contributions, tokens_per_peer)
        share = shares_of(contributions, num_tokens, self.config, round_id)
        apply_updates_(
            self.state,
            reduce(contributions, share, self.config, round_id),
            codec=CODECS[self.config.sync.update_codec],
            outer=self.config.outer,
            layout=self.layout,
        )
        for peer in self.peers:
            peer.take_over(self.state, fragment)
        return losses

    def continued(self, start: str) -> tuple[list[float], list[float]]:
        """Return losses of a copy of this run in which the third peer starts like that."""
        copy = Run(self.config, self.dataset)
        copy.state = PeerState(
            self.state.round, self.state.params_N.copy(), self.state.momentum_N.copy()
        )
        donors = [0, 1, {"own": 2, "donor": 0}.get(start)]
        for place, donor in enumerate(donors):
            config = self.config
            if start == "rough" and donor is None:
                inner = msgspec.structs.replace(config.inner, fresh_warmup_steps=0)
                config = msgspec.structs.replace(config, inner=inner)
            peer = copy.peers[place] = copy._peer(config, place)
            load_flat_(peer.loop.model, copy.state.params_N, self.layout)
            peer.skip(upto=H * self.state.round)
            if donor is not None:
                hand_over(self.peers[donor], peer)
        losses = copy.round()
        validation = [copy.validation()]
        for _ in range(ROUNDS_AFTER - 1):
            copy.round()
            validation.append(copy.validation())
        return [round(loss, 4) for loss in losses], validation

    def validation(self) -> float:
        model = initial_model(self.config, device=CPU)
        load_flat_(model, self.state.params_N, self.layout)
        loss = validation_loss(
            model, self.batches, batch_sequences=8, num_samples=VALIDATION_SAMPLES
        )
        return round(loss, 4)


def hand_over(donor: Replica, peer: Replica) -> None:
    """Give the peer the donor's moments, by the file in which they travel."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "inner"
        moments = copy_moments(donor.loop.optimizer, model=donor.loop.model)
        save_optimizer(path, moments, num_steps=donor.loop.steps_since_fresh)
        loop = peer.loop
        loop.steps_since_fresh = load_optimizer_(path, loop.optimizer, model=loop.model)


if __name__ == "__main__":
    main()
