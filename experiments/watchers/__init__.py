"""What shows a run elsewhere while it works: it sees each row, and the config.

A watcher is a module here and a line in WATCHERS; a flag of its name asks for
it.
"""

from __future__ import annotations

import abc
import importlib
from collections.abc import Callable
from typing import Any

from rich.console import Console

from experiments.processes import say
from experiments.workdir import Workdir

# Where each is, and the class.
WATCHERS = {'tensorboard': 'TensorBoard', 'wandb': 'WeightsAndBiases'}
# What numbers of a row say where it belongs, and are no curve.
_PLACE = ('step', 'member', 'seconds', 'examples_seen')
Row = dict[str, Any]


class Watcher(abc.ABC):
  """Sees the rows of one process between `__enter__` and `__exit__`.

  Attributes:
    name: what the console calls it.
  """

  name: str

  def __init__(self, workdir: Workdir, start_step: int, console: Console):
    """Opens nothing yet.

    Args:
      workdir: the run's folder, with its provenance.
      start_step: rows begin after it; what an earlier process showed of later
        steps is shown again.
      console: where to say things.
    """
    self._workdir = workdir
    self._start_step = start_step
    self._console = console
    self._broken = False

  @abc.abstractmethod
  def __enter__(self) -> Watcher: ...

  @abc.abstractmethod
  def __exit__(self, *exception: object) -> None: ...

  @abc.abstractmethod
  def write(self, row: Row) -> None:
    """Shows a row."""

  def _attempt(
    self, function: Callable[..., Any], *arguments: Any, **keywords: Any
  ) -> None:
    """Calls a function, unless one failed before; says so if it fails."""
    if self._broken:
      return
    try:
      function(*arguments, **keywords)
    # A disk that fails or a client that is gone is no reason to stop.
    except Exception as error:
      self._broken = True
      say(
        self._console,
        f'{self.name} gets no more of this run ({error}); training and '
        'rows.jsonl go on. Stop and resume the run to log again.',
      )


def load(name: str) -> type[Watcher]:
  """The class of a watcher, which costs a run nothing that does without it.

  Args:
    name: a key of `WATCHERS`.

  Raises:
    UserError: if what it needs is not installed.
  """
  module = importlib.import_module(f'experiments.watchers.{name}')
  return getattr(module, WATCHERS[name])


def curves(row: Row) -> dict[str, float]:
  """The numbers of a row that make curves, by kind and name.

  Args:
    row: any; what the exchange did is no point of a curve.
  """
  if row['kind'] == 'exchange':
    return {}
  return {
    f'{row["kind"]}/{name}': value
    for name, value in row.items()
    if isinstance(value, (int, float)) and name not in _PLACE
  }


def whose(row: Row) -> str:
  """'member-0' or 'ensemble'."""
  who = row['member']
  return who if who == 'ensemble' else f'member-{who}'
