# SPDX-License-Identifier: Apache-2.0
"""Scores of two models' answers to a task's test prompts, and their difference.

The answers are what `specstream distill --task=… --split=test` writes, of all
prompts or the first few (a benchmark's --num_prompts are spread over the set):

  specstream distill --task=e2e_nlg --split=test --data_dir=DIR \
    --max_new_tokens=64 --adapter=runs/lora/adapter --output_dir=answers/lora
  specstream distill …  --adapter=e2e_nlg --output_dir=answers/streams
  python launch/experiments/compare_answers.py --task=e2e_nlg --data_dir=DIR \
    --answers=answers/lora/test.jsonl,answers/streams/test.jsonl

Prints a Markdown table; the interval is a paired bootstrap over prompts, which
says nothing about other seeds of training. BLEU, which is no mean over prompts,
has none. A prompt that one file lacks, as distill leaves out empty answers,
counts as an empty answer.
"""

from collections.abc import Mapping, Sequence

from absl import flags, logging
import script

from specstream_jax.data import readers, registry
from specstream_jax.metrics import scores, statistics

FLAGS = flags.FLAGS
_CORPUS_METRICS = ('bleu',)


def define_flags() -> None:
  """Declares the flags."""
  flags.DEFINE_string('task', 'e2e_nlg', 'Name of the task.')
  flags.DEFINE_string('split', 'test', 'Its split.')
  flags.DEFINE_string('data_dir', None, "Folder of the task's files.")
  flags.DEFINE_list('answers', None, 'Two JSONL files.', required=True)


def read(path: str, references: Mapping[str, list[str]]) -> dict[str, str]:
  """Prompt -> answer.

  Args:
    path: JSONL with `prompt` and `completion`.
    references: of each prompt of the task.

  Raises:
    ValueError: a row (file, line) without them, or a prompt that is not the
      task's.
  """

  def pair(row):
    prompt, answer = row.get('prompt'), row.get('completion')
    if not isinstance(prompt, str) or not isinstance(answer, str):
      return 'has no texts under "prompt" and "completion"'
    if prompt not in references:
      return f'not a prompt of the task: {prompt!r}'
    return prompt, answer.strip()

  return dict(readers.read_jsonl(path, pair=pair).pairs)


def table(
  names: Sequence[str],
  targets: Sequence[Sequence[str]],
  first: Sequence[str],
  second: Sequence[str],
) -> str:
  """Scores of both sides, 0 to 100, second minus first with its interval.

  Args:
    names: of metrics.
    targets: references of each prompt.
    first: an answer for each.
    second: likewise.
  """
  lines = ['| metric | first | second | difference (95 %) |', '|---' * 4 + '|']
  for name in names:
    one = lambda answers, n=name: scores.compute([n], targets, answers)
    whole = one(first), one(second)
    each = (
      {} if name in _CORPUS_METRICS else _each(name, targets, first, second)
    )
    for key in whole[0]:
      a, b = (side[key] for side in whole)
      interval = ''
      if each:
        low, high = statistics.mean_difference_ci(*each[key])
        interval = f' ({low:+.2f} to {high:+.2f})'
      lines.append(f'| {key} | {a:.2f} | {b:.2f} | {b - a:+.2f}{interval} |')
  return '\n'.join(lines) + '\n'


def _each(name, targets, first, second):
  """Metric -> (scores of second, scores of first), a number per prompt."""
  score = lambda answers: [
    scores.compute([name], [refs], [answer])
    for refs, answer in zip(targets, answers, strict=True)
  ]
  sides = score(second), score(first)
  return {
    key: [[s[key] for s in side] for side in sides] for key in sides[0][0]
  }


def main() -> None:
  """Prints the table."""
  logging.set_verbosity(
    logging.WARNING
  )  # rouge-score says its tokenizer per text
  if len(FLAGS.answers) != 2:
    raise ValueError('--answers takes two files: FIRST,SECOND')
  task = registry.get(FLAGS.task)
  examples = task.load_split(FLAGS.split, FLAGS.data_dir)
  references: dict[str, list[str]] = {}
  for example in examples:
    references.setdefault(example.inputs, []).extend(example.references)
  first, second = (read(path, references) for path in FLAGS.answers)
  asked = list(dict.fromkeys([*first, *second]))
  print(f'{len(asked)} of {len(references)} prompts of the task')
  for path, side in zip(FLAGS.answers, (first, second), strict=True):
    if missing := len(asked) - len(side):
      print(f'{path} lacks {missing} of them, which count as empty answers')
  print()
  print(
    table(
      task.metrics,
      [references[prompt] for prompt in asked],
      [first.get(prompt, '') for prompt in asked],
      [second.get(prompt, '') for prompt in asked],
    )
  )


if __name__ == '__main__':
  define_flags()
  script.run(main)
