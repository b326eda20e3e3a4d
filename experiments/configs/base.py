"""The keys that every config has.

No experiment by itself: it sets neither the number of steps nor the data. Keys
without a value are set by each experiment.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict


# Long, because it is a table: a key a line, and above it what it means.
def get_base() -> ConfigDict:
  """The keys that all experiments share, as they are for one network alone."""
  config = ConfigDict()
  config.seed = 0
  config.num_steps = 1
  # Global, per member.
  config.batch_size = 1
  # None: all devices.
  config.num_devices = config_dict.placeholder(int)
  config.eval_interval_steps = 1
  config.eval_batch_size = 1
  config.checkpoint_interval_steps = 1
  # What else an evaluation takes the mean of, of each member and the ensemble:
  # functions as 'module:function' (docs/extend.md).
  config.eval_metrics = ()
  # Whether the last evaluation has a row of the members' average weights, too.
  config.evaluate_soup = False
  # Whether what each member and the ensemble predict for the held-out split at
  # the end is kept, so that retrains can be compared (scripts.churn): 4 bytes
  # an example and class, of two classes 4 an example. Not for text, where
  # 50,000 tokens over 24,006 pieces would be 4.8 GB each.
  config.store_predictions = True
  # Besides, at every evaluation at a multiple of so many steps; 0: at none.
  config.predictions_interval_steps = 0

  # What an experiment learns from: its own keys.
  config.data = ConfigDict()

  # Workers of asynchronous SGD, simulated: gradients are that many updates less
  # one old; 1: synchronous.
  config.num_async_workers = 1
  # Parts that a batch is computed in, one after another, for less memory.
  config.num_microbatches = 1

  config.model = ConfigDict()
  # What it computes in, and what its parameters are kept in.
  config.model.dtype = 'bfloat16'
  config.model.param_dtype = 'float32'
  # So many examples or tokens a device at a time through the last layer and
  # the losses: less memory for many classes. None: as many as suit the device;
  # 0: all.
  config.model.loss_chunk_tokens = config_dict.placeholder(int)
  # How likely a lane of text begins a batch with a memory of zeros.
  config.model.memory_reset_probability = 0.0

  config.optimizer = ConfigDict()
  # Of a running average of the weights, which is evaluated beside them; 0 for
  # none.
  config.average_decay = 0.0

  config.schedule = ConfigDict()
  # For schedule.name constant.
  config.schedule.constant = ConfigDict()
  config.schedule.constant.rate = 0.1

  # Networks by names of your own, each with what it changes in the sections
  # model, optimizer and schedule.
  config.networks = ConfigDict()

  config.codistill = ConfigDict()
  config.codistill.members = 1
  # The network of each member: a name in networks, or a model.name. None given:
  # all have the model above.
  config.codistill.member_models = ()
  # Synchronous SGD is Algorithm 1 that never leaves its burn-in.
  config.codistill.burn_in_steps = config.get_oneway_ref('num_steps')
  # memory: members of one process; checkpoints: of one process or many,
  # through a folder; frozen: the members of a finished run, in frozen_dir;
  # none.
  config.codistill.exchange = 'none'
  # Who learns from whom: all, ring, pairs, star; or random: so many others,
  # drawn anew at each reload.
  config.codistill.topology = 'all'
  config.codistill.num_random_neighbours = 1
  # What is done with a peer's weights every reload_interval_steps:
  # codistillation, where they teach; local_sgd, where members take the average;
  # diloco, where an outer optimizer steps towards it.
  config.codistill.method = 'codistillation'
  # For local_sgd and diloco: members are averaged inside groups of so many, and
  # each also learns from its counterparts in other groups; None, or all of
  # them: one group.
  config.codistill.group_size = config_dict.placeholder(int)
  # The outer optimizer of diloco (Douillard et al., 2023).
  config.codistill.outer_learning_rate = 0.7
  config.codistill.outer_momentum = 0.9
  config.codistill.outer_nesterov = True
  # What members have changed since the last average, instead of the weights.
  config.codistill.publish_differences = False
  # What weights are rounded to when published, and what a teacher is held in:
  # float32 (as trained), bfloat16, int8.
  config.codistill.publish_precision = 'float32'
  config.codistill.teacher_precision = 'float32'
  # The average of the weights instead of the weights.
  config.codistill.publish_average = False
  config.codistill.reload_interval_steps = 50
  config.codistill.delay_steps = 0
  config.codistill.immediate = False
  # Which peers may teach; None: any. Age in steps, and a peer's published
  # task loss over one's own.
  config.codistill.max_age_steps = config_dict.placeholder(int)
  config.codistill.max_task_loss_ratio = config_dict.placeholder(float)
  # For exchange frozen: a run's workdir; None: the first of two phases.
  config.codistill.frozen_dir = config_dict.placeholder(str)
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
  # Of the teacher, for top_k_kl.
  config.codistill.distill_top_k = 16
  config.codistill.teacher = 'peers'
  config.codistill.task_weight = 1.0
  config.codistill.distill_weight = 1.0
  # What the weights are multiplied by from the first step with ψ on: constant,
  # linear_ramp(num_steps=200), cosine_ramp(num_steps=200), or one of optax's
  # schedules and decays, called with keywords.
  config.codistill.task_schedule = 'constant'
  config.codistill.distill_schedule = 'constant'
  # T, by which logits are divided in ψ; ψ then counts T² times, or not.
  config.codistill.temperature = 1.0
  config.codistill.temperature_scaling = True
  # The mean of the peers' probabilities (the paper's), or of their logits.
  config.codistill.peer_average = 'probabilities'

  # What goes wrong on purpose, after which step of which member: none; rate,
  # a learning rate times rate_factor; noise instead of weights; death, no more
  # updates; slow, updates that take slow_factor times as long.
  config.fault = ConfigDict()
  config.fault.kind = 'none'
  config.fault.member = 0
  config.fault.step = 0
  config.fault.rate_factor = 100.0
  config.fault.slow_factor = 10.0

  # First an ensemble of so many, for so many steps, none if 0; then this run,
  # whose codistill.exchange is frozen and learns from it.
  config.two_phase = ConfigDict()
  config.two_phase.members = 2
  config.two_phase.num_steps = 0
  # Their network, a name in networks or a model.name, and the split of images
  # that they learn from; None: the student's.
  config.two_phase.model = config_dict.placeholder(str)
  config.two_phase.train_split = config_dict.placeholder(str)

  # Where members differ: each own or same. Partition own: disjoint parts of
  # the data; same: all draw from all of it.
  config.diversity = ConfigDict()
  config.diversity.initialization = 'own'
  config.diversity.order = 'own'
  config.diversity.partition = 'same'
  return config


def average(config: ConfigDict, method: str, variant: str) -> ConfigDict:
  """The same with two members that average their weights every 50 steps.

  Args:
    config: of one network.
    method: local_sgd or diloco.
    variant: of the config; `smoke` averages every second step.
  """
  config.codistill.method = method
  config.codistill.members = 2
  config.codistill.exchange = 'memory'
  config.codistill.reload_interval_steps = {'smoke': 2}.get(variant, 50)
  config.codistill.publish_precision = 'float32'
  config.codistill.teacher_precision = 'float32'
  config.diversity.partition = 'own'
  return config


def averages(variant: str, longest: int) -> list[dict[str, Any]]:
  """Every 50 steps, more often and less often; 4 and 8 members.

  Args:
    variant: of the config.
    longest: the longest interval, in steps.
  """
  intervals = {'smoke': (1, 4)}.get(variant, (10, longest))
  return [
    {},
    *({'codistill.reload_interval_steps': steps} for steps in intervals),
    *({'codistill.members': members} for members in (4, 8)),
  ]
