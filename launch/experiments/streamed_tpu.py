# SPDX-License-Identifier: Apache-2.0
"""What the TPU compiler makes of layers that lie in the host's memory.

Compiles for one chip, over shapes alone: the copy of a layer from pinned memory
of the host, as a program, and the layer itself. No chip is needed, but libtpu is
(`pip install 'specstream_jax[tpu_aot]'`). It says that both compile, and how many
bytes lie where; nothing of how long a copy takes.
"""

import dataclasses
import functools
import json
import re
import typing

from absl import flags
import decode_cost
import jax
import jax.numpy as jnp
import measuring
import script

from specstream_jax import config
from specstream_jax.decoding import transformer_fns
from specstream_jax.modeling import build, params as params_lib
from specstream_jax.streaming import host, passes
from specstream_jax.tpu import compiling

FLAGS = flags.FLAGS
_STREAMS = config.StreamConfig(num_streams=4, num_msa_layers=8, pruning_rank=0)


def _define():
  flags.DEFINE_string('topology', 'v5e:2x2', 'See specstream compile.')
  flags.DEFINE_string('size', '7b', 'See decode_cost.')
  flags.DEFINE_list('nodes', ['1', '16'], 'Of trees.')
  flags.DEFINE_list('weights_dtypes', ['', 'int8'], 'Nothing is bfloat16.')
  flags.DEFINE_string('output_dir', 'results/streamed_tpu', 'For results.')


def main():
  """Compiles, prints a line for each program, and writes them."""
  device = compiling.devices(FLAGS.topology)[0]
  rows = []
  for weights_dtype in FLAGS.weights_dtypes:
    cfg = dataclasses.replace(
      decode_cost.SIZES[FLAGS.size],
      dtype='bfloat16',
      weights_dtype=weights_dtype,
    )
    built = build.build(cfg, _STREAMS, None, 'out_in')
    made = [('copy', _copy(built, device))]
    made += [
      (f'layer, {nodes} nodes', _layer(built, device, int(nodes)))
      for nodes in FLAGS.nodes
    ]
    for name, compiled in made:
      rows.append({'weights': weights_dtype or 'bfloat16', 'program': name})
      rows[-1] |= _said(compiled)
      print(json.dumps(rows[-1]), flush=True)
  measuring.write(FLAGS.output_dir, 'streamed_tpu', {'rows': rows})


def _said(compiled):
  """Bytes by place, and the copies between them."""
  found = compiled.memory_analysis()
  names = ('argument', 'output', 'temp')
  sizes = {
    f'{where}{name}': getattr(found, f'{where}{name}_size_in_bytes')
    for name in names
    for where in ('', 'host_')
  }
  text = compiled.as_text()
  # S(5) is the host's memory.
  return sizes | {
    'copies': len(re.findall(r'= .*copy-start', text)),
    'of_the_host': len(re.findall(r'S\(5\)', text)),
  }


def _placed(tree, device, kind):
  sharding = jax.sharding.SingleDeviceSharding(device, memory_kind=kind)
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    tree,
  )


def _copy(built, device):
  """The copy of a layer from the host's memory to the device's."""
  weights = params_lib.flatten(built.base['layers'][0])
  there = jax.sharding.SingleDeviceSharding(device, memory_kind='device')
  move = lambda tree: jax.tree.map(lambda x: jax.device_put(x, there), tree)
  run = jax.jit(move, out_shardings=there)
  return run.lower(_placed(weights, device, host.KIND)).compile()


def _layer(built, device, nodes):
  """The last layer, over so many nodes with streams at the root alone."""
  fns = transformer_fns.model_fns(built)
  runs = passes.Passes(fns.recipe, typing.cast(typing.Any, None))
  place = functools.partial(_placed, device=device, kind='device')
  shape = lambda *sizes, dtype=jnp.int32: jax.ShapeDtypeStruct(sizes, dtype)
  cache = jax.eval_shape(lambda: fns.init_cache(1, 1024))
  enter = lambda params, *args: runs._entered(params, *args, num_slots=1024)
  shell = transformer_fns.Params(
    runs.parts.shell.base, runs.parts.shell.adapter
  )
  tokens, mask = shape(1, nodes), shape(1, nodes, nodes, dtype=jnp.bool_)
  way = jax.eval_shape(enter, shell, tokens, tokens, mask, shape(1))
  last = runs.num_layers - 1
  args = (
    built.base['layers'][last],
    built.adapter.get('layers', {}).get(last, {}),
    way,
    cache.keys[last],
    cache.values[last],
  )
  run = runs.parts.layer(last, keeps=True)
  return run.lower(*place(args)).compile()


if __name__ == '__main__':
  _define()
  script.run(main)
