"""Text as lanes of tokens, for models that carry a state from batch to batch.

A batch is B rows of T tokens, and row b of batch t + 1 continues row b of batch
t. So there are B lanes, each contiguous, through a member's own documents in a
seeded order. A stream needs no checkpoint: its seed and t determine the place
of each lane at batch t.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64, Integer, UInt16

from data.partition import mix, partition_hashes
from data.text.builtin import open_builtin
from data.text.corpus import SPLITS, Corpus, Documents, open_corpus
from data.text.tokenizer import END_OF_DOCUMENT, Tokenizer

Batch = dict[str, np.ndarray]

# Tokens of all lanes that are read at once: enough that reading costs little
# more than a copy, few enough to wait for.
_BLOCK_TOKENS = 1 << 20
_MAX_BLOCK_BATCHES = 64
# The difference of the hashes of successive parts: 2⁶⁴ over the golden ratio.
_GOLDEN = 0x9E3779B97F4A7C15


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextSet:
  """Training and evaluation documents, as batches for a model.

  An example is a token to predict. Documents end with the piece `</D>`.

  Attributes:
    corpus: the tokens.
    sequence_length: T, tokens of a lane in a batch.
    max_document_tokens: training cuts longer documents into parts of about
      equal length, no longer than this, each in its own place of the order;
      None to leave them whole. Evaluation reads documents whole.
    max_train_tokens: all members together train on no more tokens than this, of
      whole documents; None for all.
    max_test_tokens: the same limit for held-out tokens.
  """

  corpus: Corpus = dataclasses.field(repr=False)
  sequence_length: int
  max_document_tokens: int | None
  max_train_tokens: int | None
  max_test_tokens: int | None

  @property
  def vocab_size(self) -> int:
    """Number of pieces; tokens are in [0, vocab_size)."""
    return self.corpus.vocab_size

  @property
  def fingerprint(self) -> str:
    """A hash of all documents and of the tokenizer, for provenance."""
    return self.corpus.fingerprint

  @property
  def vocabulary(self) -> str:
    """A hash of the tokenizer."""
    return self.corpus.vocabulary

  @property
  def num_train(self) -> int:
    """Number of training tokens, of all members together."""
    return self.num_examples('train')

  @property
  def num_documents(self) -> int:
    """Number of training documents, of all members together."""
    return len(self._documents('train'))

  def num_examples(self, split: str) -> int:
    """Number of tokens that `eval(split)` counts; same errors."""
    return self._in_order_of_hashes(split).num_tokens

  def tokenizer(self) -> Tokenizer:
    """Opens the tokenizer between text and tokens."""
    return self.corpus.tokenizer()

  def train(
    self,
    *,
    member: int,
    members: int,
    partition: str,
    seed: int,
    batch_size: int,
    start: int = 0,
    rows: np.ndarray | None = None,
  ) -> Iterator[Batch]:
    """Endless batches of a member's documents, in `batch_size` lanes.

    Batch t is a pure function of the arguments and t, and reading may start
    anywhere. A pass reads each of the member's documents once, one after
    another in a seeded order, cut into lanes of equal length (or one token
    longer). Each lane continues with its part of the next pass, in a new order.
    The documents' hashes determine their members and their order, so hosts and
    the order of files do not matter. Members with the same documents and the
    same seed draw the same batches.

    Args:
      member: 0 ≤ member < members.
      members: number of members that share the documents.
      partition: 'disjoint' or 'shared', see `data.partition`.
      seed: seed of the orders, at least 0.
      batch_size: B, number of lanes.
      start: index of the first batch to yield.
      rows: the lanes to read and return, ascending; None for all.

    Returns:
      Batches {'inputs': int32 [rows, T], 'labels': int32 [rows, T], the lane's
      next tokens}.

    Raises:
      ValueError: for arguments out of range, or if any member would have fewer
        tokens than lanes.
    """
    if start < 0:
      raise ValueError(f'start must not be negative, got {start}.')
    if seed < 0:
      raise ValueError(f'seed must not be negative, got {seed}.')
    documents = self.corpus.splits['train']
    lengths = np.diff(documents.starts)

    there = np.zeros(len(documents.hashes), bool)
    there[self._documents('train')] = True

    def own(number):
      part = partition_hashes(documents.hashes, number, members, partition)
      return part[there[part]]

    mine = own(member)
    # Every member raises, not only the one with too little: members may run as
    # separate jobs, and the others would wait for it.
    for number in range(members if partition == 'disjoint' else 1):
      num_tokens = int(lengths[own(number)].sum())
      if num_tokens < batch_size:
        raise ValueError(
          f'{batch_size} lanes are too many for the {num_tokens} tokens of '
          f'member {number}: prepare more text, or set a smaller batch_size.'
        )
    parts = _cut(documents, mine, self.max_document_tokens)
    # Two orders, for lanes that pass from one to the next.
    order = functools.lru_cache(maxsize=2)(
      lambda turn: parts.order(mix(parts.hashes, 'order', seed, turn))
    )
    lanes = _Lanes(
      int(parts.lengths.sum()),
      batch_size,
      np.arange(batch_size) if rows is None else np.asarray(rows),
    )
    return self._batches(lanes, order, documents, start)

  def _batches(self, lanes, order, documents, start) -> Iterator[Batch]:
    length = self.sequence_length
    ahead = _BLOCK_TOKENS // max(1, len(lanes.rows) * length)
    batches = min(max(1, ahead), _MAX_BLOCK_BATCHES)

    def read(block):
      # With one more token, for the last label.
      begin = block * batches * length
      return lanes.read(documents, order, begin, batches * length + 1)

    # Reads the next block while the caller takes batches of the current one.
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
      block, first = divmod(start, batches)
      tokens = reader.submit(read, block)
      while True:
        block += 1
        current, tokens = tokens.result(), reader.submit(read, block)
        for number in range(first, batches):
          begin, end = number * length, (number + 1) * length
          yield {
            'inputs': current[:, begin:end].astype(np.int32),
            'labels': current[:, begin + 1 : end + 1].astype(np.int32),
          }
        first = 0

  def eval(
    self, split: str, *, batch_size: int, rows: np.ndarray | None = None
  ) -> Iterator[Batch]:
    """Yields each token of a split once, in lanes of a fixed order.

    Documents come in the order of their hashes, cut into `batch_size` lanes of
    equal length (or one token longer). A lane's first input is the token before
    it; in the first lane it is the end of a document. A state that starts at
    zero may be carried through all batches. Padding is at the end of a lane.

    Args:
      split: 'train' or 'test'.
      batch_size: B, number of lanes. It affects results slightly, because a
        lane does not know the text before it.
      rows: the lanes to read and return, ascending; None for all.

    Returns:
      Batches {'inputs': int32 [rows, T], 'labels': int32 [rows, T], 'mask':
      float32 [rows, T], 1 for a token and 0 for padding}.

    Raises:
      ValueError: for another split.
    """
    order = self._in_order_of_hashes(split)
    wanted = np.arange(batch_size) if rows is None else np.asarray(rows)
    return self._eval_batches(
      _Lanes(order.num_tokens, batch_size, wanted),
      order,
      self.corpus.splits[split],
    )

  def _eval_batches(self, lanes, order, documents):
    length = self.sequence_length
    shape = (len(lanes.rows), length)
    last = np.full(len(lanes.rows), END_OF_DOCUMENT, np.int32)
    later = lanes.offsets > 0
    last[later] = order.read(
      documents, lanes.offsets[later] - 1, np.ones(later.sum(), np.int64)
    )
    for begin in range(0, lanes.longest, length):
      there = np.clip(lanes.sizes - begin, 0, length)
      mask = np.arange(length) < there[:, None]
      labels = np.zeros(shape, np.int32)
      labels[mask] = order.read(documents, lanes.offsets + begin, there)
      inputs = np.concatenate([last[:, None], labels[:, :-1]], axis=1)
      inputs[~mask] = 0
      last = labels[:, -1]
      yield {
        'inputs': inputs,
        'labels': labels,
        'mask': mask.astype(np.float32),
      }

  def label_distribution(self) -> Float[np.ndarray, ' vocab']:
    """The training split's share of each piece, float32, summing to one.

    The exact shares, counted when the text was prepared; a piece that does not
    occur has 0, which is harmless in a target, because no logarithm of it is
    taken. They count all documents, regardless of `max_train_tokens`.
    """
    counts = self.corpus.splits['train'].counts
    return (counts / counts.sum()).astype(np.float32)

  @functools.cache  # noqa: B019 (a set lives as long as its process)
  def _in_order_of_hashes(self, split: str) -> _Order:
    if split not in self.corpus.splits:
      raise ValueError(f'Unknown split {split!r}, expected one of {SPLITS}.')
    documents = self.corpus.splits[split]
    return _cut(documents, self._documents(split), None).order(None)

  def _documents(self, split: str) -> Int64[np.ndarray, ' documents']:
    """Returns the documents of a split to use, in the order of their hashes."""
    documents = self.corpus.splits[split]
    indices = np.argsort(documents.hashes, kind='stable')
    limit = {'train': self.max_train_tokens, 'test': self.max_test_tokens}[
      split
    ]
    if limit is None:
      return indices
    ends = np.cumsum(np.diff(documents.starts)[indices])
    # At least one, however long.
    return indices[: max(1, np.sum(ends <= limit))]


class _Order(NamedTuple):
  """Documents one after another.

  Attributes:
    starts: each document's first token in its split.
    ends: each document's end in this order.
  """

  starts: Int64[np.ndarray, ' documents']
  ends: Int64[np.ndarray, ' documents']

  @property
  def num_tokens(self) -> int:
    return int(self.ends[-1]) if len(self.ends) else 0

  def read(
    self,
    documents: Documents,
    begins: Integer[np.ndarray, ' ranges'],
    lengths: Integer[np.ndarray, ' ranges'],
  ) -> UInt16[np.ndarray, ' tokens']:
    """Reads ranges of tokens in this order, one after another."""
    some = lengths > 0
    begins, lengths = begins[some], lengths[some]
    if not len(begins):
      return np.empty(0, np.uint16)
    first = np.searchsorted(self.ends, begins, 'right')
    last = np.searchsorted(self.ends, begins + lengths - 1, 'right')
    counts = last - first + 1
    stops = np.cumsum(counts)
    # Each document of each range, in order.
    pieces = np.repeat(first - stops + counts, counts) + np.arange(stops[-1])
    ends = self.ends[pieces]
    begin = np.where(pieces > 0, self.ends[pieces - 1], 0)
    low = np.maximum(begin, np.repeat(begins, counts))
    high = np.minimum(ends, np.repeat(begins + lengths, counts))
    return documents.read(self.starts[pieces] + low - begin, high - low)


class _Parts(NamedTuple):
  """Documents, or parts of documents.

  Attributes:
    starts: first token of each in its split.
    lengths: in tokens.
    hashes: uint64.
  """

  starts: Int64[np.ndarray, ' parts']
  lengths: Int64[np.ndarray, ' parts']
  hashes: Integer[np.ndarray, ' parts']

  def order(self, keys: np.ndarray | None) -> _Order:
    """Joins the parts, sorted by keys if there are any."""
    # Parts of equal keys are equal.
    sort = slice(None) if keys is None else np.argsort(keys, kind='stable')
    return _Order(self.starts[sort], np.cumsum(self.lengths[sort]))


def _cut(
  documents: Documents, indices: np.ndarray, limit: int | None
) -> _Parts:
  """Cuts documents into as few, about equal parts of at most `limit` tokens."""
  starts, hashes = documents.starts[indices], documents.hashes[indices]
  lengths = documents.starts[indices + 1] - starts
  if limit is None:
    return _Parts(starts, lengths, hashes)
  counts = np.maximum(1, -(-lengths // limit))
  owner = np.repeat(np.arange(len(indices)), counts)
  # Index of each part in its document.
  number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
  begin, end = (
    edge * lengths[owner] // counts[owner] for edge in (number, number + 1)
  )
  # The first part keeps its document's hash.
  step = number.astype(np.uint64) * np.uint64(_GOLDEN)
  return _Parts(starts[owner] + begin, end - begin, hashes[owner] + step)


class _Lanes:
  """A pass of `num_tokens`, cut into lanes that differ by one token at most.

  Attributes:
    rows: the lanes to read.
    offsets: the first token of each in a pass.
    sizes: tokens of each in a pass.
    longest: tokens of the longest of all lanes.
  """

  def __init__(self, num_tokens: int, num_lanes: int, rows: np.ndarray):
    size, more = divmod(num_tokens, num_lanes)
    self.rows = rows
    self.offsets = rows * size + np.minimum(rows, more)
    self.sizes = size + (rows < more)
    self.longest = size + (more > 0)

  def read(
    self,
    documents: Documents,
    order: Callable[[int], _Order],
    begin: int,
    length: int,
  ) -> UInt16[np.ndarray, ' rows length']:
    """Reads tokens of endless lanes, pass after pass.

    Args:
      documents: documents of the passes.
      order: from the number of a pass to its order.
      begin: the first token, counted along each lane.
      length: number of tokens of each lane.
    """
    out = np.empty((len(self.rows), length), np.uint16)
    if not len(self.rows):
      return out
    turns = begin // self.sizes
    column = np.arange(length)
    for turn in range(
      int(turns.min()), int(((begin + length - 1) // self.sizes).max()) + 1
    ):
      low = np.clip(turn * self.sizes, begin, begin + length)
      high = np.clip((turn + 1) * self.sizes, begin, begin + length)
      tokens = order(turn).read(
        documents, self.offsets + low - turn * self.sizes, high - low
      )
      if (low == begin).all() and (high == begin + length).all():
        out[:] = tokens.reshape(out.shape)
      else:
        out[
          (low[:, None] <= begin + column) & (begin + column < high[:, None])
        ] = tokens
    return out


def make_text(
  name: str,
  *,
  sequence_length: int,
  max_document_tokens: int | None,
  max_train_tokens: int | None,
  max_test_tokens: int | None,
  cache_dir: str | os.PathLike | None,
) -> TextSet:
  """Opens prepared text; downloads nothing.

  Args:
    name: 'builtin' (the Python sources of the packages that come with this
      project, tokenised on first use: some ten seconds) or a folder that
      `python -m scripts.prepare_text` made.
    sequence_length: T, tokens of a lane in a batch.
    max_document_tokens: training cuts longer documents into parts of about
      equal length, no longer than this; None to leave them whole.
    max_train_tokens: all members together train on no more tokens than this, of
      whole documents with the smallest hashes; None for all.
    max_test_tokens: the same limit for held-out tokens.
    cache_dir: folder for the built-in corpus; None for the user's cache.

  Raises:
    ValueError: if there is no finished corpus of that name, if the packages
      that the built-in one is made of are not the pinned ones, or if it cannot
      be written.
  """
  if sequence_length < 1:
    raise ValueError(
      f'sequence_length must be at least 1, got {sequence_length}.'
    )
  for key, limit in (
    ('max_document_tokens', max_document_tokens),
    ('max_train_tokens', max_train_tokens),
    ('max_test_tokens', max_test_tokens),
  ):
    if limit is not None and limit < 1:
      raise ValueError(f'{key} must be at least 1, got {limit}.')
  corpus = open_builtin(cache_dir) if name == 'builtin' else open_corpus(name)
  return TextSet(
    corpus=corpus,
    sequence_length=sequence_length,
    max_document_tokens=max_document_tokens,
    max_train_tokens=max_train_tokens,
    max_test_tokens=max_test_tokens,
  )
