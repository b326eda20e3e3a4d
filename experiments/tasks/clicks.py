"""Click logs: was an advertisement clicked?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from codistill.models import Model
from data.clicks.dataset import SHAPE, make_clicks
from experiments.errors import UserError, user_errors
from experiments.tasks import Dataset, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind(Task):
  """Clicks; experiments/configs/criteo_dnn.py explains the keys."""

  kind = 'clicks'
  must_agree = ('table_sizes',)
  num_classes = 2
  input_shape = SHAPE

  name: str
  path: str | None
  synthetic_rows: int
  table_sizes: tuple[int, ...]
  max_test_rows: int | None

  def make_dataset(self) -> Dataset:
    """A synthetic log, or a prepared one."""
    # A path names a log of one's own and overrides the variant's name.
    name = self.path or self.name
    if name == 'prepared':
      raise UserError(
        'data.name is prepared, but data.path is not set; name a folder that '
        'scripts.prepare_criteo made with --config.data.path=DIR, or set '
        'data.name to synthetic'
      )
    with user_errors(ValueError, OSError):
      return make_clicks(
        str(name),
        synthetic_rows=self.synthetic_rows,
        table_sizes=self.table_sizes,
        max_test_rows=self.max_test_rows,
        cache_dir=None,
      )

  def make_model(self, make: Callable[..., Model], **arguments: Any) -> Model:
    """A network with a table for each category."""
    return super().make_model(make, table_sizes=self.table_sizes, **arguments)

  def abstract_batch(self, batch_size: int) -> dict[str, Any]:
    """Integers, which of them are missing, and categories; 1 for a click."""
    inputs = {
      name: jax.ShapeDtypeStruct(
        (batch_size, *shape),
        jnp.int32 if name == 'categories' else jnp.float32,
      )
      for name, shape in SHAPE.items()
    }
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    return {'inputs': inputs, 'labels': labels}

  @property
  def input_limit(self) -> int:
    """Rows of the smallest table."""
    return min(self.table_sizes)
