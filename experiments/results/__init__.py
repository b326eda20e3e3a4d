"""The rows behind every published number, and how to read and write them.

One file a config and variant, `<config>-<variant>.jsonl`. A run is a line of
kind `run`, its provenance, and the lines of its evaluations; both carry the
run's `id`, '<point>/seed-<k>'. A line of kind `churn` compares it with `other`,
a later seed of the same point. `scripts.collect` writes these files,
`scripts.figures` draws from them; nothing but the standard library is needed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.record import SCHEMA_VERSION, read_rows

FOLDER = pathlib.Path(__file__).parent
# Keys that no number depends on, except for rounding. They are not part of a
# point, and members that exchange weights may differ in them.
MACHINE_KEYS = (
  'checkpoint_interval_steps',
  'codistill.exchange_dir',
  'codistill.keep_publications',
  'codistill.keep_s',
  'codistill.lease_timeout_s',
  'codistill.wait_timeout_s',
  'data.cache',
  'data.data_dir',
  'data.num_threads',
  'data.num_workers',
  'data.path',
  'data.prefetch_batches',
  'eval_metrics',
  'num_devices',
  'num_microbatches',
  'predictions_interval_steps',
  'store_predictions',
)
# Keys of a run's provenance that the figures need.
_NEEDED = ('id', 'experiment', 'overrides', 'seed', 'config', 'marked')
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Result:
  """A collected run.

  Attributes:
    run: its provenance: experiment, variant, overrides, seed, config, …
    rows: its evaluations, in the order of steps and members.
    churn: between it and other seeds, if predictions were stored; in the order
      of seeds, steps and members.
  """

  run: Mapping[str, Any]
  rows: tuple[Row, ...]
  churn: tuple[Row, ...] = ()

  @property
  def id(self) -> str:
    """'<point>/seed-<k>', unique in its file."""
    return self.run['id']

  @property
  def point(self) -> dict[str, Any]:
    """Where its config differs from the named one, except for the seed."""
    return point_of(self.run['overrides'])


def point_of(overrides: Mapping[str, Any]) -> dict[str, Any]:
  """Overrides without the seed and `MACHINE_KEYS`."""
  return {
    key: value
    for key, value in sorted(overrides.items())
    if key != 'seed' and key not in MACHINE_KEYS
  }


def point_name(point: Mapping[str, Any]) -> str:
  """{'codistill.delay_steps': 20} → 'delay_steps=20'; {} → 'base'."""
  parts = (f'{key.rpartition(".")[2]}={value}' for key, value in point.items())
  # It is the name of a folder, too, and Orbax cannot read one with brackets.
  name = ','.join(parts).translate(str.maketrans('[]', '()'))
  return re.sub(r'[/\s]', '', name) or 'base'


def recipe_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config without the seed and `MACHINE_KEYS`, which retrains may change."""
  recipe = json.loads(json.dumps(config))
  for key in ('seed', *MACHINE_KEYS):
    *sections, last = key.split('.')
    section = recipe
    for name in sections:
      section = section.get(name, {})
    section.pop(last, None)
  return recipe


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """The keys of a config, dotted, with their values."""
  found = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      found |= flat(value, f'{prefix}{key}.')
    else:
      found[prefix + key] = value
  return found


def stem(experiment: str, variant: str) -> str:
  """'imagenet_sync', 'laptop' → 'imagenet_sync-laptop'."""
  return '-'.join(filter(None, (experiment, variant)))


def read(path: str | os.PathLike[str]) -> list[Result]:
  """The runs of one file, in its order.

  A last line that was cut short is left out with a warning.

  Raises:
    ValueError: if it is empty, damaged, of another schema, or has two runs of
      one point, or rows without their run: one sentence that says what to do.
  """
  runs: dict[str, Mapping[str, Any]] = {}
  rows: dict[str, list[Row]] = {}
  for line in read_rows(path):
    if line.get('kind') != 'run':
      if line.get('id') not in runs:
        raise ValueError(
          f'{path} has rows of {line.get("id")!r} without its provenance; '
          'collect that run again'
        )
      rows[line['id']].append(line)
      continue
    if line.get('schema') != SCHEMA_VERSION:
      raise ValueError(
        f'{path} has rows of schema {line.get("schema")}, but this code reads '
        f'schema {SCHEMA_VERSION}; use the code that wrote them, or collect '
        'the runs again'
      )
    lacks = [key for key in _NEEDED if key not in line]
    if lacks:
      raise ValueError(
        f'{path} has a run without {", ".join(lacks)}; collect it again'
      )
    if line['id'] in runs:
      raise ValueError(
        f'{path} has two runs of {line["id"]}; remove one of them'
      )
    runs[line['id']], rows[line['id']] = line, []
  if not runs:
    raise ValueError(
      f'{path} is empty; fill it with python -m scripts.collect WORKDIR, or '
      'remove it'
    )
  return [
    Result(
      run,
      tuple(row for row in rows[id_] if row['kind'] != 'churn'),
      tuple(row for row in rows[id_] if row['kind'] == 'churn'),
    )
    for id_, run in runs.items()
  ]


def variants(folder: str | os.PathLike[str]) -> list[str]:
  """The variants with rows in a folder; '' is the paper's scale.

  Raises:
    FileNotFoundError: if there is no such folder.
  """
  return sorted({path.stem.partition('-')[2] for path in _files(folder)})


def read_folder(
  folder: str | os.PathLike[str], variant: str
) -> dict[str, list[Result]]:
  """The runs of one variant in a folder, by config.

  Raises:
    FileNotFoundError: if there is no such folder.
    ValueError: as `read`.
  """
  found = ((*path.stem.partition('-'), path) for path in _files(folder))
  return {name: read(path) for name, _, of, path in found if of == variant}


def _files(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise FileNotFoundError(
      f'{folder} is not a folder of results; make one with '
      f'python -m scripts.collect WORKDIR --out={folder}'
    )
  return sorted(folder.glob('*.jsonl'))


def lines(results: Iterable[Result]) -> str:
  """The text of a file of these runs, in a fixed order."""
  return ''.join(
    json.dumps(line, ensure_ascii=False, sort_keys=True) + '\n'
    for result in sorted(results, key=lambda result: natural(result.id))
    for line in (result.run, *result.rows, *result.churn)
  )


def natural(text: str) -> list[Any]:
  """A sort key that puts 'seed-2' before 'seed-10'."""
  return [
    (0, int(part), '') if part.isdecimal() else (1, 0, part)
    for part in re.split(r'(\d+)', text)
    if part
  ]
