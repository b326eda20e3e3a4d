"""Config files: which one `--config` names, of this project or of one's own.

  NAME[:variant]                  experiments/configs/NAME.py
  path/to/my_config.py[:variant]  a file of one's own, anywhere
  package.module[:variant]        a module of one's own, where Python finds it

Each has `VARIANTS`, a tuple of their names, `get_config(variant)`, and, to be
swept, `sweep(variant)`. The first line of its docstring says what it is and, in
parentheses, where in the paper. `base` is no experiment.
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
# Of a docstring: what it is, and where in the paper.
_SUMMARY = re.compile(r'(.*?)(?: \((.*)\))?\.?')
_MODULE = re.compile(r'\w+(\.\w+)+')


class _Loaded(NamedTuple):
  """A module, its file, and what the file's bytes are."""

  module: types.ModuleType
  path: pathlib.Path
  sha256: str


@dataclasses.dataclass(frozen=True)
class ConfigFile:
  """A file with configs, and which of its variants is meant.

  Attributes:
    name: short, as folders and rows have it.
    variant: '' is the paper's scale.
    argument: `--config` for a command that is started in the repository.
    outside: what the provenance keeps of a file that is not one of
      experiments/configs: its `path`, below the repository or absolute; its
      `module`, if it was named as one; the `sha256` of its bytes. None for one
      of this project's, which a commit has.
    loaded: its module and path.
  """

  name: str
  variant: str
  argument: str
  outside: dict[str, str | None] | None
  loaded: _Loaded

  @property
  def path(self) -> pathlib.Path:
    """Of the file."""
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
    """What the file's function of that name returns.

    Raises:
      UserError: if it raises an exception.
    """
    with _blamed(self.path):
      return self.loaded.module.get_config(self.variant)

  def points(self) -> list[dict[str, Any]]:
    """The points of its `sweep()`; one without a change if there is none.

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
  """The file that a `--config` names, loaded.

  Args:
    text: NAME, a path that ends in .py, or package.module; and :variant.

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
        'python -m experiments.run --list shows what there is, and a file of '
        'your own is named by its path, which ends in .py'
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
  """What there is in this project: a line an experiment."""
  table = Table(
    box=box.SIMPLE_HEAD,
    padding=(0, 1, 0, 0),
    show_edge=False,
    pad_edge=False,
    caption='--config=CONFIG[:VARIANT]; without one it has the paper’s scale',
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
  """Before and after the colon; folders may have some in their names."""
  if match := re.fullmatch(r'(.*\.py)(?::([^:/]*))?', text):
    return match[1], match[2] or ''
  where, _, variant = text.partition(':')
  return where, variant


def _own_name(where: str) -> str | None:
  """That of a file in experiments/configs, if that is what is named."""
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


@functools.cache  # Once a process, as all code is.
def _run(path: pathlib.Path) -> _Loaded:
  """The module of a file, by its path alone.

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
  # Its dataclasses look for the module that they are of. Not by the file's
  # own name, which a module of a package may have.
  module = sys.modules[str(path)] = types.ModuleType(str(path))
  module.__file__ = str(path)
  with _blamed(path):
    # No import: what is run is what the hash is of.
    exec(compile(source, path, 'exec'), vars(module))
  return _Loaded(module, path, hashlib.sha256(source).hexdigest())


@functools.cache
def _import(name: str) -> _Loaded:
  """A module by its name; raises a `UserError` as above."""
  with _blamed(name):
    try:
      spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
      # What a package imports and has not is another matter.
      if not f'{name}.'.startswith(f'{error.name}.'):
        raise
      spec = None
  if spec is None or spec.origin is None:
    raise UserError(
      f'there is no module {name} for Python in {pathlib.Path.cwd()}; put the '
      'folder that has it into PYTHONPATH'
    )
  path = pathlib.Path(spec.origin)
  with _blamed(path):
    module = importlib.import_module(name)
  return _Loaded(module, path, hashlib.sha256(path.read_bytes()).hexdigest())


@contextlib.contextmanager
def _blamed(what: pathlib.Path | str) -> Iterator[None]:
  """What a config file raises, as a sentence that says where."""
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
  """Refuses a name that folders and rows could not have, or not alone."""
  if name in names():
    raise UserError(
      f'{path} has the name of a config of this project, and its runs and rows '
      'would be taken for those of that one; give it another name'
    )
  if not re.fullmatch(r'[\w-]+', name):
    raise UserError(
      f'{path} gives its name to folders of runs, so that it may have letters, '
      'digits, _ and - alone; give it another name'
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
      f'{path} has no tuple VARIANTS; it needs one of the names of its '
      "variants, such as ('', 'smoke'), or ('',) if there is but one config"
    )
  if variant not in variants:
    known = ', '.join(f':{one}' if one else 'none' for one in variants)
    raise UserError(
      f'{path.stem} has no variant {variant!r}; it can be {known}'
    )
