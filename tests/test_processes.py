"""Several processes validate what one validates; none of them outlives the one that started them."""

import logging
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import types
from contextlib import closing

import numpy as np
import pytest
from helpers import ROOT

from pydmobilenet import catalog, machine, processes, validation
from pydmobilenet.processes import run_each

RECORDS = catalog.select(["*-29-*"], ["cifar10"])
IMAGES = 20


class Engine:
    """Always answers the class that a model's place in the table is the number of; one of them as told."""

    def __init__(self, special="", place=None):
        self.special, self.place = special, place

    batch_size = 50

    def load(self, network, record):
        if record.model == "mobilenet-29-1":
            if self.special == "dies":
                os._exit(1)
            if self.special == "fails":
                raise ValueError("no memory")
            if self.special == "waits":
                while not (self.place / "told").exists():
                    time.sleep(0.01)
        answer = RECORDS.index(record) % 10
        return lambda images: np.eye(10)[np.full(len(images), answer)]


def itself(record):
    """In the place of a record's weights."""
    return record


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """A directory with a test set of a few images, of which it is worth to start processes."""
    monkeypatch.setattr(validation, "MIN_IMAGES_FOR_PROCESSES", 0)
    records = np.zeros((IMAGES, 3073), np.uint8)
    records[:, 0] = np.arange(IMAGES) % 7
    records.tofile(tmp_path / "test_batch.bin")
    return tmp_path


def validated(data_dir, number, special="", **options):
    engine = Engine(special, data_dir)
    ((dataset, rows),) = validation.validate(RECORDS, engine, itself, data_dir, processes=number, **options)
    assert len(dataset) == IMAGES
    return rows


def test_validate_in_two_processes_as_in_one(data_dir):
    found = validated(data_dir, 2)
    assert found == validated(data_dir, 1)
    assert [row.record for row in found] == RECORDS
    assert len({row.counts.wrong for row in found}) > 1
    assert not multiprocessing.active_children()


def test_keep_the_answers_in_either(data_dir):
    for number in (1, 2):
        rows = validated(data_dir, number, keep_answers=True)
        for place, row in enumerate(rows):
            np.testing.assert_array_equal(row.answers.classes, np.full(IMAGES, place % 10))
            np.testing.assert_allclose(row.answers.confidences, np.e / (np.e + 9), rtol=1e-6)
    assert not any(row.answers for row in validated(data_dir, 1))


def test_report_a_failed_row_in_either(data_dir):
    assert validated(data_dir, 2, "fails") == validated(data_dir, 1, "fails")


def test_lose_only_the_row_of_a_dead_process(data_dir):
    rows, whole = validated(data_dir, 2, "dies"), validated(data_dir, 1)
    killer = next(row for row in rows if row.record.model == "mobilenet-29-1")
    assert killer.reason.startswith("its process died, perhaps out of memory")
    assert [row for row in rows if row is not killer] == [row for row in whole if row.record != killer.record]
    assert not multiprocessing.active_children()


def test_rows_are_logged_as_they_are_finished(data_dir, caplog, monkeypatch):
    """One row does not end before another one has been told of."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(caplog.handler, "emit", lambda _: (data_dir / "told").touch())
    assert len(validated(data_dir, 2, "waits")) == len(RECORDS)


def test_start_no_process_for_few_answers(data_dir, monkeypatch):
    monkeypatch.setattr(validation, "MIN_IMAGES_FOR_PROCESSES", IMAGES * len(RECORDS) + 1)
    monkeypatch.setattr(validation, "run_each", None)
    assert len(validated(data_dir, 2)) == len(RECORDS)


def metadata(_):
    return os.getpid(), os.environ["OMP_NUM_THREADS"], signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_processes_share_the_processors_and_leave_interruptions_to_their_parent(monkeypatch):
    monkeypatch.setattr(processes, "available_processors", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    found = [future.result() for _, future in run_each(metadata, range(4), 2)]
    assert os.getpid() not in [number for number, *_ in found]
    assert {(threads, ignored) for _, threads, ignored in found} == {("3", True)}
    assert os.environ["OMP_NUM_THREADS"] == "6"


def test_an_interruption_ends_the_processes():
    begun = time.monotonic()
    with closing(run_each(time.sleep, [0, 100, 100], 2)) as finished:
        next(finished)
    assert time.monotonic() - begun < 60
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("value", "number"), [("4", 4), ("1", 1), ("99", 6), ("4,2", 1), ("", 1), (None, 6)])
def test_as_many_processors_are_used_as_openmp_is_to_use(value, number, monkeypatch):
    monkeypatch.setattr(processes, "available_processors", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", value or "")
    if value is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    assert processes.processors() == number


@pytest.mark.slow
@pytest.mark.gluon
def test_use_all_processors_if_mxnet_was_imported_first():
    """Nothing has set OpenMP's threads then."""
    program = (
        "import numpy; numpy.bool = numpy.bool_; import mxnet, os; "
        "from pydmobilenet import processes; from pydmobilenet.gluon.inference import GluonEngine; "
        "count = processes.available_processors(); assert GluonEngine('cpu').processes == count; "
        "((_, future),) = processes.run_each(os.getenv, ['OMP_NUM_THREADS'], count); "
        "assert future.result() == '1'; assert 'OMP_NUM_THREADS' not in os.environ"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("affinity", [[0, 2, 5], None])  # macOS has none
def test_count_the_processors_of_this_process_without_linuxs_own_call(affinity, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    process = types.SimpleNamespace(**({} if affinity is None else {"cpu_affinity": lambda: affinity}))
    monkeypatch.setattr(machine.psutil, "Process", lambda: process)
    monkeypatch.setattr(machine, "cgroup_quota", lambda: 2.5)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 8)
    assert machine.available_processors() == 3
    monkeypatch.setattr(machine, "cgroup_quota", lambda: math.inf)
    assert machine.available_processors() == (3 if affinity else 8)


def test_ask_psutil_for_the_free_memory():
    assert 0 < machine.available_memory() <= machine.psutil.virtual_memory().total
