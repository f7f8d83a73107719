"""What a run leaves for people: lines, a summary, CSV and TensorBoard's events; the curves have a file of their own."""

import csv
import dataclasses
import errno
import json
import math
import os
import struct
import sys

import numpy as np
import pytest
from helpers import epoch, history_of

from pydmobilenet.errors import UnusableError
from pydmobilenet.plots import draw
from pydmobilenet.training.history import Events, History

TENTH = 0.1 + 0.2  # takes all 17 digits


def test_the_best_epoch_is_the_first_of_equals():
    history = History(rows=[epoch(1, 30.0), epoch(2, 20.0), epoch(3, 20.0), epoch(4, 25.0)])
    assert history.best.epoch == 2
    assert history.last.epoch == 4


def test_an_epoch_without_a_test_error_is_not_the_best():
    rows = [epoch(1, math.nan), epoch(2, 20.0), epoch(3, math.nan), epoch(4, 10.0)]
    assert History(rows=rows).best.epoch == 4
    assert History(rows=rows[:1]).best.epoch == 1


def test_an_empty_history_has_neither_a_best_nor_a_last_epoch():
    history = History()
    assert history.best is history.last is None
    assert history.to_dicts() == []
    assert history.summary() == "No epoch has been finished."


def test_a_line_says_what_an_epoch_has_reached():
    history = History(320, [epoch(7, 21.8)])
    assert history.line(history.last) == (
        "epoch   7/320  loss 1.234  error 23.45 %  test 21.80 %  best 21.80 % (epoch 7)    "
        "rate 0.100000   1,234 images/s    41 s"
    )


def test_lines_stand_in_columns():
    history = History(320, [epoch(7, 21.8), epoch(8, 9.5), epoch(120, 12.0, learning_rate=1e-4)])
    lines = [history.line(row) for row in history.rows]
    assert len({len(line) for line in lines}) == 1
    assert len({line.index("rate") for line in lines}) == 1


def test_a_line_knows_only_the_epochs_before_it():
    history = History(3, [epoch(1, 30.0), epoch(2, 20.0), epoch(3, 25.0)])
    assert "best 30.00 % (epoch 1)" in history.line(history.rows[0])
    assert "best 20.00 % (epoch 2)" in history.line(history.rows[2])


def test_a_line_does_without_the_number_of_epochs():
    assert History(rows=[epoch(7)]).line(epoch(7)).startswith("epoch   7  loss 1.234")


def test_the_summary_gives_the_last_and_the_best_error_and_what_the_best_is_worth():
    summary = History(3, [epoch(1, 30.0), epoch(2, 20.0), epoch(3, 25.0)]).summary()
    assert "last epoch (3): 25.00 %" in summary
    assert "after epoch 2: 20.00 %" in summary
    assert "optimistic" in summary
    assert "published" in summary
    assert len(summary.splitlines()) == 2


def test_json_keeps_every_digit():
    history = History(2, [epoch(1, TENTH, train_loss=5e-324), epoch(2, 1 / 3, seconds=math.inf)])
    again = History.from_dicts(json.loads(json.dumps(history.to_dicts())), epochs=2)
    assert again == history
    again = History.from_dicts(json.loads(json.dumps(History(rows=[epoch(1, math.nan)]).to_dicts())))
    assert math.isnan(again.last.test_error)


@pytest.mark.parametrize("wrong", [{}, {**dataclasses.asdict(epoch(1)), "colour": 1}])
def test_fields_that_are_missing_or_unknown_are_refused(wrong):
    with pytest.raises((TypeError, KeyError)):
        History.from_dicts([wrong])


def test_csv_keeps_every_digit():
    history = History(rows=[epoch(1, TENTH, train_loss=1e-300), epoch(2, 1 / 3, test_loss=math.inf)])
    lines = history.to_csv().splitlines()
    assert [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)] == history.to_dicts()
    assert lines[1].startswith("1,0.1,1e-300,")


def test_csv_of_no_epochs_has_its_columns():
    assert History().to_csv() == (
        "epoch,learning_rate,train_loss,train_error,test_loss,test_error,images_per_second,seconds\n"
    )


def test_earlier_curves_are_replaced_as_a_whole(tmp_path):
    (tmp_path / "curves.png").write_text("the earlier file")
    draw(history_of(2), tmp_path / "curves.png", "a run")
    assert (tmp_path / "curves.png").read_bytes() != b"the earlier file"
    assert os.listdir(tmp_path) == ["curves.png"]


def test_earlier_curves_survive_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "curves.png").write_text("the earlier file")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnusableError, match=r"curves\.png: No space left on device$"):
        draw(history_of(2), tmp_path / "curves.png", "a run")
    assert (tmp_path / "curves.png").read_text() == "the earlier file"
    assert os.listdir(tmp_path) == ["curves.png"]


@pytest.fixture
def event_pb2():
    return pytest.importorskip("tensorboardX.proto.event_pb2", reason="event files need tensorboardX")


def records(path):
    """The records of a TFRecord file: length, its checksum, content, its checksum."""
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield content[12 : 12 + length]
        content = content[16 + length :]


def shown(directory, event_pb2):
    """The scalars as TensorBoard shows them, {tag: {step: value}}: a START hides its step and all later ones."""
    scalars = {}
    for path in sorted(directory.iterdir()):
        for record in records(path):
            event = event_pb2.Event.FromString(record)
            if event.session_log.status == event_pb2.SessionLog.START:
                scalars = {tag: {k: v for k, v in row.items() if k < event.step} for tag, row in scalars.items()}
            for value in event.summary.value:
                assert event.step not in scalars.setdefault(value.tag, {})
                scalars[value.tag][event.step] = value.simple_value
    return scalars


def write_events(directory, rows):
    events = Events(directory)
    for row in rows:
        events.add(row)
    events.close()


def test_events_can_be_read_back(tmp_path, event_pb2):
    history = history_of(3)
    write_events(tmp_path / "new" / "events", history.rows)
    columns = {
        "train/loss": "train_loss",
        "train/error": "train_error",
        "test/loss": "test_loss",
        "test/error": "test_error",
        "learning_rate": "learning_rate",
        "images_per_second": "images_per_second",
    }
    assert shown(tmp_path / "new" / "events", event_pb2) == {
        tag: {row.epoch: np.float32(getattr(row, column)) for row in history.rows} for tag, column in columns.items()
    }


def test_a_resumed_run_shows_each_epoch_once(tmp_path, event_pb2):
    for first, last, loss in ((1, 10, 1.0), (8, 9, 2.0)):
        write_events(tmp_path, [epoch(number, train_loss=loss) for number in range(first, last + 1)])
    assert len(list(tmp_path.iterdir())) == 2  # although within a second
    assert shown(tmp_path, event_pb2)["train/loss"] == {**dict.fromkeys(range(1, 8), 1.0), 8: 2.0, 9: 2.0}


def test_events_keep_values_that_are_not_finite(tmp_path, event_pb2):
    write_events(tmp_path, [epoch(1, math.nan, train_loss=math.inf)])
    read = shown(tmp_path, event_pb2)
    assert math.isnan(read["test/error"][1])
    assert read["train/loss"][1] == math.inf


def test_events_say_where_they_cannot_be_written(tmp_path, event_pb2, monkeypatch):
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UnusableError, match=f"cannot write to {directory}: "):
            Events(directory).add(epoch(1))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    events = Events(tmp_path / "events")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UnusableError, match="No space left on device"):
            events.add(epoch(1))
    events.close()


def test_without_tensorboardx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UnusableError, match=r"pip install 'pydmobilenet\[tensorboard\]'"):
        Events(tmp_path / "events")
    assert not (tmp_path / "events").exists()
