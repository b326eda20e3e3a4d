"""Networks small enough to compile in every test, with what they need.

Equal networks are one object, so that their programs are compiled once.
"""

import functools

import jax
import numpy as np
import optax

from codistill import optim
from codistill.exchange import topology
from codistill.exchange.memory import InMemoryExchange
from codistill.exchange.rules import ANY_PEER
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
TOKENS, VOCABULARY = 6, 11


def builder(make, **defaults):
  defaults = {'dtype': 'float32', 'param_dtype': 'float32', **defaults}
  return functools.cache(functools.partial(make, **defaults))


of_images = functools.partial(builder, input_shape=SHAPE, num_classes=CLASSES)
make_small_resnet = of_images(
  make_resnet,
  depth=8,
  width=4,
  batch_norm_momentum=0.9,
  batch_norm_group_size=None,
  teacher_batch_norm='running',
  remat=False,
)
make_small_wide_resnet = of_images(
  make_wide_resnet, depth=10, widening=1, batch_norm_momentum=0.9
)
make_small_dnn = of_images(make_dnn, hidden=(8,))


@functools.cache
def make_tiny_resnet(
  group_size=None, stages=(1,), width=4, dtype='float32', remat=False
):
  """A network of one block, for tests that need no more."""
  sizes = stages, False, width, True, CLASSES, 0.9, group_size, remat
  return make_feedforward(ResNet(*sizes, dtype, dtype), SHAPE)


of_clicks = functools.partial(
  builder,
  input_shape={'integers': (2,), 'missing': (2,), 'categories': (3,)},
  num_classes=2,
  table_sizes=(5, 6, 7),
)
make_small_click_dnn = of_clicks(make_click_dnn, embedding_size=4, hidden=(8,))
make_small_click_regression = of_clicks(make_click_regression)

of_text = functools.partial(
  builder, input_shape=(TOKENS,), num_classes=VOCABULARY, num_layers=2
)
make_small_lstm = of_text(make_lstm, embedding_size=5, hidden_size=8)
make_small_transformer = of_text(
  make_transformer, width=8, num_heads=2, mlp_size=16
)


def sgd(rate=0.1, momentum=0.9, weight_decay=1e-4):
  return optim.make_optimizer(
    'sgd',
    optax.constant_schedule(rate),
    momentum=momentum,
    nesterov=False,
    weight_decay=weight_decay,
    weight_decay_drop_at_steps=(),
    weight_decay_drop_factor=1.0,
  )


def in_memory(members, interval=1, delay=0, immediate=False):
  return InMemoryExchange(
    topology.make_topology('all', members),
    reload_interval_steps=interval,
    delay_steps=delay,
    immediate=immediate,
    rules=ANY_PEER,
  )


def assert_close(one, other, rtol=0.0, atol=0.0):
  close = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
  jax.tree.map(close, one, other)
