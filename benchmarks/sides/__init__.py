"""Ways to train, for `training.py` and `gpu.py`. Each yields after every batch."""

import numpy as np

BATCH, IMAGES = 128, 10_000
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def pixels() -> tuple[np.ndarray, np.ndarray]:
    """Draw random images (N, 3, 32, 32) in uint8 and labels (N,)."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (IMAGES, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, IMAGES)


def loop(make_trainer, model: str, dtype: str = "float32"):
    """Train a batch at each step as `train.py` does, by a trainer of any engine."""
    from pydmobilenet.data import Dataset, batches, get_task
    from pydmobilenet.training import config
    from pydmobilenet.training.loader import make_targets

    values = {"model": model, "batch_size": BATCH, "dtype": dtype, "accumulation_steps": 1}
    recipe = config.make({**config.read("configs/cifar.yaml"), **values})
    dataset, read, epoch = Dataset(get_task("cifar10"), "train", *pixels(), False, "benchmark"), None, 0
    trainer = make_trainer(recipe, dataset.task)
    while True:
        for images, labels in batches(dataset, BATCH, train=True, epoch=epoch):
            targets = make_targets(labels, 10)
            read, due = trainer.train_step(images, targets, LEARNING_RATE), read
            if due:
                due()
            yield
        epoch += 1
