"""Finds the config file that `--config` names.

  NAME[:variant]                  experiments/configs/NAME.py
  path/to/my_config.py[:variant]  a file of your own, anywhere
  package.module[:variant]        a module of your own that Python can import

Each file has `VARIANTS`, a tuple of names, and `get_config(variant)`; a sweep
also needs `sweep(variant)`. The first line of the docstring says what the
experiment is and, in parentheses, where it is in the paper. `base` is not an
experiment.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from experiments import results
from experiments.errors import UserError, nearest, user_errors
from experiments.paths import ROOT, local_path

CONFIGS = pathlib.Path(__file__).parent / 'configs'
# A docstring's first line: what it is, and where it is in the paper.
_SUMMARY = re.compile(r'(.*?)(?: \((.*)\))?\.?')
_MODULE = re.compile(r'\w+(\.\w+)+')


class _Loaded(NamedTuple):
  """A module, its file, and the hash of the file."""

  module: types.ModuleType
  path: pathlib.Path
  sha256: str


@dataclasses.dataclass(frozen=True)
class ConfigFile:
  """A config file and one of its variants.

  Attributes:
    name: short name, for folders and rows.
    variant: '' is the paper's scale.
    argument: value of `--config` for a command started in the repository.
    outside: provenance of a file outside experiments/configs: its `path`,
      relative to the repository or absolute; its `module`, if it was named as
      one; the `sha256` of its bytes. None for a file of this project, which the
      commit identifies.
    loaded: its module and path.
  """

  name: str
  variant: str
  argument: str
  outside: dict[str, str | None] | None
  loaded: _Loaded

  @property
  def path(self) -> pathlib.Path:
    """The file."""
    return self.loaded.path

  @property
  def label(self) -> str:
    """'imagenet_sync:laptop'."""
    return ':'.join(filter(None, (self.name, self.variant)))

  @property
  def stem(self) -> str:
    """'imagenet_sync-laptop'."""
    return results.stem(self.name, self.variant)

  def get_config(self) -> Any:
    """Calls the file's `get_config`.

    Raises:
      UserError: if it raises an exception.
    """
    with _blamed(self.path):
      return self.loaded.module.get_config(self.variant)

  def points(self) -> list[dict[str, Any]]:
    """The points of its `sweep()`; without one, a single empty point.

    Raises:
      UserError: if it raises an exception, or returns something else.
    """
    module = self.loaded.module
    if not hasattr(module, 'sweep'):
      return [{}]
    with _blamed(self.path):
      points = module.sweep(self.variant)
    if not (isinstance(points, list) and points) or not all(
      isinstance(point, dict) for point in points
    ):
      raise UserError(
        f'sweep() of {self.path} returns {points!r:.60}; it must return a '
        'list of dicts, each with the keys of a point and their values'
      )
    return points


def names() -> list[str]:
  """The experiments of this project."""
  return sorted(
    path.stem
    for path in CONFIGS.glob('*.py')
    if path.stem not in ('__init__', 'base')
  )


def find(text: str) -> ConfigFile:
  """Finds and loads the file that `--config` names.

  Args:
    text: NAME, a path that ends in .py, or package.module, each with an
      optional :variant.

  Raises:
    UserError: if there is none, it cannot be loaded, it is not a file of
      configs, or it has no such variant.
  """
  where, variant = _split(text)
  name, outside = _own_name(where), None
  if name is not None:
    if name not in names():
      raise UserError(
        f'there is no config {name!r}{nearest(name, names())}; '
        'python -m experiments.run --list shows what there is; name a file of '
        'your own by its path, which ends in .py'
      )
    argument, loaded = name, _import(f'experiments.configs.{name}')
  else:
    is_path = where.endswith('.py')
    loaded = _run(_absolute(where)) if is_path else _import(where)
    path = loaded.path
    name = path.parent.name if path.stem == '__init__' else path.stem
    _check_name(name, path)
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    argument = str(shown) if is_path else where
    outside = {
      'path': str(shown),
      'module': None if is_path else where,
      'sha256': loaded.sha256,
    }
  _check_module(loaded, variant)
  argument = ':'.join(filter(None, (argument, variant)))
  return ConfigFile(name, variant, argument, outside, loaded)


def listing() -> Table:
  """A table of this project's experiments, one per line."""
  table = Table(
    box=box.SIMPLE_HEAD,
    padding=(0, 1, 0, 0),
    show_edge=False,
    pad_edge=False,
    caption='--config=CONFIG[:VARIANT]; without a variant, the paper’s scale',
  )
  table.add_column('config', no_wrap=True)
  table.add_column('variants', width=14)
  table.add_column('what it is')
  table.add_column('in the paper', width=13)
  for name in names():
    module = _import(f'experiments.configs.{name}').module
    first, _, _ = (module.__doc__ or '').partition('\n')
    what, where = _SUMMARY.fullmatch(first).groups('')
    variants = filter(None, getattr(module, 'VARIANTS', ()))
    table.add_row(name, ' '.join(variants), what, where)
  return table


def _split(text: str) -> tuple[str, str]:
  """Splits at the colon; the names of folders may have colons, too."""
  if match := re.fullmatch(r'(.*\.py)(?::([^:/]*))?', text):
    return match[1], match[2] or ''
  where, _, variant = text.partition(':')
  return where, variant


def _own_name(where: str) -> str | None:
  """The name of a file in experiments/configs; None for other files."""
  if where.endswith('.py'):
    path = _absolute(where)
    return path.stem if path.parent.resolve() == CONFIGS.resolve() else None
  if not _MODULE.fullmatch(where):
    return where
  package, _, name = where.rpartition('.')
  return name if package == 'experiments.configs' else None


def _absolute(text: str) -> pathlib.Path:
  with user_errors(argparse.ArgumentTypeError):
    return local_path(text)


@functools.cache  # Once per process, like an import.
def _run(path: pathlib.Path) -> _Loaded:
  """Loads a module from a file.

  Raises:
    UserError: if it cannot be read, or raises an exception.
  """
  try:
    source = path.read_bytes()
  except FileNotFoundError as error:
    raise UserError(
      f'there is no file {path}; --config is NAME, path/to/file.py or '
      'package.module'
    ) from error
  except OSError as error:
    raise UserError(
      f'cannot read {path} ({error.strerror}); name a file that can be read'
    ) from error
  # Dataclasses look up their module here. The key is the path, because another
  # module may have the file's name.
  module = sys.modules[str(path)] = types.ModuleType(str(path))
  module.__file__ = str(path)
  with _blamed(path):
    # Not an import, so that the code that runs is the code that is hashed.
    exec(compile(source, path, 'exec'), vars(module))
  return _Loaded(module, path, hashlib.sha256(source).hexdigest())


@functools.cache
def _import(name: str) -> _Loaded:
  """Imports a module by its name; raises a `UserError` as `_run`."""
  with _blamed(name):
    try:
      spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
      # A package that lacks an import of its own is another matter.
      if not f'{name}.'.startswith(f'{error.name}.'):
        raise
      spec = None
  if spec is None or spec.origin is None:
    raise UserError(
      f'there is no module {name} for Python in {pathlib.Path.cwd()}; add its '
      'folder to PYTHONPATH'
    )
  path = pathlib.Path(spec.origin)
  with _blamed(path):
    module = importlib.import_module(name)
  return _Loaded(module, path, hashlib.sha256(path.read_bytes()).hexdigest())


@contextlib.contextmanager
def _blamed(what: pathlib.Path | str) -> Iterator[None]:
  """Turns what a config file raises into a sentence that says where."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    lines = [
      frame.lineno
      for frame in traceback.extract_tb(error.__traceback__)
      if frame.filename == str(what)
    ]
    if isinstance(error, SyntaxError) and error.filename == str(what):
      lines.append(error.lineno)
    line = f', line {lines[-1]}' if lines else ''
    said = ' '.join(f'{type(error).__name__}: {error}'.split())
    raise UserError(
      f'the config {what} fails{line}: {said:.200}; correct it there'
    ) from error


def _check_name(name: str, path: pathlib.Path) -> None:
  """Refuses names that are taken, and names that folders cannot have."""
  if name in names():
    raise UserError(
      f'{path} has the name of a config of this project, so their runs and '
      'rows could not be told apart; give it another name'
    )
  if not re.fullmatch(r'[\w-]+', name):
    raise UserError(
      f'{path} gives its name to folders of runs, so the name may have only '
      'letters, digits, _ and -; give it another name'
    )


def _check_module(loaded: _Loaded, variant: str) -> None:
  """Refuses a module without configs, and one without this variant."""
  module, path, _ = loaded
  if not callable(getattr(module, 'get_config', None)):
    raise UserError(
      f'{path} has no get_config; it needs get_config(variant), which returns '
      'a ConfigDict'
    )
  variants = getattr(module, 'VARIANTS', None)
  if not (isinstance(variants, tuple) and variants) or not all(
    isinstance(one, str) for one in variants
  ):
    raise UserError(
      f'{path} has no tuple VARIANTS; add one with the names of its variants, '
      "such as ('', 'smoke'), or ('',) if there is only one config"
    )
  if variant not in variants:
    known = ', '.join(f':{one}' if one else 'none' for one in variants)
    raise UserError(
      f'{path.stem} has no variant {variant!r}; it can be {known}'
    )
