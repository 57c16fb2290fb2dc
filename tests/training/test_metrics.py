"""Means and rates between two lines."""

import math
import time

import pytest

from tresnet_jax.errors import TrainingError
from tresnet_jax.training.metrics import METRICS_FILE, Interval, has_evaluation, read_records


def test_the_first_step_counts_in_the_means_and_not_in_the_rate(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])
    interval = Interval(batch_size=10)
    now[0] = 100.0  # it was compiled in this time
    interval.add({'loss': 4.0, 'top1': 0.0})
    interval.restart_clock()
    for loss in (3.0, 2.0):
        now[0] += 0.5
        interval.add({'loss': loss, 'top1': 0.5})
    interval.waited += 0.25
    found = interval.summary(step=3, epoch=0.1, lr=0.2)
    assert found == {
        'step': 3, 'epoch': 0.1, 'lr': 0.2, 'loss': 3.0, 'top1': pytest.approx(1 / 3), 'images_per_second': 20.0,
        'wait': 0.25,
    }  # fmt: skip
    assert interval.seconds_left(4) == 2.0


def test_nothing_to_say(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])
    interval = Interval(batch_size=10)
    now[0] = 1.0
    found = interval.summary(step=1, epoch=0.1, lr=0.2)
    assert math.isnan(found['loss']) and found['images_per_second'] == 0.0
    assert interval.seconds_left(4) == math.inf


ROW = b'{"kind": "eval", "step": 4, "top1": 0.5}\n'


def test_a_truncated_last_line_does_not_count(tmp_path):
    assert read_records(tmp_path) == [] and not has_evaluation(tmp_path, 4)
    (tmp_path / METRICS_FILE).write_bytes(ROW + ROW[:-1].replace(b'4', b'8'))
    assert [record['step'] for record in read_records(tmp_path)] == [4]
    assert has_evaluation(tmp_path, 4) and not has_evaluation(tmp_path, 8)


@pytest.mark.parametrize('line', [b'\0\0\0', b'\xff', b'[]', b'', b'{"kind": "eval"}', ROW[:-1].replace(b'4', b'"4"')])
def test_a_damaged_line(line, tmp_path):
    (tmp_path / METRICS_FILE).write_bytes(ROW + line + b'\n' + ROW)
    with pytest.raises(TrainingError, match=r'metrics.jsonl: line 2 is not a record of metrics; delete the line'):
        read_records(tmp_path)
