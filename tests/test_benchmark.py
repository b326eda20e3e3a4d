"""The benchmark's parts run, count what they say, and write JSON; no times."""

import json
import types

import pytest
from networks import make_small_dnn

from codistill import losses
from data import workers
from scripts import prepare_criteo
from scripts.benchmark import __main__ as benchmark
from scripts.benchmark import (
  clicks,
  images,
  loss,
  lstm,
  measure,
  publication,
  step,
  text,
)


@pytest.fixture
def small(monkeypatch):
  def make_small(*, input_shape, num_classes, **_):
    # Little to compile.
    return make_small_dnn(input_shape=input_shape, num_classes=num_classes)

  monkeypatch.setattr(measure, 'make_resnet', make_small)
  for name, value in {
    'SHAPE': (8, 8, 1),
    'CLASSES': 10,
    'BATCH_SIZE': 4,
  }.items():
    monkeypatch.setattr(measure, name, value)
  monkeypatch.setattr(publication, 'SIZES', {1: (8, 4)})


def run(part, tmp_path):
  path = tmp_path / 'found.json'
  assert benchmark.main([part, '--rounds=2', f'--json={path}']) == 0
  found = json.loads(path.read_text())
  assert found['machine']['jax']
  return found[part]


def test_an_update_is_timed_with_each_teacher(small, tmp_path):
  found = run('teacher', tmp_path)
  for name in ('float32', 'bfloat16', 'int8'):
    assert len(found[f'time, teacher in {name} (ms)']) == 2
    [memory] = found[f'memory, teacher in {name} (MB)']
    assert memory > found['memory, without a teacher (MB)'][0]


def test_an_interval_with_an_exchange_is_told_from_one_without(small, tmp_path):
  found = run('exchange', tmp_path)
  assert len(found['interval without exchange (s)']) == 2
  assert all(seconds > 0 for seconds in found['to load (s)'])


def test_a_publication_weighs_what_its_precision_says(small, tmp_path):
  found = run('publication', tmp_path)
  full, half, quarter = (
    found[f'1 M, {name}: bytes (MB)'][0]
    for name in ('float32', 'bfloat16', 'int8')
  )
  assert quarter < half < full < 2.1 * half
  assert full == pytest.approx(4 * found['1 M, float32: numbers (M)'][0])
  assert len(found['1 M, int8: to write (s)']) == 2


def test_a_loss_in_chunks_takes_at_most_a_quarter_of_the_memory(
  monkeypatch, tmp_path
):
  sizes = loss.Sizes(lanes=32, tokens=16, words=3_000, embedding=8, hidden=32)
  monkeypatch.setattr(loss, 'SIZES', sizes)
  monkeypatch.setattr(loss, 'CHUNKS', (32,))
  psi = 'cross_entropy'
  monkeypatch.setattr(
    losses, 'DISTILL_LOSSES', {psi: losses.soft_cross_entropy}
  )
  found = run('loss', tmp_path)
  for what in ('the loss', 'an update'):
    [plain], [chunked] = (
      found[f'memory of {what}, {psi}, {kind} (MB)']
      for kind in ('plain', 'chunks of 32')
    )
    # All logits of the student, at the least.
    assert plain > 4 * sizes.lanes * sizes.tokens * sizes.words / 1e6
    assert chunked < plain / 4
  assert len(found['time, chunks of 32, beside plain (%)']) == 2


def test_without_rounds_it_is_refused(capsys):
  with pytest.raises(SystemExit, match='2'):
    benchmark.main(['teacher', '--rounds=0'])
  assert '--rounds must be at least 1' in capsys.readouterr().err


def test_lanes_are_read_as_often_as_it_was_told(monkeypatch, tmp_path):
  monkeypatch.setattr(text, '_SECONDS', 0.01)
  monkeypatch.setattr(text, 'SIZES', ((4, 32),))
  found = run('text', tmp_path)
  assert found
  assert all(len(values) == 2 and min(values) > 0 for values in found.values())


def test_clicks_are_prepared_and_read_as_often_as_it_was_told(
  monkeypatch, tmp_path
):
  monkeypatch.setattr(clicks, '_SECONDS', 0.01)
  monkeypatch.setattr(clicks, 'ROWS', 1_000)
  monkeypatch.setattr(clicks, 'BATCH_SIZES', (16,))
  # In this process.
  monkeypatch.setattr(workers, 'processes', workers.threads)
  monkeypatch.setattr(
    clicks,
    'subprocess',
    types.SimpleNamespace(
      run=lambda line, **_: prepare_criteo.main(line[3:]), DEVNULL=None
    ),
  )
  found = run('clicks', tmp_path)
  assert len(found) == 5
  assert all(len(values) == 2 and min(values) > 0 for values in found.values())


def test_the_recurrence_keeps_less_than_jax_would(monkeypatch, tmp_path):
  monkeypatch.setattr(lstm, 'UNITS', 16)
  found = run('lstm', tmp_path)
  own, theirs = (
    found[f'memory, {kind} (MB)'][0] for kind in ('its own', 'JAX’s')
  )
  assert own < theirs / 2
  assert len(found['time, its own (ms)']) == 2


def test_images_are_read_by_stage_and_by_pipeline(
  monkeypatch, tmp_path, capsys
):
  for name, value in {
    'SIZE': (20, 30),
    'LARGE': (80, 90),
    'IMAGE_SIZE': 8,
    'NUM_IMAGES': 2,
    'NUM_LARGE': 1,
    'BATCH_SIZE': 4,
    'REST_SECONDS': 0.01,
    # Processes take seconds to start.
    'WORKERS': (0,),
  }.items():
    monkeypatch.setattr(images, name, value)
  monkeypatch.setattr(images, '_tf_batches', lambda files: None)
  found = run('images', tmp_path)
  [size] = found.pop('file (kB)')
  assert 0.2 < size < 5
  assert all(len(values) == 2 and min(values) > 0 for values in found.values())
  assert {'read', 'decode', 'augment', 'pipeline, 0 workers'} <= {
    name.removesuffix(' (images/s a core)') for name in found
  }
  assert 'TensorFlow is not installed' in capsys.readouterr().out


def test_an_update_is_timed_beside_a_product(monkeypatch, tmp_path):
  monkeypatch.setattr(step, 'CONFIG', 'lm_codistill:smoke')
  monkeypatch.setattr(step, 'CHANGES', {})
  monkeypatch.setattr(step, 'SIZE', 8)
  found = run('step', tmp_path)
  assert len(found['a product of 8² (GFLOP/s)']) == 2
  for kind in ('burn-in', 'codistilling'):
    assert all(rate > 0 for rate in found[f'{kind}: rate (tokens/s)'])
    assert all(s > 0 for s in found[f'{kind}: share of the product’s rate (%)'])
  [ratio] = found['codistilling beside burn-in, FLOPs (%)']
  assert ratio == pytest.approx(400 / 3)
