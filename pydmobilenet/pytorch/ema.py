"""The exponential moving average of a network under training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..errors import BadFileError

PREFIX = "ema/"  # of its arrays, beside the momentum in the optimiser's state
WEIGHT = "weight"  # of all updates so far; a parameter's name has a dot


class MovingAverage:
    """The exponential moving average of `tensors`, by name: each update has 1 - `decay` of the weight.

    It begins at 0 and is divided by the weight of the updates so far, as the moments of Adam are (Kingma and Ba, 2014,
    arXiv 1412.6980): so the first values do not outweigh all later ones in a short run. The weight is averaged beside
    the tensors, from a 1; an update is in place and needs no number of the host, and a CUDA graph can record it.
    (PyTorch's ``swa_utils.AveragedModel`` begins at the first values, and asks the device for its count.)
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], decay: float):
        one = torch.ones(1, device=next(iter(tensors.values())).device)
        self.tensors = {**tensors, WEIGHT: one}
        self.sums = {name: torch.zeros_like(tensor) for name, tensor in self.tensors.items()}
        self.rate = 1 - decay

    @torch.no_grad()
    def update(self) -> None:
        """Add the present values."""
        torch._foreach_lerp_([*self.sums.values()], [*self.tensors.values()], self.rate)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the averages. There has to be an update before."""
        sums = {name: tensor.cpu().numpy() for name, tensor in self.sums.items()}
        weight = sums.pop(WEIGHT)
        return {name: array / weight for name, array in sums.items()}

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of all that `load_state` needs."""
        return {PREFIX + name: tensor.cpu().numpy().copy() for name, tensor in self.sums.items()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go back to a `state`, to the last bit. Raises BadFileError for another network's."""
        expected = {PREFIX + name: tuple(tensor.shape) for name, tensor in self.sums.items()}
        if {name: array.shape for name, array in state.items()} != expected:
            raise BadFileError("the state is of another network: its moving average does not fit")
        if not 0 <= state[PREFIX + WEIGHT].item() <= 1.001:
            raise BadFileError("the state is damaged: the weight of its moving average is impossible")
        for name, tensor in self.sums.items():
            tensor.copy_(torch.tensor(state[PREFIX + name]))
