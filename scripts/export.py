"""Makes a copy of a member, or of all, that can be served without this code.

  python -m scripts.export WORKDIR --member=I|ensemble --out=DIR [--averaged]

Of the newest checkpoints, in a DIR that must be empty or not there:

  variables/       parameters and batch statistics, an Orbax checkpoint
  predict.bin      (variables, inputs [batch, …]) → probabilities, by
                   jax.export, for any batch size, on CPU, CUDA and TPU
  config.json      the run's config, the member, its step, the commit, and
                   whether its weights are averaged
  README.md        how to load it, without this project

Of a language model predict.bin is (variables, tokens [batch, time], memory) →
(logits, memory), and there are also

  memory.bin       tokens → the memory to begin with
  tokenizer.model  its vocabulary, if the text that it learnt from is here

An ensemble predicts the mean of what its members predict. --averaged takes the
running average of each member's weights, if the run has average_decay.

A DIR appears when all of it is there. Neither the data nor the device of the
run is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.export

from codistill.evaluate import predict_together, probabilities
from codistill.models.convolution import plain_convolutions
from codistill.storage.checkpoint import save_variables
from data.text.corpus import TOKENIZER, CorpusError
from experiments.errors import UserError
from experiments.experiment import Experiment
from experiments.paths import local_path
from experiments.runs import (
  Run,
  commit_of,
  label_of,
  members_of,
  read_runs,
  some_run,
)
from experiments.stored import Stored, corpus_of, rebuild
from experiments.tasks import Task
from scripts.evaluate import load, prepare_jax

PLATFORMS = ('cpu', 'cuda', 'tpu')
# flatbuffers: jax.export serialises with it, and jax does not require it.
PACKAGES = ('jax', 'orbax-checkpoint', 'flatbuffers')
PyTree = Any

README = """\
# {title}

Needs Python and these packages, by which it was written:

```
pip install {packages}
```

In this folder:

```python
import pathlib
import jax.export
from orbax.checkpoint import v1 as ocp

{lines}```

- `{inputs}`: {given}; any batch size.{notes}
- `{outputs}`: {found}{meaning}.
- Weights: {weights}.
- Runs on: {platforms}.
- `config.json`: the config that it was trained with, and by which code.
"""
LINES = """\
exported = jax.export.deserialize(pathlib.Path('predict.bin').read_bytes())
variables = ocp.load(pathlib.Path('variables').absolute())
probabilities = jax.jit(exported.call)(variables, {inputs})
"""
LINES_OF_TEXT = """\
def load(name):
  return jax.jit(jax.export.deserialize(pathlib.Path(name).read_bytes()).call)

begin, predict = load('memory.bin'), load('predict.bin')
variables = ocp.load(pathlib.Path('variables').absolute())
memory = begin(tokens)
logits, memory = predict(variables, tokens, memory)
"""
# Of the inputs, by the kind of data.
NOTES = {
  'images': """
  Pixels as they are stored: they are normalised inside, by a mean of {mean} and
  a deviation of {std} of pixels scaled to [0, 1].""",
  'clicks': """
  An integer x is given as sign(x) · ln(1 + |x|), and as 0 where it is missing;
  `missing` is 1 there. Categories have numbers below {table_sizes}: 0 for a
  missing one, 1 for one that was rare in the log that was learnt from, and
  hashes of the others. Which were rare is known only when a log is prepared, so
  take inputs from the prepared folder, as this project reads it; a row alone
  cannot be scored.""",
  'text': """
  The next tokens of each text, any number of them. A text begins with token 1,
  the end of the one before. `tokenizer.model`, if it could be copied, is the
  vocabulary, for the package sentencepiece; pieces 1 to 5 mark the ends of
  documents, and where paragraphs and sentences begin and end.
- `memory`: what is kept of the tokens so far; give it back with the next ones.
  A Transformer has none: give it whole texts. It was trained on
  {sequence_length} tokens at a time.""",
}


def functions_of(
  experiment: Experiment, members: Mapping[int, PyTree]
) -> dict[str, jax.export.Exported]:
  """What is served, by the names of its files.

  Args:
    experiment: whose F it is.
    members: the variables of one, or of all of an ensemble, or their shapes.
  """
  models, task = experiment.models(members), experiment.task
  batch, time = jax.export.symbolic_shape('batch, time')
  of_text = task.kind == 'text'
  inputs = jax.tree.map(
    lambda one: jax.ShapeDtypeStruct(
      (batch, time) if of_text else (batch, *one.shape[1:]), one.dtype
    ),
    task.abstract_batch(1)['inputs'],
  )
  # Without the places that arrays have here.
  variables = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), together(members)
  )

  def each(variables):
    return [variables[str(i)] for i in members] if several else [variables]

  several = len(members) > 1
  if not of_text:

    def predict(variables, inputs):
      return probabilities(models, each(variables), inputs)

    return {'predict.bin': export_function(predict, variables, inputs)}

  def begin(tokens):
    # Of one text, because the number of texts is a symbol here.
    return jax.tree.map(
      lambda leaf: leaf.repeat(tokens.shape[0], axis=0),
      tuple(model.memory(1) for model in models),
    )

  def go_on(variables, tokens, memories):
    return predict_together(models, each(variables), tokens, memories)

  memories = jax.eval_shape(begin, inputs)
  return {
    'memory.bin': export_function(begin, inputs),
    'predict.bin': export_function(go_on, variables, inputs, memories),
  }


def together(members: Mapping[int, PyTree]) -> PyTree:
  """As they are stored: one member's as they are, those of several by name."""
  if len(members) == 1:
    [variables] = members.values()
    return variables
  return {str(member): one for member, one in members.items()}


def export_function(
  function: Callable[..., PyTree], *arguments: PyTree
) -> jax.export.Exported:
  """A function, lowered for every platform that it can be lowered for."""

  def lower(platforms: Sequence[str]) -> jax.export.Exported:
    exporting = jax.export.export(jax.jit(function), platforms=platforms)
    with plain_convolutions():
      return exporting(*arguments)

  def lowers(platform: str) -> bool:
    try:
      lower([platform])
    except Exception:  # Each primitive has its own.
      return False
    return True

  try:
    return lower(PLATFORMS)
  except Exception:
    # A network may have a kernel that only some platforms know.
    able = [platform for platform in PLATFORMS if lowers(platform)]
    if not able:
      raise
    return lower(able)


def write_export(
  folder: pathlib.Path,
  run: Run,
  task: Task,
  stored: Mapping[int, Stored],
  functions: Mapping[str, jax.export.Exported],
  averaged: bool,
) -> None:
  """Writes all but the vocabulary into a folder that is there and empty."""
  members = {member: one.variables for member, one in stored.items()}
  save_variables(folder / 'variables', together(members))
  for name, function in functions.items():
    (folder / name).write_bytes(function.serialize())
  steps = {member: one.step for member, one in stored.items()}
  about = {
    'experiment': run['experiment'],
    'variant': run['variant'],
    'steps': steps,
    'averaged': averaged,
    'commit': commit_of(run),
    'dirty': run.get('dirty'),
    'config': run['config'],
  }
  (folder / 'config.json').write_text(
    json.dumps(about, indent=2, ensure_ascii=False) + '\n', encoding='utf-8'
  )
  (folder / 'README.md').write_text(
    readme(run, task, steps, functions['predict.bin'], averaged),
    encoding='utf-8',
  )


def readme(
  run: Run,
  task: Task,
  steps: Mapping[int, int],
  predict: jax.export.Exported,
  averaged: bool,
) -> str:
  """How to load what is in the folder."""
  numbers = ', '.join(map(str, steps))
  who = (
    f'Member {numbers}' if len(steps) == 1 else f'Ensemble of members {numbers}'
  )
  ends = sorted({min(steps.values()), max(steps.values())})
  after = ' to '.join(f'{step:,}' for step in ends)
  (_, inputs, *_), _ = jax.tree.unflatten(predict.in_tree, predict.in_avals)

  def shape(one):
    return f'{one.dtype} [{", ".join(map(str, one.shape))}]'

  weights = 'their running average' if averaged else 'those of the last update'
  if run['config'].get('average_decay') and not averaged:
    weights += '; `scripts.export --averaged` takes their running average'
  of_text = task.kind == 'text'
  name = 'tokens' if of_text else task.kind
  return README.format(
    title=f'{who} of {label_of(run)}, after {after} updates',
    packages=' '.join(f'{name}=={version(name)}' for name in PACKAGES),
    lines=LINES_OF_TEXT if of_text else LINES.format(inputs=name),
    inputs=name,
    given=jax.tree.map(shape, inputs),
    notes=NOTES.get(task.kind, '').format(**run['config']['data']),
    outputs='logits' if of_text else 'probabilities',
    found=shape(predict.out_avals[0]),
    meaning=', log-probabilities of the token that follows' if of_text else '',
    weights=weights,
    platforms=', '.join(predict.platforms),
  )


@contextlib.contextmanager
def appearing(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder that gets its name when the block ends well; else it goes.

  Yields:
    A hidden folder beside `out`. A kill leaves it; it looks like what it is.

  Raises:
    UserError: if something has been put into `out` meanwhile.
  """
  out.parent.mkdir(parents=True, exist_ok=True)
  hidden = out.with_name(f'.{out.name}.unfinished.{uuid.uuid4().hex[:8]}')
  hidden.mkdir()
  try:
    yield hidden
    check_empty(out)
    hidden.replace(out)
  finally:
    shutil.rmtree(hidden, ignore_errors=True)


def check_empty(out: pathlib.Path) -> None:
  """Refuses anything but an empty folder, or none, with a `UserError`."""
  for path in (out, *out.parents):
    if os.path.lexists(path):
      if not path.is_dir() or (path == out and path.is_symlink()):
        raise UserError(f'{path} is no folder; choose another --out')
      break
  if out.exists() and any(out.iterdir()):
    raise UserError(f'{out} is not empty; choose another --out, or remove it')


def check_packages() -> None:
  """Refuses to begin without a package that is needed at the end."""
  for name in PACKAGES:
    try:
      version(name)
    except PackageNotFoundError as error:
      raise UserError(
        f'the package {name} is not installed; pip install {name}'
      ) from error


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
  """Does what the arguments say."""
  workdir, member, out = arguments.workdir, arguments.member, arguments.out
  check_empty(out)
  check_packages()
  runs = read_runs(workdir)
  wanted = members_of(runs) if member == 'ensemble' else [member]
  if member == 'ensemble' and len(wanted) == 1:
    raise UserError(f'{workdir} has one member; export it with --member=0')
  experiment = rebuild(runs, with_data=False)
  stored, missing = load(arguments, runs, experiment, wanted, say)
  if missing:
    raise UserError(f'nothing to export: {"; ".join(missing.values())}')
  members = {member: one.variables for member, one in stored.items()}
  functions = functions_of(experiment, members)
  with appearing(out) as folder:
    if experiment.task.kind == 'text':
      try:
        corpus = corpus_of(workdir, runs, experiment)
        corpus.tokenizer()  # Refuses one that is gone or damaged.
        shutil.copy(corpus.folder / TOKENIZER, folder / TOKENIZER)
      except (UserError, CorpusError) as error:
        say(f'no {TOKENIZER}, because {error}')
    write_export(
      folder,
      runs.get(member) or some_run(runs),
      experiment.task,
      stored,
      functions,
      arguments.averaged,
    )
  steps = ' and '.join(
    f'member {member} after {one.step:,} updates'
    for member, one in stored.items()
  )
  platforms = ', '.join(functions['predict.bin'].platforms)
  say(f'{steps}, for {platforms}: {out}')


def number_or_ensemble(text: str) -> int | str:
  """What --member takes."""
  return text if text == 'ensemble' else int(text)


def main(argv: Sequence[str] | None = None) -> int:
  """Makes the copy; errors that a user can cause end in one sentence."""
  parser = argparse.ArgumentParser(
    prog='scripts.export',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('workdir', metavar='WORKDIR', type=local_path)
  parser.add_argument(
    '--member',
    metavar='I|ensemble',
    type=number_or_ensemble,
    required=True,
  )
  parser.add_argument('--out', metavar='DIR', type=local_path, required=True)
  parser.add_argument('--averaged', action='store_true')
  arguments = parser.parse_args(argv)
  prepare_jax()
  try:
    run(arguments, print)
  except (UserError, OSError) as error:
    print(f'scripts.export: {error}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
