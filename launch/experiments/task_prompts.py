# SPDX-License-Identifier: Apache-2.0
"""Writes a task's prompts, each once, for `specstream distill --prompts`.

With --references, every prompt and reference answer as `--task=jsonl` reads
them.

Streams that sit on a tuned model learn its own answers, and those need no
references: E2E's meanings may lose attributes (--shortened), which gives
prompts that nobody has described. --exclude names splits whose prompts must not
come up:

  python launch/experiments/task_prompts.py --task=e2e_nlg --data_dir=DIR --shortened=6000 \\
    --exclude=dev,test --output=e2e.jsonl
"""

from collections.abc import Sequence
import json
import random

from absl import flags
import script

from specstream_jax.data import prompts as prompts_lib, registry
from specstream_jax.outputs import writing

FLAGS = flags.FLAGS
_ATTEMPTS = 50  # per shortened prompt


def define_flags() -> None:
  """Declares the flags."""
  flags.DEFINE_string('task', None, 'Its name.', required=True)
  flags.DEFINE_string('split', 'train', 'Split of the task.')
  flags.DEFINE_list(
    'data_dir', [], 'Folders of its files, one after the other.'
  )
  flags.DEFINE_integer(
    'num_prompts', 0, 'Most of a folder, drawn at random; 0 takes all.',
    lower_bound=0,
  )  # fmt: skip
  flags.DEFINE_integer(
    'shortened', 0, 'E2E meanings with attributes left out to add.',
    lower_bound=0,
  )  # fmt: skip
  flags.DEFINE_list('exclude', [], 'Splits that share no prompt with these.')
  flags.DEFINE_bool('references', False, 'Also write the answers.')
  flags.DEFINE_integer('seed', 0, 'Of all choices.')
  flags.DEFINE_string('output', None, 'JSONL to write.', required=True)


def shorten(prompt: str, rng: random.Random) -> str:
  """An E2E prompt without one to three of its attributes; the name stays.

  >>> shorten(prompts_lib.e2e_inputs('name[A], area[b]'), random.Random(0))
  'name[A]\\nDescription:'
  """
  empty = prompts_lib.e2e_inputs('')
  attributes = prompts_lib.parse_mr(prompt.removesuffix(empty))
  others = [name for name in attributes if name != 'name']
  count = rng.randint(1, min(3, max(len(others), 1)))
  gone = set(rng.sample(others, min(count, len(others))))
  left = [f'{k}[{v}]' for k, v in attributes.items() if k not in gone]
  return prompts_lib.e2e_inputs(', '.join(left))


def shortened(
  prompts: Sequence[str], count: int, taken: set[str], rng: random.Random
) -> list[str]:
  """`count` shortened prompts, or fewer, none of them in `taken`."""
  found: dict[str, None] = {}
  for _ in range(_ATTEMPTS * count):
    text = shorten(rng.choice(prompts), rng)
    if text not in taken:
      found[text] = None
    if len(found) == count:
      break
  return list(found)


def main() -> None:
  """Reads the task and writes the file."""
  if FLAGS.references:
    found = _pairs()
  else:
    found = [{'prompt': text} for text in _collect()]
  writing.write_text(
    FLAGS.output, ''.join(json.dumps(row) + '\n' for row in found)
  )
  print(f'{FLAGS.output}: {len(found)} rows')


def _pairs():
  spec = registry.get(FLAGS.task)
  return [
    {'prompt': prompt, 'completion': answer}
    for folder in FLAGS.data_dir or [None]
    for prompt, answer in spec.pairs(spec.load(FLAGS.split, folder).examples)
  ]


def _collect():
  spec, rng = registry.get(FLAGS.task), random.Random(FLAGS.seed)
  if FLAGS.shortened and spec.template is not prompts_lib.E2E:
    raise ValueError(f'--shortened is for E2E tasks, not {FLAGS.task!r}')
  folders = FLAGS.data_dir or [None]

  def of_split(split, folder):
    examples = spec.load_split(split, folder)
    return list(dict.fromkeys(example.inputs for example in examples))

  excluded = {
    text
    for split in FLAGS.exclude
    for folder in folders
    for text in of_split(split, folder)
  }
  found = []
  for folder in folders:
    own = [x for x in of_split(FLAGS.split, folder) if x not in excluded]
    if FLAGS.num_prompts:
      own = rng.sample(own, min(FLAGS.num_prompts, len(own)))
    found += own
  found = list(dict.fromkeys(found))
  taken = excluded | set(found)
  return found + shortened(found, FLAGS.shortened, taken, rng)


if __name__ == '__main__':
  define_flags()
  script.run(main)
