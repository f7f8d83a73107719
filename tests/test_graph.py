"""Passes that are recorded once and then replayed. A recorder of operations stands for CUDA's graphs."""

import functools
import gc
import weakref
from contextlib import contextmanager

import pytest
from helpers import ROOT

from pydmobilenet.data import get_dataset
from pydmobilenet.training import config
from pydmobilenet.training.loader import make_targets

pytestmark = pytest.mark.pytorch
torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from pydmobilenet.pytorch import graph, trainer  # noqa: E402

DIGITS = {**config.read(ROOT / "configs" / "digits.yaml"), "batch_size": 8, "model": "pyd-concat-11-0.125"}
WAITING = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal")  # operations whose result the host needs


class Recorder(TorchDispatchMode):
    """Keeps the operations of a pass with their tensors, as a CUDA graph keeps kernels with addresses."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        assert function.overloadpacket.__name__ not in WAITING, f"{function}: the host would wait for the device"
        views = any(each.alias_info and not each.alias_info.is_write for each in function._schema.returns)
        if not views:
            self.calls.append((function, arguments, options or {}, result))
        return result

    def replay(self):
        """Run the operations again, each result into the memory of the first one."""
        for function, arguments, options, result in self.calls:
            again = function(*arguments, **options)
            pairs = zip(again, result) if isinstance(result, (tuple, list)) else [(again, result)]
            for new, old in pairs:
                if isinstance(new, torch.Tensor) and new is not old:
                    old.copy_(new)


class RecordedPass(graph.GraphedPass):
    """Passes as on a GPU, but recorded on the CPU. Recording runs them, so it takes back what they did."""

    def __init__(self, made):
        self.captures, self.trainer = [], made
        super().__init__(torch.device("cpu"))

    def _eager(self, run, first, due):
        return run(first, due)

    def _captured(self, run, first, due):
        self.captures.append((first, due))
        parameters = list(self.trainer.trained.values())
        tensors = [*self.trainer.net.state_dict().values()]
        tensors += [value for state in self.trainer.optimizer.state.values() for value in state.values()]
        tensors += [each.grad for each in parameters if not first]
        tensors += self.trainer.average.sums.values() if self.trainer.average else []
        tensors = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
        before = [tensor.detach().clone() for tensor in tensors]
        recorder = Recorder()
        with recorder:
            report = run(first, due)
        with torch.no_grad():
            for tensor, kept in zip(tensors, before):
                tensor.copy_(kept)

        @torch.no_grad()
        def replay():
            recorder.replay()
            return report.clone()  # as its copy to the host

        return replay


def made(recorded=False, **values):
    """A trainer, eager or recorded."""
    each = trainer.make(config.make({**DIGITS, **values}), get_dataset("digits").task, torch.device("cpu"))
    if recorded:
        for group in each.optimizer.param_groups:
            group["lr"] = torch.zeros((), dtype=torch.float64)  # as precise as a number
        each.graphs = RecordedPass(each)
    return each


def train(each, numbers, size=8):
    """The scores of these batches, at rates that change with each."""
    dataset, scores = get_dataset("digits", "train"), []
    for number in numbers:
        part = slice(size * number, size * number + size)
        batch = dataset.normalised(part.start, part.stop), make_targets(dataset.labels[part], 10, 0.1)
        scores.append(each.train_step(*batch, 0.1 / (number + 1))())
    return scores


def assert_same_bits(one, other):
    for found, expected in zip(one.state(), other.state()):
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name].tobytes() != expected[name].tobytes()] == []


@pytest.mark.parametrize(
    ("values", "captures"),
    [
        ({"ema": 0.9}, [(True, True)]),
        ({"accumulation_steps": 3, "momentum": 0.0}, [(True, False), (False, False), (False, True)]),
        ({"optimizer": "adamw", "learning_rate": 0.01, "decay_norm_and_bias": False}, [(True, True)]),
        ({"clip_gradient": 0.5, "body_rate": 0.5}, [(True, True)]),
        ({"dtype": "bfloat16", "model": "resnet-11-0.125"}, [(True, True)]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_replayed_passes_give_the_bits_of_eager_ones(values, captures):
    recorded, eager = made(True, **values), made(**values)
    numbers = range(6 * values.get("accumulation_steps", 1))
    assert train(recorded, numbers) == train(eager, numbers)
    assert_same_bits(recorded, eager)
    assert recorded.graphs.captures == captures


def test_a_loaded_state_goes_on_alike():
    recorded, eager = made(True), made()
    train(recorded, range(5))
    recorded.load_state(*recorded.state())  # the momentum has moved: it is captured again
    assert recorded.graphs.replays == {}
    train(eager, range(5))
    for each in (recorded, eager):
        train(each, range(5, 11))
    assert_same_bits(recorded, eager)
    assert recorded.graphs.captures == [(True, True)] * 2


def test_loaded_weights_are_those_that_replays_train(tmp_path):
    recorded, eager = made(True), made()
    from pydmobilenet.checkpoints import weights

    weights.write(tmp_path / "net.params", made(seed=5).state()[0], {})
    for each in (recorded, eager):
        train(each, range(5))
        each.load_weights(tmp_path / "net.params")
        train(each, range(5, 8))
    assert_same_bits(recorded, eager)
    assert len(recorded.graphs.captures) == 1


def test_batches_of_another_size_are_captured_anew():
    recorded, eager = made(True), made()
    for each in (recorded, eager):
        train(each, range(5))
        train(each, range(5), size=4)
    assert_same_bits(recorded, eager)
    assert len(recorded.graphs.captures) == 2


@pytest.mark.parametrize(("steps", "failing"), [(1, 0), (2, 1)])
def test_a_failed_capture_is_one_line_and_training_goes_on(steps, failing, monkeypatch):
    recorded, eager = made(True, accumulation_steps=steps), made(accumulation_steps=steps)
    captured, failed = recorded.graphs._captured, []

    def fail(run, first, due):
        if len(recorded.graphs.captures) == failing:
            failed.append((first, due))
            raise RuntimeError("operation not permitted\nwhen the stream is capturing")
        return captured(run, first, due)

    monkeypatch.setattr(recorded.graphs, "_captured", fail)
    with pytest.warns(UserWarning, match="^no CUDA graph, so .*: operation not permitted when the stream is"):
        train(recorded, range(7 * steps))
    train(eager, range(7 * steps))
    assert_same_bits(recorded, eager)
    assert len(failed) == 1


def test_a_teacher_s_losses_are_replayed_too(tmp_path):
    from pydmobilenet import checkpoints
    from pydmobilenet.pytorch.distillation import Teacher

    source = checkpoints.find("pyd-add-29-0.25", "digits")
    each = {recorded: made(recorded) for recorded in (True, False)}
    for one in each.values():
        one.teacher = Teacher(source, get_dataset("digits").task, one.config, torch.device("cpu"))
        train(one, range(6))
    assert_same_bits(each[True], each[False])


@pytest.mark.parametrize(("values", "words"), [({"dtype": "float16"}, "float16"), ({}, "several processes")])
def test_what_has_no_graph_says_so_in_one_line(values, words, monkeypatch):
    each = made(**values)
    if not values:
        monkeypatch.setattr(each.workers, "size", 2)
    with pytest.warns(UserWarning, match=f"^no CUDA graph with {words}: the host launches every kernel$"):
        each._use_graphs()
    assert each.graphs is None


def test_a_gpu_s_learning_rates_are_tensors_for_the_graph():
    each = made(body_rate=0.1)
    each._use_graphs()
    assert isinstance(each.graphs, graph.GraphedPass)
    each._set_learning_rate(0.5)
    rates = {round(group["lr"].item(), 4) for group in each.optimizer.param_groups}
    assert rates == {0.05, 0.5}


class Stream:
    """Of a GPU: it logs."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


def test_passes_of_a_gpu_have_one_stream_and_one_pool(monkeypatch):
    log = []
    current, side = Stream("current", log), Stream("side", log)

    class Graph:
        def replay(self):
            log.append("replay")

        def pool(self):
            return "pool"

    @contextmanager
    def on(stream):
        log.append(f"on {stream.name}")
        yield

    @contextmanager
    def captured(graph, pool, stream):
        log.append(f"capture in {pool} on {stream.name}")
        yield

    for name, fake in {"CUDAGraph": Graph, "stream": on, "graph": captured}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    graphed = graph.GraphedPass(torch.device("cuda"))
    passes = functools.partial(graphed, lambda first, due: log.append("run"))
    for _ in range(graph.WARM_UP):
        passes(True, True)
        assert log == ["side waits for current", "on side", "run", "current waits for side"]
        log.clear()
    for first, due in ((True, False), (False, True), (True, False)):
        passes(first, due)
    assert log == [
        *("on side", "capture in None on side", "run", "replay"),
        *("on side", "capture in pool on side", "run", "replay"),
        "replay",
    ]


def test_a_trainer_s_memory_is_free_at_once():
    each = made()
    each._use_graphs()
    alive = weakref.ref(each)
    gc.disable()  # a GPU's memory cannot wait for it
    try:
        del each
        assert alive() is None
    finally:
        gc.enable()


def test_a_score_is_copied_with_its_own_step_and_waited_for_alone(monkeypatch):
    log, each = [], made()

    class Event:
        def record(self, stream):
            log.append(f"record on {stream}")

        def synchronize(self):
            log.append("wait")

    class Report:
        def to(self, device, non_blocking):
            log.append(f"copy to {device}, {non_blocking}")
            return torch.tensor([1.0, 2.0])

    monkeypatch.setattr(each, "_device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "current")
    wait = each._copy_to_host(Report())
    assert log == ["copy to cpu, True", "record on current"]
    assert wait().tolist() == [1.0, 2.0]
    assert log[2:] == ["wait"]


@pytest.mark.parametrize(
    ("dtype", "capability", "warned"),
    [("bfloat16", (7, 5), True), ("bfloat16", (8, 0), False), ("float32", (7, 5), False)],
)
def test_emulated_bfloat16_is_one_line(dtype, capability, warned, monkeypatch, recwarn):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    trainer.warn_of_emulated_type(dtype, torch.device("cuda"))
    line = "dtype 'bfloat16' is emulated on this GPU (compute capability 7.5); use float32 or float16"
    assert [str(each.message) for each in recwarn] == [line] * warned


def test_intel_s_gpu_is_one_line(monkeypatch):
    from pydmobilenet.pytorch import devices

    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(devices, "gpus", lambda: 0)
    monkeypatch.setattr(devices, "device_obstacle", lambda *device: "no GPU found")
    with pytest.warns(UserWarning, match=r"^Intel's GPUs \(xpu\) are not supported; computing on the CPU$"):
        assert devices.choose("auto").title == "the CPU"


def test_cudnn_times_its_kernels_in_training_alone():
    from pydmobilenet.pytorch import inference

    before = torch.backends.cudnn.benchmark
    with inference.full_precision(torch.device("cuda"), benchmark=True):
        assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark is before
    with inference.full_precision(torch.device("cuda")):
        assert torch.backends.cudnn.benchmark is before
