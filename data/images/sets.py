"""Facts about image sets that are needed before they are opened.

A network's input shape, classes and normalisation follow from the name of the
set. Means and deviations are those of the training images' pixels, scaled to
[0, 1], by channel, as they are commonly quoted.
"""

from collections.abc import Mapping
from typing import Any

Facts = Mapping[str, Any]


def _facts(shape, num_classes, mean, std, eval_split='test') -> Facts:
  return {
    **({} if shape is None else {'image_shape': shape}),
    'num_classes': num_classes,
    'eval_split': eval_split,
    'mean': mean,
    'std': std,
  }


_IMAGENET = _facts(
  None, 1_000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 'validation'
)
# By the names of `data.images.dataset.make_images`. Sets of images that vary in
# size have no shape.
FACTS: Mapping[str, Facts] = {
  'digits': _facts((8, 8, 1), 10, (0.305,), (0.376,)),
  'mnist': _facts((28, 28, 1), 10, (0.131,), (0.308,)),
  'fashion_mnist': _facts((28, 28, 1), 10, (0.286,), (0.353,)),
  'cifar10': _facts(
    (32, 32, 3), 10, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
  ),
  'cifar100': _facts(
    (32, 32, 3), 100, (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)
  ),
  'imagenet2012': _IMAGENET,
  'imagenet_sample': _IMAGENET,
}


def facts_of(name: str) -> Facts:
  """Returns the facts about a set; they are the same for all its versions.

  Args:
    name: such as 'cifar10' or 'cifar10:3.0.2'.

  Returns:
    Some of image_shape (height, width, channels), num_classes, eval_split, and
    mean and std by channel; nothing for an unknown set.
  """
  return FACTS.get(name.partition(':')[0], {})
