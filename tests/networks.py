"""Networks and an optimizer that are small enough to compile in every test."""

import functools

from codistill import optim
from codistill.models import make_dnn, make_resnet

SHAPE, CLASSES = (8, 8, 1), 10

make_small_resnet = functools.partial(
  make_resnet,
  input_shape=SHAPE,
  num_classes=CLASSES,
  depth=8,
  width=4,
  batch_norm_momentum=0.9,
  dtype='float32',
  param_dtype='float32',
)
make_small_dnn = functools.partial(
  make_dnn,
  input_shape=SHAPE,
  num_classes=CLASSES,
  hidden=(8,),
  dtype='float32',
  param_dtype='float32',
)


def sgd(rate=0.1, momentum=0.9, weight_decay=1e-4):
  return optim.make_optimizer(
    'sgd',
    'constant',
    {'rate': rate},
    momentum=momentum,
    nesterov=False,
    weight_decay=weight_decay,
  )
