"""The two updates of Algorithm 1, jitted and sharded.

Both come from one private descent and differ in one term: the burn-in update
has no ψ at all, rather than a ψ of weight zero whose teachers are computed in
vain. The state is donated, so anything that outlives an update must be a copy.

Members may differ in their networks: an update is compiled once for each
network and each sequence of peers' networks.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from codistill import chunked, precision, sharding
from codistill.algorithm import Peer
from codistill.losses import Objective, weigh
from codistill.models import Model, Prediction
from codistill.models.model import teach_each
from codistill.optim import Rated, averaged
from codistill.rivals import asynchronous
from codistill.train_state import Network, TrainState, state_sharding

PyTree = Any
Batch = dict[str, Any]
Metrics = dict[str, Array]
# Folded into a step's key: noise of its own, apart from the forward pass's.
_RESETS = 1


def make_objective(
  model: Model, objective: Objective, mesh: Mesh
) -> Callable[..., tuple[Float[Array, ''], tuple[Any, ...]]]:
  """The function of a member's parameters that an update descends.

  Args:
    model: F.
    objective: which losses, teachers and weights.
    mesh: the devices; used if the loss is chunked.

  Returns:
    descended(params, state, batch, peers, peer_memories, distill, models=None)
    → (value, (metrics, new non-parameter variables, memory, peer memories)).
    `peers` are their variables, in any precision; no gradient flows into them.
    `models` are the peers' networks; None if all have the member's own. Without
    `distill` it is φ alone, undiminished. Labels are [batch] or [batch, time].
  """

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

  def descended(
    params, state, batch, peers, peer_memories, distill, models=None
  ):
    models = models or (model,) * len(peers)
    variables = {**state.variables, 'params': params}
    inputs, labels = batch['inputs'], batch['labels']
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    memory = state.memory
    if probability := objective.memory_reset_probability:
      lanes = jax.random.bernoulli(
        jax.random.fold_in(key, _RESETS), probability, (len(labels),)
      )
      memory = _reset(model, memory, lanes)
      peer_memories = tuple(
        _reset(one, carried, lanes)
        for one, carried in zip(models, peer_memories, strict=True)
      )
    student, updated, memory = model.forward(variables, inputs, memory, key)
    teachers: list[Prediction] = []
    if distill and objective.needs_peers:
      likes = (
        variables if one is model else jax.eval_shape(one.init, key)
        for one in models
      )
      teachers, peer_memories = teach_each(
        models, list(map(precision.decode, peers, likes)), inputs, peer_memories
      )

    def measure(student, teachers, labels):
      logits = student.logits
      values = {
        'task_loss': objective.task_loss(labels, logits),
        'accuracy': (logits.argmax(-1) == labels).astype(jnp.float32),
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
    descends: by the name of a network, (state, batch, peers, peer memories,
      distill, the peers' models) → (state, metrics, peer memories), jitted; it
      donates the state and the peers' memories.
    zero_memory: (a model, batch size) → its zero carry, on the mesh.
    model_of: a peer's number → its network.
    needs_peers: False if a constant distribution is the teacher.
    publish_average: as `Objective`.
  """

  descends: Mapping[str, Callable[..., tuple[TrainState, Metrics, PyTree]]]
  zero_memory: Callable[[Model, int], PyTree]
  model_of: Callable[[int], Model]
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
    # serves every set of peers of the same size and networks.
    kept = state.peer_memories
    batch_size = len(batch['labels'])
    models = tuple(self.model_of(peer.member) for peer in peers)
    memories = tuple(
      kept[peer.member]
      if peer.member in kept
      else self.zero_memory(model, batch_size)
      for peer, model in zip(peers, models, strict=True)
    )
    state, metrics, memories = self.descends[state.network](
      dataclasses.replace(state, peer_memories={}),
      batch,
      tuple(peer.variables for peer in peers),
      memories,
      distill,
      models,
    )
    numbers = (peer.member for peer in peers)
    fresh = dict(zip(numbers, memories, strict=True))
    peer_memories = {**kept, **fresh}
    return dataclasses.replace(state, peer_memories=peer_memories), metrics


def make_updates(
  networks: Sequence[Network],
  mesh: Mesh,
  objective: Objective,
  *,
  num_async_workers: int,
  num_microbatches: int,
  model_of: Callable[[int], Model] | None = None,
) -> JittedUpdates:
  """Burn-in and codistilling update, jitted over a mesh with a `data` axis.

  Args:
    networks: of the members, each with another name; a state says which of them
      is its own.
    mesh: the member's devices; each batch is split over them.
    objective: φ, ψ and their weights.
    num_async_workers: W of asynchronous SGD: each update is one worker's, which
      has lanes of its own, and its gradient is W − 1 updates old
      (`codistill.rivals.asynchronous`); 1 for synchronous SGD.
    num_microbatches: parts that a batch is computed in, one after another,
      their gradients added up: less memory. It divides each device's examples.
      BatchNorm's statistics are then those of a part, unless its groups are
      smaller.
    model_of: a peer's number → its network; None if all have the first one.

  Returns:
    The updates. Metrics are scalars on the device: task_loss, accuracy and,
    when distilling, distill_loss, in nats and before weighting; gradient_norm,
    of all that is descended and before the optimizer clips it; parameter_norm,
    after the update; learning_rate, if the optimizer can say it.
  """

  def zero_memory(model, batch_size):
    return asynchronous.stack_carries(
      model.memory(batch_size), num_async_workers
    )

  part = sharding.split(mesh)
  return JittedUpdates(
    {
      network.name: _make_descend(
        network, mesh, objective, num_async_workers, num_microbatches
      )
      for network in networks
    },
    zero_memory=jax.jit(zero_memory, static_argnums=(0, 1), out_shardings=part),
    model_of=model_of or (lambda _: networks[0].model),
    needs_peers=objective.needs_peers,
    publish_average=objective.publish_average,
  )


def _make_descend(
  network: Network,
  mesh: Mesh,
  objective: Objective,
  num_async_workers: int,
  num_microbatches: int,
) -> Callable[..., tuple[TrainState, Metrics, PyTree]]:
  """A network's entry in `JittedUpdates.descends`."""
  model, optimizer, name = network
  gradient = _make_gradient(
    make_objective(model, objective, mesh), num_microbatches, mesh
  )
  whole, part = sharding.replicated(mesh), sharding.split(mesh)
  place = state_sharding(mesh, name)

  @functools.partial(
    jax.jit,
    static_argnums=(4, 5),
    donate_argnums=(0, 3),
    in_shardings=(place, part, whole, part),
    out_shardings=(place, whole, part),
  )
  def descend(state, batch, peers, peer_memories, distill, models):
    params, workers = state.variables['params'], num_async_workers
    seen, past = asynchronous.exchange_weights(
      state.past, params, workers, state.step
    )
    memories = (state.memory, *peer_memories)
    carries = tuple(
      asynchronous.carry_of(one, workers, state.step) for one in memories
    )
    gradients, metrics, updated, carries = gradient(
      seen, state, batch, peers, carries, distill, models
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

  return descend


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
    gradient(params, state, batch, peers, carries, distill, models) →
    (gradients, metrics, new non-parameter variables, carries). `carries` are
    the member's memory and those of its peers.
  """

  def gradient_at(params, state, batch, peers, carries, *choices):
    memory, *peer_memories = carries
    gradients, (metrics, updated, memory, peer_memories) = jax.grad(
      descended, has_aux=True
    )(
      params,
      dataclasses.replace(state, memory=memory),
      batch,
      peers,
      tuple(peer_memories),
      *choices,
    )
    return (gradients, metrics, updated), (memory, *peer_memories)

  def gradient(params, state, batch, peers, carries, *choices):
    if num_microbatches == 1:
      found, carries = gradient_at(
        params, state, batch, peers, carries, *choices
      )
      return *found, carries

    def of_part(number, batch, carries):
      # Each part has noise of its own.
      key = jax.random.fold_in(jax.random.wrap_key_data(state.key), number)
      own = dataclasses.replace(state, key=jax.random.key_data(key))
      return gradient_at(params, own, batch, peers, carries, *choices)

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
