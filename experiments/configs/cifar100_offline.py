"""WRN-28-10 teaches ResNet-32 on CIFAR-100 (§3.4.1).

  python -m experiments.run --config=cifar100_offline

The paper quotes 69.5 and 70.7 % for this pair: an over-fitted teacher does not
help, an under-fitted one does. One command trains both: first the teacher, in
WORKDIR/ensemble, until it fits its training set completely; then the student,
on labels and on the frozen teacher. `teacher_fit` stops the teacher earlier.

The paper does not give the recipe. Here both networks train for 200 epochs in
batches of 64, with Nesterov momentum, a rate of 0.1 that drops by ten every 60
epochs, weight decay 5e-4, shifts by four pixels and flips. CIFAR-100 must be
prepared by `scripts.prepare_images`; no run at this scale has been made with
this code.

  python -m experiments.run --config=cifar100_offline:reduced

The narrow ResNet-18 of `imagenet_sync:reduced` teaches another one on 1,000
images of Fashion-MNIST, in about two minutes on a CPU core.
"""

from ml_collections import ConfigDict, config_dict

from data.images import sets as image_sets
from experiments.configs import imagenet_sync

VARIANTS = imagenet_sync.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """One frozen teacher, trained for as long as its student will be."""
  config = imagenet_sync.get_config(variant)
  if variant == '':
    _cifar100(config)
  if variant == 'reduced':
    _fashion_mnist(config)
  if variant == 'laptop':
    config.num_steps = 400
  if variant == 'smoke':
    config.two_phase.model = 'wide_resnet'
    config.model.wide_resnet.depth = 10
    config.model.wide_resnet.widening = 1
  config.two_phase.members = 1
  config.two_phase.num_steps = config.num_steps
  config.codistill.exchange = 'frozen'
  config.codistill.burn_in_steps = 0
  return config


def _cifar100(config: ConfigDict) -> None:
  """50,000 images of 32×32 pixels, 781.25 batches an epoch."""
  config.num_steps = 156_250
  config.batch_size = 64
  config.eval_interval_steps = 3_125
  config.eval_batch_size = 1_000
  config.checkpoint_interval_steps = 15_625
  config.data.name = 'cifar100'
  config.data.update(image_sets.facts_of('cifar100'))
  config.data.augmentation = 'shift_flip'
  config.data.padding = 4
  config.data.cache = True
  config.data.num_workers = 0
  config.model.dtype = 'float32'
  config.model.resnet.depth = 32
  config.model.resnet.width = 16
  config.model.resnet.batch_norm_group_size = config_dict.placeholder(int)
  config.two_phase.model = 'wide_resnet'
  config.codistill.publish_precision = 'float32'
  config.codistill.teacher_precision = 'float32'
  config.optimizer.sgd.nesterov = True
  config.optimizer.sgd.weight_decay = 5e-4
  config.schedule.warmup_piecewise.initial_rate = 0.1
  config.schedule.warmup_piecewise.peak_rate = 0.1
  config.schedule.warmup_piecewise.warmup_steps = 0
  config.schedule.warmup_piecewise.drop_at_steps = (46_875, 93_750, 140_625)


def _fashion_mnist(config: ConfigDict) -> None:
  """So few images that the network fits them completely in 77 epochs."""
  config.num_steps = 600
  config.batch_size = 128
  config.eval_interval_steps = 100
  config.data.train_split = 'train[:1000]'
  config.schedule.warmup_piecewise.peak_rate = 0.1
  # As above: at three, six and nine tenths.
  config.schedule.warmup_piecewise.drop_at_steps = (180, 360, 540)
