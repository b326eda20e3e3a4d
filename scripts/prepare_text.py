r"""Prepares text once: from files to tokens that training maps into memory.

  python -m scripts.prepare_text --input 'books/*.jsonl.gz' --format jsonl \
    --output books --vocab-size 24006

A run that was interrupted goes on when the same command is given again.
docs/text.md describes formats, filters and the contents of the folder.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from data.preparing.compressed import InputError
from data.text import corpus, inputs, preparation, tokenizer
from data.text.documents import languages
from experiments.paths import local_path, path_or_url
from scripts import preparing


def show(
  display: preparing.Display, unit: str, progress: preparation.Progress
) -> None:
  """Shows the progress of a run, in 'MB' or 'documents' of input."""
  if not progress.total:
    notes = [
      f'on {progress.documents:,} documents',
      f'{progress.tokens / 1e6:,.1f} million characters',
    ]
  else:
    unit = 'MB' if progress.phase == 'sealing' else unit
    notes = []
    if progress.documents and unit == 'MB':
      notes.append(f'{progress.documents:,} documents')
    if progress.tokens:
      notes.append(f'{progress.tokens / 1e6:,.1f} M tokens')
  display.show(
    progress.phase,
    progress.done,
    progress.total,
    unit=unit,
    notes=notes,
  )


def summary(manifest: dict) -> Table:
  """A table of what a corpus contains, and what was left out."""
  table = Table(box=box.SIMPLE_HEAD, title='Prepared text', title_style='')
  table.add_column('')
  table.add_column('documents', justify='right')
  table.add_column('tokens', justify='right')
  for split, facts in manifest['splits'].items():
    table.add_row(split, f'{facts["documents"]:,}', f'{facts["tokens"]:,}')
  for reason, count in manifest['counts'].items():
    if reason.startswith(('bad: ', 'filtered: ')):
      table.add_row(f'left out, {reason}', f'{count:,}', '')
    elif reason.startswith('note: '):
      table.add_row(reason, f'{count:,}', '')
  return table


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    prog='python -m scripts.prepare_text',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )

  def add(name, help, **keywords):
    default = keywords.get('default')
    if default is not None:
      help += f' (default: {default})'
    parser.add_argument(name, help=help, **keywords)

  _add_files(add)
  _add_tokenizer(add)
  _add_documents(add)
  add(
    '--workers',
    'processes; they do not change the result (default: one a core)',
    type=int,
    metavar='N',
  )
  parser.add_argument(
    '--overwrite', action='store_true', help=preparing.OVERWRITE
  )
  flags = parser.parse_args(arguments)
  if problem := _unread(parser, flags) or _problem(flags):
    parser.error(problem)
  if flags.format == 'builtin':
    flags.input = ['builtin']
  return flags


def _unread(
  parser: argparse.ArgumentParser, flags: argparse.Namespace
) -> str | None:
  """Names a flag that another one makes useless, in a sentence."""
  where = f'if --format is {flags.format}'
  own = flags.format != 'builtin'
  return preparing.unread(
    parser,
    flags,
    {
      '--input': (own, where),
      '--held-out': (own, where),
      '--structure': (own, where),
      '--held-out-fraction': (not flags.held_out, 'with --held-out'),
      '--sentence-language': (
        own and flags.structure == 'sentences',
        'if sentences are not marked',
      ),
      '--text-key': (flags.format in ('jsonl', 'parquet', 'tfds'), where),
      '--data-dir': (flags.format == 'tfds', where),
      '--min-language-probability': (
        _language(flags) != 'any',
        'if documents of any language are kept',
      ),
    },
  )


def _language(flags: argparse.Namespace) -> str:
  return flags.language or ('en' if flags.format == 'wet' else 'any')


def _add_files(add: Callable[..., None]) -> None:
  add(
    '--input',
    'files to train on, as quoted patterns; for tfds NAME or NAME[SPLIT]',
    nargs='+',
    action='extend',
    metavar='GLOB',
  )
  add('--format', 'of all files', required=True, choices=inputs.FORMATS)
  add(
    '--output',
    'folder to make',
    required=True,
    type=local_path,
    metavar='DIR',
  )
  add('--vocab-size', 'number of pieces', required=True, type=int, metavar='N')
  add(
    '--held-out',
    'files to evaluate on, and not to train on; without them a share of the '
    'documents is held out',
    nargs='+',
    action='extend',
    default=[],
    metavar='GLOB',
  )
  add(
    '--held-out-fraction',
    'that share, chosen by hash',
    type=float,
    default=0.01,
    metavar='F',
  )


def _add_tokenizer(add: Callable[..., None]) -> None:
  add(
    '--train-from',
    'train the tokenizer on at most N documents, and on at most 100 million '
    'characters',
    type=int,
    default=20_000,
    metavar='N',
  )
  add(
    '--oov',
    'encode characters outside the vocabulary as bytes, or as the unknown '
    'piece, which loses them',
    choices=tokenizer.OOV,
    default='bytes',
  )
  add(
    '--character-coverage',
    "share of the text's characters that the vocabulary has to contain",
    type=float,
    default=0.9995,
    metavar='F',
  )
  add(
    '--structure',
    'what to mark besides the end of a document; none for builtin',
    choices=tokenizer.STRUCTURES,
    default='sentences',
  )
  add(
    '--sentence-language',
    'language of the rules that end a sentence',
    default='en',
    metavar='CODE',
  )


def _add_documents(add: Callable[..., None]) -> None:
  add(
    '--document',
    'a document is a whole file of txt or record of other formats, or in it '
    'each block between empty lines, or each line',
    choices=inputs.DOCUMENTS,
    default='whole',
  )
  add(
    '--text-key',
    'field or column with the text, for jsonl, parquet and tfds',
    default='text',
    metavar='NAME',
  )
  add('--data-dir', 'folder of TFDS sets', type=path_or_url, metavar='DIR')
  add(
    '--language',
    'keep documents in this language, or any (default: en for wet, any for '
    'others)',
    metavar='CODE',
  )
  add(
    '--min-language-probability',
    'probability that a document must have of being in that language',
    type=float,
    default=0.9,
    metavar='F',
  )
  add(
    '--min-paragraph-words',
    'leave out shorter paragraphs (default: 20 for wet, 0 for others)',
    type=int,
    metavar='N',
  )
  add(
    '--min-paragraphs',
    'leave out documents with fewer paragraphs (lines with words) left',
    type=int,
    default=1,
    metavar='N',
  )


def _problem(flags: argparse.Namespace) -> str | None:
  """Says what is wrong with the flags, in a sentence."""
  if not flags.input and flags.format != 'builtin':
    return '--input is missing; all formats but builtin need it'
  least = {
    '--train-from': (flags.train_from, 1),
    '--workers': (flags.workers, 1),
    '--min-paragraph-words': (flags.min_paragraph_words, 0),
    '--min-paragraphs': (flags.min_paragraphs, 1),
  }
  for name, (value, minimum) in least.items():
    if value is not None and value < minimum:
      return f'{name} is {value}; it must be at least {minimum}'
  shares = {
    '--character-coverage': flags.character_coverage,
    '--min-language-probability': flags.min_language_probability,
  }
  for name, value in shares.items():
    if not 0 <= value <= 1:
      return f'{name} is {value}; it must be between 0 and 1'
  fraction, sizes = flags.held_out_fraction, tokenizer.vocab_sizes(flags.oov)
  if not 0 < fraction < 1:
    return (
      f'--held-out-fraction is {fraction}; it must be more than 0 and less '
      'than 1'
    )
  if flags.vocab_size not in sizes:
    return (
      f'--vocab-size is {flags.vocab_size}; it must be between {sizes[0]} and '
      f'{sizes[-1]}'
    )
  code = flags.sentence_language
  if not tokenizer.has_rules(code):
    return (
      f'--sentence-language is {code}, for which sentencex has no rules of its '
      'own; give a code such as de or pt-br, or en for the rules of English'
    )
  return None


def settings_of(flags: argparse.Namespace) -> preparation.Settings:
  """Settings from flags; some depend on the format.

  Raises:
    InputError: for a language that the identifier does not know.
  """
  wet, language = flags.format == 'wet', _language(flags)
  if language != 'any' and language not in languages():
    raise InputError(
      f'--language {language} is not known; use any, or one of '
      f'{", ".join(languages())}.'
    )
  words = flags.min_paragraph_words
  return preparation.Settings(
    reading=inputs.Reading(
      format=flags.format,
      document=flags.document,
      text_key=flags.text_key,
      data_dir=flags.data_dir,
      language=None if language == 'any' else language,
      min_language_probability=flags.min_language_probability,
      min_paragraph_words=(20 if wet else 0) if words is None else words,
      min_paragraphs=flags.min_paragraphs,
    ),
    vocab_size=flags.vocab_size,
    oov=flags.oov,
    character_coverage=flags.character_coverage,
    train_from=flags.train_from,
    structure='none' if flags.format == 'builtin' else flags.structure,
    sentence_language=flags.sentence_language,
    held_out_fraction=flags.held_out_fraction,
    shard_tokens=corpus.SHARD_TOKENS,
  )


def main(arguments: Sequence[str] | None = None) -> str | int | None:
  """Runs the command line; returns what `sys.exit` takes."""
  flags = parse(arguments)
  return preparing.outcome(
    lambda: _prepare(flags), flags.output, corpus.CorpusError
  )


def _prepare(flags: argparse.Namespace) -> None:
  console = Console()
  unit = 'documents' if flags.format in ('tfds', 'builtin') else 'MB'
  settings = settings_of(flags)
  training, held_out = (
    inputs.find_inputs(patterns, settings.reading, preparing.find_files)
    if patterns
    else []
    for patterns in (flags.input, flags.held_out)
  )
  with preparing.Display(console) as display:
    manifest = preparation.prepare(
      settings,
      training,
      held_out,
      flags.output,
      num_workers=flags.workers or preparing.num_cores(),
      overwrite=flags.overwrite,
      report=functools.partial(show, display, unit),
    )
  console.print(summary(manifest))
  console.print(
    f'{flags.output} is prepared; train on it with '
    f'--config.data.data_dir={shlex.quote(str(flags.output))}',
    highlight=False,
    soft_wrap=True,
  )


if __name__ == '__main__':
  sys.exit(main())
