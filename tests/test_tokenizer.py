import random
import sys

import numpy as np
import pytest

from data.text.tokenizer import (
  END_OF_DOCUMENT,
  SPECIAL_PIECES,
  STRUCTURES,
  UNKNOWN,
  Tokenizer,
  VocabularyError,
  has_rules,
  train_tokenizer,
)

WORDS = ['the', 'cat', 'sat', 'on', 'a', 'mat', 'and', 'saw', 'that', 'rats']
WORDS += ['ate', 'all', 'of', 'his', 'hat']
SPECIAL = range(6)
DIFFICULT = [*' \n\r\t\0.!?\ufdd0\ufdd1\ufdd2▁▅\ufeff\u2028\x85。', *WORDS]
DIFFICULT += ['. ', '\n\n', '</D>', '<S>', '<0x41>']


def write_text(seed, words=80):
  rng = random.Random(seed)
  return ''.join(
    rng.choice(WORDS) + rng.choice([' ', ' ', ' ', '. ', '.\n', '\n\n'])
    for _ in range(words)
  )


def train(**changes):
  arguments = {
    'texts': map(write_text, range(20)),
    'vocab_size': 300,
    'oov': 'bytes',
    'character_coverage': 1.0,
    'structure': 'sentences',
    'language': 'en',
  }
  return train_tokenizer(**(arguments | changes))


@pytest.fixture(scope='module')
def model():
  return train()


@pytest.fixture(scope='module')
def tokenizer(model):
  return Tokenizer(model)


def any_text(rng):
  """Text of any Unicode characters, many of them difficult."""

  def character():
    kind = rng.random()
    if kind < 0.3:
      code = rng.randrange(sys.maxunicode + 1)
      # Surrogates are not characters.
      return chr(code) if not 0xD800 <= code < 0xE000 else '\ue000'
    if kind < 0.5:
      return chr(rng.randrange(256))
    return rng.choice(DIFFICULT)

  return ''.join(character() for _ in range(rng.randrange(40)))


@pytest.mark.parametrize('structure', STRUCTURES)
def test_any_unicode_comes_back_exactly(structure, tokenizer):
  rng = random.Random(0)
  hard = ['', ' ', '\n', '\n\n\na', 'a\n', '▁', 'a ▁b', '\ufdd0▁', '\0', '  x ']
  for text in hard + [any_text(rng) for _ in range(300)]:
    tokens = tokenizer.encode(text, structure=structure, language='en')
    assert tokenizer.decode(tokens) == text
    assert tokens.dtype == np.uint16
    # The unknown piece is reserved and unused, and a document ends once.
    assert UNKNOWN not in tokens
    assert list(tokens).index(END_OF_DOCUMENT) == len(tokens) - 1
  assert tokenizer.invertible


def test_marks_stand_for_one_newline_and_one_space(tokenizer):
  def marks(text, structure):
    tokens = tokenizer.encode(text, structure=structure, language='en')
    special = {token: f'|{SPECIAL_PIECES[token]}|' for token in SPECIAL}
    pieces = (special.get(t) or tokenizer.decode([t]) for t in tokens.tolist())
    return ''.join(pieces).replace('||', '|').strip('|')

  text = 'A cat sat. It saw.\nThe hat.\n\nAll.'
  assert marks(text, 'none') == f'{text}|</D>'
  assert marks(text, 'paragraphs') == (
    '<P>|A cat sat. It saw.|</P>|<P>|The hat.\n|</P>|<P>|All.|</P>|</D>'
  )
  assert marks(text, 'sentences') == (
    '<P>|<S>|A cat sat.|</S>|<S>|It saw.|</S>|</P>|'
    '<P>|<S>|The hat.\n|</S>|</P>|<P>|<S>|All.|</S>|</P>|</D>'
  )


def test_the_unknown_piece_is_lossy():
  lossy = Tokenizer(train(oov='unk', vocab_size=40))
  assert not lossy.invertible
  assert lossy.vocab_size == 40
  tokens = lossy.encode('the cät', structure='none', language='en')
  assert UNKNOWN in tokens
  assert lossy.decode(tokens) == 'the c\ufffdt'


def test_words_take_few_tokens_and_no_text_spells_a_special_piece(tokenizer):
  text = write_text(seed=99)
  tokens = tokenizer.encode(text, structure='none', language='en')
  assert len(tokens) < len(text) / 2
  for name in SPECIAL_PIECES:
    tokens = tokenizer.encode(name, structure='none', language='en')
    assert not set(tokens[:-1]) & set(SPECIAL)


def test_what_a_model_draws_has_a_text_and_training_repeats(tokenizer, model):
  rng = np.random.default_rng(0)
  for _ in range(50):
    drawn = rng.integers(tokenizer.vocab_size, size=30)
    tokenizer.decode(drawn).encode('utf-8')
  assert train() == model


def test_wrong_choices_and_vocabularies_that_do_not_fit_are_named(tokenizer):
  for changes, sentence in (
    ({'vocab_size': 70_000}, '70000 pieces is out of range'),
    ({'vocab_size': 262}, '262 pieces is out of range: there must be 263'),
    ({'vocab_size': 265}, '265 pieces is too small for the characters'),
    ({'vocab_size': 30_000}, '30000 pieces is too large for this text'),
    ({'texts': ['', '\n'], 'structure': 'none'}, 'no text to learn'),
  ):
    with pytest.raises(VocabularyError, match=sentence):
      train(**changes)
  with pytest.raises(ValueError, match="Unknown oov 'drop'"):
    train(oov='drop')
  with pytest.raises(ValueError, match="Unknown structure 'lines'"):
    tokenizer.encode('a', structure='lines', language='en')
  with pytest.raises(ValueError, match='no SentencePiece model'):
    Tokenizer(b'nonsense')


def test_a_language_without_rules_of_its_own_is_known():
  languages = (
    'am ar bg bn ca da de el en es fi fr gu hi hy it ja kk kn ml mr my nl pa '
    'pl pt ru sk ta te uk'
  )
  assert [one for one in languages.split() if not has_rules(one)] == []
  # Near languages have those of another one, but not of English.
  assert all(map(has_rules, ('gsw', 'pt-br', 'de-at')))
  for code in ('german', 'DE', 'de_DE', 'zz', 'zh', ''):
    assert not has_rules(code), code
