# SPDX-License-Identifier: Apache-2.0
"""A tiny model and adapters of every kind, to be served."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import tiny_runtime

from specstream_jax import config, runtime
from specstream_jax.checkpoints import fitted
from specstream_jax.config import serving
from specstream_jax.modeling import build, forward as forward_lib, lora, params
from specstream_jax.serving import engine as engine_lib, starting, waiting

STREAM = config.StreamConfig(
  num_streams=2, num_msa_layers=1, pruning_rank=0, coupling_rank=2
)
LOSSLESS = dataclasses.replace(STREAM, mode='lossless')
TREE = config.TreeConfig('best_first', depth=2, branching=3, num_nodes=6)
MODULES = ('query', 'value', 'down')


@functools.cache
def base() -> runtime.Model:
  """A byte-level model of two layers, without an adapter."""
  made = tiny_runtime.model()
  return dataclasses.replace(made, adapter={}, stream=None)


CFG = serving.EngineConfig(
  num_slots=2,
  cache_length=64,
  max_new_tokens=32,
  chunk=8,
  quantum=4,
  max_waiting=3,
  max_end_ids=3,
  batch_sizes=(2,),
  max_drafting_rows=2,
  max_folded=1,
)


@functools.cache
def _compiled() -> engine_lib.Engine:
  return engine_lib.Engine(base(), CFG, adapters=kinds())


def engine(**sizes) -> engine_lib.Engine:
  """An engine of every adapter with nothing to do; what it compiled is shared.

  One at a time; `sizes` are fields of its config that no shape depends on.
  """
  made = copy.copy(_compiled())
  made.cfg = dataclasses.replace(CFG, **sizes)
  made._waiting, made._rows = waiting.Waiting(made.cfg), {}
  made._reading = made._thread = None
  made._finished, made._is_aborted, made.error = {}, False, None
  made._decoder.release(range(CFG.num_slots))
  if made._decoder._spare is None:  # of an engine that failed
    made._decoder._spare = made._weights.setup.model.init_cache(
      1, CFG.cache_length
    )
  return made


def compile_again(made: engine_lib.Engine) -> None:
  """Has what jax may have forgotten of an engine's programs compiled.

  Its caches keep what was used last, and thousands of tests share a process.
  """
  starting.warm_up(made._decoder, made._weights, made.cfg, lambda n, of: None)


def with_template(model: runtime.Model) -> runtime.Model:
  """The model with a chat template."""
  return dataclasses.replace(model, chat_template=tiny_runtime.TEMPLATE)


def _random(shapes, seed):
  """Flat weights away from zero."""
  rng = np.random.default_rng(seed)
  return {
    path: rng.normal(size=leaf.shape).astype(np.float32) * 0.3
    for path, leaf in params.flatten(shapes).items()
  }


def _lora(seed, cfg):
  """LoRA of every layer."""
  return _random(build.build(base().config, None, cfg).adapter, seed)


@functools.cache
def fine_tuned(seed: int = 1, rank: int = 3) -> fitted.Fitted:
  """LoRA on all tokens, and streams."""
  cfg = config.LoraConfig(rank=rank, alpha=2.0 * rank, modules=MODULES)
  rest = _random(build.build(base().config, STREAM).adapter, seed + 50)
  return fitted.Fitted(
    folded=_lora(seed, cfg),
    folded_lora=cfg,
    rest=rest,
    stream=STREAM,
    tree=TREE,
  )


@functools.cache
def lossless(seed: int = 2, rank: int = 2, folded: int = 0) -> fitted.Fitted:
  """Streams with LoRA of their own, on the base or on what LoRA made of it."""
  cfg = config.LoraConfig(rank=rank, alpha=3.0, modules=MODULES)
  tuned = config.LoraConfig(
    rank=folded, alpha=float(folded), modules=('query',)
  )
  return fitted.Fitted(
    folded=_lora(seed + 9, tuned) if folded else {},
    folded_lora=tuned,
    rest=_random(build.build(base().config, LOSSLESS, cfg).adapter, seed),
    stream=LOSSLESS,
    lora=cfg,
    tree=TREE,
  )


@functools.cache
def peft(seed: int = 3) -> fitted.Fitted:
  """LoRA without streams."""
  cfg = config.LoraConfig(rank=4, alpha=4.0, modules=('query', 'up'))
  return fitted.Fitted(folded=_lora(seed, cfg), folded_lora=cfg)


def kinds() -> dict[str, fitted.Fitted]:
  """One of each."""
  return {
    'tuned': fine_tuned(),
    'free': lossless(),
    'both': lossless(seed=4, folded=2),
    'plain': peft(),
  }


def alone(found: fitted.Fitted | None) -> runtime.Model:
  """The model with an adapter as `runtime.load` puts it on, LoRA folded."""
  model = base()
  if found is None:
    return model
  flat = params.transpose_kernels(params.flatten(model.base))
  folded, _ = lora.merge(flat, found.folded, found.folded_lora)
  turned = params.transpose_kernels(folded)
  return dataclasses.replace(
    model,
    base=params.unflatten({k: jax.numpy.asarray(v) for k, v in turned.items()}),
    adapter=params.unflatten(dict(found.rest)),
    stream=found.stream,
    lora=found.lora,
    tree=found.tree or model.tree,
    _decoders={},
  )


@functools.cache
def forward(adapter):
  """Log-probabilities [T - 1, V] after each token of a text, in one pass.

  Args:
    adapter: of `kinds`, or another name for the base.
  """
  model = alone(kinds().get(adapter))
  built = build.build(model.config, None, None, 'out_in')

  @jax.jit
  def run(ids):
    module = built.merge(model.base, {})
    places = jnp.arange(ids.shape[1])[None]
    hidden = forward_lib.forward_train(module, ids, places, jnp.ones_like(ids))
    return jax.nn.log_softmax(module.logits(hidden.main))[0]

  def of(tokens):
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(run(padded))[: len(tokens) - 1]

  return of
