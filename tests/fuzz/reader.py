"""What all readers that are searched for faults have in common."""

from __future__ import annotations

import abc
import pathlib
from collections.abc import Iterator
from typing import NamedTuple


class Seed(NamedTuple):
  """An input to begin with.

  Attributes:
    data: the input.
    taken: what `try_one` returns for it; None if any number will do.
  """

  data: bytes
  taken: int | None = None


class Reader(abc.ABC):
  """Reads one input at a time."""

  @abc.abstractmethod
  def __init__(self, folder: pathlib.Path):
    """Prepares to read inputs that it writes into a folder."""

  @abc.abstractmethod
  def seeds(self) -> Iterator[Seed]:
    """Inputs that are read well."""

  @abc.abstractmethod
  def try_one(self, data: bytes) -> int:
    """Reads an input.

    Returns:
      How much it has taken, such as the number of records.

    Raises:
      Exception: of any kind, for a fault.
    """

  def mutate(self, data: bytes, seed: int) -> bytes | None:
    """Changes an input; None to leave it to Atheris."""
    del data, seed


def check_sentence(error: Exception | str) -> None:
  """Raises an AssertionError for what cannot be shown as one line."""
  text = str(error)
  assert text.isprintable(), repr(text)
  assert 0 < len(text) < 2_000, repr(text)
