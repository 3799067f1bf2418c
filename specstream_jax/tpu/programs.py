# SPDX-License-Identifier: Apache-2.0
"""The programs that a TPU slice would run, over abstract weights.

Each builds what training or decoding would compile, with the shardings of a
mesh, and measures what the compiler makes of it.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from specstream_jax import config, runtime
from specstream_jax.config import bounds, checks
from specstream_jax.decoding import loop
from specstream_jax.modeling import build, params as params_lib
from specstream_jax.tpu import flops, hlo, traffic
from specstream_jax.training import loop as train_loop, step as step_lib
from specstream_jax.workflows import train


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler says of one program, per chip; sizes in bytes.

  Attributes:
    name: 'train step', 'prefill' or 'decode step'.
    seconds: time it took to compile.
    arguments: weights, state and inputs.
    temporaries: what lives during the program.
    peak: arguments, temporaries, and results that reuse no argument.
    capacity: HBM of the device.
    flops: of the products of one run, split evenly; of a decode loop, of one
      step.
    tokens: that such a run computes, split evenly.
    traffic: bytes through HBM.
    ideal: bytes that cannot be avoided, 0 if not counted.
    collectives: bytes by kind.
    copies: HLO lines that copy a weight or a cache inside the loop.
    copies_before: and before it.
    error: what the compiler said instead, '' if it did not.
  """

  name: str
  seconds: float
  arguments: int = 0
  temporaries: int = 0
  peak: int = 0
  capacity: int = 0
  flops: float = 0.0
  tokens: float = 0.0
  traffic: int = 0
  ideal: int = 0
  collectives: dict[str, int] = dataclasses.field(default_factory=dict)
  copies: tuple[str, ...] = ()
  copies_before: tuple[str, ...] = ()
  error: str = ''

  @property
  def fits(self) -> bool:
    """Whether it compiles and leaves HBM unexceeded."""
    return not self.error and self.peak <= self.capacity


@dataclasses.dataclass(frozen=True)
class Job:
  """What to compile.

  Attributes:
    model: sizes, with the dtype of weights and activations; int8 weights
      decode, and train as `dtype`.
    recipe: adapter, training and drafts.
    decode_rows: rows of a decoding batch.
    prompt_length: of decoding.
    max_new_tokens: of decoding.
    schedule: of decoding; `deferred` reads the MSA layers twice.
    remat: of training, a name of `blocks.REMAT`.
    scan_layers: training scans over stacked layers.
  """

  model: config.ModelConfig
  recipe: train.Recipe
  decode_rows: int = 8
  prompt_length: int = 1024
  max_new_tokens: int = 128
  schedule: str = 'parallel'
  remat: str = 'full'
  scan_layers: bool = True

  def __post_init__(self):
    """Raises ValueError if a size is out of range."""
    checks.count('rows', self.decode_rows, 1, bounds.ROWS)
    for name in ('prompt_length', 'max_new_tokens'):
      checks.count(name, getattr(self, name), 1, bounds.TOKENS)


def _train_step(job, part, hbm) -> Compiled:
  recipe = job.recipe
  model = dataclasses.replace(job.model, weights_dtype='')
  built = build.build(
    model, recipe.stream, recipe.lora, is_stacked=job.scan_layers
  )
  base = _abstract(built.base, part)
  optimizer = step_lib.make_optimizer(recipe.optimizer, 1000)
  state = _abstract_state(built, optimizer, part)
  shape = (recipe.train.batch_size, recipe.data.sequence_length)
  batch = {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=part.sharding('batch'))
    for name, dtype in (
      ('decoder_input_tokens', jnp.int32),
      ('decoder_target_tokens', jnp.int32),
      ('decoder_loss_weights', jnp.float32),
      ('decoder_positions', jnp.int32),
      ('decoder_segment_ids', jnp.int32),
    )
  }
  setup = train_loop.TrainSetup(
    built=built,
    base=base,
    adapter={},
    train=recipe.train,
    objective=recipe.objective,
    optimizer=recipe.optimizer,
    tree=recipe.tree,
    remat=job.remat,
    partitioner=part,
  )
  advance, _, _ = train_loop.stream_steps(setup, optimizer)
  placed = jax.tree.map(lambda leaf: leaf.sharding, state)
  fun = part.jit(
    advance, donate_argnums=0, out_shardings=(placed, part.replicated)
  )
  trace = lambda: fun.trace(state, base, batch)
  return _measure('train step', trace, hbm, part.mesh.size, math.prod(shape))


def gradient_bytes(job: Job) -> int:
  """Of the adapter's gradient, in float32."""
  recipe = job.recipe
  built = build.build(job.model, recipe.stream, recipe.lora)
  return 4 * params_lib.count(built.adapter)


def _abstract(tree, part, transposed=False):
  """Shapes with their shardings, nested; see `Partitioner.shardings`."""
  flat = params_lib.flatten(tree)
  placed = part.shardings(flat, transposed=transposed)
  return params_lib.unflatten(
    {
      k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=placed[k])
      for k, v in flat.items()
    }
  )


def _abstract_state(built, optimizer, part):
  """The train state as shapes, each leaf where `step.place_state` puts it."""
  state = jax.eval_shape(
    lambda adapter: step_lib.init_state(adapter, optimizer), built.adapter
  )
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    state,
    step_lib.state_shardings(state, part),
  )


def _decoder(job, part, drafter):
  """A decoder over abstract weights."""
  built = build.build(
    job.model, job.recipe.stream, config.LoraConfig(rank=0), 'out_in'
  )
  model = runtime.Model(
    config=job.model,
    base=_abstract(built.base, part, transposed=True),
    adapter=_abstract(built.adapter, part),
    stream=job.recipe.stream,
    lora=None,
    tree=job.recipe.tree,
    source={},
    tokenizer=None,
    chat_template=None,
    eos_ids=(),
    partitioner=part,
  )
  decode = config.DecodeConfig(
    max_new_tokens=job.max_new_tokens, schedule=job.schedule
  )
  return model.decoder(drafter, decode)


def _prefill_arguments(job, part):
  rows, length = job.decode_rows, job.prompt_length
  where = part.rows_sharding(rows)
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.int32, sharding=where)
  keys = jax.eval_shape(
    lambda: jax.vmap(jax.random.key)(jnp.arange(rows, dtype=jnp.uint32))
  )
  keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=where)
  shapes: Any = (shape(rows), shape(rows, 0), keys)
  asked = loop.Rows(*shapes)
  return shape(rows, length), shape(rows), asked


def _prefill(job, part, hbm) -> Compiled:
  decoder = _decoder(job, part, 'streams')
  params = decoder.params
  slots = job.prompt_length + job.max_new_tokens + decoder.setup.drafter.size
  fun = part.jit(
    lambda *args: loop.prefill(decoder.setup, *args, cache_length=slots)
  )
  arguments = _prefill_arguments(job, part)
  return _measure(
    'prefill',
    lambda: fun.trace(params, *arguments),
    hbm,
    part.mesh.size,
    job.decode_rows * job.prompt_length,
  )


def _decode_step(job, part, hbm, drafter='streams') -> Compiled:
  decoder = _decoder(job, part, drafter)
  params = decoder.params
  slots = job.prompt_length + job.max_new_tokens + decoder.setup.drafter.size
  state = jax.eval_shape(
    lambda *args: loop.prefill(decoder.setup, *args, cache_length=slots),
    params,
    *_prefill_arguments(job, part),
  )
  state = jax.tree_util.tree_map_with_path(
    lambda path, leaf: _row_leaf(path, leaf, job, part), state
  )
  fun = part.jit(
    lambda params, state, limit: loop.run(decoder.setup, params, state, limit),
    donate_argnums=1,
  )
  limit = jax.ShapeDtypeStruct((), jnp.int32, sharding=part.replicated)
  ideal = _ideal(job, part, params, state, decoder.setup.drafter.size)
  return _measure(
    f'decode step, {decoder.setup.drafter.size} nodes',
    lambda: fun.trace(params, state, limit),
    hbm,
    part.mesh.size,
    job.decode_rows * decoder.setup.drafter.size,
    ideal=ideal,
    smallest=_smallest(params, state),
  )


def _row_leaf(path, leaf, job, part):
  """A leaf of the decode state with its sharding."""
  where = part.replicated
  is_cache = leaf.ndim == 4 and any(
    getattr(key, 'name', '') == 'cache' for key in path
  )
  if is_cache:
    where = part.rows_sharding(job.decode_rows, 'kv_heads', None, None)
  elif leaf.ndim and leaf.shape[0] == job.decode_rows:
    where = part.rows_sharding(job.decode_rows)
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _per_chip(leaf):
  shape = leaf.sharding.shard_shape(leaf.shape)
  return math.prod(shape) * leaf.dtype.itemsize


def _ideal(job, part, params, state, size) -> int:
  """Weights and cache read once, logits written and read once, per chip."""
  weights = sum(map(_per_chip, jax.tree.leaves(params)))
  # A few rows of these are read.
  looked_up = ['positions'] if job.model.num_learned_positions else []
  if not job.model.tie_word_embeddings:
    looked_up.append('embed')
  weights -= sum(
    _per_chip(params.base[name]['embedding']) for name in looked_up
  )
  cache = sum(map(_per_chip, (*state.cache.keys, *state.cache.values)))
  rows = part.rows_sharding(job.decode_rows).shard_shape((job.decode_rows,))[0]
  logits = 2 * 4 * rows * size * job.model.vocab_size // part.size('vocab')
  return weights + cache + logits


def _smallest(params, state) -> int:
  """Bytes of the smallest kernel or cache layer of a chip."""
  kernels = [
    _per_chip(leaf)
    for path, leaf in params_lib.flatten(params.base).items()
    if path.endswith('kernel')
  ]
  return min(*kernels, _per_chip(state.cache.keys[0]))


def _measure(
  name: str,
  trace: Callable[[], Any],
  hbm: int,
  num_chips: int,
  tokens: int,
  ideal: int = 0,
  smallest: int = 0,
) -> Compiled:
  """Compiles, and reads memory, FLOPs and the program."""
  start = time.perf_counter()
  try:
    traced = trace()
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    seconds = time.perf_counter() - start
    return Compiled(name, seconds, capacity=hbm, error=_first_lines(error))
  seconds, memory = time.perf_counter() - start, compiled.memory_analysis()
  text = compiled.as_text()
  computations = hlo.parse(text)
  times = hlo.executions(computations, hlo.entry(text))
  if ideal:  # one step of the decode loop
    times = dict.fromkeys(hlo.while_bodies(computations), 1)
  moved = traffic.count(text, times)
  before = hlo.copies_in(text, {hlo.entry(text)}, smallest) if smallest else []
  return Compiled(
    name,
    seconds,
    arguments=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    peak=memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes,
    capacity=hbm,
    flops=flops.of_products(traced.jaxpr) / num_chips,
    tokens=tokens / num_chips,
    traffic=moved.read + moved.written,
    ideal=ideal,
    collectives=moved.collectives,
    copies=tuple(hlo.copies_of_size(text, smallest)) if smallest else (),
    copies_before=tuple(before),
  )


def _first_lines(error: Exception) -> str:
  return ' '.join(line.strip() for line in str(error).splitlines()[:3])


PROGRAMS: dict[str, Callable[..., Compiled]] = {
  'train': _train_step,
  'prefill': _prefill,
  'decode': _decode_step,
  'plain': functools.partial(_decode_step, drafter='none'),
}
