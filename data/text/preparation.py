"""From files to a corpus: read, filter, tokenise, on all cores, resumably.

Any number of processes work on chunks, which are written in their order, so the
result depends on the input and the settings alone. `state.json` records the
progress after every chunk: another run with the same settings continues from
there, and its result is the same, byte for byte.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.metadata
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from data.preparing import resumable, workers
from data.preparing.compressed import Input
from data.preparing.resumable import PreparationError
from data.text import corpus, encoding
from data.text.encoding import HELD_OUT, Settings
from data.text.inputs import place
from data.text.records import Chunk, read_chunks
from data.text.tokenizer import Tokenizer, VocabularyError, train_tokenizer

# The tokenizer learns from `train_from` documents: those with the smallest
# hashes among this many times as many.
_SEARCH_FACTOR = 20
_PACKAGES = ('sentencepiece', 'sentencex', 'py3langid')
_CHECK = 'check the input, and whether the filter is too strict.'
_HOLD_OUT = 'raise --held-out-fraction, or name files with --held-out.'
_BOTH = 'note: an input that is held out, and not trained on'


@dataclasses.dataclass(frozen=True)
class Progress:
  """The progress of a run.

  Attributes:
    phase: 'finding what is held out', 'sampling', 'training the tokenizer',
      'tokenising' or 'sealing'.
    done: part of `total` that is done; bytes of input, or documents of sets;
      bytes of output for 'sealing'.
    total: 0 if unknown.
    documents: kept in this phase so far, earlier runs included.
    tokens: written so far, earlier runs included.
  """

  phase: str
  done: int
  total: int
  documents: int
  tokens: int


def prepare(
  settings: Settings,
  inputs: Sequence[Input],
  held_out: Sequence[Input],
  output: pathlib.Path,
  *,
  num_workers: int,
  overwrite: bool,
  report: Callable[[Progress], None],
) -> dict[str, Any]:
  """Makes a corpus, or continues an interrupted preparation.

  Args:
    settings: the settings that the result depends on.
    inputs: results of `inputs.find_inputs`; those that are held out, too, are
      not trained on.
    held_out: input to evaluate on; empty for a share of `inputs`. Documents
      that are equal to one of it are not trained on.
    output: the folder to make; it has another name until it is complete.
    num_workers: processes besides this one.
    overwrite: replaces an existing folder once the new one is complete, and
      drops what was begun from something else.
    report: called now and then.

  Returns:
    The manifest.

  Raises:
    PreparationError: if the preparation fails.
    InputError: if an input cannot be read.
  """
  both = {place(one) for one in inputs} & {place(one) for one in held_out}
  inputs = [one for one in inputs if place(one) not in both]
  if not inputs:
    raise PreparationError(
      '--held-out names all of --input, so that nothing is left to train on: '
      'name other files with one of them.'
    )
  notes = {_BOTH: len(both)} if both else {}
  if held_out:
    settings = dataclasses.replace(settings, held_out_fraction=0.0)
  plain, output = _plain(settings, inputs, held_out), resumable.real(output)
  leave_out = (HELD_OUT, *resumable.LEFT_OUT)
  if resumable.finished(output, plain, leave_out, overwrite) is not None:
    return _manifest(output)
  partial = resumable.partial_of(output)
  with resumable.locked(partial, output):
    state = resumable.begin(partial, output, plain, overwrite) or {
      'input': 0,
      'chunk': 0,
      'position': 0,
      'counts': {},
      'written': {},
    }
    with workers.processes(num_workers) as pool:
      run = _Run(settings, inputs, held_out, partial, pool, report)
      run.find_held_out()
      tokenizer = run.make_tokenizer()
      run.tokenise(state, tokenizer)
      seals = run.seal(state)
    if overwrite:
      resumable.set_aside(output, partial)
    corpus.finish(
      partial,
      output,
      state['written'],
      seals,
      {'counts': dict(sorted((state['counts'] | notes).items())), **plain},
      vocab_size=tokenizer.vocab_size,
      invertible=tokenizer.invertible,
      leave_out=leave_out,
    )
  return _manifest(output)


class _Run:
  """One run of `prepare`, with the state that its phases share."""

  def __init__(self, settings, inputs, held_out, partial, pool, report):
    self._settings = settings
    # In order; held-out input comes last.
    self._inputs = [
      *((one, None if not held_out else 'train') for one in inputs),
      *((one, 'test') for one in held_out),
    ]
    self._partial = partial
    self._pool = pool
    self._report = report
    # The hashes of held-out input.
    self._held_out = partial / HELD_OUT if held_out else None

  def find_held_out(self) -> None:
    """Writes the hashes of held-out input, unless an earlier run did."""
    if self._held_out is None or self._held_out.exists():
      return
    held_out = [one for one, split in self._inputs if split == 'test']
    total, before = sum(one.size for one in held_out), 0
    hashes, counts = [], collections.Counter()
    for one in held_out:
      chunks = read_chunks(one, self._settings.reading)
      for chunk, (found, more) in self._map(
        encoding.hash_chunk, chunks, self._settings
      ):
        hashes.append(found)
        counts.update(more)
        done, seen = before + chunk.position, counts['documents']
        self._report(Progress('finding what is held out', done, total, seen, 0))
      before += one.size
    if not counts['documents']:
      raise _nothing_left('test', counts, _CHECK)
    content = np.unique(np.concatenate(hashes)).astype(encoding.HASH)
    resumable.write(self._held_out, content.tobytes())

  def make_tokenizer(self) -> Tokenizer:
    """Trains the tokenizer, unless an earlier run did."""
    path = self._partial / corpus.TOKENIZER
    if not path.exists():
      texts = self._sample()
      characters = sum(map(len, texts))
      self._report(
        Progress('training the tokenizer', 0, 0, len(texts), characters)
      )
      settings = self._settings
      try:
        # In another process: it takes minutes and cannot be interrupted.
        model = self._pool.submit(
          train_tokenizer,
          texts,
          vocab_size=settings.vocab_size,
          oov=settings.oov,
          character_coverage=settings.character_coverage,
          structure=settings.structure,
          language=settings.sentence_language,
        ).result()
      except VocabularyError as error:
        raise PreparationError(str(error)) from error
      resumable.write(path, model)
    return Tokenizer.from_file(path)

  def _sample(self) -> list[str]:
    """Chooses texts to train the tokenizer on."""
    settings = self._settings
    sample = encoding.Sample(settings.train_from)
    training = [one for one, split in self._inputs if split != 'test']
    total = sum(one.size for one in training)
    search = _SEARCH_FACTOR * settings.train_from
    before = 0
    counts: collections.Counter[str] = collections.Counter()
    for one in training:
      chunks = read_chunks(one, settings.reading)
      for chunk, (found, more) in self._map(
        encoding.sample_chunk, chunks, settings, self._held_out
      ):
        sample.add(found)
        counts.update(more)
        seen = counts['documents']
        done, enough = before + chunk.position, search / max(seen, 1)
        # A part of a large input is enough.
        ends = min(total, max(done, round(done * enough)))
        self._report(Progress('sampling', done, ends, seen, 0))
        if seen >= search:
          return sample.texts()
      before += one.size
    if not sample.texts():
      raise _nothing_left('train', counts, _CHECK)
    return sample.texts()

  def tokenise(self, state: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Writes all documents from where `state` says on, and updates it."""
    settings = self._settings
    writer = corpus.CorpusWriter(
      self._partial, state['written'], settings.shard_tokens
    )
    counts = collections.Counter(state['counts'])
    total = sum(one.size for one, _ in self._inputs)
    path = self._partial / corpus.TOKENIZER
    before = sum(one.size for one, _ in self._inputs[: state['input']])
    for number in range(state['input'], len(self._inputs)):
      one, split = self._inputs[number]
      first = state['chunk'] if number == state['input'] else 0
      chunks = read_chunks(one, settings.reading, first)
      for chunk, encoded in self._map(
        encoding.encode_chunk, chunks, settings, split, self._held_out, path
      ):
        counts.update(encoded.counts)
        for name, documents in encoded.splits.items():
          writer.append(name, *documents)
        state |= {
          'input': number,
          'chunk': chunk.number + 1,
          'position': chunk.position,
          'counts': dict(counts),
          'written': writer.state(),
        }
        resumable.write_state(self._partial, state)
        self._report(
          Progress(
            'tokenising',
            before + chunk.position,
            total,
            counts['documents'],
            _tokens(state['written']),
          )
        )
      before += one.size
    state |= {'counts': dict(counts), 'written': writer.state()}
    for split in corpus.SPLITS:
      if not state['written'][split]['documents']:
        raise _nothing_left(
          split, counts, _CHECK if split == 'train' else _HOLD_OUT
        )

  def seal(self, state: dict[str, Any]) -> dict[str, Any]:
    """Reads back and hashes all written files."""
    files = corpus.files_to_seal(state['written'], self._settings.vocab_size)
    for split in corpus.SPLITS:
      (self._partial / split / corpus.COUNTS).unlink(missing_ok=True)
    sizes = {name: (self._partial / name).stat().st_size for name, _ in files}
    futures = {
      name: self._pool.submit(corpus.seal_file, self._partial / name, size)
      for name, size in files
    }
    seals, done = {}, 0
    for name, future in futures.items():
      seals[name] = future.result()
      done += sizes[name]
      self._report(
        Progress(
          'sealing',
          done,
          sum(sizes.values()),
          state['counts'].get('documents', 0),
          _tokens(state['written']),
        )
      )
    return seals

  def _map(
    self, function: Callable[..., Any], chunks: Iterator[Chunk], *arguments: Any
  ) -> Iterator[tuple[Chunk, Any]]:
    """Yields each chunk, without its data, and the result for it, in order."""
    return workers.map_in_order(
      self._pool,
      function,
      chunks,
      *arguments,
      strip=lambda chunk: dataclasses.replace(chunk, data=b''),
    )


def _plain(
  settings: Settings, inputs: Sequence[Input], held_out: Sequence[Input]
) -> dict[str, Any]:
  """Facts that must not change between runs; the manifest has them too."""
  plain = dataclasses.asdict(settings)
  # The folder of TFDS sets does not affect the result.
  del plain['reading']['data_dir']
  # Older versions left these documents in; their folders must not pass for it.
  reading = settings.reading
  if reading.min_paragraphs > 1 and not reading.min_paragraph_words:
    plain['documents_of_few_paragraphs'] = 'left out'
  if held_out:
    plain['duplicates_of_held_out'] = 'left out'
  return {
    'settings': plain,
    'inputs': [_facts(one) for one in inputs],
    'held_out_inputs': [_facts(one) for one in held_out],
    'packages': {
      package: importlib.metadata.version(package) for package in _PACKAGES
    },
  }


def _facts(one: Input) -> dict[str, Any]:
  return {'name': one.name, 'size': one.size, 'key': one.key}


def _manifest(folder: pathlib.Path) -> dict[str, Any]:
  made = corpus.open_corpus(folder)
  made.tokenizer()  # Refuses a damaged one.
  return made.manifest


def _tokens(written: dict[str, Any]) -> int:
  return sum(sum(written[split]['shards']) for split in written)


def _nothing_left(
  split: str, counts: dict[str, int], advice: str
) -> PreparationError:
  return PreparationError(
    f'No document is left to {split} on, of {counts["records"]} records '
    f'({_summary(counts)}): {advice}'
  )


def _summary(counts: dict[str, int]) -> str:
  """Lists the reasons for leaving records out, most frequent first."""
  left_out = sorted(
    (
      (count, reason)
      for reason, count in counts.items()
      if reason.startswith(('bad: ', 'filtered: '))
    ),
    reverse=True,
  )
  return (
    ', '.join(f'{count} {reason}' for count, reason in left_out)
    or 'none left out'
  )
