"""Synchronous SGD, the baseline: ResNet-50 on ImageNet (Figure 3, §3.3.1).

  python -m experiments.run --config=imagenet_sync

Recipe of Goyal et al. (2017) at a batch of 16,384. The paper reaches 75.0 %
top-1 at step 7,250. Needs ImageNet prepared by `scripts.prepare_images` and a
few accelerators; no run at this scale has been made with this code.

  python -m experiments.run --config=imagenet_sync:laptop

Handwritten digits, a ResNet-8: under a minute on two CPU cores.

  python -m experiments.sweep --config=imagenet_sync:reduced --seeds=3

15,000 images of Fashion-MNIST, a narrow ResNet-18, a batch of 512 and, ending
no better, twice that batch: a minute or two a run on two CPU cores, 0.378 and
0.433 nats. Needs Fashion-MNIST prepared by `scripts.prepare_images`.

This file is the base of every `imagenet_*` config; they differ from it in the
keys that they set and in nothing else.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

VARIANTS = ('', 'reduced', 'laptop', 'smoke')


def get_config(variant: str = '') -> ConfigDict:
  """The config at the paper's scale, or the variant's diff on it."""
  config = ConfigDict()
  config.seed = 0
  # Not the 7,038 of 90 epochs: the window of Figure 3, whose last marker is
  # near step 14,100. The schedule below stays that of 90 epochs.
  config.num_steps = 14_100
  # Global, per member.
  config.batch_size = 16_384
  # None: all devices.
  config.num_devices = config_dict.placeholder(int)
  config.eval_interval_steps = 250
  config.eval_batch_size = 1_024
  config.checkpoint_interval_steps = 500

  config.data = ConfigDict()
  config.data.name = 'imagenet2012'
  # None: TFDS_DATA_DIR, or where TFDS keeps its data.
  config.data.data_dir = config_dict.placeholder(str)
  config.data.train_split = 'train'
  config.data.eval_split = 'validation'
  config.data.image_shape = (224, 224, 3)
  config.data.num_classes = 1_000
  config.data.augmentation = 'inception'
  # Pixels that shift and shift_flip pad each side with.
  config.data.padding = 0
  config.data.mean = (0.485, 0.456, 0.406)
  config.data.std = (0.229, 0.224, 0.225)
  # Decode each split once and hold it: for small sets.
  config.data.cache = False
  # A thread and a place in the queue are a whole batch each: 9.9 GB here.
  config.data.num_threads = 2
  config.data.prefetch_batches = 2

  config.model = ConfigDict()
  config.model.name = 'resnet'
  config.model.dtype = 'bfloat16'
  config.model.param_dtype = 'float32'
  config.model.resnet = ConfigDict()
  config.model.resnet.depth = 50
  config.model.resnet.width = 64
  config.model.resnet.batch_norm_momentum = 0.9

  # For model.name dnn: the widths of the paper's Criteo network.
  config.model.dnn = ConfigDict()
  config.model.dnn.hidden = (2_560, 1_024, 256)

  config.optimizer = ConfigDict()
  config.optimizer.name = 'sgd'
  config.optimizer.sgd = ConfigDict()
  config.optimizer.sgd.momentum = 0.9
  config.optimizer.sgd.nesterov = False
  config.optimizer.sgd.weight_decay = 1e-4

  # Linear from 0.1 over 5 epochs to 0.1 · B/256, ÷ 10 at epochs 30, 60, 80.
  config.schedule = ConfigDict()
  config.schedule.name = 'warmup_piecewise'
  config.schedule.warmup_piecewise = ConfigDict()
  config.schedule.warmup_piecewise.initial_rate = 0.1
  config.schedule.warmup_piecewise.peak_rate = 6.4
  config.schedule.warmup_piecewise.warmup_steps = 391
  config.schedule.warmup_piecewise.drop_at_steps = (2_346, 4_692, 6_256)
  config.schedule.warmup_piecewise.drop_factor = 0.1

  # For schedule.name constant.
  config.schedule.constant = ConfigDict()
  config.schedule.constant.rate = 0.1

  config.codistill = ConfigDict()
  config.codistill.members = 1
  # Synchronous SGD is Algorithm 1 that never leaves its burn-in.
  config.codistill.burn_in_steps = config.get_oneway_ref('num_steps')
  # memory: members of one process; checkpoints: of one process or many,
  # through a folder; none.
  config.codistill.exchange = 'none'
  # Who learns from whom: all, ring, pairs, star; or random: so many others,
  # drawn anew at each reload.
  config.codistill.topology = 'all'
  config.codistill.num_random_neighbours = 1
  # What weights are rounded to when published, and what a teacher is held in:
  # float32 (as trained), bfloat16, int8. At the paper's scale int8, with which
  # students of `teacher_precision` learnt no worse; the small variants' rows
  # were made in float32, where bytes do not matter.
  precision = 'int8' if variant == '' else 'float32'
  config.codistill.publish_precision = precision
  config.codistill.teacher_precision = precision
  config.codistill.reload_interval_steps = 50
  config.codistill.delay_steps = 0
  config.codistill.immediate = False
  # Which peers may teach; None: any. Age in steps, and a peer's published
  # task loss over one's own.
  config.codistill.max_age_steps = config_dict.placeholder(int)
  config.codistill.max_task_loss_ratio = config_dict.placeholder(float)
  # For exchange checkpoints. The folder, if not WORKDIR/exchange; whether
  # members wait for each other, so that a run can be repeated bit for bit;
  # what stays in the folder, by number and by seconds; seconds between looks;
  # and after how many seconds one gives up waiting, or another up for dead.
  config.codistill.exchange_dir = config_dict.placeholder(str)
  config.codistill.synchronous = False
  config.codistill.keep_publications = 3
  config.codistill.keep_s = 30.0
  config.codistill.poll_interval_s = 0.5
  config.codistill.wait_timeout_s = 600.0
  config.codistill.lease_timeout_s = 60.0
  # ψ, its first argument (peers, uniform or unigram), and the two weights.
  config.codistill.distill_loss = 'cross_entropy'
  config.codistill.teacher = 'peers'
  config.codistill.task_weight = 1.0
  config.codistill.distill_weight = 1.0

  # What goes wrong on purpose, after which step of which member: none; rate,
  # a learning rate times rate_factor; noise instead of weights.
  config.fault = ConfigDict()
  config.fault.kind = 'none'
  config.fault.member = 0
  config.fault.step = 0
  config.fault.rate_factor = 100.0

  # Where members differ: each own or same. Partition own: disjoint parts of
  # the data; same: all draw from all of it.
  config.diversity = ConfigDict()
  config.diversity.initialization = 'own'
  config.diversity.order = 'own'
  config.diversity.partition = 'same'

  if variant == 'reduced':
    _fashion_mnist(config)
  if variant in ('laptop', 'smoke'):
    _digits(config)
  if variant == 'smoke':
    _smoke(config)
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """The batch, and twice of it at twice the learning rate (Figure 3)."""
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


def _fashion_mnist(config: ConfigDict) -> None:
  """Images of 28×28 pixels, a ResNet-18 of 8 channels, Goyal's drops.

  The schedule is that of the paper's scale with 600 steps for its 7,038. A
  quarter of the training set makes 20 epochs of them, and twice the batch ends
  no better. Rate and batch were tuned on the baseline alone, on
  `train[50000:]`.
  """
  config.num_steps = 600
  config.batch_size = 512
  config.eval_interval_steps = 25
  config.eval_batch_size = 1_000
  config.checkpoint_interval_steps = 200
  config.data.name = 'fashion_mnist'
  config.data.train_split = 'train[:15000]'
  config.data.eval_split = 'test'
  config.data.image_shape = (28, 28, 1)
  config.data.num_classes = 10
  config.data.augmentation = 'none'
  config.data.mean = (0.286,)
  config.data.std = (0.353,)
  config.data.cache = True
  config.data.num_threads = 1
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
  config.data.eval_split = 'test'
  config.data.image_shape = (8, 8, 1)
  config.data.num_classes = 10
  config.data.augmentation = 'shift'
  config.data.padding = 1
  config.data.mean = (0.305,)
  config.data.std = (0.376,)
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
  """Seconds: enough to pass through every part of a run."""
  config.num_steps = 8
  config.batch_size = 16
  config.eval_interval_steps = 4
  config.checkpoint_interval_steps = 4
  config.model.resnet.width = 4
  config.schedule.warmup_cosine.warmup_steps = 2
