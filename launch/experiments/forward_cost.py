# SPDX-License-Identifier: Apache-2.0
"""Times a forward pass with LM head over 1, 2, 4, … tokens on this machine.

Writes forward_cost.json and forward_cost.svg: flat where weights are read,
rising where they are multiplied.
"""

import dataclasses

from absl import flags
import jax
import jax.numpy as jnp
import measuring
import script

from specstream_jax import runtime
from specstream_jax.decoding import transformer_fns
from specstream_jax.modeling import build
from specstream_jax.report import plots

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Declares the flags."""
  measuring.define_model()
  flags.DEFINE_list('tokens', '1,2,4,8,16,32,64', 'Tokens of a pass.')
  flags.DEFINE_list('dtypes', 'float32,bfloat16', 'Dtypes to time.')
  flags.DEFINE_integer('context', 128, 'Tokens in the cache.', lower_bound=1)
  flags.DEFINE_integer('repeats', 20, 'Timed passes.', lower_bound=1)
  flags.DEFINE_string('output_dir', 'results/forward_cost', 'Folder to write.')


def make_pass(fns):
  """(params, tokens [1, M], cache) -> (arg max [1, M], cache), compiled."""

  def forward(params, tokens, cache):
    length = tokens.shape[1]
    positions = cache.length[:, None] + jnp.arange(length)[None]
    chain = jnp.tri(length, dtype=bool)[None]
    out = fns.forward(
      params, tokens, positions, chain, cache, with_streams=False
    )
    drawn = jnp.argmax(fns.logits(params, out.hidden), axis=-1)
    return drawn, out.cache

  return jax.jit(forward, donate_argnums=2)


def median_ms(
  model: runtime.Model, length: int, *, context: int, repeats: int
) -> float:
  """Median time in milliseconds of a pass.

  Args:
    model: whose.
    length: tokens of the pass.
    context: tokens before them.
    repeats: timed passes.
  """
  fns = transformer_fns.model_fns(build.build(model.config, layout='out_in'))
  cache = fns.init_cache(1, context + length)
  cache = dataclasses.replace(cache, length=jnp.full((1,), context, jnp.int32))
  tokens = jnp.arange(length, dtype=jnp.int32)[None] % model.config.vocab_size
  step, params = make_pass(fns), model.params('none')

  def once():
    nonlocal tokens, cache
    drawn, cache = step(params, tokens, cache)
    tokens = drawn.astype(jnp.int32)
    return tokens, cache

  return 1e3 * measuring.median_seconds(once, repeats)


def main() -> None:
  """Measures all sizes and writes the files."""
  curves = {}
  for dtype in FLAGS.dtypes:
    model = runtime.load(FLAGS.model, dtype=dtype)
    curves[dtype] = []
    for length in map(int, FLAGS.tokens):
      ms = median_ms(
        model, length, context=FLAGS.context, repeats=FLAGS.repeats
      )
      curves[dtype].append((length, ms))
      print(f'{dtype} {length:4} tokens {ms:9.2f} ms')
  document = {
    'model': FLAGS.model,
    'context': FLAGS.context,
    'repeats': FLAGS.repeats,
    **measuring.machine(),
    'median_ms': curves,
  }
  measuring.write(
    FLAGS.output_dir,
    'forward_cost',
    document,
    svg=plots.forward_cost(curves),
  )


if __name__ == '__main__':
  define_flags()
  script.run(main)
