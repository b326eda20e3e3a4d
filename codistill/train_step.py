"""The two updates of Algorithm 1, jitted and sharded.

Both come from one private descent and differ in one term: the burn-in update
has no ψ at all, rather than a ψ of weight zero whose teachers are computed in
vain. The state is donated, so anything that outlives an update must be a copy.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from codistill import asynchronous, chunked, precision, sharding
from codistill.algorithm import Peer
from codistill.losses import Objective, weigh
from codistill.models import Model, Prediction
from codistill.optim import Optimizer, Rated, averaged

PyTree = Any
Batch = dict[str, Any]
Metrics = dict[str, Array]
# Folded into a step's key: noise of its own, apart from the forward pass's.
_RESETS = 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All of a member that changes, and its key. Arrays only.

  Attributes:
    step: updates behind it, int32 [].
    variables: {'params': …, 'batch_stats': …}.
    opt_state: the optimizer's.
    memory: the carry of its own forward pass over its stream.
    peer_memories: a dict by member number of each peer's carry over *this*
      member's stream; kept across reloads of the peer's weights.
    key: of the member's noise (dropout), as uint32 key data; folded with the
      step at each update.
    past: older weights, for asynchronous SGD; () without.

  Without shapes in its annotations, because trees of this type also hold
  shardings and abstract arrays.
  """

  step: Any
  variables: PyTree
  opt_state: PyTree
  memory: PyTree
  peer_memories: Any
  key: Any
  past: PyTree


def init_state(
  model: Model,
  optimizer: Optimizer,
  *,
  batch_size: int,
  init_key: jax.Array,
  noise_key: jax.Array,
  num_async_workers: int,
) -> TrainState:
  """A member before its first update.

  Args:
    model: the network.
    optimizer: of the parameters.
    batch_size: of the member's stream, for the carry.
    init_key: typed key of the initial weights.
    noise_key: typed key of everything random in the forward pass.
    num_async_workers: as `make_updates`.

  Returns:
    The state, not yet placed on a mesh.
  """
  variables = model.init(init_key)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    variables=variables,
    # Jitted, because otherwise each array is a program of its own.
    opt_state=jax.jit(optimizer.init)(variables['params']),
    memory=asynchronous.stack_carries(
      model.memory(batch_size), num_async_workers
    ),
    peer_memories={},
    key=jax.random.key_data(noise_key),
    past=asynchronous.remember(variables['params'], num_async_workers),
  )


def state_sharding(mesh: Mesh) -> TrainState:
  """Where each part of a state lives: carries are split, all else replicated.

  Args:
    mesh: the member's devices.

  Returns:
    A prefix of a `TrainState` with a sharding for each field.
  """
  whole, part = sharding.replicated(mesh), sharding.split(mesh)
  return TrainState(whole, whole, whole, part, part, whole, whole)


def place_state(state: TrainState, mesh: Mesh) -> TrainState:
  """Puts a member's initial state where `state_sharding` says.

  Args:
    state: the same in every process that the mesh reaches.
    mesh: the member's devices, of one process or several.
  """
  return jax.device_put(state, state_sharding(mesh))


def make_objective(
  model: Model, objective: Objective, mesh: Mesh
) -> Callable[..., tuple[Float[Array, ''], tuple[Any, ...]]]:
  """The function of a member's parameters that an update descends.

  Args:
    model: F.
    objective: which losses, teachers and weights.
    mesh: the devices; used if the loss is chunked.

  Returns:
    descended(params, state, batch, peers, peer_memories, distill) → (value,
    (metrics, new non-parameter variables, memory, peer memories)). `peers` are
    their variables, in any precision; no gradient flows into them. Without
    `distill` it is φ alone, undiminished. Labels are [batch] or [batch, time].
  """
  teacher = objective.teacher or model

  def mean(measure, weights, *predictions_and_labels):
    if objective.loss_chunk_tokens:
      return chunked.mean_in_chunks(
        measure,
        weights,
        *predictions_and_labels,
        chunk_tokens=objective.loss_chunk_tokens,
        mesh=mesh,
      )
    values = measure(*predictions_and_labels)
    metrics = {name: value.mean() for name, value in values.items()}
    return weigh(metrics, weights), metrics

  def descended(params, state, batch, peers, peer_memories, distill):
    variables = {**state.variables, 'params': params}
    inputs, labels = batch['inputs'], batch['labels']
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    memory = state.memory
    if objective.memory_reset_probability:
      lanes = jax.random.bernoulli(
        jax.random.fold_in(key, _RESETS),
        objective.memory_reset_probability,
        (len(labels),),
      )
      memory = _reset(model, memory, lanes)
      peer_memories = tuple(
        _reset(teacher, one, lanes) for one in peer_memories
      )
    student, updated, memory = model.forward(variables, inputs, memory, key)
    teachers: list[Prediction] = []
    if distill and objective.needs_peers:
      like = variables
      if teacher is not model:
        like = jax.eval_shape(teacher.init, key)
      teachers, peer_memories = teacher.teach_each(
        [precision.decode(peer, like) for peer in peers],
        inputs,
        peer_memories,
      )

    def measure(student, teachers, labels):
      logits = student.logits
      hits = logits.argmax(-1) == labels
      values = {
        'task_loss': objective.task_loss(labels, logits),
        'accuracy': hits.astype(jnp.float32),
      }
      if distill:
        values['distill_loss'] = objective.distillation(
          logits, [one.logits for one in teachers]
        )
      return values

    weights = objective.weights(state.step)
    value, metrics = mean(measure, weights, student, teachers, labels)
    if distill and objective.is_scheduled:
      names = ('task_weight', 'distill_weight')
      metrics |= dict(zip(names, map(jnp.asarray, weights), strict=True))
    return value, (metrics, updated, memory, peer_memories)

  return descended


def _reset(model: Model, memory: PyTree, lanes: Bool[Array, ' batch']):
  """A carry that is zero in some lanes."""

  def choose(zero, carried):
    return jnp.where(
      lanes.reshape(-1, *[1] * (carried.ndim - 1)), zero, carried
    )

  return jax.tree.map(choose, model.memory(len(lanes)), memory)


@dataclasses.dataclass(frozen=True)
class JittedUpdates:
  """The updates of Algorithm 1 (`codistill.algorithm.Updates`).

  Attributes:
    descend: (state, batch, peers, peer memories, distill) → (state, metrics,
      peer memories), jitted; donates the state and the peers' memories.
    zero_memory: batch size → a peer's zero carry, on the mesh.
    needs_peers: False if a constant distribution is the teacher.
    publish_average: as `Objective`.
  """

  descend: Callable[..., tuple[TrainState, Metrics, tuple[PyTree, ...]]]
  zero_memory: Callable[[int], PyTree]
  needs_peers: bool
  publish_average: bool

  def burn_in(
    self, state: TrainState, batch: Batch
  ) -> tuple[TrainState, Metrics]:
    """One step down ∇φ."""
    return self._update(state, batch, (), distill=False)

  def codistill(
    self, state: TrainState, batch: Batch, peers: tuple[Peer, ...]
  ) -> tuple[TrainState, Metrics]:
    """One step down ∇(φ + ψ); the burn-in update if there is no teacher."""
    if not self.needs_peers:
      return self._update(state, batch, (), distill=True)
    return self._update(state, batch, peers, distill=bool(peers))

  def published(self, state: TrainState) -> PyTree:
    """What peers get a copy of."""
    if self.publish_average:
      return averaged(state.variables, state.opt_state)
    return state.variables

  def _update(self, state, batch, peers, *, distill):
    # Peers' memories pass through jit as a tuple, so that one compilation
    # serves every set of peers of the same size.
    kept = state.peer_memories
    batch_size = len(batch['labels'])
    memories = tuple(
      kept[peer.member] if peer.member in kept else self.zero_memory(batch_size)
      for peer in peers
    )
    state, metrics, memories = self.descend(
      dataclasses.replace(state, peer_memories={}),
      batch,
      tuple(peer.variables for peer in peers),
      memories,
      distill,
    )
    numbers = (peer.member for peer in peers)
    fresh = dict(zip(numbers, memories, strict=True))
    peer_memories = {**kept, **fresh}
    return dataclasses.replace(state, peer_memories=peer_memories), metrics


def make_updates(
  model: Model,
  optimizer: Optimizer,
  mesh: Mesh,
  objective: Objective,
  *,
  num_async_workers: int,
  num_microbatches: int,
) -> JittedUpdates:
  """Burn-in and codistilling update, jitted over a mesh with a `data` axis.

  Args:
    model: F.
    optimizer: η and its kin.
    mesh: the member's devices; each batch is split over them.
    objective: φ, ψ and their weights.
    num_async_workers: W of asynchronous SGD: each update is one worker's, which
      has lanes of its own, and its gradient is W − 1 updates old
      (`codistill.asynchronous`); 1 for synchronous SGD.
    num_microbatches: parts that a batch is computed in, one after another,
      their gradients added up: less memory. It divides each device's examples.
      BatchNorm's statistics are then those of a part, unless its groups are
      smaller.

  Returns:
    The updates. Metrics are scalars on the device: task_loss, accuracy and,
    when distilling, distill_loss, in nats and before weighting; gradient_norm,
    of all that is descended and before the optimizer clips it; parameter_norm,
    after the update; learning_rate, if the optimizer can say it.
  """
  # Long, because half of it is the docstring, and the update is one program.
  gradient = _make_gradient(
    make_objective(model, objective, mesh), num_microbatches, mesh
  )
  whole, part = sharding.replicated(mesh), sharding.split(mesh)
  place = state_sharding(mesh)

  @functools.partial(
    jax.jit,
    static_argnums=4,
    donate_argnums=(0, 3),
    in_shardings=(place, part, whole, part),
    out_shardings=(place, whole, part),
  )
  def descend(state, batch, peers, peer_memories, distill):
    params, workers = state.variables['params'], num_async_workers
    seen, past = asynchronous.exchange_weights(state.past, params, state.step)
    memories = (state.memory, *peer_memories)
    carries = tuple(
      asynchronous.carry_of(one, workers, state.step) for one in memories
    )
    gradients, metrics, updated, carries = gradient(
      seen, state, batch, peers, carries, distill
    )
    memory, *peer_memories = (
      asynchronous.put_carry(one, workers, state.step, carry)
      for one, carry in zip(memories, carries, strict=True)
    )
    if isinstance(optimizer, Rated):
      rate = optimizer.learning_rate(state.step, state.opt_state)
      metrics = {**metrics, 'learning_rate': jnp.asarray(rate, jnp.float32)}
    steps, opt_state = optimizer.update(gradients, state.opt_state, params)
    params = optax.apply_updates(params, steps)
    state = dataclasses.replace(
      state,
      step=state.step + 1,
      variables={
        **state.variables,
        **updated,
        'params': params,
      },
      opt_state=opt_state,
      memory=memory,
      past=past,
    )
    norms = {'gradient_norm': _norm(gradients), 'parameter_norm': _norm(params)}
    return state, metrics | norms, tuple(peer_memories)

  def zero_memory(batch_size):
    carry = (objective.teacher or model).memory(batch_size)
    return asynchronous.stack_carries(carry, num_async_workers)

  return JittedUpdates(
    descend,
    zero_memory=jax.jit(zero_memory, static_argnums=0, out_shardings=part),
    needs_peers=objective.needs_peers,
    publish_average=objective.publish_average,
  )


def _norm(tree: PyTree) -> Float[Array, '']:
  """The length of all numbers in a tree as one vector, in float32."""
  return optax.tree.norm(
    jax.tree.map(lambda leaf: leaf.astype('float32'), tree)
  )


def _make_gradient(
  descended: Callable[..., Any], num_microbatches: int, mesh: Mesh
) -> Callable[..., tuple[PyTree, Metrics, PyTree, tuple[PyTree, ...]]]:
  """∇ of what `make_objective` returned, a part of the batch at a time.

  Returns:
    gradient(params, state, batch, peers, carries, distill) → (gradients,
    metrics, new non-parameter variables, carries). `carries` are the member's
    memory and those of its peers.
  """

  def gradient_at(params, state, batch, peers, carries, distill):
    memory, *peer_memories = carries
    gradients, (metrics, updated, memory, peer_memories) = jax.grad(
      descended, has_aux=True
    )(
      params,
      dataclasses.replace(state, memory=memory),
      batch,
      peers,
      tuple(peer_memories),
      distill,
    )
    return (gradients, metrics, updated), (memory, *peer_memories)

  def gradient(params, state, batch, peers, carries, distill):
    if num_microbatches == 1:
      found, carries = gradient_at(
        params, state, batch, peers, carries, distill
      )
      return *found, carries

    def of_part(number, batch, carries):
      # Each part has noise of its own.
      key = jax.random.fold_in(jax.random.wrap_key_data(state.key), number)
      own = dataclasses.replace(state, key=jax.random.key_data(key))
      return gradient_at(params, own, batch, peers, carries, distill)

    def add(total, part):
      found, carries = of_part(*part)
      return jax.tree.map(jnp.add, total, found), carries

    parts = (
      jnp.arange(num_microbatches),
      *sharding.to_microbatches((batch, carries), num_microbatches, mesh),
    )
    first = jax.tree.map(lambda leaf: leaf[0], parts)
    zeros = jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
      jax.eval_shape(lambda part: of_part(*part)[0], first),
    )
    total, carries = jax.lax.scan(add, zeros, parts)
    mean = jax.tree.map(lambda leaf: leaf / num_microbatches, total)
    return *mean, sharding.from_microbatches(carries, mesh)

  return gradient
