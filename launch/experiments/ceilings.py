# SPDX-License-Identifier: Apache-2.0
"""The two ceilings of a device: copy bandwidth, and rate of matrix products."""

import json

from absl import flags
import jax
import jax.numpy as jnp
import measuring
import script

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Declares the flags."""
  flags.DEFINE_integer('size', 8192, 'Of the matrices.', lower_bound=1)
  flags.DEFINE_integer('count', 2**30, 'Of the numbers copied.', lower_bound=1)
  flags.DEFINE_string('output_dir', 'results/ceilings', 'Folder to write.')


def main() -> None:
  """Measures and writes device.json."""
  shape = FLAGS.size, FLAGS.size
  a, b = (
    jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i in range(2)
  )
  long = jnp.zeros((FLAGS.count,), jnp.int32)
  multiply, add = jax.jit(lambda a, b: a @ b), jax.jit(lambda x: x + 1)
  product = measuring.median_seconds(lambda: multiply(a, b), 20)
  copy = measuring.median_seconds(lambda: add(long), 20)
  found = measuring.machine() | {
    'bytes_per_second': 2 * long.nbytes / copy,
    'bfloat16_flops_per_second': 2 * FLAGS.size**3 / product,
  }
  print(json.dumps(found))
  measuring.write(FLAGS.output_dir, 'device', found)


if __name__ == '__main__':
  define_flags()
  script.run(main)
