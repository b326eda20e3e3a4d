"""The benchmark's parts run, count as they say, and write JSON.

Times are not tested. Most of the tests' own time is compiling.
"""

import functools
import itertools
import json
import math
import pathlib
import subprocess
import types

import jax
import numpy as np
import pytest
from in_process import complaint

from codistill import losses
from data.preparing import workers
from scripts import cost, markdown, prepare_criteo
from scripts.benchmark import __main__ as benchmark
from scripts.benchmark import job, loop, measure, peers, report
from scripts.benchmark import networks as measured
from scripts.benchmark.measure import Limit, Measure
from scripts.benchmark.networks import Network

PARTS = benchmark.PARTS
TINY = {
  'LSTM': Network('lm_codistill:smoke', {'model.lstm.num_layers': 1}),
  'DNN': Network('criteo_codistill:smoke'),
}


@pytest.fixture
def run(monkeypatch, tmp_path):
  monkeypatch.setattr(measure, 'TIMED_SECONDS', 0.0)

  def run_part(name, shapes, *timed, rounds=2):
    monkeypatch.setattr(benchmark.PARTS[name], 'SMALL', shapes)
    path = tmp_path / 'found.json'
    line = [name, f'--rounds={rounds}', f'--json={path}']
    assert benchmark.main(line) == 0
    found = json.loads(path.read_text())[name]
    assert found['machine']['jax']
    assert not found['full']
    values = [value for each in found['values'].values() for value in each]
    assert values
    assert all(map(math.isfinite, values))
    for one in timed:
      assert len(found['values'][one]) == rounds, one
      assert min(found['values'][one]) > 0, one
    run_part.limits = found['limits']
    assert run_part.limits.keys() <= found['values'].keys()
    return found['values']

  return run_part


def test_updates_are_timed_beside_their_flops(run, monkeypatch):
  monkeypatch.setattr(PARTS['step'], 'MEMBERS', (2, 4))
  # tests/test_cost.py has an LSTM; its four updates take long to compile.
  beside = [f'DNN, {members} members' for members in (2, 4)]
  timed = [f'{name}: time (% of burn-in)' for name in beside]
  found = run('step', {'DNN': TINY['DNN']}, 'DNN, burn-in: time (ms)', *timed)
  # Each teacher adds the same forward pass.
  [two], [four] = (found[f'{name}: FLOPs (% of burn-in)'] for name in beside)
  assert 100 < two < 150
  assert four - 100 == pytest.approx(3 * (two - 100))


def test_updates_are_timed_beside_a_product(run):
  rates = [
    f'DNN, {kind}: {rate}'
    for kind in ('burn-in', 'codistilling')
    for rate in ('rate (examples/s)', 'share of the product’s rate (%)')
  ]
  product = 'a product of 8², float32 (GFLOP/s)'
  run('model', PARTS['model'].Shapes({'DNN': TINY['DNN']}, 8), product, *rates)


def test_two_members_need_what_an_update_does_and_the_others_state(
  run, monkeypatch
):
  # tests/test_cost.py asks the compiler.
  needed = ({'in_all': 3e6}, {'in_all': 5e6})
  monkeypatch.setattr(
    cost, 'update_memory', lambda _, teachers: needed[teachers]
  )
  built, build = [], Network.build

  def build_and_note(network, **changes):
    built.append((network.config, *changes.values()))
    return build(network, **changes)

  monkeypatch.setattr(Network, 'build', build_and_note)
  found = run('memory', PARTS['memory'].Shapes(TINY, 16), rounds=1)
  lstm, dnn = (network.config for network in TINY.values())
  # Once to see whether it reads tokens, and once for each kind of loss.
  assert built == [(lstm,), (lstm, 0), (lstm, 16), (dnn,), (dnn,)]
  for name in ('LSTM, plain loss', 'LSTM, chunks of 16 tokens', 'DNN'):
    assert found[f'{name}: one member (MB)'] == [3]
    [two] = found[f'{name}: two members (MB)']
    # It has the other's state, and the copy of its weights.
    assert two > 5
    assert run.limits[f'{name}: two members (MB)'] == ['≤', 6]


def test_training_waits_for_a_part_of_a_step(run):
  changes = {'data.name': 'imagenet2012'}
  changes |= {'model.name': 'dnn', 'model.dnn.hidden': (8,)}
  jpegs = Network('imagenet_codistill:smoke', changes)
  networks = {'clicks': TINY['DNN'], 'images': jpegs}
  found = run('waiting', PARTS['waiting'].Shapes(networks, 2, 1, (2, 20, 30)))
  for name in networks:
    assert len(found[f'{name}: a step (ms)']) == 2
    assert all(0 <= w < 100 for w in found[f'{name}: waiting (% of a step)'])


def test_a_device_waits_only_for_what_comes_too_late(monkeypatch):
  now, busy = [0.0], iter([False, True, False])

  def slow():
    for number in range(3):
      now[0] += 10.0**number
      yield number

  monkeypatch.setattr(loop.time, 'perf_counter', lambda: now[0])
  batches = loop._Timed(slow(), lambda: not next(busy))
  assert list(itertools.islice(batches, 3)) == [0, 1, 2]
  # The second came while there was still something to compute.
  assert batches.seconds == 101


def test_both_ways_of_updating_members_are_the_same(run):
  # Not an LSTM, because its two ways take five seconds to compile.
  found = run('together', {'DNN': TINY['DNN']})
  for kind in ('burn-in', 'codistilling'):
    assert min(found[f'DNN, {kind}: together (% of one by one)']) > 0
    assert found[f'DNN, {kind}: losses apart (nats)'][0] < 1e-5


def test_what_grows_is_beside_the_first_case(run, monkeypatch):
  def made_up(one):
    """The growth that one would hope for, with a slow start from much text."""
    members = one.changes['codistill.members']
    tokens = one.changes['data.max_test_tokens'] / 500
    return {
      # The other's forward pass is a third of an update.
      'step': members * (1 + (members - 1) / 3),
      'evaluation': members * tokens,
      'start': one.changes['data.max_train_tokens'] / 4_000,
      'memory': 1e6 * one.devices,
    }

  monkeypatch.setattr(job, 'start', made_up)
  shapes = PARTS['scale'].Shapes(TINY['LSTM'], (1, 2), 4_000, 500, 1)
  found = run('scale', shapes)
  assert found['one member: memory (MB)'] == [1, 1]
  for case, shares in {
    '2 members': (800 / 3, 200, 100, 100),
    '2 devices': (100, 100, 100, 200),
    'validation set × 10': (100, 1_000, 100, 100),
    'corpus × 10': (100, 100, 1_000, 100),
  }.items():
    quantities = ('a step', 'evaluation', 'start to first step', 'memory')
    for quantity, share in zip(quantities, shares, strict=True):
      values = found[f'{case}: {quantity} (% of the first)']
      assert values == pytest.approx([share, share])
  limits = {'2 members: a step': 1.1 * 800 / 3, 'corpus × 10: memory': 110}
  for name, most in limits.items():
    wanted = ['≤', pytest.approx(most)]
    assert run.limits[f'{name} (% of the first)'] == wanted


def test_a_job_trains_and_evaluates_in_a_process_of_its_own(monkeypatch):
  # In this process, with the devices that it has.
  changes = {'codistill.members': 2, 'codistill.exchange': 'memory'}
  one = job.Job('criteo_codistill:smoke', changes, 2, 1)
  found = job.run(one)
  assert {'start', 'step', 'evaluation'} <= found.keys()
  assert min(found.values()) > 0

  def run_here(line, **_):
    assert line[1:3] == ['-m', 'scripts.benchmark.job']
    found = json.loads(line[3])
    assert job.Job(**found) == one
    return types.SimpleNamespace(stdout=json.dumps(found))

  monkeypatch.setattr(job.subprocess, 'run', run_here)
  assert job.start(one)['devices'] == 2


def test_a_run_is_started_fresh_and_with_its_programs(run, monkeypatch):
  started = []

  def popen(line, *, cwd, env, **_):
    """A process that stands in for a run and soon writes its first row."""
    started.append((line, env['JAX_COMPILATION_CACHE_DIR'], cwd))
    workdir = line[-1].removeprefix('--workdir=')
    act = f'mkdir {workdir}; echo > {workdir}/rows.jsonl; exec sleep 60'
    return subprocess.Popen(['sh', '-c', act])

  fake = types.SimpleNamespace(Popen=popen, DEVNULL=None)
  monkeypatch.setattr(PARTS['start'], 'subprocess', fake)
  name = 'imagenet_codistill:smoke'
  found = run('start', (name,), rounds=1)
  assert found.keys() == {f'{name}, fresh (s)', f'{name}, compiled before (s)'}
  (fresh, programs, _), (again, same, _) = started
  assert fresh[1:4] == ['-m', 'experiments.run', f'--config={name}']
  assert programs == same
  assert fresh[-1] != again[-1]
  assert not pathlib.Path(programs).parent.exists()


def test_an_update_is_timed_with_each_teacher(run):
  kinds = ('float32', 'bfloat16', 'int8')
  found = run(
    'teacher', TINY['DNN'], *(f'time, teacher in {one} (ms)' for one in kinds)
  )
  for kind in kinds:
    [memory] = found[f'memory, teacher in {kind} (MB)']
    assert memory > found['memory, without a teacher (MB)'][0]


def test_an_interval_with_an_exchange_is_told_from_one_without(run):
  timed = (
    'interval without exchange (s)',
    'to load (s)',
    'stall (% of the interval)',
  )
  shapes = PARTS['exchange'].Shapes({1: TINY['DNN']}, {1: 3})
  run('exchange', shapes, *(f'1 M: {one}' for one in timed))


def test_a_publication_weighs_what_its_precision_says(run):
  found = run('publication', {1: TINY['DNN']}, '1 M, int8: to write (s)')
  full, half, quarter = (
    found[f'1 M, {name}: bytes (MB)'][0]
    for name in ('float32', 'bfloat16', 'int8')
  )
  assert quarter < half < full < 2.1 * half
  assert full == pytest.approx(4 * found['1 M, float32: numbers (M)'][0])


def test_a_loss_in_chunks_takes_a_quarter_of_the_memory(run, monkeypatch):
  sizes = PARTS['loss'].Sizes(32, 8, 1_000, embedding=8, hidden=8, chunks=(16,))
  psi, function = 'cross_entropy', losses.soft_cross_entropy
  monkeypatch.setattr(losses, 'DISTILL_LOSSES', {psi: function})
  # One layer takes half as long to compile.
  one = functools.partialmethod(Network.build, **{'model.lstm.num_layers': 1})
  monkeypatch.setattr(Network, 'build', one)
  found = run('loss', sizes, 'time, chunks of 16, beside plain (%)')
  for what in ('the loss', 'an update'):
    [plain], [chunked] = (
      found[f'memory of {what}, {psi}, {kind} (MB)']
      for kind in ('plain', 'chunks of 16')
    )
    # It has at least all logits of the student.
    assert plain > 4 * sizes.lanes * sizes.tokens * sizes.words / 1e6
    assert chunked < plain / 4


def test_lanes_and_clicks_are_read_as_often_as_it_was_told(
  run, short_text, monkeypatch
):
  # Workers run in this process.
  monkeypatch.setattr(workers, 'processes', workers.threads)
  fake = types.SimpleNamespace(
    run=lambda line, **_: prepare_criteo.main(line[3:]), DEVNULL=None
  )
  monkeypatch.setattr(PARTS['clicks'], 'subprocess', fake)
  monkeypatch.setattr(PARTS['text'], 'NAME', str(short_text))
  shapes = {'text': ((4, 32),), 'clicks': PARTS['clicks'].Shapes(1_000, (16,))}
  for name, sizes in shapes.items():
    monkeypatch.setattr(measure, 'READ_SECONDS', 0.01)
    found = run(name, sizes)
    for values in found.values():
      assert len(values) == 2
      assert min(values) > 0
  assert len(found) == 5


def test_the_recurrence_keeps_less_than_jax_would(run):
  found = run('lstm', PARTS['lstm'].Shapes(16, 32, 32), 'time, its own (ms)')
  [own], [theirs] = (
    found[f'memory, {kind} (MB)'] for kind in ('its own', 'JAX’s')
  )
  assert own < theirs / 2


def test_products_are_the_convolutions_that_they_are_timed_beside(run):
  part = PARTS['convolution']
  one = part.Convolution(8, 3, 4, 5)
  found = run('convolution', part.Shapes(2, (one,)), rounds=1)
  kinds = part.make_kinds(2, one)
  assert len(found) == len(kinds)
  by_xla, product = (function() for function in kinds.values())
  for one, other in zip(by_xla, product, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_images_are_read_by_stage_and_by_pipeline(run, monkeypatch, capsys):
  monkeypatch.setattr(PARTS['images'], 'REST_SECONDS', 0.01)
  monkeypatch.setattr(PARTS['images'], '_tf_batches', lambda *_: None)
  small = {'size': (20, 30), 'large': (80, 90), 'image_size': 8}
  batches = {'num_images': 2, 'num_large': 1, 'batch_size': 4, 'num_batches': 4}
  # Processes take seconds to start.
  shapes = PARTS['images'].Shapes(**small, **batches, workers=(0,))
  found = run('images', shapes)
  [size] = found.pop('file (kB)')
  assert 0.2 < size < 5
  assert all(len(values) == 2 and min(values) > 0 for values in found.values())
  assert {'read', 'decode', 'augment', 'pipeline, 0 workers'} <= {
    name.removesuffix(' (images/s a core)') for name in found
  }
  assert 'TensorFlow is not installed' in capsys.readouterr().out


@pytest.fixture
def asked(monkeypatch):
  """Parts measure nothing, and record what was asked of them."""
  asked = []

  def make_part(name):
    def measure_nothing(rounds, shapes):
      asked.append((name, rounds, shapes))
      yield [
        Measure('low', 's', [1.0, 3.0, 2.0], Limit('≤', 1.6)),
        Measure('high', 'M/s', [4.0], Limit('≥', 3)),
        Measure('free', '%', [5.0]),
      ]

    texts = {'TITLE': 'nothing', 'ROUNDS': 'rounds'}
    sizes = {'SMALL': 'small', 'FULL': 'full'}
    return types.SimpleNamespace(measure=measure_nothing, **texts, **sizes)

  parts = {name: make_part(name) for name in benchmark.PARTS}
  monkeypatch.setattr(benchmark, 'PARTS', parts)
  return asked


def test_without_a_name_all_are_measured(asked, monkeypatch, tmp_path, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(peers, 'missing', lambda: None)
  assert benchmark.main(['--rounds=1']) == 0
  assert asked == [(name, 1, 'small') for name in benchmark.PARTS]
  assert list(tmp_path.iterdir()) == []
  shown = capsys.readouterr().out
  assert '≤ 1.60' in shown
  assert '25.0 % above' in shown


def test_several_parts_are_kept_beside_those_of_before(asked, tmp_path):
  path = tmp_path / 'found.json'
  line = ['--rounds=3', f'--json={path}']
  assert benchmark.main(['scale', *line]) == 0
  assert benchmark.main(['input', 'step', 'text', '--full', *line]) == 0
  inputs = ['images', 'text', 'clicks', 'waiting']
  assert [name for name, *_ in asked] == ['scale', *inputs, 'step']
  found = json.loads(path.read_text())
  assert found.keys() == {'scale', *inputs, 'step'}
  assert found['step']['full']
  assert not found['scale']['full']
  document = tmp_path / 'document.md'
  document.write_text('<!-- table benchmark-step -->\nold\n<!-- end -->\n')
  assert report.main([f'--json={path}', f'--into={document}']) == 0
  text = document.read_text()
  assert 'old' not in text
  assert '| low | 2.00 | 1.00 | 3.00 | ≤ 1.60 | 25.0 % above | s |' in text
  assert '| high | 4.00 | 4.00 | 4.00 | ≥ 3.00 | met | M/s |' in text
  assert '| free | 5.00 | 5.00 | 5.00 |  |  | % |' in text


def test_on_a_gpu_the_papers_shapes_are_measured_for_some_minutes(
  asked, monkeypatch, tmp_path, capsys
):
  monkeypatch.setattr(peers, 'missing', lambda: None)
  line = ['gpu', '--minutes=8']
  assert 'JAX computes on a cpu here' in complaint(capsys, benchmark, *line)
  assert asked == []
  monkeypatch.setattr(benchmark.jax, 'default_backend', lambda: 'gpu')
  assert benchmark.main(line) == 0
  assert asked == [('lanes', 5, 'full'), ('peers', 5, 'full')]
  assert 'cut short' not in capsys.readouterr().out
  clock = itertools.count(step=300)
  monkeypatch.setattr(
    benchmark, 'time', types.SimpleNamespace(monotonic=lambda: next(clock))
  )
  path = tmp_path / 'found.json'
  assert benchmark.main([*line, f'--json={path}']) == 0
  assert [name for name, *_ in asked[2:]] == ['lanes']
  shown = capsys.readouterr().out
  assert 'lanes: cut short' in shown
  assert 'Left out, because the minutes are over: peers' in shown
  assert 'full shapes, cut short' in report.tables(path)['benchmark-lanes']
  # A part whose rounds are all done is whole, though the minutes are over.
  assert benchmark.main([*line, '--rounds=1', f'--json={path}']) == 0
  shown = capsys.readouterr().out
  assert 'cut short' not in shown + report.tables(path)['benchmark-lanes']
  assert 'Left out, because the minutes are over: peers' in shown


def test_a_language_model_is_timed_by_lanes_and_chunks(run):
  found = run('lanes', PARTS['lanes'].Shapes(TINY['LSTM'], (4,), (None,)))
  names = [
    f'4 lanes, loss as by default, {update}: {what}'
    for update in ('burn-in', 'one teacher')
    for what in ('time (ms)', 'rate (k tokens/s)')
  ]
  assert list(found) == names
  tokens = TINY['LSTM'].build(batch_size=1).examples_per_step
  milliseconds, rate = (found[name][0] for name in names[:2])
  assert milliseconds * rate == pytest.approx(4 * tokens)


def test_what_makes_no_sense_is_refused_at_once(asked, tmp_path, capsys):
  path = tmp_path / 'found.json'
  path.write_text('{"step": 1}')
  for file, words in (
    (path, 'name another file'),
    (tmp_path / 'no/found.json', 'is not a folder'),
  ):
    assert words in complaint(capsys, benchmark, 'step', f'--json={file}')
  assert report.main([f'--json={path}']) == 2
  for argument, words in (
    ('--rounds=0', '--rounds must be at least 1'),
    ('--minutes=0', '--minutes must be more than 0'),
    ('stepp', 'WHAT can be step'),
  ):
    with pytest.raises(SystemExit, match='2'):
      benchmark.main(['teacher', argument])
    assert words in capsys.readouterr().err
  assert asked == []


def test_the_networks_are_configs_whose_keys_exist():
  kinds = {'LSTM': 'text', 'Transformer': 'text', 'DNN': 'clicks'}
  for part in (measured, peers):
    for name, network in (*part.SMALL.items(), *part.FULL.items()):
      assert network.build().task.kind == kinds.get(name, 'images')
  for millions, network in measured.RESNETS.items():
    model = network.build().networks[0].model
    shapes = jax.eval_shape(model.init, jax.random.key(0))['params']
    number = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert number == pytest.approx(1e6 * millions, rel=0.04)


def test_the_documents_tables_are_those_of_the_committed_results():
  text = (measure.ROOT / 'docs/performance.md').read_text(encoding='utf-8')
  assert markdown.insert(text, report.tables(report.RESULTS)) == text
  for part in benchmark.PARTS.values():
    assert all((part.SMALL, part.FULL, part.TITLE))
