# SPDX-License-Identifier: Apache-2.0
"""Trains variants of a recipe on the same budget, one after the other.

Each variant is the gin file and a few bindings. A run that is there is kept and
one that was stopped goes on, so the same command finishes the work. Writes
ablations.md, a row per finished variant, after each.
"""

from collections.abc import Sequence
import json
import os
import shlex
import subprocess
import sys

from absl import app, flags

from specstream_jax.evaluation import results

FLAGS = flags.FLAGS

# Name -> bindings. The first is the recipe as it is.
VARIANTS: dict[str, tuple[str, ...]] = {
  'recipe': (),
  'position anchor': ('StreamConfig.position=anchor',),
  '2 MSA layers': ('StreamConfig.num_msa_layers=2',),
  '4 MSA layers': ('StreamConfig.num_msa_layers=4',),
  '15 MSA layers': ('StreamConfig.num_msa_layers=15',),
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
  'half teacher': ('ObjectiveConfig.teacher_weight=0.5',),
  'teacher': ('ObjectiveConfig.teacher_weight=1.0',),
  'no pruning adapter': ('ObjectiveConfig.pruning_weight=0.0',),
  'half the anchors': ('ObjectiveConfig.anchors_per_sequence=48',),
  'lossless': ('StreamConfig.mode=lossless',),
  'plain LoRA': (
    'ObjectiveConfig.stream_weight=0.0',
    'ObjectiveConfig.pruning_weight=0.0',
  ),
}


def define_flags() -> None:
  flags.DEFINE_string('gin_file', 'configs/e2e_smollm2.gin', 'The recipe.')
  flags.DEFINE_string('model', 'smollm2-135m-instruct', 'Base model.')
  flags.DEFINE_string('data_dir', None, 'Token records.', required=True)
  flags.DEFINE_string('eval_data_dir', None, 'Records to compare on.')
  flags.DEFINE_integer('steps', 60, 'Of each variant.', lower_bound=1)
  flags.DEFINE_integer('eval_batches', 8, 'Evaluated at the end.')
  flags.DEFINE_list(
    'variants', [], f'Of {", ".join(VARIANTS)}; empty takes all.'
  )
  flags.DEFINE_bool('dry_run', False, 'Print the commands, run none.')
  flags.DEFINE_string('output_dir', 'runs/ablations', 'Folder of the runs.')


def command(name: str) -> list[str]:
  """What trains a variant."""
  bindings = (
    f'TrainConfig.num_steps={FLAGS.steps}',
    f'TrainConfig.eval_every={FLAGS.steps}',
    f'TrainConfig.eval_batches={FLAGS.eval_batches}',
    f'OptimizerConfig.warmup_steps={max(FLAGS.steps // 10, 1)}',
    *VARIANTS[name],
  )
  args = [
    f'--model={FLAGS.model}',
    f'--gin_file={FLAGS.gin_file}',
    f'--data_dir={FLAGS.data_dir}',
    f'--output_dir={folder(name)}',
    *(f'--gin.{binding}' for binding in bindings),
  ]
  if FLAGS.eval_data_dir:
    args.append(f'--eval_data_dir={FLAGS.eval_data_dir}')
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
  """Markdown; accuracies in percent on the evaluation records."""
  head = '| variant | tokens per call | main loss | top-1: main, streams | tokens/s |'
  lines = [head, '|---' * 5 + '|']
  for name in VARIANTS:
    found = final(name)
    values = found.get('eval') or found.get('train')
    if values:
      top = [v for k, v in sorted(values.items()) if _is_accuracy(k)]
      accuracies = ' '.join(f'{100 * value:.0f}' for value in top)
      speed = found['train'].get('tokens_per_second', 0)
      lines.append(
        f'| {name} | {values.get("tokens_per_call", 0):.2f} | '
        f'{values["loss/main"]:.3f} | {accuracies} | {speed:.0f} |'
      )
  return '\n'.join(lines) + '\n'


def _is_accuracy(key):
  return key == 'top1/main' or key.startswith('top1/stream_')


def main(argv: Sequence[str]) -> None:
  del argv
  names = FLAGS.variants or list(VARIANTS)
  unknown = [name for name in names if name not in VARIANTS]
  if unknown:
    raise app.UsageError(f'variants {unknown}; accepted: {list(VARIANTS)}')
  for number, name in enumerate(names, start=1):
    print(f'[{number}/{len(names)}] {name}\n{shlex.join(command(name))}')
    if FLAGS.dry_run or final(name):
      continue
    subprocess.run(command(name), check=True)
    results.write_text(os.path.join(FLAGS.output_dir, 'ablations.md'), table())
  print(table())


if __name__ == '__main__':
  define_flags()
  app.run(main)
