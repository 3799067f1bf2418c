# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a training step: streams against plain LoRA.

Every variant takes the same packed batch; the timed steps are interleaved.
Memory is what XLA plans for the step: arguments, results that are not donated,
and temporaries. Writes step_cost.json and step_cost.md.
"""

import dataclasses
import functools
import statistics
import time

from absl import flags
import jax
import jax.numpy as jnp
import measuring
import script

from specstream_jax import config
from specstream_jax.checkpoints import loading
from specstream_jax.data import batches as batches_lib
from specstream_jax.modeling import (
  blocks,
  build,
  initialize,
  params as params_lib,
)
from specstream_jax.training import step as step_lib

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Declares the flags."""
  measuring.define_model()
  flags.DEFINE_string('data_dir', None, 'Token records.', required=True)
  flags.DEFINE_integer('length', 512, 'Tokens of a row.', lower_bound=2)
  flags.DEFINE_integer('rows', 4, 'Rows of a batch.', lower_bound=1)
  flags.DEFINE_integer('layers', 8, 'MSA layers.', lower_bound=1)
  flags.DEFINE_list(
    'anchors', ['512', '128', '64', '32'], 'Positions per row with streams.'
  )
  flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'bfloat16'], 'Of weights and activations.'
  )
  flags.DEFINE_integer('repeats', 3, 'Timed steps.', lower_bound=1)
  flags.DEFINE_enum('remat', 'none', list(blocks.REMAT), 'What is recomputed.')
  flags.DEFINE_bool('time', True, 'Run the steps; else memory alone.')
  flags.DEFINE_string('output_dir', 'results/step_cost', 'Folder to write.')


def variants() -> dict[str, tuple[str, config.ObjectiveConfig]]:
  """name -> (mode, objective)."""
  some = lambda n: config.ObjectiveConfig(anchors_per_sequence=n)
  plain = lambda n: dataclasses.replace(
    some(n), stream_weight=0.0, pruning_weight=0.0
  )
  found = {
    'plain LoRA': ('fine_tuned', plain(FLAGS.length)),
    'plain LoRA, head at 128 anchors': ('fine_tuned', plain(128)),
  }
  for count in map(int, FLAGS.anchors):
    found[f'streams, {count} anchors'] = 'fine_tuned', some(count)
  found['lossless, 128 anchors'] = 'lossless', some(128)
  return found


@dataclasses.dataclass
class Variant:
  """A compiled step and its state."""

  step: jax.stages.Compiled
  state: step_lib.TrainState
  megabytes: float
  seconds: list[float]

  def run(self, base, batch) -> None:
    """Takes one step and notes its time."""
    start = time.perf_counter()
    self.state, _ = jax.block_until_ready(self.step(self.state, base, batch))
    self.seconds.append(time.perf_counter() - start)


def compile_variant(loaded, base, batch, mode, objective) -> Variant:
  """The step of one mode and objective, compiled for `batch`."""
  streams = config.StreamConfig(mode=mode, num_msa_layers=FLAGS.layers)
  lora = config.LoraConfig()
  built = build.build(loaded.config, streams, lora)
  adapter = initialize.init_adapter(
    jax.random.key(0), loaded.config, streams, lora
  )
  optimizer = step_lib.make_optimizer(config.OptimizerConfig(), 100)
  state = step_lib.init_state(adapter, optimizer)
  step = functools.partial(
    step_lib.train_step, built=built, optimizer=optimizer, cfg=objective,
    seed=0, remat=FLAGS.remat,
  )  # fmt: skip
  step = jax.jit(step, donate_argnums=0).lower(state, base, batch).compile()
  planned = step.memory_analysis()
  total = (
    planned.argument_size_in_bytes
    + planned.output_size_in_bytes
    - planned.alias_size_in_bytes
    + planned.temp_size_in_bytes
  )
  return Variant(step, state, total / 2**20, [])


def table(made: dict[str, Variant]) -> str:
  """Markdown, ratios against the first."""
  lines = ['| step | memory, MiB | ratio | time, s | ratio |', '|---' * 5 + '|']
  first = next(iter(made.values()))
  for name, variant in made.items():
    ratio = variant.megabytes / first.megabytes
    cells = [name, f'{variant.megabytes:,.0f}', f'{ratio:.2f}']
    if variant.seconds:
      ratios = [
        own / other
        for own, other in zip(variant.seconds, first.seconds, strict=True)
      ]
      cells += [
        f'{statistics.median(variant.seconds):.2f}',
        f'{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})',
      ]
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines) + '\n'


def main() -> None:
  """Measures all variants and writes the files."""
  loaded = loading.load_model(FLAGS.model, dtype=FLAGS.dtype)
  base = params_lib.unflatten(
    {path: jnp.asarray(leaf) for path, leaf in loaded.params.items()}
  )
  batches = batches_lib.open_batches(
    FLAGS.data_dir, batch_size=FLAGS.rows, sequence_length=FLAGS.length, seed=0
  )
  batch = next(batches)
  made = {}
  for name, (mode, objective) in variants().items():
    made[name] = compile_variant(loaded, base, batch, mode, objective)
    print(f'compiled: {name}, {made[name].megabytes:,.0f} MiB', flush=True)
  for repeat in range(1 + FLAGS.repeats if FLAGS.time else 0):
    for name, variant in made.items():
      variant.run(base, batch)
      print(f'{repeat} {name}: {variant.seconds[-1]:.2f} s', flush=True)
  for variant in made.values():
    del variant.seconds[:1]  # the first touches cold memory
  document = {
    'rows': FLAGS.rows,
    'length': FLAGS.length,
    'positions_with_loss': int((batch['decoder_loss_weights'] > 0).sum()),
    **measuring.machine(),
    'steps': {
      name: {'megabytes': v.megabytes, 'seconds': v.seconds}
      for name, v in made.items()
    },
  }
  print(table(made))
  measuring.write(FLAGS.output_dir, 'step_cost', document, md=table(made))


if __name__ == '__main__':
  define_flags()
  script.run(main)
