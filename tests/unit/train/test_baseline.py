import torch

from atoll.data.batches import Batches
from atoll.train.baseline import initial_model, train_alone, with_batch_factor
from atoll.train.inner import InnerLoop

CPU = torch.device("cpu")


def test_takes_the_samples_of_the_run_in_order(config, dataset):
    config = with_batch_factor(config, 3)
    seen = []
    trained = train_alone(
        config,
        dataset,
        model=initial_model(config, device=CPU),
        num_steps=3,
        on_step=lambda step, r: seen.append((step, r)),
    )
    loop = InnerLoop(initial_model(config, device=CPU), Batches(dataset, seed=config.seed), config)
    expected = [loop.step([(12 * k, 12 * k + 12)], step=k) for k in range(3)]
    assert seen == list(enumerate(expected))
    assert trained.losses == [result.loss for result in expected]
    for one, other in zip(trained.model.parameters(), loop.model.parameters(), strict=True):
        assert torch.equal(one, other)
