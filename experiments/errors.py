"""What a user did that we cannot go on from, in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(Exception):
  """Its message says what is wrong and what to do; no traceback is shown."""


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
