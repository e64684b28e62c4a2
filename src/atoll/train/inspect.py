"""How good a saved state is, found out by a trainer between two of its steps.

    local weights --> aside     saved ones --> the model --> validation loss, sample text
                    local weights --> back, bit for bit

So it takes no second model on the device. With several devices each rank has its share of the
validation samples, and nobody writes a text: that takes the whole model in one place.

Shapes: N values.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from atoll.config import RunConfig
from atoll.data.shards import Dataset
from atoll.data.tokenizer import Tokenizer
from atoll.errors import RunError
from atoll.model.flat import load_flat_
from atoll.model.generate import Sampling, generate
from atoll.model.layout import layout_of
from atoll.model.llama import Llama
from atoll.train.channel import Evaluate, Evaluated
from atoll.train.compiled import uncompiled
from atoll.train.evaluate import validation_loss
from atoll.train.exchanged import spread_
from atoll.train.inner import InnerLoop
from atoll.train.parallel import held
from atoll.train.ranks import Followers

MAX_TEXT = 1000  # characters: what a message takes


def inspect_state(
    loop: InnerLoop, command: Evaluate, dataset: Dataset, *, followers: Followers
) -> Evaluated:
    """Return how good the state of a file is; the loop is then as it was.

    Raises:
        RunError: the file cannot be read, or has another model.
    """
    params_N = _read_together(loop, Path(command.state), followers, command)
    aside = [held(parameter).to("cpu", copy=True) for parameter in loop.model.parameters()]
    try:
        layout = layout_of(loop.config)
        if params_N is not None:
            load_flat_(loop.model, params_N, layout)
        spread_(loop.model, layout, ranks=loop.ranks)
        with uncompiled(loop.model, loop.how.compiler):
            loss = _validation_loss(loop, dataset)
            text = (
                "" if loop.ranks.mesh else sample_text(loop.model, loop.config, dataset.tokenizer)
            )
    finally:
        loop.ranks.let_go_(loop.model)
        _put_back_(loop.model, aside)
    followers.wait_for(Evaluated)
    return Evaluated(loss=loss, text=text)


def _read_together(
    loop: InnerLoop, path: Path, followers: Followers, command: Evaluate
) -> NDArray[np.float32] | None:
    """Return the parameters of the saved state; None: they come from another machine.

    Raises:
        RunError: some rank cannot read it: it may have been removed by now. Then none goes on.
    """
    params_N, problem = None, None
    try:
        params_N = None if loop.ranks.is_copy else read_params(path, loop.config)
    except RunError as error:
        if loop.ranks.leads:
            raise
        problem = error
    followers.tell(command)
    if not loop.ranks.least(int(problem is None)):
        raise problem or RunError(
            f"not every rank can read {path}", hint="a newer one may be there"
        )
    return params_N


def read_params(path: Path, config: RunConfig) -> NDArray[np.float32]:
    """Return the parameters of a saved state.

    Raises:
        RunError: the file cannot be read, or has another model.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            params_N: NDArray[np.float32] = file.get_tensor("params")
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot read {path}: {error}", hint="a newer state may be there") from error
    if params_N.shape != (layout_of(config).num_values,):
        raise RunError(f"{path} has the state of another model")
    return params_N


def sample_text(model: Llama, config: RunConfig, tokenizer: Tokenizer) -> str:
    """Return the prompt of the run, and how the model goes on from it, greedily."""
    wanted = config.evaluation
    if not wanted.sample_tokens:
        return ""
    tokens = generate(
        model,
        [tokenizer.start_token, *tokenizer.encode(wanted.prompt)],
        max_new_tokens=wanted.sample_tokens,
        sampling=Sampling(temperature=0.0),
        stop_token=tokenizer.start_token,
    )
    return (wanted.prompt + tokenizer.decode(tokens))[:MAX_TEXT]


def _validation_loss(loop: InnerLoop, dataset: Dataset) -> float:
    return validation_loss(
        loop.model,
        loop.batches,
        batch_sequences=loop.micro_batch * loop.ranks.num_ranks,
        num_samples=min(loop.config.evaluation.samples, dataset.num_validation_samples),
        bf16=loop.bf16,
        ranks=loop.ranks,
    )


@torch.no_grad()
def _put_back_(model: Llama, aside: list[Tensor]) -> None:
    for parameter, values in zip(model.parameters(), aside, strict=True):
        held(parameter).copy_(values)
