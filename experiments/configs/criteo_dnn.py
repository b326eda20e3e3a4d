"""One click-through DNN: the baseline (Table 1, §3.5).

  python -m experiments.run --config=criteo_dnn --config.data.path=DIR

The data are the log of the Display Advertising Challenge, prepared by
`scripts.prepare_criteo`. The network has ReLU layers of 2560, 1024 and 256 and
a logistic output, and Adagrad trains it at 0.001. The paper reports a
validation log loss of 0.4480 ± 0.001 and, between two retrains, predictions
that differ by 0.029 ± 0.001 in the mean. No run at this scale has been made
with this code. The paper does not state batch size, epochs, split, hashing and
embeddings; here they are 4,096 rows, one epoch, the last seventh held out, and
100,000 embeddings of 16 numbers for each field.

  python -m experiments.run --config=criteo_dnn:laptop

A synthetic click log takes under a minute on two CPU cores. `:sample` does the
same with a small sample of the challenge's log (docs/criteo.md).

Every `criteo_*` config starts from this file, and differs from it only in the
keys that it sets.
"""

from ml_collections import ConfigDict, config_dict

from experiments.configs import base

VARIANTS = ('', 'reduced', 'sample', 'laptop', 'smoke')
_NUM_FIELDS = 26


def get_config(variant: str = '') -> ConfigDict:
  """The config at the paper's scale, or the variant's diff on it."""
  config = base.get_base()
  # An epoch of six sevenths of 45.8 million rows.
  config.num_steps = 9_592
  config.batch_size = 4_096
  config.eval_interval_steps = 1_000
  config.eval_batch_size = 16_384
  config.checkpoint_interval_steps = 1_000

  config.data.kind = 'clicks'
  # synthetic or prepared. A path, a folder of scripts.prepare_criteo, overrides
  # the name.
  config.data.name = 'prepared'
  config.data.path = config_dict.placeholder(str)
  config.data.synthetic_rows = 2_000_000
  # For each categorical field: one embedding for missing values, one for rare
  # ones, and the rest for all others, by their hash.
  config.data.table_sizes = (100_000,) * _NUM_FIELDS
  # Number of held-out rows, from the first, to evaluate on. None: all.
  config.data.max_test_rows = config_dict.placeholder(int)

  config.model.name = 'click_dnn'
  config.model.dtype = 'float32'
  config.model.click_dnn = ConfigDict()
  config.model.click_dnn.embedding_size = 16
  config.model.click_dnn.hidden = (2_560, 1_024, 256)
  # A hashed logistic regression on the same features, without keys.
  config.model.click_regression = ConfigDict()

  config.optimizer.name = 'adagrad'
  config.optimizer.adagrad = ConfigDict()
  # The default of optax, and of TensorFlow in those years. Squared gradients of
  # a mean over thousands of rows take long to add up to as much, so at first
  # this is SGD at a rate of 0.001 / √0.1.
  config.optimizer.adagrad.initial_accumulator = 0.1
  config.optimizer.adagrad.eps = 1e-7
  config.schedule.name = 'constant'
  config.schedule.constant.rate = 0.001

  if variant != '':
    _synthetic(config)
  if variant in ('sample', 'laptop', 'smoke'):
    _minutes(config)
  if variant == 'sample':
    # A sample of the challenge's log replaces the synthetic one.
    config.data.name = 'prepared'
  if variant == 'smoke':
    _smoke(config)
  return config


def _synthetic(config: ConfigDict) -> None:
  """A synthetic log of two million rows, three epochs, a tenth of the widths.

  The rate was tuned on this network alone: 0.1, 0.2 and 0.5 were tried.
  """
  config.num_steps = 10_020
  config.batch_size = 512
  config.eval_interval_steps = 1_002
  # Ten times a run, 0.4 MB per predictor: 160 MB for all of Table 1.
  config.predictions_interval_steps = 1_002
  config.eval_batch_size = 8_192
  config.checkpoint_interval_steps = 1_000
  config.data.name = 'synthetic'
  config.data.table_sizes = (5_000,) * _NUM_FIELDS
  config.data.max_test_rows = 100_000
  config.model.click_dnn.embedding_size = 8
  config.model.click_dnn.hidden = (256, 102, 26)
  config.schedule.constant.rate = 0.2


def _minutes(config: ConfigDict) -> None:
  """A tenth of the rows."""
  config.num_steps = 1_000
  config.eval_interval_steps = 100
  config.predictions_interval_steps = 100
  config.checkpoint_interval_steps = 500
  config.data.synthetic_rows = 200_000
  config.data.table_sizes = (1_000,) * _NUM_FIELDS
  config.data.max_test_rows = 20_000


def _smoke(config: ConfigDict) -> None:
  """Seconds: enough to pass through every part of a run."""
  config.num_steps = 8
  config.batch_size = 16
  config.eval_interval_steps = 4
  config.predictions_interval_steps = 4
  config.eval_batch_size = 64
  config.checkpoint_interval_steps = 4
  config.data.synthetic_rows = 2_000
  config.data.table_sizes = (20,) * _NUM_FIELDS
  config.model.click_dnn.embedding_size = 2
  config.model.click_dnn.hidden = (8, 4)
