"""Runs to compare, put together by what their configs say and named by it.

A point is what seeds are repetitions of: runs of one config and variant that
change the same keys.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import results
from experiments.errors import UserError
from experiments.results import Result
from experiments.runs import label_of
from scripts import collect

Settings = dict[str, Any]
# Words that say little without the section that they are of.
_VAGUE = ('kind', 'name')
# Follows from whether there are peers, so of numbers it is the last to name a
# point.
_LAST = 'codistill.burn_in_steps'


class Found(NamedTuple):
  """A run, which of the sources it lies in, and its config by dotted key."""

  source: pathlib.Path
  run: Result
  settings: Settings


@dataclasses.dataclass(frozen=True)
class Point:
  """Runs that differ in nothing but the seed.

  Attributes:
    name: short, and no other point's.
    group: of the points whose settings can be compared: config and variant,
      and the source if it tells points apart.
    settings: what points of its group differ in, by dotted key.
    runs: one a seed, in the order of seeds.
    is_base: it changes none of these keys of its config.
  """

  name: str
  group: tuple[str, pathlib.Path | None]
  settings: Settings
  runs: tuple[Result, ...]
  is_base: bool


class Comparison(NamedTuple):
  """Points to compare.

  Attributes:
    title: what they have in common.
    points: at least one.
    together: keys that change along with one in the names, by that key.
    failed: folders of runs that left nothing but a log.
    single: each source is the folder of one run, and each run a point.
  """

  title: str
  points: tuple[Point, ...]
  together: Mapping[str, Sequence[str]]
  failed: tuple[pathlib.Path, ...]
  single: bool


def read(sources: Sequence[pathlib.Path]) -> Comparison:
  """Reads runs and tells them apart.

  Args:
    sources: folders with runs in or below them, and files of collected rows.

  Raises:
    UserError: for a source that holds no run, or two runs of one point and seed
      in one source.
    ValueError: for damaged files, as `collect.read_result` and `results.read`.
    OSError: for one that cannot be read.
  """
  found: dict[Any, Found] = {}
  failed = []
  single = True
  for source in dict.fromkeys(sources):
    if source.is_file():
      single = False
      found |= {
        (source, run.id): _found(source, run) for run in _read_file(source)
      }
      continue
    if not source.is_dir():
      raise UserError(
        f'{source} does not exist; name folders of runs or of sweeps, or files '
        'of experiments/results'
      )
    for folder, records in collect.find_runs(source).items():
      single &= folder == source
      if records:
        run = collect.read_result(records, collect.ALLOWABLE, unscored=True)
        found.setdefault(folder, _found(source, run))
      else:
        failed.append(folder)
  if not found:
    raise UserError(f'{failed[0]} failed before it began; see its log.txt')
  title, points, together = _tell_apart(list(found.values()))
  single &= len(points) == len(found)
  return Comparison(title, points, together, tuple(failed), single)


def _found(source: pathlib.Path, run: Result) -> Found:
  # Some of what a run changes, as the fingerprint of its data, is no config's.
  settings = dict(_leaves(results.recipe_of(run.run['config']))) | run.point
  return Found(source, run, settings)


def _read_file(path: pathlib.Path) -> list[Result]:
  if path.with_name(path.name.replace('rows', 'run', 1)[:-1]).exists():
    raise UserError(f'{path} is part of a run; name its folder instead')
  return results.read(path)


def _tell_apart(
  found: Sequence[Found],
) -> tuple[str, tuple[Point, ...], Mapping[str, Sequence[str]]]:
  """Title, points and `together` of a comparison."""
  by_label: dict[str, list[Found]] = collections.defaultdict(list)
  for one in found:
    by_label[label_of(one.run.run)].append(one)
  keys = {
    label: _keys(some, all_that_change=len(by_label) > 1)
    for label, some in by_label.items()
  }
  ids = [
    (label, _id(one, keys[label]), one.run.run['seed'])
    for label, some in by_label.items()
    for one in some
  ]
  by_source = len(set(ids)) < len(ids)
  groups: dict[Any, dict[str, list[Found]]] = {}
  for label, some in by_label.items():
    for one in some:
      group = groups.setdefault((label, one.source if by_source else None), {})
      group.setdefault(_id(one, keys[label]), []).append(one)
  for group in groups.values():
    for same in group.values():
      _check_seeds([one.run for one in same])
  named = {key for some in keys.values() for key in some}
  sources = _short({one.source for one in found})
  points, together = [], {}
  for (label, source), group in groups.items():
    parts = [label] if len(by_label) > 1 else []
    parts += [sources[source]] if source else []
    mine, dropped = _points(group, keys[label], (label, source), parts, named)
    points += mine
    together |= dropped
  return _title(found, named), tuple(points), together


def _title(found: Sequence[Found], named: Collection[str]) -> str:
  """Config, variant and changes, as far as all runs have them alike."""
  first = found[0]
  if len({label_of(one.run.run) for one in found}) > 1:
    return ''
  alike = [
    key
    for key in first.run.point
    if key not in named and all(key in one.run.point for one in found)
  ]
  texts = [f'{_word(key, alike)}={text(first.settings[key])}' for key in alike]
  return ', '.join([label_of(first.run.run), *texts])


def _points(
  group: Mapping[str, Sequence[Found]],
  keys: Sequence[str],
  name: tuple[str, pathlib.Path | None],
  parts: Sequence[str],
  named: Collection[str],
) -> tuple[list[Point], dict[str, list[str]]]:
  """The points of one group in order, and keys that stand for others, too."""
  runs = list(group.values())
  settings = [{key: same[0].settings.get(key) for key in keys} for same in runs]
  kept, dropped = _one_of_each(keys, [same[0] for same in runs])
  base = _base([one for same in runs for one in same], kept)
  changed = [
    {key: one[key] for key in kept if key not in base or one[key] != base[key]}
    for one in settings
  ]
  alone = [key for key in kept if any([*one] == [key] for one in changed)]
  series = [key for key in alone if is_number(base.get(key))]
  points = []
  for same, mine, other in zip(runs, settings, changed, strict=True):
    # A base is named by what the others change of it.
    shown = other or (
      {key: mine[key] for key in series or alone or kept}
      if len(runs) > 1
      else {}
    )
    texts = [f'{_word(key, named)}={text(shown[key])}' for key in shown]
    points.append(
      Point(
        ', '.join([*parts, *texts]) or name[0],
        name,
        {key: mine[key] for key in kept},
        tuple(
          sorted((one.run for one in same), key=lambda run: run.run['seed'])
        ),
        not other,
      )
    )

  def order(point: Point) -> list[Any]:
    # What is a series stays together.
    by = sorted(kept, key=lambda key: (key in series, key))
    return [
      _order(value := point.settings[key], base.get(key, value)) for key in by
    ]

  return sorted(points, key=order), {
    _word(key, named): [_word(other, named) for other in others]
    for key, others in dropped.items()
  }


def _keys(runs: Sequence[Found], all_that_change: bool) -> list[str]:
  """What some of the runs, all of one config and variant, differ in.

  Args:
    runs: at least one.
    all_that_change: also what all of them change alike.
  """
  changed = sorted({key for one in runs for key in one.run.point})
  keys = [
    key
    for key in changed
    if all_that_change or len({text(one.settings.get(key)) for one in runs}) > 1
  ]
  # The variant itself may have changed from one commit to another. A key that
  # the code of a run did not have yet is no difference.
  values: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
  for one in runs:
    for key, value in one.settings.items():
      values[_id(one, changed), key].add(text(value))
  besides = {key for (_, key), some in values.items() if len(some) > 1}
  return [*keys, *sorted(besides - set(keys))]


def _one_of_each(
  keys: Sequence[str], points: Sequence[Found]
) -> tuple[list[str], dict[str, list[str]]]:
  """Keys without those that always change along with one that stays.

  Returns:
    The keys that stay, and by each of them those that do not.
  """
  if len(points) == 1:
    return list(keys), {}
  alike: dict[tuple, list[str]] = {}
  first = points[0].settings

  def order(key: str) -> tuple[bool, bool]:
    # Words say more than numbers that change with them.
    return is_number(first.get(key)), key == _LAST

  for key in sorted(keys, key=order):
    texts = [text(one.settings.get(key)) for one in points]
    by_whom = tuple(key in one.run.point for one in points)
    alike.setdefault((*map(texts.index, texts), by_whom), []).append(key)
  kept = {some[0]: some[1:] for some in alike.values()}
  return list(kept), {key: others for key, others in kept.items() if others}


def _base(runs: Sequence[Found], keys: Sequence[str]) -> Settings:
  """What a config has, as far as runs that leave a key alone agree on it."""
  base = {}
  for key in keys:
    values = [one.settings.get(key) for one in runs if key not in one.run.point]
    if values and all(value == values[0] for value in values):
      base[key] = values[0]
  return base


def _leaves(section: Mapping[str, Any], prefix: str = '') -> Any:
  for key, value in section.items():
    if isinstance(value, dict):
      yield from _leaves(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def _id(one: Found, keys: Sequence[str]) -> str:
  return json.dumps([one.settings.get(key) for key in keys])


def _check_seeds(runs: Sequence[Result]) -> None:
  seeds: dict[int, Result] = {}
  for run in runs:
    other = seeds.setdefault(run.run['seed'], run)
    if other is not run:
      raise UserError(
        f'{label_of(run.run)} has two runs of {run.id}, of '
        f'{other.run["started"]} and {run.run["started"]}; name their folders '
        'one by one'
      )


def _short(paths: Collection[pathlib.Path]) -> dict[pathlib.Path, str]:
  """Paths from where they part, without the ending of a file."""
  common = os.path.commonpath([path.parent for path in paths])
  return {
    path: path.relative_to(common).with_suffix('').as_posix()
    if path.suffix == '.jsonl'
    else path.relative_to(common).as_posix()
    for path in paths
  }


def _word(key: str, keys: Collection[str]) -> str:
  """A key's last part, and as many more as tell it from other keys."""
  parts = key.split('.')
  for count in range(1 + (parts[-1] in _VAGUE), len(parts) + 1):
    word = '.'.join(parts[-count:])
    if not any(
      other != key and f'.{other}'.endswith(f'.{word}') for other in keys
    ):
      return word
  return key


def text(value: Any) -> str:
  """A value as a flag has it."""
  if isinstance(value, float):
    return f'{value:g}'
  if isinstance(value, list):
    return f'({",".join(map(text, value))})'
  return 'none' if value is None else str(value)


def is_number(value: Any) -> bool:
  """Whether values like it have an order."""
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _order(value: Any, base: Any) -> Any:
  if is_number(value) and is_number(base):
    return (0, value, [])
  # What the config has comes first.
  return (1, value != base, results.natural(text(value)))
