# SPDX-License-Identifier: Apache-2.0
"""Files of layers for streamed_weights.py: random ones, and how fast they are."""

import dataclasses
import glob
import mmap
import os
import time

from absl import flags
import decode_cost
import jax
import numpy as np

from specstream_jax import config, runtime
from specstream_jax.modeling import build, params as params_lib
from specstream_jax.streaming import layer_files, weights as weights_lib

FLAGS = flags.FLAGS
PROMPT = 4  # tokens of a synthetic one


def random_model():
  """A model of random weights, and prompts; every layer has a file of its own.

  Weights are float32, or int8 with --weights_dtype=int8. bfloat16 is left out:
  a CPU without such products writes every kernel out as float32 in every call.
  """
  cfg = dataclasses.replace(
    decode_cost.SIZES[FLAGS.size], weights_dtype=FLAGS.weights_dtype
  )
  layers = FLAGS.num_layers or cfg.num_layers
  cfg = dataclasses.replace(cfg, num_layers=layers)
  name = f'{FLAGS.size}_{layers}_{cfg.weights_dtype or "float32"}'
  folder = os.path.join(FLAGS.folder, name)
  built = build.build(cfg, layout='out_in')
  flat = params_lib.flatten(built.base)
  names = {
    path.split('/', 2)[2]: leaf
    for path, leaf in flat.items()
    if path.startswith('layers/0/')
  }
  layout = layer_files.lay_out(names, layers)
  if not os.path.exists(os.path.join(folder, layer_files.MANIFEST)):
    make = lambda layer, path: _random(layout.places[path], path, layer)
    layer_files.write(folder, layout, make, {'synthetic': name})
  rest = {
    path: jax.device_put(_random(leaf, path, 7))
    for path, leaf in flat.items()
    if not path.startswith('layers/')
  }
  stays = sum(leaf.nbytes for leaf in rest.values())
  streamed = config.StreamedWeightsConfig(
    memory_budget=int(FLAGS.budget_gb * 1e9)
  )
  plain = runtime.Model(
    config=cfg,
    base=params_lib.unflatten(rest),
    adapter={},
    stream=None,
    lora=None,
    tree=config.TreeConfig(),
    source={'base': FLAGS.size},
    tokenizer=None,
    chat_template=None,
    eos_ids=(),
    streamed=weights_lib.LayerWeights(folder, streamed, stays=stays),
  )
  streams = config.StreamConfig(
    num_streams=FLAGS.depth, num_msa_layers=min(8, layers), pruning_rank=0
  )
  model = runtime.with_random_streams(plain, streams)
  return model, [list(range(1, PROMPT + 1))]


def _random(leaf, path, seed):
  """Random numbers of a leaf's kind, quickly: a block of them, repeated."""
  if path.endswith('norm/scale'):
    return np.ones(leaf.shape, leaf.dtype)
  if path.endswith('_scale'):  # of int8, whose numbers are about 40 large
    return np.full(leaf.shape, 0.0003, leaf.dtype)
  rng = np.random.default_rng(seed)
  block = rng.standard_normal(1 << 16, np.float32)
  block *= 40 if np.dtype(leaf.dtype) == np.int8 else 0.01
  return np.resize(block.clip(-127, 127).astype(leaf.dtype), leaf.shape)


def rates(root):
  """Rates of reading the files of the first folder of layers in a folder."""
  found = glob.glob(os.path.join(root, '*', layer_files.MANIFEST))
  folder = os.path.dirname(min(found))
  layout = layer_files.read_manifest(folder).layout
  paths = [layer_files.path_of(folder, i) for i in range(layout.num_layers)]
  rows = []
  for _ in range(3):  # interleaved
    for how in ('direct', 'drop', 'mapped', 'cache'):
      for size in (1 << 18, 1 << 20, 1 << 22, layout.num_bytes):
        if how == 'mapped' and size != layout.num_bytes:
          continue
        seconds = _read_all(paths, layout.num_bytes, how, size)
        rate = len(paths) * layout.num_bytes / seconds
        rows.append({'how': how, 'request': size, 'bytes_per_second': rate})
        print(rows[-1], flush=True)
  return rows


def _read_all(paths, num_bytes, how, size):
  """Seconds to read files one after the other."""
  buffer, seconds = mmap.mmap(-1, num_bytes), 0.0
  view = memoryview(buffer)
  for path in paths:
    flag = os.O_DIRECT if how == 'direct' else 0
    file = os.open(path, os.O_RDONLY | flag)
    if how in ('drop', 'mapped'):
      os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    begin = time.perf_counter()
    if how == 'mapped':
      mapped = np.memmap(path, np.uint8, 'r')
      np.copyto(np.frombuffer(buffer, np.uint8), mapped)
      del mapped
    else:
      at = 0
      while at < num_bytes:
        at += os.preadv(file, [view[at : at + size]], at)
    seconds += time.perf_counter() - begin
    os.close(file)
  return seconds
