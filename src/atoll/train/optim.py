"""The inner optimizer, and its state to the disk and back (see `moments`).

Moments are worth keeping: a fresh state has to warm up again (see `schedule`). The weights
are not in the file; the agent has them.
"""

from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import Tensor, nn

from atoll.config import InnerConfig
from atoll.durable import publish
from atoll.errors import RunError
from atoll.system import sync
from atoll.train.moments import ADAM, MUON, Tensors, damaged, digest_of_moments, read_moments
from atoll.train.parallel import deal_out, whole

InnerOptimizer: TypeAlias = "torch.optim.Optimizer | MuonAndAdamW"


class MuonAndAdamW:
    """Muon for the matrices of the blocks, AdamW for embedding, head and norms, as one optimizer.

    Muon (Keller Jordan, kellerjordan.github.io/posts/muon; inside DiLoCo: arXiv 2505.23725) steps
    along the mean gradient with all its singular values made nearly 1. Its steps are scaled by
    0.2 sqrt(larger side): they then are as long as Adam's (arXiv 2502.16982, section 2.2), and one
    lr does for both.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self._parts: tuple[torch.optim.Optimizer, ...] = (muon, adamw)
        self.param_groups = [*muon.param_groups, *adamw.param_groups]
        self.state = adamw.state
        muon.state = self.state  # one book for both; no parameter is in two groups

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self._parts:
            part.step()


def make_optimizer(model: nn.Module, config: InnerConfig) -> InnerOptimizer:
    """Return an optimizer with a fresh state; its learning rate is set anew at every step.

    Matrices decay, the embedding among them: where it is tied it is the output matrix as well, and
    decay bounds the logits. The gains of norms do not: their natural value is one, not zero.
    """
    if config.optimizer == "adamw":
        return _adamw(list(model.parameters()), config)
    of_blocks = [p for name, p in model.named_parameters() if _is_block_matrix(name, p)]
    others = [p for name, p in model.named_parameters() if not _is_block_matrix(name, p)]
    muon = torch.optim.Muon(
        of_blocks,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.muon_momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    return MuonAndAdamW(muon, _adamw(others, config))


def _is_block_matrix(name: str, parameter: Tensor) -> bool:
    return name.startswith("layers.") and parameter.ndim == 2


def _adamw(parameters: list[nn.Parameter], config: InnerConfig) -> torch.optim.AdamW:
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


def copy_moments(optimizer: InnerOptimizer, *, model: nn.Module, wanted: bool = True) -> Tensors:
    """Return a copy of the state, to be saved while the next steps are taken.

    Of a model that is sharded, all ranks have to ask for it; where it is not `wanted`, a rank gets
    nothing: on a machine with eight of them, eight copies would not fit.
    """
    moments = _moments_of(optimizer)
    copied: Tensors = {}
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:
            for moment in moments[parameter]:
                values = whole(optimizer.state[parameter][moment])
                if wanted:
                    copied[f"{moment}.{name}"] = values.to("cpu", copy=True).numpy()
    return copied


def _moments_of(optimizer: InnerOptimizer) -> dict[Tensor, tuple[str, ...]]:
    """Return which moments the optimizer keeps of each parameter: only Muon iterates."""
    return {
        parameter: MUON if "ns_steps" in group else ADAM
        for group in optimizer.param_groups
        for parameter in group["params"]
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


def load_optimizer_(path: Path, optimizer: InnerOptimizer, *, model: nn.Module) -> int:
    """Give the optimizer the state in the file, and return after how many steps it was saved.

    Raises:
        DamagedError: the file is not what `save_optimizer` wrote for such a model and optimizer.
            The optimizer is as it was before.
    """
    tensors, num_steps = read_moments_for(path, optimizer, model=model)
    give_moments_(optimizer, tensors, num_steps=num_steps, model=model)
    return num_steps


def read_moments_for(
    path: Path, optimizer: InnerOptimizer, *, model: nn.Module
) -> tuple[Tensors, int]:
    """Return the state in a file, and after how many steps it was saved; raises as above."""
    tensors, num_steps = read_moments(path)
    moments = _moments_of(optimizer)
    expected = {
        f"{moment}.{name}": tuple(p.shape)
        for name, p in model.named_parameters()
        for moment in moments[p]
    }
    if num_steps > 0 and {name: t.shape for name, t in tensors.items()} != expected:
        raise damaged(path, "it belongs to another model")
    return tensors, num_steps


def give_moments_(
    optimizer: InnerOptimizer, tensors: Tensors, *, num_steps: int, model: nn.Module
) -> None:
    """Give the optimizer this state, after so many steps.

    Of a model that is sharded, all ranks have to do it; only rank 0 needs to have the tensors.
    """
    optimizer.state.clear()
    if num_steps == 0:
        return
    moments = _moments_of(optimizer)
    for name, parameter in model.named_parameters():
        state = {}
        for moment in moments[parameter]:
            found = tensors.get(f"{moment}.{name}")
            values = torch.empty(parameter.shape) if found is None else torch.from_numpy(found)
            state[moment] = deal_out(values, like=parameter)
        if moments[parameter] == ADAM:
            state["step"] = torch.tensor(float(num_steps), device=parameter.device)
        optimizer.state[parameter] = state
