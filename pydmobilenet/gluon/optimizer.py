"""Stochastic gradient descent with Nesterov's momentum, as MXNet had it up to 1.4 and as PyTorch has it."""

from __future__ import annotations

import mxnet as mx
from mxnet import nd


class NesterovSGD(mx.optimizer.Optimizer):
    """With g the gradient, rescaled and with the weight decay added: m = momentum m + g; w -= lr (g + momentum m).

    The state of a weight is m, as in `torch.optim.SGD`; without momentum it is None. MXNet's own ``nag`` has had the
    learning rate inside the momentum since 1.5, so that a drop of the learning rate is felt later, and takes the weight
    decay of the weight that it has just changed.
    """

    def __init__(self, learning_rate: float, momentum: float, wd: float):
        super().__init__(learning_rate=learning_rate, wd=wd)
        self.momentum = momentum

    def create_state(self, index: int, weight: nd.NDArray) -> nd.NDArray | None:
        """The momentum before the first update."""
        return nd.zeros(weight.shape, weight.context, weight.dtype) if self.momentum else None

    def update(self, index: int, weight: nd.NDArray, grad: nd.NDArray, state: nd.NDArray | None) -> None:
        """Change the weight and the state in place."""
        lr = self._get_lr(index)
        decayed = {"wd": self._get_wd(index), "rescale_grad": self.rescale_grad}
        if state is not None:
            # m -= -1 g. This operation's answer is w + m, which nobody needs: only m is kept.
            nd.sgd_mom_update(weight, grad, state, lr=-1.0, momentum=self.momentum, **decayed)
        nd.sgd_update(weight, grad, lr=lr, **decayed, out=weight)
        if state is not None:
            nd.sgd_update(weight, state, lr=lr * self.momentum, wd=0.0, out=weight)
