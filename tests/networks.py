"""Networks and an optimizer that are small enough to compile in every test.

Equal networks are one, whose programs are compiled once.
"""

import functools

from codistill import optim
from codistill.models import (
  make_click_dnn,
  make_click_regression,
  make_dnn,
  make_lstm,
  make_resnet,
  make_transformer,
  make_wide_resnet,
)
from codistill.models.model import make_feedforward
from codistill.models.resnet import ResNet

SHAPE, CLASSES = (8, 8, 1), 10

make_small_resnet = functools.cache(
  functools.partial(
    make_resnet,
    input_shape=SHAPE,
    num_classes=CLASSES,
    depth=8,
    width=4,
    batch_norm_momentum=0.9,
    batch_norm_group_size=None,
    teacher_batch_norm='running',
    remat=False,
    dtype='float32',
    param_dtype='float32',
  )
)


@functools.cache
def make_tiny_resnet(group_size=None, stages=(1,), width=4, dtype='float32'):
  """A network of one block, for what has to do with BatchNorm alone."""
  sizes = stages, False, width, True, CLASSES, 0.9, group_size, False
  return make_feedforward(ResNet(*sizes, dtype, dtype), SHAPE)


make_small_wide_resnet = functools.cache(
  functools.partial(
    make_wide_resnet,
    input_shape=SHAPE,
    num_classes=CLASSES,
    depth=10,
    widening=1,
    batch_norm_momentum=0.9,
    dtype='float32',
    param_dtype='float32',
  )
)
make_small_dnn = functools.cache(
  functools.partial(
    make_dnn,
    input_shape=SHAPE,
    num_classes=CLASSES,
    hidden=(8,),
    dtype='float32',
    param_dtype='float32',
  )
)


CLICKS = {
  'input_shape': {'integers': (2,), 'missing': (2,), 'categories': (3,)},
  'num_classes': 2,
  'table_sizes': (5, 6, 7),
  'dtype': 'float32',
  'param_dtype': 'float32',
}


def make_small_click_dnn(**changes):
  arguments = {**CLICKS, 'embedding_size': 4, 'hidden': (8,)}
  return make_click_dnn(**arguments | changes)


def make_small_click_regression(**changes):
  return make_click_regression(**CLICKS | changes)


TOKENS, VOCABULARY = 6, 11

make_small_lstm = functools.cache(
  functools.partial(
    make_lstm,
    input_shape=(TOKENS,),
    num_classes=VOCABULARY,
    embedding_size=5,
    hidden_size=8,
    num_layers=2,
    dtype='float32',
    param_dtype='float32',
  )
)
make_small_transformer = functools.cache(
  functools.partial(
    make_transformer,
    input_shape=(TOKENS,),
    num_classes=VOCABULARY,
    width=8,
    num_layers=2,
    num_heads=2,
    mlp_size=16,
    dtype='float32',
    param_dtype='float32',
  )
)


def sgd(rate=0.1, momentum=0.9, weight_decay=1e-4):
  return optim.make_optimizer(
    'sgd',
    'constant',
    {'rate': rate},
    momentum=momentum,
    nesterov=False,
    weight_decay=weight_decay,
    weight_decay_drop_at_steps=(),
    weight_decay_drop_factor=1.0,
  )
