"""Workdirs as runs leave them, and collected results made of them."""

import functools
import itertools

import numpy as np

from experiments import results
from experiments.predictions import Writer
from experiments.record import SCHEMA_VERSION, Record, config_hash
from scripts import collect
from scripts.figures.catalog import FIGURES

COMMIT = '0123456789abcdef0123456789abcdef01234567'


DIVERSITY = [
  f'diversity.{source}' for source in ('initialization', 'order', 'partition')
]
CONFIG = {
  'seed': 0,
  'num_steps': 40,
  'batch_size': 8,
  'checkpoint_interval_steps': 10,
  'num_async_workers': 1,
  'data.data_dir': '/home/somebody/data',
  'data.name': 'digits',
  'two_phase.members': 2,
  'two_phase.num_steps': 0,
  'codistill.members': 2,
  'codistill.burn_in_steps': 10,
  'codistill.exchange': 'memory',
  'codistill.reload_interval_steps': 50,
  'codistill.delay_steps': 0,
  **dict.fromkeys(DIVERSITY, 'own'),
  'schedule.warmup_cosine.peak_rate': 0.1,
  'schedule.constant.rate': 0.5,
}


def make_config(changes):
  config = {}
  for key, value in {**CONFIG, **changes}.items():
    *sections, last = key.split('.')
    section = config
    for name in sections:
      section = section.setdefault(name, {})
    section[last] = value
  return config


def make_run(
  workdir,
  experiment='imagenet_codistill',
  point=None,
  seed=0,
  *,
  members=2,
  loss=lambda step, who: 1.0 / step,
  named=None,
  suffix='',
  **changes,
):
  """Writes run.json and rows.jsonl.

  Keys in `named` are of the named config, and no point of it; `changes` are of
  the provenance.
  """
  point = point or {}
  keys = {'seed': seed, 'codistill.members': members}
  if members == 1:
    keys['codistill.exchange'] = 'none'
  config = make_config({**keys, **(named or {}), **point})
  run = {
    'schema': SCHEMA_VERSION,
    'experiment': experiment,
    'variant': 'laptop',
    'member': None,
    'status': 'done',
    'seed': seed,
    'config': config,
    'overrides': point | ({'seed': seed} if seed else {}),
    'config_hash': config_hash(config),
    'commit': COMMIT,
    'dirty': False,
    'packages': {'jax': '0'},
    'device': {'platform': 'cpu', 'kind': 'cpu', 'count': 1},
    'argv': ['/home/somebody/run.py', f'--workdir={workdir}'],
    'started': f'2026-01-01T00:00:{seed:02}+00:00',
  }
  workdir.mkdir(parents=True, exist_ok=True)
  record = Record(workdir, suffix)
  record.write_run(run | changes)
  whos = [*range(members), *(['ensemble'] if members > 1 else [])]
  for step in range(1, 41):
    for member in range(members):
      peers = config['codistill']['exchange'] != 'none' and step > 10
      row = {'step': step, 'member': member, 'kind': 'train', 'task_loss': 2.0}
      row |= {'num_peers': (members - 1) * peers, 'examples_per_second': 100.0}
      record.write_row({**row, 'peer_age': step % 5 if peers else None})
    for who in whos if step % 10 == 0 else ():
      value, kind = loss(step, who), 'final' if step == 40 else 'eval'
      row = {'step': step, 'member': who, 'kind': kind, 'seconds': 0.5 * step}
      row |= {'examples_seen': 8 * step, 'task_loss': value}
      row |= {'disagreement': 0.125 if who == 'ensemble' else None}
      if config.get('average_decay'):
        row['average_task_loss'] = value / 2
      record.write_row({**row, 'accuracy': 1 - value})
  record.close()
  return workdir


def make_seeds(folder, seeds, *arguments, loss_of=None, **keywords):
  """So many runs that differ in nothing else, but maybe in a loss by seed."""
  for seed in range(seeds):
    if loss_of:
      keywords['loss'] = functools.partial(loss_of, seed)
    make_run(folder / str(seed), *arguments, seed=seed, **keywords)
  return folder


LABELS = np.array([0, 1, 1, 0], np.int32)


def store(workdir, predictions, step=40, labels=LABELS):
  """Predictions as a run leaves them, by predictor."""
  folder = workdir / 'predictions'
  with Writer(folder, step, list(predictions), len(labels)) as writer:
    rows = [np.asarray(one, np.float32) for one in predictions.values()]
    writer.write(labels, rows)
    writer.commit()


def make_retrains(folder, experiment='imagenet_sync', members=1, **keywords):
  """Three seeds that predict 0.1 more of class 1 each, and less before."""
  workdirs = folder / experiment
  make_seeds(workdirs, 3, experiment, members=members, **keywords)
  whos = [*range(members), *(['ensemble'] if members > 1 else [])]
  for seed in range(3):
    for step, scale in ((20, 2), (40, 1)):
      p = np.array([0.1, 0.2, 0.45, 0.3]) + 0.1 * scale * seed
      store(workdirs / str(seed), dict.fromkeys(whos, p), step)
  return workdirs


def make_all(folder):
  """Runs of every image config: three seeds of some, one of others."""
  double = {'batch_size': 16, 'schedule.warmup_cosine.peak_rate': 0.2}
  stale = {'codistill.reload_interval_steps': 10, 'codistill.delay_steps': 20}
  ages = [{'codistill.reload_interval_steps': k} for k in (1, 10, 250)]
  diverse = [
    dict(zip(DIVERSITY, values, strict=True))
    for values in itertools.product(('own', 'same'), repeat=3)
    if values[:2] != ('own', 'own')
  ]
  for number, (experiment, seeds, members, point) in enumerate(
    (
      ('imagenet_sync', 3, 1, {}),
      ('imagenet_sync', 1, 1, double),
      ('imagenet_codistill', 3, 2, {}),
      ('imagenet_codistill', 1, 2, {'diversity.partition': 'same'}),
      ('imagenet_ensemble', 3, 2, {}),
      ('imagenet_label_smoothing', 1, 1, {}),
      ('imagenet_staleness', 2, 2, {'codistill.exchange': 'none'}),
      *(('imagenet_staleness', 2, 2, point) for point in (*ages, stale)),
      *(('imagenet_diversity', 1, 2, point) for point in diverse),
    )
  ):
    gain = 0.1 * len(point) + 0.3 * (members == 2)

    def loss(seed, step, who, gain=gain):
      share = 0.9 if who == 'ensemble' else 1
      return share * (4 - gain - 0.01 * seed) / (step + 10)

    keywords = {'members': members, 'loss_of': loss}
    make_seeds(folder / str(number), seeds, experiment, point, **keywords)
  rows_in(folder)
  return folder / 'results'


def rows_in(folder):
  """Of all runs below; their files are in its `results`."""
  out = folder / 'results'
  collect.collect([folder], out, allow=(), replace=False)
  return results.read_folder(out, 'laptop')


def split_table(table):
  """A Markdown table's header and lines, each as its cells."""
  table, _, _ = table.partition('\n\n')  # A sentence may follow.
  header, _, *lines = table.splitlines()
  return [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in (header, *lines)
  ]


def cells(table):
  """A Markdown table's lines by their first cell, each by the header."""
  header, *lines = split_table(table)
  return {line[0]: dict(zip(header, line, strict=True)) for line in lines}


def panels_of(name, rows):
  """Of a figure, row by row; in each there is something."""
  panels = [panel for row in FIGURES[name].panels(rows) for panel in row]
  assert all(panel.content and panel.xlabel for panel in panels)
  return panels


def lines_of(panel):
  """By their labels."""
  return {line.label: line for line in panel.lines}


def table_of(name, rows):
  """The cells of a figure whose rows are there and can be drawn."""
  assert panels_of(name, rows)
  return cells(FIGURES[name].table(rows, 'laptop'))
