"""Networks behind the `Model` seam; only they import flax.linen."""

from codistill.models.click_dnn import make_click_dnn
from codistill.models.click_regression import make_click_regression
from codistill.models.dnn import make_dnn
from codistill.models.lstm import make_lstm
from codistill.models.model import (
  Head,
  Model,
  Prediction,
  make_feedforward,
  with_pixels,
)
from codistill.models.resnet import make_resnet
from codistill.models.transformer import make_transformer
from codistill.models.wide_resnet import make_wide_resnet

MODELS = {
  'click_dnn': make_click_dnn,
  'click_regression': make_click_regression,
  'dnn': make_dnn,
  'lstm': make_lstm,
  'resnet': make_resnet,
  'wide_resnet': make_wide_resnet,
}
MODELS['transformer'] = make_transformer  # Beyond the paper.

__all__ = [
  'MODELS',
  'Head',
  'Model',
  'Prediction',
  'make_click_dnn',
  'make_click_regression',
  'make_dnn',
  'make_feedforward',
  'make_lstm',
  'make_resnet',
  'make_transformer',
  'make_wide_resnet',
  'with_pixels',
]
