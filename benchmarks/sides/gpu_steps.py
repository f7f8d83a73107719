"""Milliseconds of a training step on a GPU, way by way, and its longest kernels. See `gpu.py`."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count

import numpy as np
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from pydmobilenet.data import Dataset, get_task
from pydmobilenet.pytorch import get_model, trainer
from pydmobilenet.training import config
from pydmobilenet.training.loader import make_targets, mix

from . import BATCH, pixels

EPOCHS = 320  # of the authors' recipe, each of 390 steps
ROUNDS, LONGEST = 5, 12  # timings of a way, and kernels listed
CHANNELS_LAST, NCHW = torch.channels_last, torch.contiguous_format
Step = Callable[[], object]


class BareStep:
    """Forward pass, backward pass and update on images on the device: the device's own time."""

    def __init__(self, model: str, device: str, dtype: str, layout: torch.memory_format, benchmark: bool):
        torch.backends.cudnn.benchmark = benchmark
        self.net = get_model(model, device=torch.device(device)).train().to(memory_format=layout)
        rate = torch.tensor(0.1, device=device)  # as a CUDA graph needs it
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), rate, 0.9, weight_decay=1e-4, nesterov=True, fused=device == "cuda"
        )
        self.images = torch.randn(BATCH, 3, 32, 32, device=device).contiguous(memory_format=layout)
        self.targets = torch.full((BATCH, 10), 0.1, device=device)
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16", cache_enabled=False)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with self.autocast:
            logits = self.net(self.images)
        F.cross_entropy(logits.float(), self.targets).backward()
        self.optimizer.step()

    def as_graph(self) -> Step:
        """Capture the whole step, update included, as one CUDA graph."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self()
        return graph.replay


def train_step(
    model: str,
    device: str,
    dtype: str,
    compiled: bool = False,
    passes: int = 1,
    eager: bool = False,
    pyramid: str = "conv2d",
) -> Step:
    """Return `train.py`'s step, with mixup, as a graph or `eager`. It reads a score once the next step is started."""
    recipe = {**config.read("configs/cifar.yaml"), "model": model, "dtype": dtype, "accumulation_steps": passes}
    made = trainer.make(config.make(recipe), get_task("cifar10"), torch.device(device), compiled, pyramid=pyramid)
    if eager:
        made.graphs = None
    rng, scores = np.random.default_rng(0), []
    images = rng.standard_normal((BATCH, 3, 32, 32)).astype(np.float32)
    targets = make_targets(rng.integers(0, 10, BATCH), 10)

    def step() -> None:
        with not_waiting(device):
            scores.append(made.train_step(mix(images, 0.3), mix(targets, 0.3), 0.01))
        if len(scores) > 1:
            scores.pop(0)()

    return step


def whole_step(model: str, device: str) -> Step:
    """Return `train.py`'s step with its loader, on 10,000 random images."""
    recipe = config.make({**config.read("configs/cifar.yaml"), "model": model, "dtype": "bfloat16"})
    dataset = Dataset(get_task("cifar10"), "train", *pixels(), False, "benchmark")
    made = trainer.make(recipe, dataset.task, torch.device(device))
    loader = made.loader(dataset, len(dataset) // BATCH)
    batches, scores = (batch for epoch in count() for batch in loader.epoch(epoch)), []

    def step() -> None:
        scores.append(made.train_step(*next(batches), 0.01))
        if len(scores) > 1:
            scores.pop(0)()

    return step


@contextmanager
def not_waiting(device: str) -> Iterator[None]:
    """Raise an error if the host waits for the device."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def ways(model: str, device: str) -> Iterator[tuple[str, bool, Callable[[], Step]]]:
    """Yield each way's name, whether its kernels are listed, and a factory of its step; the most telling first."""
    bare = partial(BareStep, model, device)
    own = partial(train_step, model, device)
    yield "train_step, bfloat16", False, lambda: own("bfloat16")
    if device == "cuda":
        for dtype in ("bfloat16", "float32"):
            make = partial(own, dtype, pyramid="triton")
            yield f"train_step, {dtype}, --pyramid triton", True, make
    yield "train_step, bfloat16, batches made on the device", False, lambda: whole_step(model, device)
    yield "train_step, bfloat16, eager", False, lambda: own("bfloat16", eager=True)
    yield "bare, bfloat16, channels_last", True, lambda: bare("bfloat16", CHANNELS_LAST, False)
    yield "bare, bfloat16, channels_last, cudnn.benchmark", False, lambda: bare("bfloat16", CHANNELS_LAST, True)
    yield "bare, bfloat16, NCHW", True, lambda: bare("bfloat16", NCHW, True)
    if device == "cuda":
        for dtype in ("bfloat16", "float32"):
            for name, benchmark in (("", False), (", cudnn.benchmark", True)):
                make = partial(bare, dtype, CHANNELS_LAST, benchmark)
                yield f"one CUDA graph, {dtype}, channels_last{name}", False, lambda make=make: make().as_graph()
        yield "one CUDA graph, bfloat16, NCHW", False, lambda: bare("bfloat16", NCHW, True).as_graph()
    yield "train_step, float16", False, lambda: own("float16")
    yield "train_step, float32", False, lambda: own("float32")
    yield "train_step, bfloat16, --compile", True, lambda: own("bfloat16", True)
    yield "train_step, bfloat16, --compile, 2 passes an update", False, lambda: own("bfloat16", True, 2)


def rows(model: str, device: str, minutes: float, number: int) -> Iterator[dict]:
    """Yield a row for each way, and for some ways their longest kernels, until the time is up.

    The row of a failed way says why.
    """
    end = time.monotonic() + 60 * minutes
    for name, listed, make in ways(model, device):
        if time.monotonic() > end:
            return
        begun = time.monotonic()
        try:
            step = make()
            times = milliseconds(step, device, number)
            kernels = longest_kernels(step, device) if listed else []
        except Exception as error:  # any of PyTorch's
            yield {"step": name, "failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
            continue
        middle = statistics.median(times)
        yield {
            "step": f"{model}: {name}",
            "ms": round(middle, 2),
            "best": round(min(times), 2),
            f"minutes for {EPOCHS} epochs": round(middle * 390 * EPOCHS / 6e4, 1),
            "seconds until then": round(time.monotonic() - begun),
        }
        yield from kernels


def milliseconds(step: Step, device: str, number: int) -> list[float]:
    """Return the milliseconds of a step, as means over so many steps each."""
    for _ in range(min(5, number)):
        step()
    wait(device)
    found = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(number):
            step()
        wait(device)
        found.append(1e3 * (time.perf_counter() - begun) / number)
    return found


def longest_kernels(step: Step, device: str) -> list[dict]:
    """Return the sum of a step's kernels, then the longest ones, each with its launches."""
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as record:
        step()
        wait(device)
    total: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for event in record.events():
        total[event.name] += event.device_time if device == "cuda" else event.self_cpu_time_total
        launches[event.name] += 1
    named = [("all together", sum(total.values()), sum(launches.values()))]
    named += [(name[:100].replace("|", "/"), time, launches[name]) for name, time in total.most_common(LONGEST)]
    return [{"kernel": name, "ms": round(time / 1e3, 3), "launches": count} for name, time, count in named]


def wait(device: str) -> None:
    """Wait until the device is idle."""
    if device == "cuda":
        torch.cuda.synchronize()
