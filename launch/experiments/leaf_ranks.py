# SPDX-License-Identifier: Apache-2.0
"""How often a call ends at one of the C nodes where the drafts say it will.

Nothing is timed. Prints, for C = 1 to 4, in how many of the calls the accepted
path ended at one of the C likeliest leaves, and how many there should have been
by the drafts' own probabilities.
"""

import json

from absl import flags
import jax
import jax.numpy as jnp
import measuring
import numpy as np
import script

from specstream_jax import config, runtime
from specstream_jax.bench import grid, journal
from specstream_jax.config import drafting
from specstream_jax.decoding import likely, loop, tree as tree_lib
from specstream_jax.workflows import bench

FLAGS = flags.FLAGS
_MOST = 4


def define_flags() -> None:
  """Declares the flags."""
  flags.DEFINE_string('model', 'smollm2-135m-instruct', 'Folder or name.')
  flags.DEFINE_string('adapter', 'e2e_nlg', 'Folder or name.')
  flags.DEFINE_string('task', 'e2e_sample/test', 'As of `specstream bench`.')
  flags.DEFINE_string('drafter', 'streams:num_nodes=8', 'As of `bench`.')
  flags.DEFINE_integer('num_prompts', 24, 'Of the task.', lower_bound=1)
  flags.DEFINE_integer('max_new_tokens', 64, 'Per prompt.', lower_bound=2)
  flags.DEFINE_string('output_dir', 'results/leaf_ranks', 'Folder to write.')


def _ranked_steps(decoder, prompts):
  """(rank of the leaf, chances in falling order) of every call of the rows."""
  setup, params = decoder.setup, decoder.params

  @jax.jit
  def step(params, state):
    forward = loop._forward_tree(setup, params, state)
    asked = loop._verification(setup, params, state, forward)
    leaf = setup.verifier(asked, state.settings, setup.path_length).leaf
    tree = state.tree
    mask = tree_lib.ancestor_mask(tree.parents)
    chances = likely.leaf_probabilities(tree.scores, mask, tree.depths)
    order = likely.choose(chances, tree.tokens.shape[1])
    rank = jnp.argmax(order == leaf[:, None], axis=1)
    falling = jnp.take_along_axis(chances, order, axis=1)
    return loop.step(setup, params, state), rank, falling

  for prompt in prompts:
    state = decoder.start(params, [prompt])
    while not np.asarray(state.is_done).all():
      state, rank, falling = step(params, state)
      yield int(rank[0]), np.asarray(falling[0])


def main() -> None:
  """Measures and writes leaf_ranks.json."""
  model = runtime.load(FLAGS.model, FLAGS.adapter)
  options = bench.Options(tasks=(FLAGS.task,), num_prompts=FLAGS.num_prompts)
  plan = bench.make_plan(options)
  rows = grid.Bench(model, plan, [], journal.Memory())
  prompts = [
    list(row.prompt)
    for batch in rows.batches(plan.cells[0], 0)
    for row in batch
  ]
  decoder = model.decoder(
    drafting.parse(FLAGS.drafter, model.tree),
    config.DecodeConfig(
      max_new_tokens=FLAGS.max_new_tokens, eos_ids=model.eos_ids
    ),
  )
  ranks, chances = zip(*_ranked_steps(decoder, prompts), strict=True)
  found = {
    'calls': len(ranks),
    'share': [float(np.mean(np.less(ranks, c + 1))) for c in range(_MOST)],
    'expected': np.cumsum(np.mean(chances, axis=0))[:_MOST].tolist(),
  }
  print(json.dumps(found))
  measuring.write(FLAGS.output_dir, 'leaf_ranks', found)


if __name__ == '__main__':
  define_flags()
  script.run(main)
