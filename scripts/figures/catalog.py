"""All figures, by name."""

from __future__ import annotations

from collections.abc import Mapping

from scripts.figures import arms
from scripts.figures.churn import CLICKS, IMAGES, Choices, Table1
from scripts.figures.cost import Cost, EqualCompute, TwoPhase
from scripts.figures.curves import Curves, Reloads
from scripts.figures.dots import Average, Diversity, TeacherPrecision, Topology
from scripts.figures.failed_peer import FailedPeer
from scripts.figures.figure import Figure
from scripts.figures.metric import LOSS, TOP_1
from scripts.figures.mixed_members import MixedMembers
from scripts.figures.psi_choices import PsiChoices
from scripts.figures.regime import Regime
from scripts.figures.rivals import Rivals
from scripts.figures.rivals_faults import RivalsFaults
from scripts.figures.rivals_members import RivalsMembers
from scripts.figures.students import HalfTheSteps, TeacherFit, Transfer
from scripts.figures.sweeps import Batch, Contrast, Staleness, Width

_BATCHES = (arms.LM_HALF, arms.LM_SYNC, arms.LM_DOUBLE)
_FIGURE_4 = Reloads(
  'Figure 4: how often peers are reloaded',
  ('fig4', 'fig2a'),
  (arms.LM_ALONE, *arms.LM_RELOADS.values(), arms.LM_NO_PEERS),
  arms.LM_ALONE,
)

FIGURES: Mapping[str, Figure] = {
  'fig1a': Curves(
    'Figure 1a: half the batch and twice the batch, by steps',
    ('fig1a',),
    _BATCHES,
    arms.LM_SYNC,
  ),
  'fig1b': Curves(
    'Figure 1b: half the batch and twice the batch, by hours',
    ('fig1b',),
    _BATCHES,
    arms.LM_SYNC,
    by_hours=True,
  ),
  'fig2a': Curves(
    'Figure 2a: codistillation, its controls, the ensemble',
    ('fig2a',),
    (
      arms.LM_ALONE,
      arms.LM_UNIFORM,
      arms.LM_UNIGRAM,
      arms.LM_CODISTILL,
      arms.LM_ENSEMBLE,
    ),
    arms.LM_ALONE,
  ),
  'fig2b': Curves(
    'Figure 2b: the same data against partitioned data',
    ('fig2b',),
    (arms.LM_ALONE, arms.LM_SAME, arms.LM_CODISTILL, arms.LM_ENSEMBLE),
    arms.LM_ALONE,
  ),
  'fig3': Curves(
    'Figure 3: codistillation on images',
    ('fig3',),
    (arms.SYNC, arms.SYNC_DOUBLE, arms.TWO_WAY),
    arms.SYNC,
    metric=TOP_1,
    also=(LOSS,),
    paper_label='ImageNet top-1 accuracy (%)',
    paper_range=(60, 77),
  ),
  'fig4': _FIGURE_4,
  'batch': Batch(),
  'regime': Regime(),
  'over_fitting': Curves(
    'The arms of Figures 2a and 2b where one network over-fits',
    ('fig2a', 'fig2b'),
    arms.OVER_FITTING,
    arms.OVER_FITTING[0],
  ),
  'width': Width(),
  'average': Average(),
  'two_phase': TwoPhase(),
  'staleness_contrast': Contrast(),
  'cost': Cost(),
  'equal_compute': EqualCompute(),
  'table1': Table1(),
  'controls': Curves(
    'The arms of Figures 2a and 2b, ours on images',
    ('fig2a', 'fig2b'),
    arms.CONTROLS,
    arms.CONTROLS[0],
    also=(TOP_1,),
    paper_note=', language model',
  ),
  'staleness': Staleness(_FIGURE_4),
  'diversity': Diversity(),
  'half_the_steps': HalfTheSteps(),
  'transfer': Transfer(),
  'teacher_fit': TeacherFit(),
  'failed_peer': FailedPeer(),
  'topology': Topology(),
  'teacher_precision': TeacherPrecision(),
  'rivals': Rivals(),
  'rivals_faults': RivalsFaults(),
  'rivals_members': RivalsMembers(),
  'mixed_members': MixedMembers(),
  'psi_choices': PsiChoices(),
  'churn': CLICKS,
  'choices': Choices(),
  'churn_images': IMAGES,
}
