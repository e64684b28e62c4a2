"""AdamW (arXiv 1711.05101): bit for bit `torch.optim.AdamW(fused=True)`, by the same kernel.

torch's own optimizers import torch._dynamo when they are made, for loops that are compiled as a
whole. Ours is not; it is a second of a core and 60 MB for each trainer.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class AdamW:
    """`param_groups` and `state` are those of a `torch.optim.Optimizer`.

    Each group has "params", "lr", "betas", "eps" and "weight_decay". A parameter's state is made
    with its first gradient.
    """

    def __init__(self, param_groups: Sequence[dict[str, Any]]) -> None:
        self.param_groups = list(param_groups)
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move each parameter that has a gradient: one pass over the weights, on CPUs too."""
        for group in self.param_groups:
            if parameters := [p for p in group["params"] if p.grad is not None]:
                self._step(parameters, group)

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[p] or self._begin(p) for p in parameters]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        beta1, beta2 = group["betas"]
        torch._fused_adamw_(
            parameters,
            [grad for p in parameters if (grad := p.grad) is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
        return state
