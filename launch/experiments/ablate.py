# SPDX-License-Identifier: Apache-2.0
"""Trains variants of a recipe on the same budget, one after the other.

Each variant is the gin file and a few bindings. A run that is there is kept and
one that was stopped goes on, so the same command finishes the work. Writes
ablations.md, a row per finished variant, after each, and ablations.svg.
"""

import dataclasses
import json
import os
import shlex
import subprocess
import sys

from absl import flags
import script

from specstream_jax.outputs import ordering, writing
from specstream_jax.report import svg

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Variant:
  """The recipe with a change.

  Attributes:
    bindings: of gin, in place of the recipe's.
    after: the variant whose adapter it goes on from.
    share: of --steps.
  """

  bindings: tuple[str, ...] = ()
  after: str = ''
  share: float = 1.0


_PLAIN = (
  'ObjectiveConfig.stream_weight=0.0',
  'ObjectiveConfig.pruning_weight=0.0',
)
_SETTINGS: dict[str, tuple[str, ...]] = {
  'recipe': (),
  'recipe seed 1': ('TrainConfig.seed=1',),
  'recipe seed 2': ('TrainConfig.seed=2',),
  'position anchor': ('StreamConfig.position=anchor',),
  '2 MSA layers': ('StreamConfig.num_msa_layers=2',),
  '4 MSA layers': ('StreamConfig.num_msa_layers=4',),
  '12 MSA layers': ('StreamConfig.num_msa_layers=12',),
  '15 MSA layers': ('StreamConfig.num_msa_layers=15',),
  '20 MSA layers': ('StreamConfig.num_msa_layers=20',),
  '30 MSA layers': ('StreamConfig.num_msa_layers=30',),
  '3 streams': ('StreamConfig.num_streams=3', 'TreeConfig.depth=3'),
  '6 streams': ('StreamConfig.num_streams=6', 'TreeConfig.depth=6'),
  'a_j 0.1': ('ObjectiveConfig.stream_weight=0.1',),
  'a_j 1': ('ObjectiveConfig.stream_weight=1.0',),
  'a_j 0.8^j': (
    'ObjectiveConfig.stream_weight=0.8',
    'ObjectiveConfig.stream_decay=0.8',
  ),
  'P_j std 0.02': ('StreamConfig.embedding_init_scale=0.002',),
  'P_j scale 1': ('StreamConfig.embedding_init_scale=1.0',),
  'P_j rate 0.001': ('OptimizerConfig.embedding_learning_rate=0.001',),
  'P_j std 0.02 rate 0.001': (
    'StreamConfig.embedding_init_scale=0.002',
    'OptimizerConfig.embedding_learning_rate=0.001',
  ),
  'P_j rate 0.2': ('OptimizerConfig.embedding_learning_rate=0.2',),
  'f_eta rank 8': ('StreamConfig.insertion=low_rank',),
  'value rotation': ('StreamConfig.embedding=value_rotation',),
  'LoRA rank 8': ('LoraConfig.rank=8',),
  'LoRA rank 64': ('LoraConfig.rank=64', 'LoraConfig.alpha=128.0'),
  'LoRA attention only': (
    "LoraConfig.modules=('query', 'key', 'value', 'out')",
  ),
  'rate 3e-3': ('OptimizerConfig.learning_rate=3e-3',),
  'rate 3e-4': ('OptimizerConfig.learning_rate=3e-4',),
  'alpha over rank 8': ('LoraConfig.alpha=128.0',),
  'alpha over rank 16': ('LoraConfig.alpha=256.0',),
  'alpha over rank 64': ('LoraConfig.alpha=1024.0',),
  'total variation 0.9': ('ObjectiveConfig.total_variation_weight=0.9',),
  'hidden states': ('ObjectiveConfig.hidden_weight=1.0',),
  'lossless mask': (
    'StreamConfig.mode=lossless',
    'StreamConfig.insertion=mask',
    'StreamConfig.num_msa_layers=30',
  ),
  '384 stream tokens': ('ObjectiveConfig.stream_tokens=384',),
  '8 streams 384 stream tokens': (
    'StreamConfig.num_streams=8',
    'TreeConfig.depth=8',
    'ObjectiveConfig.stream_tokens=384',
  ),
  '8 streams 384 stream tokens curriculum': (
    'StreamConfig.num_streams=8',
    'TreeConfig.depth=8',
    'ObjectiveConfig.stream_tokens=384',
    'ObjectiveConfig.curriculum_steps=30',
  ),
  'half teacher': ('ObjectiveConfig.teacher_weight=0.5',),
  'teacher': ('ObjectiveConfig.teacher_weight=1.0',),
  'coupling rank 64': (
    'StreamConfig.coupling_rank=64',
    'TreeConfig.branching=32',
  ),
  'coupling mlp 64': (
    'StreamConfig.coupling_rank=64',
    'StreamConfig.coupling=mlp',
    'TreeConfig.branching=32',
  ),
  'no pruning adapter': ('ObjectiveConfig.pruning_weight=0.0',),
  'o_theta without residual': ('StreamConfig.pruning_residual=False',),
  'half the anchors': ('ObjectiveConfig.anchors_per_sequence=48',),
  'lossless': ('StreamConfig.mode=lossless',),
  'plain LoRA': _PLAIN,
}
# The first is the recipe as it is.
VARIANTS: dict[str, Variant] = {
  **{name: Variant(bindings) for name, bindings in _SETTINGS.items()},
  'o_theta afterwards': Variant(
    ('OptimizerConfig.trainable=pruning/',), after='no pruning adapter'
  ),
  'plain LoRA half the steps': Variant(_PLAIN, share=0.5),
  'streams in a second half': Variant(
    (), after='plain LoRA half the steps', share=0.5
  ),
}


def define_flags() -> None:
  """Declares the flags."""
  flags.DEFINE_string(
    'gin_file', 'configs/sql_smollm2_ablation.gin', 'The recipe.'
  )
  flags.DEFINE_string('model', 'smollm2-135m-instruct', 'Base model.')
  flags.DEFINE_string('data_dir', None, 'Token records.', required=True)
  flags.DEFINE_string('eval_data_dir', None, 'Records to compare on.')
  flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'bfloat16'], 'Of weights and activations.'
  )
  flags.DEFINE_integer('steps', 60, 'Of each variant.', lower_bound=1)
  flags.DEFINE_integer('eval_batches', 8, 'Evaluated at the end.')
  flags.DEFINE_list(
    'variants', [], f'Of {", ".join(VARIANTS)}; empty takes all.'
  )
  flags.DEFINE_bool('dry_run', False, 'Print the commands, run none.')
  flags.DEFINE_string('output_dir', 'runs/ablations', 'Folder of the runs.')


def command(name: str) -> list[str]:
  """What trains a variant."""
  variant = VARIANTS[name]
  steps = max(round(FLAGS.steps * variant.share), 1)
  bindings = (
    f'TrainConfig.num_steps={steps}',
    f'TrainConfig.eval_every={steps}',
    f'TrainConfig.eval_batches={FLAGS.eval_batches}',
    f'OptimizerConfig.warmup_steps={max(FLAGS.steps // 10, 1)}',
    *variant.bindings,
  )
  args = [
    f'--model={FLAGS.model}',
    f'--gin_file={FLAGS.gin_file}',
    f'--dtype={FLAGS.dtype}',
    f'--data_dir={FLAGS.data_dir}',
    f'--output_dir={folder(name)}',
    *(f'--gin.{binding}' for binding in bindings),
  ]
  if FLAGS.eval_data_dir:
    args.append(f'--eval_data_dir={FLAGS.eval_data_dir}')
  if variant.after:
    args.append(
      f'--init_adapter={os.path.join(folder(variant.after), "adapter")}'
    )
  return [sys.executable, '-m', 'specstream_jax.cli.main', 'train', *args]


def folder(name: str) -> str:
  """Of a variant's run."""
  safe = ''.join(c if c.isalnum() or c in '.-' else '_' for c in name)
  return os.path.join(FLAGS.output_dir, safe)


def final(name: str) -> dict[str, dict[str, float]]:
  """Last line of each split in a run's metrics; empty before its end."""
  found: dict[str, dict[str, float]] = {}
  if os.path.isdir(os.path.join(folder(name), 'adapter')):
    with open(os.path.join(folder(name), 'metrics.jsonl')) as file:
      found = {line['split']: line for line in map(json.loads, file)}
  return found


def table() -> str:
  """Markdown; accuracies in percent on the evaluation records.

  Early exit: top-1 of the pruning adapter o_theta.
  """
  lines = [
    '| variant | tokens per call | main loss | top-1: main, streams | early exit |',
    '|---' * 5 + '|',
  ]
  for name in VARIANTS:
    found = final(name)
    values = found.get('eval') or found.get('train')
    if values:
      names = sorted(filter(_is_accuracy, values), key=ordering.natural)
      top = [values[name] for name in names]
      accuracies = ' '.join(f'{100 * value:.1f}' for value in top)
      lines.append(
        f'| {name} | {values.get("tokens_per_call", 0):.2f} | '
        f'{values["loss/main"]:.3f} | {accuracies} | '
        f'{100 * values.get("top1/pruning", 0):.1f} |'
      )
  return '\n'.join(lines) + '\n'


def _is_accuracy(key):
  return key == 'top1/main' or key.startswith('top1/stream_')


def plot() -> svg.Svg:
  """Tokens per call of each finished variant; a band spans the recipe's seeds."""
  values = {
    name: found['eval']['tokens_per_call']
    for name in VARIANTS
    if 'eval' in (found := final(name))
  }
  names = sorted(values, key=values.get, reverse=True)
  seeds = [value for name, value in values.items() if name.startswith('recipe')]

  def paint(axes):
    ax = axes[0, 0]
    colours = [
      svg.COLOURS[1 if name.startswith('recipe') else 0] for name in names
    ]
    ax.barh(range(len(names)), [values[n] for n in names], 0.6, color=colours)
    if seeds:
      ax.axvspan(min(seeds), max(seeds), color=svg.MUTED, alpha=0.35)
    ax.set(xlabel='tokens per call', xlim=(1, None), yticks=range(len(names)))
    ax.set_yticklabels(names)
    ax.grid(visible=False, axis='y')
    ax.invert_yaxis()

  width = 5 + svg.text_width(names)
  size = (width, 1.2 + 0.24 * len(names))
  return svg.draw(paint, title='Tokens per call of each variant', size=size)


def report() -> None:
  """Writes table and plot of what is finished."""
  files = {'ablations.md': table()}
  if any('eval' in final(name) for name in VARIANTS):
    files['ablations.svg'] = plot()
  for name, text in files.items():
    writing.write_text(os.path.join(FLAGS.output_dir, name), text)


def main() -> None:
  """Trains what is missing, then prints the table."""
  names = FLAGS.variants or list(VARIANTS)
  unknown = [name for name in names if name not in VARIANTS]
  if unknown:
    raise ValueError(f'variants {unknown}; accepted: {list(VARIANTS)}')
  for number, name in enumerate(names, start=1):
    print(f'[{number}/{len(names)}] {name}\n{shlex.join(command(name))}')
    if FLAGS.dry_run or final(name):
      continue
    before = VARIANTS[name].after
    if before and not final(before):
      raise ValueError(f'{name!r} goes on from {before!r}; train that first')
    subprocess.run(command(name), check=True)
    report()
  if not FLAGS.dry_run:
    report()
  print(table())


if __name__ == '__main__':
  define_flags()
  script.run(main)
