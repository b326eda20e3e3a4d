"""Pieces that follow a prompt, and their text as it is printed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codistill.models import make_lstm, make_transformer
from data.text.builtin import TOKENIZER
from data.text.tokenizer import END_OF_DOCUMENT, Tokenizer
from scripts.sample import draw, show

SIZES = {
  'input_shape': (4,),
  'num_classes': 9,
  'num_layers': 1,
  'dtype': 'float32',
  'param_dtype': 'float32',
}
PROMPT = [1, 7, 3]


@pytest.fixture(scope='module', params=['lstm', 'transformer'])
def network(request):
  """A model, and variables by which one piece is not like the other."""
  if request.param == 'lstm':
    model = make_lstm(embedding_size=4, hidden_size=8, **SIZES)
  else:
    model = make_transformer(width=8, num_heads=2, mlp_size=8, **SIZES)
  return model, jax.tree.map(lambda x: 8 * x, model.init(jax.random.key(0)))


def pieces(network, prompt=PROMPT, count=9, **options):
  options = {'window': 12, 'temperature': 1.0, 'seed': 0} | options
  found = draw(*network, prompt, **options)
  return list(itertools.islice(found, count))


def logits(network, tokens):
  """Of what follows each, from one look at all of them."""
  model, variables = network
  inputs = jnp.array([tokens], jnp.int32)
  return jax.jit(model.predict)(variables, inputs, model.memory(1))[0].logits[0]


def test_at_temperature_zero_the_most_likely_piece_follows_all_before(network):
  found = pieces(network, temperature=0.0)
  expected = logits(network, PROMPT + found[:-1]).argmax(-1)
  assert found == expected[len(PROMPT) - 1 :].tolist()
  assert len({*found}) > 1


def test_pieces_are_drawn_as_the_model_predicts_and_the_seed_says(network):
  assert pieces(network, seed=1) == pieces(network, seed=1)
  many = [
    pieces(network, seed=seed, count=2, temperature=4.0) for seed in range(200)
  ]
  expected = jax.nn.softmax(logits(network, PROMPT)[-1] / 4)
  assert 1 / 9 + 0.1 < expected.max() < 0.8
  found = np.bincount([one[0] for one in many], minlength=9) / len(many)
  np.testing.assert_allclose(found, expected, atol=0.1)
  # Each place has a draw of its own.
  assert len({tuple(one) for one in many}) > len({one[0] for one in many})


def test_what_has_no_memory_is_shown_a_window(network):
  model, _ = network
  one, other = (
    pieces(network, [*start, 4, 5, 6], window=3, temperature=0.0)
    for start in ([1, 2], [7])
  )
  assert (one == other) == (not jax.tree.leaves(model.memory(1)))


def test_a_text_is_printed_as_it_comes_and_its_document_ends(capsys):
  tokenizer = Tokenizer(TOKENIZER.read_bytes())
  prompt, after = (
    tokenizer.encode(text, structure='none', language='en', whole=False)
    for text in ('def ', 'f(é, 日)')
  )
  printed = []

  def pieces():
    for piece in (*after.tolist(), END_OF_DOCUMENT, *prompt.tolist()):
      yield piece
      printed.append(capsys.readouterr().out)

  show(tokenizer, [END_OF_DOCUMENT, *prompt.tolist()], pieces())
  whole = ''.join(printed) + capsys.readouterr().out
  assert whole == 'def f(é, 日)\n'
  assert printed[0].startswith('def f')
  # The first bytes of a character wait for its last.
  assert '' in printed
  assert '\ufffd' not in whole
