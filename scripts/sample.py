"""Continues a text with a language model that a run has stored.

  python -m scripts.sample WORKDIR [--prompt='…'] [--tokens=100]
    [--temperature=0.8] [--seed=0] [--member=0] [--averaged]

Prints the prompt and the pieces that the member draws after it, as they come,
until the document ends. At temperature 0 the most likely piece comes next. The
text that the run learnt from must be here, because its vocabulary is needed.
--averaged takes the running average of the member's weights, if the run has
average_decay.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from codistill.models import Model
from data.text.tokenizer import END_OF_DOCUMENT, Tokenizer
from experiments.errors import UserError, check_least, user_errors
from experiments.paths import local_path
from experiments.runs import read_runs
from experiments.stored import corpus_of, rebuild
from scripts.evaluate import load, prepare_jax

DEFAULTS = {'tokens': 100, 'temperature': 0.8, 'seed': 0, 'member': 0}


@functools.partial(jax.jit, static_argnames=('model', 'temperature'))
def _step(variables, tokens, last, memory, key, *, model, temperature):
  """A piece that follows the token at place `last`, and the new memory."""
  prediction, memory = model.predict(variables, tokens, memory)
  logits = prediction.logits[0, last]
  if temperature == 0:
    return logits.argmax(), memory
  return jax.random.categorical(key, logits / temperature), memory


def draw(
  model: Model,
  variables: Any,
  prompt: Sequence[int],
  *,
  window: int,
  temperature: float,
  seed: int,
) -> Iterator[int]:
  """The pieces that follow a prompt of at least one, without end.

  A model without a memory is shown the last `window` pieces each time.
  """
  step = functools.partial(_step, model=model, temperature=temperature)
  [number] = np.random.SeedSequence(seed).generate_state(1)  # Of any seed.
  pieces, new, memory = list(prompt), list(prompt), model.memory(1)
  while True:
    key = jax.random.fold_in(jax.random.key(number), len(pieces))
    if jax.tree.leaves(memory):
      for piece in new:
        tokens = np.full((1, 1), piece, np.int32)
        drawn, memory = step(variables, tokens, 0, memory, key)
    else:
      seen = pieces[-window:]
      # Of one shape: what fills it up comes later, and is not looked at.
      tokens = np.zeros((1, window), np.int32)
      tokens[0, : len(seen)] = seen
      drawn, _ = step(variables, tokens, len(seen) - 1, memory, key)
    new = [int(drawn)]
    pieces += new
    yield new[0]


def show(
  tokenizer: Tokenizer, prompt: Sequence[int], drawn: Iterable[int]
) -> None:
  """Prints a text as its pieces come, to the end of the document."""
  pieces = list(prompt)
  shown = tokenizer.decode(pieces)
  print(shown, end='', flush=True)
  for piece in itertools.takewhile(END_OF_DOCUMENT.__ne__, drawn):
    pieces.append(piece)
    # A character of several bytes is shown when all of them are there.
    text = tokenizer.decode(pieces).rstrip('\ufffd')
    print(text[len(shown) :], end='', flush=True)
    shown = max(shown, text, key=len)
  print(tokenizer.decode(pieces)[len(shown) :])


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
  """Does what the arguments say."""
  check_least({f'--{name}': (getattr(arguments, name), 0) for name in DEFAULTS})
  workdir, member = arguments.workdir, arguments.member
  runs = read_runs(workdir)
  experiment = rebuild(runs, with_data=False)
  corpus = corpus_of(workdir, runs, experiment)
  stored, missing = load(arguments, runs, experiment, [member], say)
  if missing:
    raise UserError(f'nothing to sample from: {missing[member]}')
  with user_errors(ValueError):
    tokenizer, prompt = corpus.tokenizer(), corpus.beginning(arguments.prompt)
  drawn = draw(
    experiment.networks[member].model,
    stored[member].variables,
    prompt,
    window=experiment.task.sequence_length,
    temperature=arguments.temperature,
    seed=arguments.seed,
  )
  show(tokenizer, prompt, itertools.islice(drawn, arguments.tokens))


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the text; errors that a user can cause end in one sentence."""
  parser = argparse.ArgumentParser(
    prog='scripts.sample',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('workdir', metavar='WORKDIR', type=local_path)
  parser.add_argument('--prompt', default='')
  for name, default in DEFAULTS.items():
    parser.add_argument(f'--{name}', type=type(default), default=default)
  parser.add_argument('--averaged', action='store_true')
  arguments = parser.parse_args(argv)
  prepare_jax()
  say = functools.partial(print, 'scripts.sample:', file=sys.stderr)
  try:
    run(arguments, say)
  except (UserError, OSError) as error:
    say(error)
    return 1
  except KeyboardInterrupt:
    return 130
  return 0


if __name__ == '__main__':
  sys.exit(main())
