"""Errors that a user can cause, each told in one sentence."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any


class UserError(Exception):
  """Its message says what is wrong and what to do; no traceback is shown."""

  def _render_traceback_(self) -> list[str]:
    """What Jupyter and IPython show instead of a traceback."""
    return [f'{type(self).__name__}: {self}']


class LoneError(UserError):
  """One that the other processes of a member neither share nor know of."""


@contextlib.contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
  """Turns errors that a caller's arguments caused into `UserError`s.

  Args:
    *kinds: the exceptions that the block raises for bad arguments.

  Yields:
    Once.

  Raises:
    UserError: with the same message.
  """
  try:
    yield
  except kinds as error:
    raise UserError(str(error)) from error


def check_choice(key: str, value: Any, allowed: Collection[str]) -> None:
  """Raises a `UserError` for a value that is not allowed."""
  if value not in allowed:
    raise UserError(f'{key} is {value!r}; it can be {", ".join(allowed)}')


def check_least(values: Mapping[str, tuple[float, float]]) -> None:
  """Raises a `UserError` for the first value below its minimum."""
  for key, (value, minimum) in values.items():
    if not value >= minimum:  # Refuses NaN, too.
      raise UserError(f'{key} is {value}; it must be at least {minimum}')


def positive(text: str) -> float:
  """Reads a number of a command line.

  Raises:
    argparse.ArgumentTypeError: if it is none above 0, or infinite.
  """
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 < value < math.inf:
    raise argparse.ArgumentTypeError(f'{text!r} is not a number above 0')
  return value


def check_keywords(
  make: Callable[..., Any], section: str, keys: Iterable[str]
) -> None:
  """Raises a `UserError` for a key of a section that `make` does not take."""
  takes = inspect.signature(make).parameters
  if any(one.kind is one.VAR_KEYWORD for one in takes.values()):
    return
  for key in keys:
    if key not in takes:
      raise UserError(
        f'the config has a key {section}.{key}, which nothing reads'
        f'{nearest(key, takes)}'
      )


def nearest(word: str, words: Iterable[str]) -> str:
  """'; did you mean …?' with the most similar words; '' if there are none."""
  near = difflib.get_close_matches(word, sorted(words), cutoff=0.5)
  return f'; did you mean {" or ".join(near)}?' if near else ''
