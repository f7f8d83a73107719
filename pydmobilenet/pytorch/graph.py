"""A training step as CUDA graphs: the host launches a graph instead of thousands of kernels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

WARM_UP = 3  # updates before the capture: the optimiser makes its state, libraries choose their kernels
Pass = Callable[[bool, bool], torch.Tensor]
"""A pass through a network, the `first` of an update or not, with the update if it is `due`. Returns its report."""


class GraphedPass:
    """Runs a `Pass` eagerly up to the third update, then replays it from CUDA graphs.

    All tensors that outlive a pass have to stay where they are. There is a graph for each pair of arguments. The first
    pass of an update makes the gradients, later ones add to them. The next replay overwrites a report.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.reset()

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    def reset(self) -> None:
        """Forget the graphs: a tensor has moved."""
        self.replays: dict[tuple[bool, bool], Callable[[], torch.Tensor]] = {}
        self.updates, self.warm_up = 0, float(WARM_UP)
        self.pool: Any = None  # of the graphs' memory

    def __call__(self, run: Pass, first: bool, due: bool) -> torch.Tensor:
        """Run or replay this pass of a network, always the same one."""
        if (first, due) not in self.replays and self.updates >= self.warm_up:
            try:
                self.replays[first, due] = self._captured(run, first, due)
            except RuntimeError as error:  # nothing has run
                why = " ".join(str(error).split())[:200] or type(error).__name__
                warnings.warn(f"no CUDA graph, so training goes on slowly: {why}", stacklevel=2)
                self.warm_up = math.inf
        self.updates += due
        replay = self.replays.get((first, due))
        return replay() if replay else self._eager(run, first, due)

    def _eager(self, run: Pass, first: bool, due: bool) -> torch.Tensor:
        """Run a pass on the stream of the later capture, as PyTorch's documentation asks."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            report = run(first, due)
        current.wait_stream(self.stream)
        return report

    def _captured(self, run: Pass, first: bool, due: bool) -> Callable[[], torch.Tensor]:
        """Capture a pass without running it. Return a function that replays it."""
        graph = torch.cuda.CUDAGraph()
        # After a failure, PyTorch's own context leaves its stream in use.
        with torch.cuda.stream(self.stream), torch.cuda.graph(graph, self.pool, self.stream):
            report = run(first, due)
        self.pool = graph.pool()

        def replay() -> torch.Tensor:
            graph.replay()
            return report

        return replay
