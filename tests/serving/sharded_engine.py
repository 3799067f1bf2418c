# SPDX-License-Identifier: Apache-2.0
"""An engine on eight devices, as a process: prints what it said, as JSON."""

import json
import logging

import gin
import jax
import numpy as np
import tiny
import tiny_runtime

from specstream_jax import config, partitioning, runtime
from specstream_jax.checkpoints import fitted
from specstream_jax.config import serving
from specstream_jax.modeling import build, params
from specstream_jax.serving import engine as engine_lib, requests

SIZES = config.ModelConfig(
  vocab_size=264,
  hidden_size=32,
  intermediate_size=48,
  num_layers=2,
  num_heads=8,
  num_kv_heads=8,
  head_dim=4,
  tie_word_embeddings=True,
)
STREAM = config.StreamConfig(
  num_streams=2, num_msa_layers=1, pruning_rank=0, coupling_rank=2
)
LORA = config.LoraConfig(rank=2, alpha=4.0, modules=('query', 'down'))
CFG = serving.EngineConfig(
  num_slots=2,
  cache_length=48,
  max_new_tokens=16,
  chunk=8,
  quantum=4,
  prefix_cache_mb=1,
  batch_sizes=(1, 2),
  max_drafting_rows=2,
)


def _random(shapes, seed):
  rng = np.random.default_rng(seed)
  return {
    path: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)
    for path, leaf in params.flatten(shapes).items()
  }


def adapter(seed):
  """LoRA on all tokens, and streams."""
  return fitted.Fitted(
    folded=_random(build.build(SIZES, None, LORA).adapter, seed),
    folded_lora=LORA,
    rest=_random(build.build(SIZES, STREAM).adapter, seed + 9),
    stream=STREAM,
    tree=config.TreeConfig(depth=2, branching=3, num_nodes=6),
  )


def model(part):
  """The base on the devices."""
  _, base, _ = tiny.model(SIZES, None, None)
  flat = {k: np.asarray(v) for k, v in params.flatten(base).items()}
  placed = part.put(flat, transposed=True)
  return runtime.Model(
    config=SIZES,
    base=params.unflatten(placed),
    adapter={},
    stream=None,
    lora=None,
    tree=config.TreeConfig(),
    source={'base': 'tiny'},
    tokenizer=tiny_runtime.model().tokenizer,
    chat_template=None,
    eos_ids=(),
    partitioner=part,
  )


def asked():
  """Requests of all kinds, some of which begin alike."""
  rng = np.random.default_rng(3)
  start = tuple(rng.integers(1, 64, 9).tolist())
  kinds = (
    config.SamplingConfig(),
    config.SamplingConfig(1.1, top_k=20),
    config.SamplingConfig(presence_penalty=0.6),
  )
  return [
    requests.Request(
      start + tuple(rng.integers(1, 64, 1 + i % 5).tolist()),
      adapter=('', 'a', 'b')[i % 3],
      max_new_tokens=3 + i % 9,
      sampling=kinds[i % len(kinds)],
      seed=i,
    )
    for i in range(18)
  ]


def say(engine, todo):
  """Tokens of all."""
  handles = [engine.submit(request) for request in todo]
  while engine.step():
    pass
  return [handle.result(0).tokens for handle in handles]


class _Heard(logging.Handler):
  """What jax says while it compiles."""

  def __init__(self):
    super().__init__()
    self.lines = []

  def emit(self, record):
    if 'ompil' in record.getMessage():
      self.lines.append(record.getMessage())


def served(ways):
  """What an engine on so many devices says, and how it lies there."""
  gin.clear_config()
  gin.bind_parameter('MeshConfig.tensor', ways)
  part, heard = partitioning.local(), _Heard()
  logging.getLogger('jax').addHandler(heard)
  with jax.log_compiles():
    engine = engine_lib.Engine(
      model(part), CFG, adapters={'a': adapter(1), 'b': adapter(2)}
    )
    num_heard = len(heard.lines)
    heard.lines.clear()
    tokens = say(engine, asked())
  logging.getLogger('jax').removeHandler(heard)
  keys = engine._decoder._state.cache.keys[0]
  return {
    'tokens': tokens,
    'devices': part.mesh.size,
    'heard': num_heard,
    'compiled': heard.lines[:5],
    'heads': keys.sharding.shard_shape(keys.shape)[1],
    'scores': float(np.sum(engine.scorer('a')([1, 2, 3, 4, 5]).logprobs)),
  }


def main():
  """The same requests on eight devices and on one."""
  print(json.dumps({'eight': served(8), 'one': served(1)}))


if __name__ == '__main__':
  main()
