"""Runs to compare, put together by what their configs say and named by it.

A point is what seeds are repetitions of: runs of one config and variant that
change the same keys.
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

  @property
  def label(self) -> str:
    """Its config and variant."""
    return label_of(self.run.run)

  def values(self, keys: Iterable[str]) -> tuple[str, ...]:
    """Of some keys, as texts."""
    return tuple(text(self.settings.get(key)) for key in keys)


@dataclasses.dataclass(frozen=True)
class Point:
  """Runs that differ in nothing but the seed.

  Attributes:
    name: short, and no other point's.
    group: of the points whose settings can be compared: config, variant, and
      the source if it tells points apart.
    settings: what points of its group differ in, by dotted key.
    runs: one a seed, in the order of seeds.
    is_base: it changes none of these keys of its config.
  """

  name: str
  group: tuple[str, str]
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
    UserError: for a source that holds no run.
    ValueError: for damaged files, as `collect.read_result` and `results.read`,
      and two runs of one point and seed in one source.
    OSError: for one that cannot be read.
  """
  found: dict[Any, Found] = {}
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
        if some and folder not in found
      }
    else:
      raise UserError(
        f'{source} does not exist; name folders of runs or of sweeps, or files '
        'of experiments/results'
      )
    found |= {key: _found(source, run) for key, run in runs.items()}
  if not found:
    raise UserError(f'{failed[0]} failed before it began; see its log.txt')
  title, points, together = _tell_apart(list(found.values()))
  single = {*found, *failed} <= {*sources} and len(points) == len(found)
  return Comparison(title, points, together, tuple(failed), single)


def _found(source: pathlib.Path, run: Result) -> Found:
  # Some of what a run changes, as the fingerprint of its data, is no config's.
  settings = dict(_leaves(results.recipe_of(run.run['config']))) | run.point
  return Found(source, run, settings)


def _leaves(section: Mapping[str, Any], prefix: str = '') -> Any:
  for key, value in section.items():
    if isinstance(value, dict):
      yield from _leaves(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def _read_file(path: pathlib.Path) -> list[Result]:
  if path.with_name(path.name.replace('rows', 'run', 1)[:-1]).exists():
    raise UserError(f'{path} is part of a run; name its folder instead')
  return results.read(path)


def _by(
  found: Iterable[Found], key_of: Callable[[Found], Any]
) -> dict[Any, list[Found]]:
  groups: dict[Any, list[Found]] = {}
  for one in found:
    groups.setdefault(key_of(one), []).append(one)
  return groups


def _tell_apart(
  found: Sequence[Found],
) -> tuple[str, tuple[Point, ...], Mapping[str, Sequence[str]]]:
  """Title, points and `together` of a comparison."""
  by_label = _by(found, lambda one: one.label)
  several = len(by_label) > 1
  keys = {name: _keys(some, several) for name, some in by_label.items()}
  named = {key for some in keys.values() for key in some}
  seeds = {
    (one.label, one.values(keys[one.label]), one.run.run['seed'])
    for one in found
  }
  clash = len(seeds) < len(found)
  places = _short({one.source for one in found}) if clash else {}
  groups = _by(found, lambda one: (one.label, places.get(one.source, '')))
  points, together = [], {}
  for (label, place), group in groups.items():
    parts = [label] * several + [place] * bool(place)
    mine, dropped = _points(group, keys[label], (label, place), parts, named)
    points += mine
    together |= dropped
  if several:
    return '', tuple(points), together
  # What all runs change alike.
  first, *others = found
  alike = [
    key
    for key in first.run.point
    if key not in named and all(key in one.run.point for one in others)
  ]
  title = ', '.join([first.label, *_texts(alike, first.settings, alike)])
  return title, tuple(points), together


def _keys(runs: Sequence[Found], all_that_change: bool) -> list[str]:
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
  group: Sequence[Found],
  keys: Sequence[str],
  name: tuple[str, str],
  parts: Sequence[str],
  named: Collection[str],
) -> tuple[list[Point], dict[str, list[str]]]:
  """The points of one group in order, and keys that stand for others, too."""
  by_values = list(_by(group, lambda one: one.values(keys)).values())
  firsts = [same[0] for same in by_values]
  kept, dropped = _one_of_each(keys, firsts)
  base = _base(group, kept)
  changed = [
    [k for k in kept if k not in base or one.settings.get(k) != base[k]]
    for one in firsts
  ]
  alone = [key for key in kept if [key] in changed]
  series = [key for key in alone if is_number(base.get(key))]
  points = []
  for same, mine in zip(by_values, changed, strict=True):
    settings = {key: same[0].settings.get(key) for key in kept}
    # A base is named by what the others change of it.
    shown = mine or (series or alone or kept) * (len(by_values) > 1)
    texts = [*parts, *_texts(shown, settings, named)]
    runs = one_a_seed(one.run for one in same)
    runs.sort(key=lambda run: run.run['seed'])
    points.append(
      Point(', '.join(texts) or name[0], name, settings, tuple(runs), not mine)
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
  # Words say more than numbers that change with them.
  by = sorted(keys, key=lambda key: (is_number(first.get(key)), key == _LAST))
  for key in by:
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


def _short(paths: Collection[pathlib.Path]) -> dict[pathlib.Path, str]:
  """Paths from where they part, without the ending of a file."""
  common = os.path.commonpath([path.parent for path in paths])
  return {
    path: path.relative_to(common).as_posix().removesuffix('.jsonl')
    for path in paths
  }


def _texts(
  keys: Iterable[str], settings: Settings, named: Collection[str]
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
