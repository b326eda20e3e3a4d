"""What all readers that are searched for faults have in common."""

from __future__ import annotations

import abc
import pathlib
from collections.abc import Iterator


class Reader(abc.ABC):
  """Reads one input at a time."""

  @abc.abstractmethod
  def __init__(self, folder: pathlib.Path):
    """Prepares to read inputs that it writes into a folder."""

  @abc.abstractmethod
  def seeds(self) -> Iterator[bytes]:
    """Inputs without a fault, to begin with."""

  @abc.abstractmethod
  def try_one(self, data: bytes) -> None:
    """Reads an input.

    Raises:
      Exception: of any kind, for a fault.
    """

  def mutate(self, data: bytes, seed: int) -> bytes | None:
    """Changes an input; None to leave it to Atheris."""
    del data, seed


def check_sentence(error: Exception) -> None:
  """Raises an AssertionError if an error cannot be shown as one line."""
  text = str(error)
  assert text.isprintable(), repr(text)
  assert 0 < len(text) < 2_000, repr(text)
