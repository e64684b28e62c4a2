"""A plain PyTorch loop as a peer of a run, on the samples that the run leases to it.

    python examples/plain_loop.py RUN_TOML INVITE FOLDER

The model is atoll's own; one of transformers works as well (see hf_trainer.py).
"""

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

import atoll
from atoll.model.llama import Llama


def main(run_toml: str, invite: str, folder: str) -> None:
    config = atoll.load_run_config(Path(run_toml))
    model = Llama(config.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.inner.lr)
    peer = atoll.PeerConfig(directory=folder, name="plain")
    with atoll.attach(model, optimizer, invite=invite, peer=peer) as replica:
        for batch in replica.batches():
            tokens_BT, targets_BT, documents_BT = map(torch.from_numpy, batch)
            logits_BTV = model(tokens_BT, documents_BT)
            loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.inner.clip_norm)
            optimizer.step()
            replica.step(loss=loss.item())


if __name__ == "__main__":
    main(*sys.argv[1:])
