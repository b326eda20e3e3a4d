"""One ResNet-50, synchronous SGD: the baseline (Figure 3, §3.3.1).

  python -m experiments.run --config=imagenet_sync

The recipe is that of Goyal et al. (2017) at a batch of 16,384, with BatchNorm
over 32 images at a time. The paper reaches 75.0 % top-1 at step 7,250. The run
needs ImageNet, prepared by `scripts.prepare_images`, and a few accelerators
(fewer with num_microbatches); no run at this scale has been made with this
code.

  python -m experiments.run --config=imagenet_sync:laptop

A ResNet-8 on handwritten digits takes under a minute on two CPU cores.

  python -m experiments.sweep --config=imagenet_sync:reduced --seeds=3

A narrow ResNet-18 on 15,000 images of Fashion-MNIST, prepared by
`scripts.prepare_images`, takes a minute or two on two CPU cores. It ends at
0.378 nats with a batch of 512, and at 0.433 with twice that batch.

Every `imagenet_*` config starts from this file, and differs from it only in the
keys that it sets.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

from data.images import sets as image_sets
from experiments.configs import base

VARIANTS = ('', 'gpu', 'reduced', 'laptop', 'smoke')


# Long, because it is a table: a key a line, and above it what it means.
def get_config(variant: str = '') -> ConfigDict:
  """The config at the paper's scale, or the variant's diff on it."""
  config = base.get_base()
  # The window of Figure 3, with its last marker near step 14,100; not the 7,038
  # steps of 90 epochs. The schedule below stays that of 90 epochs.
  config.num_steps = 14_100
  config.batch_size = 16_384
  config.eval_interval_steps = 250
  config.eval_batch_size = 1_024
  config.checkpoint_interval_steps = 500

  config.data.kind = 'images'
  # The name sets evaluation split, shape, classes, mean and deviation, here and
  # with --config.data.name, unless they are given, too.
  config.data.name = 'imagenet2012'
  config.data.update(image_sets.facts_of('imagenet2012'))
  # None: TFDS_DATA_DIR, or where TFDS keeps its data.
  config.data.data_dir = config_dict.placeholder(str)
  config.data.train_split = 'train'
  # More images to learn from, without their labels: ψ and no φ.
  config.data.unlabelled_split = config_dict.placeholder(str)
  config.data.image_shape = (224, 224, 3)
  config.data.augmentation = 'inception'
  # Pixels that shift and shift_flip pad each side with.
  config.data.padding = 0
  # Decode each split once and keep it in memory; for small sets.
  config.data.cache = False
  # Reader processes for each member here, and threads in each; 128 images at a
  # time. docs/scaling.md says how many cores it takes.
  config.data.num_workers = 8
  config.data.num_threads = 1
  # A batch is 2.5 GB here, before it is shared out among hosts.
  config.data.prefetch_batches = 2

  config.model.name = 'resnet'
  config.model.resnet = ConfigDict()
  config.model.resnet.depth = 50
  config.model.resnet.width = 64
  config.model.resnet.batch_norm_momentum = 0.9
  # Images that BatchNorm normalises together: those of a worker of Goyal et
  # al. None: the whole batch of a member.
  config.model.resnet.batch_norm_group_size = 32
  # running or batch: the statistics that a teacher normalises with.
  config.model.resnet.teacher_batch_norm = 'running'
  # Compute blocks again for the gradient instead of keeping them.
  config.model.resnet.remat = False

  # For model.name wide_resnet: WRN-28-10.
  config.model.wide_resnet = ConfigDict()
  config.model.wide_resnet.depth = 28
  config.model.wide_resnet.widening = 10
  config.model.wide_resnet.batch_norm_momentum = 0.9
  # For model.name dnn: the widths of the paper's Criteo network.
  config.model.dnn = ConfigDict()
  config.model.dnn.hidden = (2_560, 1_024, 256)

  config.optimizer.name = 'sgd'
  config.optimizer.sgd = ConfigDict()
  config.optimizer.sgd.momentum = 0.9
  config.optimizer.sgd.nesterov = False
  config.optimizer.sgd.weight_decay = 1e-4
  # Weight decay drops there, by this factor: codistillation regularises, too.
  config.optimizer.sgd.weight_decay_drop_at_steps = ()
  config.optimizer.sgd.weight_decay_drop_factor = 0.1
  # For optimizer.name lars.
  config.optimizer.lars = ConfigDict()
  config.optimizer.lars.momentum = 0.9
  config.optimizer.lars.weight_decay = 1e-4
  config.optimizer.lars.trust_coefficient = 0.001

  # Linear from 0.1 over 5 epochs to 0.1 · B/256, ÷ 10 at epochs 30, 60, 80.
  config.schedule.name = 'warmup_piecewise'
  config.schedule.warmup_piecewise = ConfigDict()
  config.schedule.warmup_piecewise.initial_rate = 0.1
  config.schedule.warmup_piecewise.peak_rate = 6.4
  config.schedule.warmup_piecewise.warmup_steps = 391
  config.schedule.warmup_piecewise.drop_at_steps = (2_346, 4_692, 6_256)
  config.schedule.warmup_piecewise.drop_factor = 0.1

  # Students of `teacher_precision` learnt no worse from int8. The rows of the
  # small variants were made in float32, and bytes do not matter there.
  if variant == '':
    config.codistill.publish_precision = 'int8'
    config.codistill.teacher_precision = 'int8'
  else:
    # Their rows were made so.
    config.model.resnet.batch_norm_group_size = config_dict.placeholder(int)
  if variant == 'gpu':
    _all_of_fashion_mnist(config)
  if variant == 'reduced':
    _fashion_mnist(config)
  if variant in ('laptop', 'smoke'):
    _digits(config)
  if variant == 'smoke':
    _smoke(config)
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """The batch, and twice the batch at twice the learning rate (Figure 3)."""
  config = get_config(variant)
  schedule = config.schedule
  return [
    {},
    {
      'batch_size': 2 * config.batch_size,
      f'schedule.{schedule.name}.peak_rate': (
        2 * schedule[schedule.name].peak_rate
      ),
    },
  ]


def halve(config: ConfigDict) -> ConfigDict:
  """The same config for half of the 90 epochs, its schedule in proportion.

  The caller halves the other keys that count steps.
  """
  # At the paper's scale num_steps goes on after the schedule's 7,038.
  config.num_steps = min(config.num_steps, 7_038) // 2
  schedule = config.schedule[config.schedule.name]
  schedule.warmup_steps //= 2
  if 'drop_at_steps' in schedule:
    schedule.drop_at_steps = tuple(step // 2 for step in schedule.drop_at_steps)
  return config


def _all_of_fashion_mnist(config: ConfigDict) -> None:
  """90 epochs of 60,000 images, a ResNet-18 of 32 channels; not run yet.

  A batch is the paper's share of an epoch, a 78th, so that steps, drops and
  burn-in are those of the paper's scale; the rate follows Goyal et al.
  """
  config.num_steps = 7_038
  config.batch_size = 768
  config.eval_interval_steps = 78
  config.eval_batch_size = 1_000
  config.checkpoint_interval_steps = 782
  config.data.name = 'fashion_mnist'
  config.data.update(image_sets.facts_of('fashion_mnist'))
  config.data.augmentation = 'shift_flip'
  config.data.padding = 2
  config.data.cache = True
  config.data.num_workers = 0
  config.model.resnet.depth = 18
  config.model.resnet.width = 32
  config.schedule.warmup_piecewise.peak_rate = 0.3


def _fashion_mnist(config: ConfigDict) -> None:
  """Images of 28×28 pixels, a ResNet-18 of 8 channels, Goyal's drops.

  The schedule is that of the paper's scale with 600 steps for its 7,038, which
  are 20 epochs of a quarter of the training set. Twice the batch ends no
  better. Rate and batch were tuned on the baseline alone, on `train[50000:]`.
  """
  config.num_steps = 600
  config.batch_size = 512
  config.eval_interval_steps = 25
  config.eval_batch_size = 1_000
  config.checkpoint_interval_steps = 200
  config.data.name = 'fashion_mnist'
  config.data.update(image_sets.facts_of('fashion_mnist'))
  config.data.train_split = 'train[:15000]'
  config.data.augmentation = 'none'
  config.data.cache = True
  config.data.num_workers = 0
  config.model.dtype = 'float32'
  config.model.resnet.depth = 18
  config.model.resnet.width = 8
  config.schedule.warmup_piecewise.initial_rate = 0.0
  config.schedule.warmup_piecewise.peak_rate = 0.4
  config.schedule.warmup_piecewise.warmup_steps = 40
  config.schedule.warmup_piecewise.drop_at_steps = (200, 400, 533)


def _digits(config: ConfigDict) -> None:
  """Digits of 8×8 pixels, a ResNet-8, a cosine instead of drops."""
  config.num_steps = 600
  config.batch_size = 128
  config.eval_interval_steps = 50
  config.eval_batch_size = 360
  config.checkpoint_interval_steps = 200
  config.data.name = 'digits'
  config.data.update(image_sets.facts_of('digits'))
  config.data.augmentation = 'shift'
  config.data.padding = 1
  config.data.num_workers = 0
  config.data.num_threads = 0
  config.data.prefetch_batches = 0
  config.model.dtype = 'float32'
  config.model.resnet.depth = 8
  config.model.resnet.width = 16
  config.schedule.name = 'warmup_cosine'
  config.schedule.warmup_cosine = ConfigDict()
  config.schedule.warmup_cosine.initial_rate = 0.0
  config.schedule.warmup_cosine.peak_rate = 0.1
  config.schedule.warmup_cosine.warmup_steps = 50
  config.schedule.warmup_cosine.num_steps = config.get_oneway_ref('num_steps')


def _smoke(config: ConfigDict) -> None:
  """Seconds: enough to pass through every part of a run.

  The images are small made-up JPEGs in ImageNet's own form; `data.name`
  imagenet2012 puts the real ones in their place.
  """
  config.num_steps = 8
  config.batch_size = 16
  config.eval_interval_steps = 4
  config.checkpoint_interval_steps = 4
  config.data.name = 'imagenet_sample'
  config.data.update(image_sets.facts_of('imagenet_sample'))
  config.eval_batch_size = 32
  config.data.image_shape = (16, 16, 3)
  config.data.augmentation = 'inception'
  config.model.resnet.width = 4
  config.schedule.warmup_cosine.warmup_steps = 2
