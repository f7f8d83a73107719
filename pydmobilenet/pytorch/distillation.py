"""The loss of a student: its labels' and, softer, a teacher's (Hinton, Vinyals and Dean, 2015, arXiv 1503.02531)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..checkpoints import Checkpoint
from ..data import Task
from ..folding import fold
from ..training.config import Config
from . import inference


class Teacher:
    """A folded network in evaluation mode, for the batches of a run normalised for its `task`."""

    def __init__(self, checkpoint: Checkpoint, task: Task, config: Config, device: torch.device):
        self.share, self.temperature = config.teacher_share, config.temperature
        self.logits = inference.tensor_predictor(*fold(checkpoint.network, checkpoint.arrays()), device)
        # From the run's normalisation to the teacher's. It keeps what mixup has mixed: the weights' sum is 1.
        (mean, std), (own_mean, own_std) = (
            (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (of.mean, of.std))
            for of in (task, checkpoint.task)
        )
        self.scale, self.shift = (x.float().to(device) for x in (std / own_std, (mean - own_mean) / own_std))
        self.same = (task.mean, task.std) == (checkpoint.task.mean, checkpoint.task.std)

    def losses(
        self, images: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, hard: torch.Tensor
    ) -> torch.Tensor:
        """Mix the losses (N,) of the labels, `hard`, with those of the student's `logits` (N, outputs) for the
        teacher's, both divided by the temperature.

        The soft losses are scaled by its square, as their gradients shrink by that (section 2 of the paper), and by the
        sums of the `targets`: these are the class weights.
        """
        with torch.no_grad():
            teacher = self.logits(images if self.same else images * self.scale + self.shift).float()
        student, soft = (F.log_softmax(values / self.temperature, 1) for values in (logits, teacher))
        divergence = F.kl_div(student, soft, reduction="none", log_target=True).sum(1)
        return (1 - self.share) * hard + self.share * self.temperature**2 * targets.sum(1) * divergence
