"""Networks behind the `Model` seam; the only place that imports flax.linen."""

from codistill.models.dnn import make_dnn
from codistill.models.model import Head, Model, Prediction, make_feedforward
from codistill.models.resnet import make_resnet

MODELS = {'dnn': make_dnn, 'resnet': make_resnet}

__all__ = [
  'MODELS',
  'Head',
  'Model',
  'Prediction',
  'make_dnn',
  'make_feedforward',
  'make_resnet',
]
