"""Runs to compare, put together by what their configs say and named by it.

A point is what seeds are repetitions of: runs of one config and variant that
change the same keys, on the same data.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import results
from experiments.errors import UserError
from experiments.results import Result
from experiments.runs import label_of
from scripts import collect
from scripts.figures.metric import one_a_seed

# Words that say little without the section that they are of.
_VAGUE = ('kind', 'name')
# Follows from whether there are peers, so of numbers it is the last to name a
# point.
_LAST = 'codistill.burn_in_steps'


class _Found:
  """A run, which of the sources it lies in, and its config by dotted key."""

  def __init__(self, source: pathlib.Path, run: Result):
    self.source = source
    self.run = run
    self.label = label_of(run.run)
    # Some of what it changes, as the fingerprint of data, is no config's.
    recipe = results.recipe_of(run.run['config'])
    self.settings = results.flat(recipe) | run.point
    # Runs on other data are no seeds of one point.
    if data := run.run.get('data', {}).get('fingerprint'):
      self.settings['data.fingerprint'] = data[:12]

  def values(self, keys: Iterable[str]) -> tuple[str, ...]:
    """Of some keys, as texts."""
    return tuple(text(self.settings.get(key)) for key in keys)


@dataclasses.dataclass(frozen=True)
class Point:
  """Runs that differ in nothing but the seed.

  Attributes:
    name: short, and no other point's.
    group: config, variant, and the source if it tells points apart.
    settings: what points of its group differ in, by dotted key.
    runs: one a seed, in the order of seeds.
    is_base: it changes none of these keys of its config.
  """

  name: str
  group: tuple[str, str]
  settings: dict[str, Any]
  runs: list[Result]
  is_base: bool


class Comparison(NamedTuple):
  """Points to compare.

  Attributes:
    title: what they have in common.
    points: at least one.
    along: what changes along with a key that names points, in words.
    failed: folders of runs that have left nothing but a log.
    single: each source is the folder of one run, and each run a point.
  """

  title: str
  points: list[Point]
  along: list[str]
  failed: list[pathlib.Path]
  single: bool


def read(sources: Sequence[pathlib.Path]) -> Comparison:
  """Reads runs and tells them apart.

  Args:
    sources: folders with runs in or below them, and files of collected rows.

  Raises:
    UserError: for a source that holds no run.
    ValueError: for damaged files, as `collect.read_result` and `results.read`,
      and two runs of one point and seed in one source.
    OSError: for one that cannot be read.
  """
  found: dict[Any, _Found] = {}
  failed = []
  for source in dict.fromkeys(sources):
    if source.is_file():
      runs = {(source, run.id): run for run in _read_file(source)}
    elif source.is_dir():
      records = collect.find_runs(source)
      failed += [folder for folder in records if not records[folder]]
      runs = {
        folder: collect.read_result(some, collect.ALLOWABLE, unscored=True)
        for folder, some in records.items()
        if some
      }
    else:
      raise UserError(
        f'{source} does not exist; name folders of runs or of sweeps, or files '
        'of experiments/results'
      )
    for key, run in runs.items():
      found.setdefault(key, _Found(source, run))
  if not found:
    raise UserError(f'{failed[0]} {collect.why_no_records(failed[0])}')
  title, points, along = _tell_apart(list(found.values()))
  single = {*found, *failed} <= {*sources} and len(points) == len(found)
  return Comparison(title, points, along, failed, single)


def _read_file(path: pathlib.Path) -> list[Result]:
  if path.with_name(path.name.replace('rows', 'run', 1)[:-1]).exists():
    raise UserError(f'{path} is part of a run; name its folder instead')
  return results.read(path)


def _by(
  found: Iterable[_Found], key_of: Callable[[_Found], Any]
) -> dict[Any, list[_Found]]:
  groups: dict[Any, list[_Found]] = {}
  for one in found:
    groups.setdefault(key_of(one), []).append(one)
  return groups


def _tell_apart(
  found: Sequence[_Found],
) -> tuple[str, list[Point], list[str]]:
  """What all have in common; points; and what changes along with a name."""
  by_label = _by(found, lambda one: one.label)
  several = len(by_label) > 1
  keys = {name: _keys(some, several) for name, some in by_label.items()}
  named = {key for some in keys.values() for key in some}
  first = found[0]
  changed = [{*one.run.point} for one in found]
  alike = sorted(set.intersection(*changed) - named)
  texts = (
    [] if several else [first.label, *_texts(alike, first.settings, alike)]
  )
  seeds = _by(
    found, lambda o: (o.values(keys[o.label]), o.label, o.run.run['seed'])
  )
  clash = len(seeds) < len(found)
  places = _short({one.source for one in found}) if clash else {}
  groups = _by(found, lambda one: (one.label, places.get(one.source, '')))
  points, along = [], {}
  for (label, place), group in groups.items():
    parts = [label] * several + [place] * bool(place)
    alike = _alike(keys[label], group)
    points += _points(group, list(alike), (label, place), parts, named)
    where = f'{", ".join(parts)}: ' if len(groups) > 1 else ''
    for key, others in alike.items():
      words = [_word(other, named) for other in others]
      if words and len({one.values([key]) for one in group}) > 1:
        said = f'{where}{_word(key, named)} also stands for {", ".join(words)}'
        along[said] = None
  return ', '.join(texts), points, list(along)


def _keys(runs: Sequence[_Found], all_that_change: bool) -> list[str]:
  """What some of the runs, all of one config and variant, differ in.

  Args:
    runs: at least one.
    all_that_change: also what all of them change alike.
  """
  changed = sorted({key for one in runs for key in one.run.point})
  # The variant itself may have changed from one commit to another. A key that
  # the code of a run did not have yet is no difference.
  values = collections.defaultdict(set)
  for one in runs:
    for key, value in one.settings.items():
      values[one.values(changed), key].add(text(value))
  besides = {key for (_, key), some in values.items() if len(some) > 1}
  return [
    key
    for key in changed
    if all_that_change or len({one.values([key]) for one in runs}) > 1
  ] + sorted(besides.difference(changed))


def _points(
  group: Sequence[_Found],
  kept: Sequence[str],
  name: tuple[str, str],
  parts: Sequence[str],
  named: Collection[str],
) -> list[Point]:
  """The points of one group in order."""
  by_values = list(_by(group, lambda one: one.values(kept)).values())
  firsts = [same[0] for same in by_values]
  # What the config has: what runs have that leave the key alone.
  own = {
    key: {one.values([key]) for one in group if key not in one.run.point}
    for key in kept
  }
  changed = [[k for k in kept if own[k] != {one.values([k])}] for one in firsts]
  alone = [key for key in kept if [key] in changed]
  series = [key for key in alone if is_number(firsts[0].settings.get(key))]

  def order(one: _Found) -> list[Any]:
    # What is a series stays together, and what the config has comes first.
    by = sorted(kept, key=lambda key: (key in series, key))
    return [
      (0, value, [])
      if is_number(value := one.settings.get(key))
      else (1, (text(value),) not in own[key], results.natural(text(value)))
      for key in by
    ]

  points = []
  points_of = zip(firsts, by_values, changed, strict=True)
  for one, same, mine in sorted(points_of, key=lambda some: order(some[0])):
    settings = {key: one.settings.get(key) for key in kept}
    # One that changes nothing is named by what the others change.
    shown = mine or (series or alone or kept) * (len(by_values) > 1)
    texts = ', '.join([*parts, *_texts(shown, settings, named)])
    runs = one_a_seed(one.run for one in same)
    runs.sort(key=lambda run: run.run['seed'])
    points.append(Point(texts or name[0], name, settings, runs, not mine))
  return points


def _alike(
  keys: Sequence[str], group: Sequence[_Found]
) -> dict[str, list[str]]:
  """Keys, and of each those that always change along with it."""
  points = [same[0] for same in _by(group, lambda o: o.values(keys)).values()]
  if len(points) == 1:
    return {key: [] for key in keys}
  alike: dict[tuple, list[str]] = {}
  first = points[0].settings
  # Words say more than numbers that change with them.
  for key in sorted(keys, key=lambda k: (is_number(first.get(k)), k == _LAST)):
    texts = [one.values([key]) for one in points]
    by_whom = tuple(key in one.run.point for one in points)
    alike.setdefault((*map(texts.index, texts), by_whom), []).append(key)
  return {key: others for key, *others in alike.values()}


def _short(paths: Collection[pathlib.Path]) -> dict[pathlib.Path, str]:
  """Paths from where they part, without the ending of a file."""
  common = os.path.commonpath([path.parent for path in paths])
  return {
    path: path.relative_to(common).as_posix().removesuffix('.jsonl')
    for path in paths
  }


def _texts(
  keys: Iterable[str], settings: Mapping[str, Any], named: Collection[str]
) -> list[str]:
  return [f'{_word(key, named)}={text(settings[key])}' for key in keys]


def _word(key: str, keys: Collection[str]) -> str:
  """A key's last part, and as many more as tell it from other keys."""
  parts = key.split('.')
  for count in range(1 + (parts[-1] in _VAGUE), len(parts)):
    word = '.'.join(parts[-count:])
    if sum(f'.{one}'.endswith(f'.{word}') for one in keys) == 1:
      return word
  return key


def text(value: Any) -> str:
  """A value as a flag has it."""
  if isinstance(value, float):
    return f'{value:.12g}'
  if isinstance(value, list):
    return f'({",".join(map(text, value))})'
  return 'none' if value is None else str(value)


def is_number(value: Any) -> bool:
  """Whether values like it have an order."""
  return isinstance(value, (int, float)) and not isinstance(value, bool)
