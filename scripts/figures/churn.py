"""Table 1 of the paper: predictions that change from one retrain to another."""

from __future__ import annotations

from matplotlib.axes import Axes

from scripts import markdown
from scripts.figures.arms import CODISTILL, ENSEMBLE, PAPER, SYNC, Rows
from scripts.figures.figure import (
  COMMAND,
  Figure,
  command_cell,
)

# Rows of Table 1: their names here, their colours those of the arms.
_MODELS = {
  'dnn': ('DNN', SYNC.color),
  'ensemble_of_two_dnns': ('ensemble of two DNNs', ENSEMBLE.color),
  'two_way_codistilled_dnn': ('two-way codistilled DNN', CODISTILL.color),
}


class Churn(Figure):
  """Validation log loss over churn, with half-ranges as bars.

  Our rows come with the Criteo configs; until then the paper's stand alone.
  """

  seeds = 5

  def __init__(self, title: str, configs: tuple[str, ...]):
    """Names it.

    Args:
      title: of the picture.
      configs: whose rows will be ours.
    """
    self.title = title
    self.configs = configs

  def has_rows(self, rows: Rows) -> bool:
    """Not before runs store their predictions."""
    return False

  def draw_paper(self, axes: Axes) -> None:
    """Table 1: five retrains a model."""
    for name, (label, color) in _MODELS.items():
      loss, loss_range, churn, churn_range = PAPER['table1']['rows'][name]
      axes.errorbar(
        churn,
        loss,
        xerr=churn_range,
        yerr=loss_range,
        fmt='o',
        capsize=2,
        color=color,
        label=label,
      )
    axes.set(
      xlabel='churn: mean |Δp| between two retrains',
      ylabel='validation log loss (nats)',
    )
    axes.legend()

  def table(self, rows: Rows, variant: str) -> str:
    """The paper's numbers, and what will make ours."""
    lines = []
    for name, (label, _) in _MODELS.items():
      loss, loss_range, churn, churn_range = PAPER['table1']['rows'][name]
      lines.append(
        [
          label,
          f'{loss:.4f} ± {loss_range:g}',
          f'{churn:.3f} ± {churn_range:g}',
          '0',
          command_cell(self.configs[0], variant, ()),
        ]
      )
    header = [
      'model',
      'paper: validation log loss (nats)',
      'paper: mean absolute difference between retrains',
      'our runs',
      COMMAND,
    ]
    return markdown.table(header, lines)
