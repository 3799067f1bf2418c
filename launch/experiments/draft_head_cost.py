# SPDX-License-Identifier: Apache-2.0
"""What the LM head of drafts costs where adapters serve side by side.

  python launch/experiments/draft_head_cost.py \\
    --adapters=e2e_nlg,sql_create_context,instruct_lossless

Milliseconds of CPU time (least and median) of the logits of `--rows` rows with
`--streams` streams each: over the whole vocabulary, over the union of the
adapters' draft vocabularies, and over that of the `--most` most frequent tokens
of each. Hidden states are random. Writes draft_head_cost.json and .md.
"""

import os
import statistics
import sys
import time

from absl import flags
import jax
import measuring
import numpy as np
import script

from specstream_jax import runtime
from specstream_jax.checkpoints import draft_vocabulary, shipped
from specstream_jax.decoding import transformer_fns
from specstream_jax.modeling import build

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Declares the flags."""
  measuring.define_model()
  flags.DEFINE_list(
    'adapters', None, 'Folders or shipped names.', required=True
  )
  flags.DEFINE_integer('rows', 8, 'Rows that decode together.', lower_bound=1)
  flags.DEFINE_integer('streams', 8, 'Of each row.', lower_bound=1)
  flags.DEFINE_integer('most', 4096, 'Tokens of each adapter.', lower_bound=1)
  flags.DEFINE_integer('rounds', 8, 'Timed, in turns.', lower_bound=1)
  flags.DEFINE_string('output_dir', 'results/draft_head_cost', 'To write to.')


def _union(model: runtime.Model, most: int) -> np.ndarray:
  """Ascending ids of all adapters' vocabularies, `most` of each; 0 is all."""
  found = [
    draft_vocabulary.load(
      os.path.join(shipped.adapter_folder(name), draft_vocabulary.FILE),
      tokenizer_sha256=None,
      vocab_size=model.config.vocab_size,
      size=most,
    )
    for name in FLAGS.adapters
  ]
  return np.unique(np.concatenate(found))


def main() -> None:
  """Measures the three heads in turns."""
  model = runtime.load(FLAGS.model, None)
  merged = build.build(model.config, layout=model.layout).merge(model.base, {})
  shape = FLAGS.rows, FLAGS.streams, model.config.hidden_size
  hidden = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  heads = {'whole': (model.config.vocab_size, None)}
  for name, most in (('union', 0), (f'union of {FLAGS.most} each', FLAGS.most)):
    ids = _union(model, most)
    heads[name] = len(ids), transformer_fns.draft_head(merged, ids)
  run = jax.jit(
    lambda hidden, head: transformer_fns.draft_logits(merged, hidden, head)
  )
  seconds: dict[str, list[float]] = {name: [] for name in heads}
  for number in range(1 + FLAGS.rounds):
    for name, (_, head) in heads.items():
      start = time.process_time()
      jax.block_until_ready(run(hidden, head))
      if number:  # the first compiles
        seconds[name].append(time.process_time() - start)
  rows = [
    {
      'head': name,
      'tokens': heads[name][0],
      'least_ms': 1e3 * min(found),
      'median_ms': 1e3 * statistics.median(found),
    }
    for name, found in seconds.items()
  ]
  lines = ['| head | tokens | least, ms | median |', '|---|---|---|---|']
  lines += [
    f'| {row["head"]} | {row["tokens"]:,} | {row["least_ms"]:.1f} | '
    f'{row["median_ms"]:.1f} |'
    for row in rows
  ]
  command = ' '.join(['python', *sys.argv])
  text = '\n'.join([*lines, '', f'`{command}`', ''])
  print(text)
  document = {**measuring.machine(), 'command': command, 'rows': rows}
  measuring.write(FLAGS.output_dir, 'draft_head_cost', document, md=text)


if __name__ == '__main__':
  define_flags()
  script.run(main)
