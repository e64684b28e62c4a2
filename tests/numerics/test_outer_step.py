import numpy as np
import pytest
import torch

from atoll.outer.nesterov import outer_step_


@pytest.mark.parametrize(("lr", "momentum"), [(0.7, 0.9), (1.0, 0.3), (1.0, 0.0)])
def test_is_the_nesterov_sgd_of_torch(lr, momentum):
    rng = np.random.default_rng(0)
    params_N = rng.standard_normal(1000).astype(np.float32)
    momentum_N = np.zeros(1000, np.float32)
    theta_N = torch.nn.Parameter(torch.from_numpy(params_N.astype(np.float64)))
    optimizer = torch.optim.SGD([theta_N], lr=lr, momentum=momentum, nesterov=momentum > 0)
    for _ in range(5):
        mean_N = rng.standard_normal(1000)
        outer_step_(params_N, momentum_N, mean_N, lr=lr, momentum=momentum)
        theta_N.grad = torch.from_numpy(mean_N)
        optimizer.step()
    assert np.allclose(params_N, theta_N.detach().numpy(), rtol=1e-6, atol=1e-5)
