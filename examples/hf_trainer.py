"""The Trainer of Hugging Face as a peer of a run, on data of its own (`data.own = true`).

    python examples/hf_trainer.py RUN_TOML INVITE FOLDER

The callback is all that it takes. This one's own data are the bytes of this file.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

import atoll
from atoll.model.hf_config import describe


class ExchangeWeights(TrainerCallback):
    """Report each step that is logged (all, with `logging_steps=1`), and merge between two."""

    def __init__(self, replica: atoll.Replica, *, tokens_per_step: int) -> None:
        self.replica = replica
        self.tokens_per_step = tokens_per_step
        self.reported = 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        logs: dict[str, float] = given["logs"]
        if "loss" not in logs:
            return  # the summary at the end
        num_steps, self.reported = state.global_step - self.reported, state.global_step
        tokens = num_steps * self.tokens_per_step
        if not self.replica.step(tokens, loss=logs["loss"]):
            control.should_training_stop = True


def own_data(vocab_size: int, length: int) -> list[dict[str, torch.Tensor]]:
    tokens = torch.tensor(list(Path(__file__).read_bytes())) % vocab_size
    return [{"input_ids": part, "labels": part} for part in tokens.split(length)[:-1]]


def main(run_toml: str, invite: str, folder: str) -> None:
    config = atoll.load_run_config(Path(run_toml))
    batch, length = config.inner.batch_sequences, config.data.sequence_length
    model = LlamaForCausalLM(LlamaConfig(**describe(config.model)))
    arguments = TrainingArguments(
        output_dir=f"{folder}/trainer",
        per_device_train_batch_size=batch,
        dataloader_drop_last=True,
        max_steps=config.total_steps + 1000,  # the run says when it is over
        learning_rate=config.inner.lr,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    peer = atoll.PeerConfig(directory=folder, name="hf")
    with atoll.attach(model, invite=invite, peer=peer) as replica:
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=own_data(config.model.vocab_size, length),
            callbacks=[ExchangeWeights(replica, tokens_per_step=batch * length)],
        )
        trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
