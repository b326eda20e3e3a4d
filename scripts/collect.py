"""Copies finished runs' rows and provenance to where figures are drawn from.

  python -m scripts.collect WORKDIR [WORKDIR …] [--out=DIR] [--replace]
  python -m scripts.collect ROWS.jsonl [ROWS.jsonl …] --variant=NAME

A WORKDIR is a run's folder, or one with runs anywhere below it, such as a
sweep's. The command writes `<config>-<variant>.jsonl` in experiments/results,
or in --out: for each run its provenance and its evaluations, without the
machine's paths and names. Your own data make another point, named by their
fingerprint. A second collect changes nothing; another run of a point that is
there takes its place only with --replace.

ROWS.jsonl were collected elsewhere, with runs named by their variant and their
changes to it. If a run's settings are those of another variant, or of a point
of its sweep, --variant renames it; the rest of its provenance stays.

Where runs have stored predictions, evaluations of two classes get their AUC,
and seeds of one point get their churn if one command collects them.

Some runs are refused unless --allow names the reason, which then marks them:
`unfinished` ones (and diverged ones), `dirty` ones (made from a tree with
uncommitted changes), ones with `no-commit` (made outside git), `two-commits`
(begun by one and ended by another) or an `outside-config` (your own file, which
no commit of this project has; its name and SHA-256 are kept). Rows without a
run.json belong to no config, and are always refused.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import re
import statistics
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from codistill.churn import area_under_curve
from experiments import config as config_lib
from experiments import predictions, results, retrains
from experiments.errors import UserError
from experiments.paths import FIRST_PHASE, PATH_KEYS, local_path
from experiments.predictions import Who
from experiments.record import SCHEMA_VERSION, Record, read_rows, read_run
from experiments.results import Result, Row
from experiments.runs import death_of
from experiments.workdir import is_running

ALLOWABLE = (
  'unfinished',
  'dirty',
  'no-commit',
  'two-commits',
  'outside-config',
)
# Kinds of rows that are kept.
_SCORED = ('eval', 'final')
# Keys of the provenance; argv is not among them, because it contains paths.
_KEPT = (
  'schema',
  'experiment',
  'variant',
  'seed',
  'status',
  'config_hash',
  'code',
  'commit',
  'dirty',
  'packages',
  'device',
  'started',
)


def read_collected(
  path: pathlib.Path, variant: str, allow: Sequence[str]
) -> list[Result]:
  """Reads runs that were collected elsewhere, and renames them to a variant.

  Args:
    path: of the rows.
    variant: of their experiments.
    allow: marks of `ALLOWABLE` that are not refused.

  Raises:
    ValueError: as `results.read`, for a run that is no point of the variant or
      that is marked, and for runs on different data.
    UserError: if there is no such experiment or variant.
  """
  found = results.read(path)
  for result in found:
    for mark in result.run['marked']:
      if mark not in allow:
        raise ValueError(
          f'{result.id} in {path} is {mark}; add --allow={mark} to take it'
        )
  data = {result.run.get('data', {}).get('fingerprint') for result in found}
  if len(data) > 1:
    raise ValueError(
      f'runs in {path} were made on different data; collect them one by one, '
      'each with an --out of its own'
    )
  ids = {result.id: _id_as(variant, result, path) for result in found}
  return [
    Result(
      {
        **result.run,
        'id': ids[result.id][0],
        'variant': variant,
        'overrides': ids[result.id][1],
        'config': _without_folders(result.run['config']),
        'collected_as': result.run.get('collected_as', result.run['variant']),
      },
      tuple(row | {'id': ids[result.id][0]} for row in result.rows),
      tuple(
        row | {'id': ids[result.id][0], 'other': ids[row['other']][0]}
        for row in result.churn
      ),
    )
    for result in found
  ]


def _id_as(
  variant: str, result: Result, path: pathlib.Path
) -> tuple[str, dict[str, Any]]:
  """A run's id as one of a variant, and its overrides of that variant."""
  run = result.run
  label = f'{run["experiment"]}:{variant}'
  point = config_lib.recorded_point(label, run['config'])
  if point is None:
    raise ValueError(
      f'{result.id} in {path} is no point of {label}: its settings differ; '
      'collect it under its own name, from its workdir'
    )
  changes = point | ({'seed': run['seed']} if run['seed'] else {})
  overrides = config_lib.overrides(
    config_lib.load(label), config_lib.load_changed(label, changes)
  )
  name = results.point_name(results.point_of(overrides))
  return f'{name}/seed-{run["seed"]}', overrides


def find_runs(folder: pathlib.Path) -> dict[pathlib.Path, list[Record]]:
  """The runs in and below a folder, each as the records of its processes.

  A sweep's run that has not begun has no records. The first of two
  phases is part of the run around it, which records how it ended.

  Raises:
    ValueError: if there is none.
    OSError: if a folder cannot be read.
  """
  found: dict[pathlib.Path, dict[str, Record]] = {}

  def refuse(error: OSError) -> None:
    raise error

  for parent, _, names in os.walk(folder, onerror=refuse):
    for name in sorted(names):
      if name == 'log.txt':  # A sweep writes it even if the run never starts.
        found.setdefault(pathlib.Path(parent), {})
      match = re.fullmatch(r'(?:run(|-\d+)\.json|rows(|-\d+)\.jsonl)', name)
      if match:
        suffix = match[1] or match[2] or ''
        record = Record(parent, suffix)
        found.setdefault(record.workdir, {})[suffix] = record
  if not found:
    raise ValueError(
      f'{folder} holds no run; make one with python -m experiments.run '
      f'--config=NAME --workdir={folder}'
    )
  return {
    parent: list(found[parent].values())
    for parent in sorted(found)
    if not (parent.name == FIRST_PHASE and parent.parent in found)
  }


def why_no_records(folder: pathlib.Path) -> str:
  """What a folder without records does or did: 'failed …', 'is at work …'."""
  if is_running(folder):
    return 'is at work, and has no rows yet; wait for its end'
  with contextlib.suppress(OSError, ValueError, KeyError):
    first = read_run(folder / FIRST_PHASE / 'run.json')
    if first['status'] in ('running', 'interrupted'):
      return 'has not finished its first phase; let its command go on'
  return 'failed before it began; see its log.txt'


def read_result(
  records: Sequence[Record], allow: Sequence[str], *, unscored: bool = False
) -> Result:
  """Reads a run in the form in which it is published.

  Args:
    records: of its processes: one, or one a member.
    allow: marks of `ALLOWABLE` that are not refused.
    unscored: whether to take one without evaluations, too.

  Raises:
    ValueError: if it is refused, with the reason.
  """
  workdir = records[0].workdir
  try:
    return _read_result(records, allow, unscored)
  except FileNotFoundError as error:
    raise ValueError(
      f'{workdir} has no {pathlib.Path(error.filename).name}, which belongs to '
      'every run; run it again'
    ) from error
  except (LookupError, TypeError, AttributeError) as error:
    raise ValueError(
      f'{workdir} is not what a run leaves ({error!r}); run it again'
    ) from error


def _read_result(
  records: Sequence[Record], allow: Sequence[str], unscored: bool
) -> Result:
  workdir = records[0].workdir
  try:
    runs = [read_run(record.run_path) for record in records]
  except ValueError as error:
    raise ValueError(f'{error}; run it again') from error
  first = runs[0]
  for run in runs:
    if run.get('schema') != SCHEMA_VERSION:
      raise ValueError(
        f'{workdir} has schema {run.get("schema")}, and this code reads '
        f'{SCHEMA_VERSION}; collect it with the code that made it'
      )
    if 'overrides' not in run:
      raise ValueError(
        f'{workdir} does not say which keys it changed, because its code '
        'predates sweeps; run it again'
      )
  members = first['config']['codistill']['members']
  apart = first['member'] is not None
  versions = [
    version for run in runs for version in (run, *run.get('resumed', []))
  ]
  # Long, because it is two lists: what marks a run, and what is kept of one.
  marks = {
    'unfinished': any(run['status'] != 'done' for run in runs)
    or (apart and len(runs) < members),
    'dirty': any(version['dirty'] for version in versions),
    'no-commit': any(version['commit'] is None for version in versions),
    'two-commits': len(set(map(_code_of, versions))) > 1,
    'outside-config': bool(first.get('config_file')),
  }
  marked = [mark for mark in ALLOWABLE if marks[mark]]
  for mark in marked:
    if mark not in allow:
      raise ValueError(
        f'{workdir} is left out: {mark} (status {first["status"]}, commit '
        f'{str(first["commit"])[:12]}, config {first["experiment"]}); add '
        f'--allow={mark} to take it, marked'
      )
  rows = []
  for record, run in zip(records, runs, strict=True):
    own = []
    if not unscored or record.rows_path.exists():
      own = read_rows(record.rows_path)
    if run['status'] == 'done':
      _check_ends(record, run, own)
    rows += own
  scored = sorted(
    (row for row in rows if row['kind'] in _SCORED),
    key=lambda row: (row['step'], row['kind'], str(row['member'])),
  )
  if not (scored or unscored):
    raise ValueError(f'{workdir} has no evaluations; left out')
  aucs = _aucs(workdir)
  overrides, config = _without_paths(first)
  point = results.point_of(overrides)
  id_ = f'{results.point_name(point)}/seed-{first["seed"]}'
  return Result(
    {
      'kind': 'run',
      'id': id_,
      **{key: first[key] for key in _KEPT if key in first},
      # Facts about its data, such as the best score that can be reached.
      'data': first.get('data', {}),
      **_config_file(first),
      'overrides': overrides,
      'config': config,
      'marked': marked,
      'commits': list(dict.fromkeys(version['commit'] for version in versions)),
      **_all_of(versions),
      'diverged': {
        member: at
        for run in runs
        for member, at in run.get('diverged', {}).items()
      },
      **({'teachers': first['teachers']} if first.get('teachers') else {}),
      **_summary(rows),
    },
    tuple(
      {
        'id': id_,
        **_without_nulls(row | {'auc': aucs.get((row['step'], row['member']))}),
      }
      for row in scored
    ),
  )


def _check_ends(
  record: Record, run: Mapping[str, Any], rows: Sequence[Row]
) -> None:
  """Refuses a process that is done, and a member of it whose rows are not."""
  ends = {row['member']: row['step'] for row in rows if row['kind'] in _SCORED}
  members = [run['member']]
  if run['member'] is None:
    members = range(run['config']['codistill']['members'])
  lost = {m for m in members if death_of(run, m) is not None}
  whos = {
    f'member {member}': member for member in members if member not in lost
  }
  if len(whos) > 1:
    whos['the ensemble'] = 'ensemble'
  for name, who in whos.items():
    last = ends.get(who, 0)
    if last < run['config']['num_steps']:
      raise ValueError(
        f'{record.workdir} is done, and evaluations of {name} end at step '
        f'{last:,}; restore {record.rows_path.name} from a copy, or run it '
        'again'
      )


def _code_of(version: Mapping[str, Any]) -> tuple[str, str | None]:
  """What two versions have alike if the same code made both."""
  file = version.get('config_file')
  return version.get('code') or version['commit'], file and file['sha256']


def _all_of(versions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """All packages and devices, each once, where there are several."""
  found = {}
  for key in ('packages', 'device'):
    values = [version[key] for version in versions if version.get(key)]
    some = [one for n, one in enumerate(values) if one not in values[:n]]
    if len(some) > 1:
      found[f'all_{key}'] = some
  return found


def _config_file(run: Mapping[str, Any]) -> dict[str, Any]:
  """The config's file if it is one of one's own, and not where it lies."""
  file = run.get('config_file')
  if file is None:
    return {}
  name = pathlib.PurePath(file['path']).name
  return {'config_file': {**file, 'path': name}}


def _without_paths(
  run: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
  """A run's overrides and config, which name its data but not their path."""
  overrides = dict(run['overrides'])
  # Not the variant's data. A variant on prepared data names no path of its own.
  own = 'data.name' in overrides or (
    'data.path' in overrides and run['config']['data']['name'] != 'prepared'
  )
  if own and (fingerprint := run.get('data', {}).get('fingerprint')):
    overrides['data.fingerprint'] = fingerprint[:12]
  if teachers := overrides.get('codistill.frozen_dir'):
    # Which point taught, whose seeds may lie anywhere; older code did not say.
    name = run.get('taught_by', {}).get(
      'point', pathlib.PurePath(teachers).name
    )
    overrides['codistill.frozen_dir'] = name
  for section, key in PATH_KEYS:
    if key != 'frozen_dir':
      overrides.pop(f'{section}.{key}', None)
  return overrides, _without_folders(run['config'])


def _without_folders(config: Mapping[str, Any]) -> dict[str, Any]:
  kept = json.loads(json.dumps(config))
  for section, key in PATH_KEYS:
    if key in kept.get(section, {}):
      kept[section][key] = None
  return kept


def _aucs(workdir: pathlib.Path) -> dict[tuple[int, Who], float | None]:
  """AUCs by step and predictor, where predictions of two classes are stored.

  Raises:
    ValueError: if some are damaged.
  """
  opened = {
    key: stored.open() for key, stored in predictions.find(workdir).items()
  }
  return {
    key: area_under_curve(p, labels)
    for key, (p, labels) in opened.items()
    if p.ndim == 1
  }


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
  """What figures need of the training rows, which are not collected."""
  train = [row for row in rows if row['kind'] == 'train']

  def of(key, summarise):
    values = [row[key] for row in train if row.get(key) is not None]
    return summarise(values) if values else None

  return {
    'mean_peer_age': of('peer_age', statistics.fmean),
    # How often a neighbour did not teach, by reason.
    'left_out': of(
      'left_out',
      lambda rows: collections.Counter(
        why for peers in rows for why in peers.values()
      ),
    ),
    'examples_per_second': of('examples_per_second', statistics.median),
    # All members' together.
    'exchanged_bytes': _exchanged_bytes(rows),
  }


def _exchanged_bytes(rows: Sequence[Row]) -> dict[str, int]:
  """Bytes that were published and bytes that were loaded, by event."""
  total = collections.Counter()
  for row in rows:
    if row['kind'] == 'exchange' and row.get('bytes'):
      total[row['event']] += row['bytes']
  return dict(total)


def _without_nulls(row: Row) -> Row:
  return {key: value for key, value in row.items() if value is not None}


def merge(
  old: Sequence[Result], new: Sequence[Result], *, replace: bool | None
) -> list[Result]:
  """Merges old and new runs of one file.

  Args:
    old: those that are there.
    new: those that are added.
    replace: whether one that is added may take the place of one that is there;
      None if that is no choice, because all are being added.

  Raises:
    ValueError: for two different runs of one point, or for seeds of one point
      that were run with different configs, or on different data.
  """
  merged = {result.id: result for result in old}
  for result in new:
    there = merged.get(result.id)
    if there and not replace and _identity(there) != _identity(result):
      raise ValueError(
        f'two runs of {result.run["experiment"]}:{result.run["variant"]} '
        f'{result.id}: one of {there.run["started"]} at commit '
        f'{str(there.run["commit"])[:12]}, one of {result.run["started"]} at '
        f'{str(result.run["commit"])[:12]}; collect one of them'
        + ', or replace the one collected before with --replace'
        * (replace is not None)
      )
    merged[result.id] = result
  seen: dict[str, Result] = {}
  known: dict[str, str] = {}
  for result in merged.values():
    first = seen.setdefault(_point(result.id), result)
    recipes = [results.recipe_of(one.run['config']) for one in (first, result)]
    if not _agree(*recipes):
      raise ValueError(
        f'{first.id} and {result.id} of {result.run["experiment"]} were run '
        'with different configs; run one of them again'
      )
    data = result.run.get('data', {}).get('fingerprint')
    # Runs that were collected before it was recorded have none.
    if data and known.setdefault(_point(result.id), data) != data:
      raise ValueError(
        f'{result.id} of {result.run["experiment"]} was run on other data than '
        'another seed; collect it elsewhere, with --out'
      )
  return list(merged.values())


def _agree(one: Any, other: Any) -> bool:
  """Whether two recipes agree in all keys that both have."""
  if not (isinstance(one, dict) and isinstance(other, dict)):
    return bool(one == other)
  return all(_agree(one[key], other[key]) for key in one.keys() & other.keys())


def _identity(result: Result) -> tuple[Any, ...]:
  run = result.run
  return run['started'], run['commit'], run['config_hash']


def _compare(
  folders: Mapping[str, pathlib.Path],
) -> dict[tuple[str, str], list[Row]]:
  """Churn between the seeds of each point, by the ids of the two runs.

  Args:
    folders: where the runs of one file lie, by id.

  Raises:
    ValueError: as `retrains.compare`.
  """
  ids = sorted(folders, key=results.natural)
  return {
    (one, other): [
      {'id': one, 'kind': 'churn', 'other': other, **row}
      for row in retrains.compare(folders[one], folders[other])
    ]
    for one, other in itertools.combinations(ids, 2)
    if _point(one) == _point(other)
  }


def _with_churn(
  merged: Sequence[Result],
  old: Sequence[Result],
  new: Mapping[tuple[str, str], list[Row]],
) -> list[Result]:
  """Adds new churn to runs, and keeps the old between runs that stay."""
  now = {result.id: _identity(result) for result in merged}
  same = {result.id for result in old if now[result.id] == _identity(result)}
  pairs: dict[tuple[str, str], list[Row]] = collections.defaultdict(list)
  for result in old:
    for row in result.churn:
      if {result.id, row['other']} <= same:
        pairs[result.id, row['other']].append(row)
  pairs |= {pair: rows for pair, rows in new.items() if rows}
  return [
    dataclasses.replace(
      result,
      churn=tuple(
        row
        for one, other in sorted(
          pairs, key=lambda pair: results.natural(pair[1])
        )
        if one == result.id
        for row in pairs[one, other]
      ),
    )
    for result in merged
  ]


def _point(id_: str) -> str:
  return id_.rpartition('/')[0]


def collect(
  workdirs: Sequence[pathlib.Path],
  out: pathlib.Path,
  *,
  allow: Sequence[str],
  replace: bool,
  variant: str = '',
) -> tuple[dict[pathlib.Path, int], list[str]]:
  """Writes the files of results.

  Args:
    workdirs: runs, or folders of runs; or files of rows.
    out: folder of the files.
    allow: as `read_result`.
    replace: whether a new run replaces an old one of the same point.
    variant: of the runs in files of rows.

  Returns:
    The number of runs in each file, and the reasons of refusals.

  Raises:
    ValueError: as `merge`, for a workdir without runs, or for retrains that
      were evaluated on different examples; nothing is written.
  """
  files: dict[str, list[Result]] = {}
  folders: dict[str, dict[str, pathlib.Path]] = {}
  refused = []
  churn: dict[str, dict[tuple[str, str], list[Row]]] = {}
  for workdir in workdirs:
    if workdir.is_file():
      for result in read_collected(workdir, variant, allow):
        name = results.stem(result.run['experiment'], variant)
        files[name] = merge(files.get(name, []), [result], replace=None)
        pairs = churn.setdefault(name, {})
        for other in {row['other'] for row in result.churn}:
          pairs[result.id, other] = [
            row for row in result.churn if row['other'] == other
          ]
      continue
    for folder, records in find_runs(workdir).items():
      if not records:
        refused.append(f'{folder} is left out: it {why_no_records(folder)}')
        continue
      try:
        result = read_result(records, allow)
      except ValueError as error:
        refused.append(str(error))
        continue
      if config_lib.is_first_phase(result.run['config']):
        refused.append(
          f'{folder} is left out: it is the first of two phases; collect the '
          'folder around it when the second is done'
        )
        continue
      name = results.stem(result.run['experiment'], result.run['variant'])
      own = files.setdefault(name, [])
      # Two of the runs just read may not be one point, even with `replace`.
      files[name] = merge(own, [result], replace=None)
      folders.setdefault(name, {})[result.id] = folder
  texts = {}
  for name, new in files.items():
    path = out / f'{name}.jsonl'
    old = results.read(path) if path.exists() else []
    merged = merge(old, new, replace=replace)
    new_churn = churn.get(name, {}) | _compare(folders.get(name, {}))
    texts[path] = _with_churn(merged, old, new_churn)
  out.mkdir(parents=True, exist_ok=True)
  for path, merged in texts.items():
    fresh = path.with_suffix('.new')
    fresh.write_text(results.lines(merged), encoding='utf-8')
    os.replace(fresh, path)
  return {path: len(merged) for path, merged in texts.items()}, refused


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; 1 if a run was refused."""
  parser = argparse.ArgumentParser(
    prog='scripts.collect',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('workdirs', nargs='+', type=local_path)
  parser.add_argument('--out', type=local_path, default=results.FOLDER)
  parser.add_argument('--allow', action='append', default=[], choices=ALLOWABLE)
  parser.add_argument(
    '--replace',
    action='store_true',
    help='replace runs of the same points that were collected before',
  )
  parser.add_argument(
    '--variant', help='variant of the runs in files of rows', metavar='NAME'
  )
  arguments = parser.parse_args(argv)
  files = [path for path in arguments.workdirs if path.is_file()]
  if bool(files) != (arguments.variant is not None):
    parser.error(
      f'{files[0]} is a file of rows; name its variant with --variant=NAME'
      if files
      else '--variant is for files of rows; leave it out for a workdir'
    )
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    try:
      written, refused = collect(
        arguments.workdirs,
        arguments.out,
        allow=arguments.allow,
        replace=arguments.replace,
        variant=arguments.variant or '',
      )
    except (OSError, ValueError, UserError) as error:
      print(f'scripts.collect: {error}', file=sys.stderr)
      return 2
  for warning in caught:
    print(f'scripts.collect: {warning.message}', file=sys.stderr)
  for path, count in written.items():
    print(f'{path}: {count} runs')
  for reason in refused:
    print(f'scripts.collect: {reason}', file=sys.stderr)
  return 1 if refused else 0


if __name__ == '__main__':
  sys.exit(main())
