"""Text as lanes of tokens, for models with a memory."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from data.text.dataset import make_text
from experiments.errors import UserError, user_errors
from experiments.tasks import Dataset, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind(Task):
  """Text; experiments/configs/lm_sync.py explains the keys."""

  kind = 'text'
  unit = 'tokens'
  must_agree = ('vocab_size',)

  name: str
  data_dir: str | None
  sequence_length: int
  vocab_size: int
  max_document_tokens: int | None
  max_train_tokens: int | None
  max_test_tokens: int | None

  def __post_init__(self):
    if self.name == 'builtin' and self.data_dir:
      raise UserError(
        f'data.data_dir is {self.data_dir}, but data.name is builtin, which '
        'has no folder; set data.name to prepared, or leave data.data_dir out'
      )

  def make_dataset(self) -> Dataset:
    """The built-in corpus, or a prepared one."""
    name = 'builtin' if self.name == 'builtin' else self.data_dir
    if name is None:
      raise UserError(
        f'data.name is {self.name}, but data.data_dir is not set; name a '
        'folder with --config.data.data_dir=DIR, made by scripts.prepare_text '
        f'--output=DIR --vocab-size={self.vocab_size} … (docs/text.md has the '
        'commands for the text of the variant gpu), or set data.name to builtin'
      )
    with user_errors(ValueError, OSError):
      dataset = make_text(
        str(name),
        sequence_length=self.sequence_length,
        max_document_tokens=self.max_document_tokens,
        max_train_tokens=self.max_train_tokens,
        max_test_tokens=self.max_test_tokens,
        cache_dir=None,
      )
    if dataset.vocab_size != self.vocab_size:
      raise UserError(
        f'{name} has {dataset.vocab_size:,} pieces; set data.vocab_size to '
        f'that, instead of {self.vocab_size:,}'
      )
    return dataset

  def abstract_batch(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Lanes of pieces, and the pieces that follow them."""
    tokens = jax.ShapeDtypeStruct((batch_size, self.sequence_length), jnp.int32)
    return {'inputs': tokens, 'labels': tokens}

  @property
  def num_classes(self) -> int:
    """The number of pieces."""
    return self.vocab_size

  @property
  def input_shape(self) -> tuple[int]:
    """A lane's tokens."""
    return (self.sequence_length,)

  @property
  def units_per_row(self) -> int:
    """A lane's tokens."""
    return self.sequence_length
