"""One language model, synchronous SGD: the baseline (Figures 1, 2).

  python -m experiments.run --config=lm_sync --config.data.data_dir=DIR

The paper's language model has 24,006 word pieces of Common Crawl, embeddings of
256, and two layers of 1,024 with layer normalisation. It is unrolled over 32
tokens, with 128 sequences on each of 128 workers, and reaches 4.04 nats a token
by step 14,300. `scripts.prepare_text` prepares the text. No run at this scale
has been made with this code. Adam differs from the paper: clipped and at 0.001
here, at 0.1 to 0.4 in the paper, which does not describe its Adam.

  python -m experiments.sweep --config=lm_sync:gpu --seeds=3 \
    --config.data.data_dir=runs/imdb

Networks of 2 × 512 units on the reviews of IMDB, in 1,024 pieces, take five
minutes a run on one GPU, or seven for thirteen runs at once. docs/text.md says
how to prepare the text.

  python -m experiments.sweep --config=lm_sync:reduced --seeds=3

A network of 2 × 256 units on Python sources, in 512 pieces, takes half an hour
on a core. The sweep has batches from a quarter of the baseline's to
twice, at one to three rates each (Figure 1); at `:laptop` up to 16 times.

  python -m experiments.run --config=lm_sync:narrow
  python -m experiments.run --config=lm_sync:laptop

Networks of 2 × 64 units take some ten minutes on a core at `:narrow`, with four
times the batch, and one minute at `:laptop`.

Every `lm_*` config starts from this file, and differs from it only in the keys
that it sets.
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from experiments.configs import base

VARIANTS = ('', 'gpu', 'reduced', 'narrow', 'laptop', 'smoke')


def get_config(variant: str = '') -> ConfigDict:
  """The config at the paper's scale, or the variant's diff on it."""
  config = base.get_base()
  # The ensemble of the two-phase comparison trains that long.
  config.num_steps = 18_000
  # Lanes of text: 128 workers of 128.
  config.batch_size = 16_384
  config.eval_interval_steps = 200
  config.eval_batch_size = 1_024
  config.checkpoint_interval_steps = 500
  config.store_predictions = False

  config.data.kind = 'text'
  # builtin: Python sources; prepared: what scripts.prepare_text wrote to
  # data_dir.
  config.data.name = 'prepared'
  config.data.data_dir = config_dict.placeholder(str)
  config.data.vocab_size = 24_006
  # Tokens of a lane in a batch; memories go on from batch to batch.
  config.data.sequence_length = 32
  # Longer documents are split into parts, each in a place of its own.
  config.data.max_document_tokens = config_dict.placeholder(int)
  # Training tokens of all members together, and held-out tokens, in whole
  # documents. None: all.
  config.data.max_train_tokens = config_dict.placeholder(int)
  config.data.max_test_tokens = config_dict.placeholder(int)

  config.model.name = 'lstm'
  config.model.lstm = ConfigDict()
  config.model.lstm.embedding_size = 256
  config.model.lstm.hidden_size = 1_024
  config.model.lstm.num_layers = 2
  # For model.name transformer, which is not in the paper.
  config.model.transformer = ConfigDict()
  config.model.transformer.width = 256
  config.model.transformer.num_heads = 4
  config.model.transformer.num_layers = 4
  config.model.transformer.mlp_size = 1_024

  config.optimizer.name = 'adam'
  config.optimizer.adam = ConfigDict()
  config.optimizer.adam.b1 = 0.9
  config.optimizer.adam.b2 = 0.999
  config.optimizer.adam.eps = 1e-8
  # Limit on the global norm of the gradients.
  config.optimizer.adam.clip_norm = 1.0
  config.schedule.name = 'constant'
  config.schedule.constant.rate = 0.001

  if variant != '':
    _python_sources(config)
  if variant in ('reduced', 'laptop', 'smoke'):
    _minutes(config)
  if variant == 'reduced':
    _wide(config)
  if variant == 'gpu':
    _reviews(config)
  if variant == 'smoke':
    _smoke(config)
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """A quarter of the baseline's batch to twice it, at rates that follow it.

  Batches go up to 16 times at `:laptop`, which has enough text, and from twice
  to 32 times at `:gpu`, for a quarter of the steps.
  """
  config = get_config(variant)
  if variant == 'gpu':
    return [
      *rates(variant),
      *(
        point | {'codistill.burn_in_steps': point['num_steps']}
        for point in large_batches((16, 8, 32, 4, 2))
      ),
    ]
  batch, rate = config.batch_size, config.schedule.constant.rate
  pairs = [
    *((1, 1), (1 / 2, 1), (2, 1)),
    *((1, 1 / 2), (1, 2), (1 / 2, 1 / 2), (2, 2)),
    *((1 / 4, 1), (1 / 4, 1 / 2)),
    *(((4, 2), (8, 2), (16, 2)) if variant == 'laptop' else ()),
  ]
  return [
    ({} if size == 1 else {'batch_size': int(size * batch)})
    | ({} if factor == 1 else {'schedule.constant.rate': factor * rate})
    for size, factor in pairs
  ]


def rates(variant: str) -> list[dict[str, Any]]:
  """The baseline's rate, and at `:gpu` half of it and twice."""
  rate = get_config(variant).schedule.constant.rate
  factors = (1 / 2, 2) if variant == 'gpu' else ()
  return [{}, *({'schedule.constant.rate': rate * by} for by in factors)]


def large_batches(sizes: Sequence[int]) -> list[dict[str, Any]]:
  """`sizes` times the lanes of `:gpu`, for a quarter of its steps.

  The rates follow the batch; the largest batches read the text twice or more.
  The most important come first, in case there is no time for all.
  """
  config = get_config('gpu')
  batch, rate = config.batch_size, config.schedule.constant.rate
  factors = {2: (1,), 4: (1.5,), 8: (2, 1.5), 16: (2, 3), 32: (3, 2)}
  return [
    {
      'num_steps': config.num_steps // 4,
      'batch_size': size * batch,
      'schedule.constant.rate': factors[size][again] * rate,
    }
    for again in (0, 1)
    for size in sizes
    if again < len(factors[size])
  ]


def _python_sources(config: ConfigDict) -> None:
  """A sixteenth of the units, 512 pieces, states that are reset."""
  config.num_steps = 1_600
  config.batch_size = 256
  config.eval_interval_steps = 50
  config.eval_batch_size = 64
  config.checkpoint_interval_steps = 200
  config.data.name = 'builtin'
  # The mean length of the paper's documents. These are twelve times as long, so
  # few lanes would see few of them.
  config.data.max_document_tokens = 735
  config.data.max_test_tokens = 100_000
  config.data.vocab_size = 512
  config.model.dtype = 'float32'
  # The paper never resets. Evaluation begins at zero, so training should, too,
  # at times.
  config.model.memory_reset_probability = 0.02
  config.model.lstm.embedding_size = 64
  config.model.lstm.hidden_size = 64
  config.model.transformer.width = 64
  config.schedule.constant.rate = 0.016


def _minutes(config: ConfigDict) -> None:
  """A quarter of the lanes."""
  config.num_steps = 1_000
  config.batch_size = 64
  config.eval_interval_steps = 100
  config.data.max_test_tokens = 50_000
  config.schedule.constant.rate = 0.008


def _reviews(config: ConfigDict) -> None:
  """Half of the paper's units in bfloat16, 24.6 million tokens a member."""
  config.num_steps = 6_000
  config.batch_size = 128
  config.eval_interval_steps = 200
  config.eval_batch_size = 256
  config.checkpoint_interval_steps = 3_000
  config.data.name = 'prepared'
  config.data.max_test_tokens = 200_000
  config.data.vocab_size = 1_024
  config.model.dtype = 'bfloat16'
  config.model.lstm.embedding_size = 256
  config.model.lstm.hidden_size = 512
  config.schedule.constant.rate = 0.004


def _wide(config: ConfigDict) -> None:
  """A quarter of the paper's units, enough for an ensemble to add something."""
  config.num_steps = 3_000
  config.eval_interval_steps = 200
  config.checkpoint_interval_steps = 500
  # Curves are smooth to a hundredth of a nat.
  config.data.max_test_tokens = 200_000
  # Weights averaged over some five hundred steps are evaluated, too.
  config.average_decay = 0.998
  config.model.lstm.embedding_size = 128
  config.model.lstm.hidden_size = 256
  config.model.transformer.width = 256


def _smoke(config: ConfigDict) -> None:
  """Seconds: enough to pass through every part of a run."""
  config.num_steps = 8
  config.batch_size = 8
  config.eval_interval_steps = 4
  config.eval_batch_size = 8
  config.checkpoint_interval_steps = 4
  config.data.sequence_length = 8
  config.data.max_test_tokens = 4_000
  config.model.lstm.embedding_size = 8
  config.model.lstm.hidden_size = 8
  config.model.transformer.width = 8
