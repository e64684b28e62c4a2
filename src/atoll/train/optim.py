"""AdamW, and its state to the disk and back (see `moments`).

Adam's moments are worth keeping: a fresh state has to warm up again (see `schedule`). The weights
are not in the file; the agent has them.
"""

from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import nn

from atoll.config import InnerConfig
from atoll.durable import publish, sync
from atoll.errors import RunError
from atoll.train.moments import MOMENTS, Tensors, damaged, digest_of_moments, read_moments


def make_optimizer(model: nn.Module, config: InnerConfig) -> torch.optim.AdamW:
    """Return an AdamW with a fresh state; its learning rate is set anew at every step.

    Matrices decay, the embedding among them: where it is tied it is the output matrix as well, and
    decay bounds the logits. The gains of norms do not: their natural value is one, not zero.
    """
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,  # one pass over the weights, on CPUs too
    )


def copy_moments(optimizer: torch.optim.AdamW, *, model: nn.Module) -> Tensors:
    """Return a copy of the state, to be saved while the next steps are taken."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment].to("cpu", copy=True).numpy()
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for moment in MOMENTS
    }


def save_optimizer(path: Path, moments: Tensors, *, num_steps: int) -> None:
    """Write the state after `num_steps` steps: the whole file, or none (an older one then stays).

    Raises:
        RunError: it cannot be written.
    """
    metadata = {"num_steps": str(num_steps), "digest": digest_of_moments(moments, num_steps)}
    beside = path.with_name(path.name + ".partial")
    try:
        save_file(moments, beside, metadata=metadata)
        sync(beside)
        publish(beside, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise RunError(
            f"the optimizer's state cannot be written: {path}: {error}",
            hint="is the disk full, or the directory read-only?",
        ) from error


def load_optimizer_(path: Path, optimizer: torch.optim.AdamW, *, model: nn.Module) -> int:
    """Give the optimizer the state in the file, and return after how many steps it was saved.

    Raises:
        DamagedError: the file is not what `save_optimizer` wrote for such a model. The optimizer is
            as it was before.
    """
    tensors, num_steps = read_moments(path)
    parameters = dict(model.named_parameters())
    expected = {f"{m}.{name}": tuple(p.shape) for name, p in parameters.items() for m in MOMENTS}
    if num_steps > 0 and {name: t.shape for name, t in tensors.items()} != expected:
        raise damaged(path, "it belongs to another model")
    optimizer.state.clear()
    if num_steps == 0:
        return 0
    for name, parameter in parameters.items():
        moments = {
            m: torch.from_numpy(tensors[f"{m}.{name}"]).to(parameter.device) for m in MOMENTS
        }
        step = torch.tensor(float(num_steps), device=parameter.device)
        optimizer.state[parameter] = {"step": step, **moments}
    return num_steps
