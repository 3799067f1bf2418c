# SPDX-License-Identifier: Apache-2.0
"""Flags that every decoding command shares, and the configs they make."""

from absl import flags

from specstream_jax import config, runtime
from specstream_jax.decoding import topology


def define() -> None:
  flags.DEFINE_string(
    'model', 'smollm2-135m-instruct', 'Known name, folder, hub id or GGUF file.'
  )
  flags.DEFINE_string('adapter', 'e2e_nlg', 'Folder, or one that ships.')
  flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'bfloat16'], 'Of weights and activations.'
  )
  flags.DEFINE_enum(
    'tree',
    None,
    ['best_first', 'full', 'chain', 'fixed'],
    "Kind of draft tree; the adapter's own if not given.",
  )
  flags.DEFINE_integer('num_nodes', None, 'Nodes of a best_first tree.')
  flags.DEFINE_integer('depth', None, 'Depth of the draft tree.')
  flags.DEFINE_integer('branching', None, 'Children per node.')
  flags.DEFINE_string('choices', None, 'JSON of rank paths for --tree=fixed.')
  flags.DEFINE_enum(
    'schedule', 'deferred', ['deferred', 'parallel'], 'When streams run.'
  )
  flags.DEFINE_integer('max_new_tokens', 64, 'Most new tokens per prompt.')
  flags.DEFINE_float('temperature', 0.0, '0 is greedy.')
  flags.DEFINE_integer('top_k', 0, '0 is off.')
  flags.DEFINE_float('top_p', 1.0, '1 is off.')
  flags.DEFINE_integer('seed', 0, 'Of the noise when temperature > 0.')


def load_model() -> runtime.Model:
  args = flags.FLAGS
  return runtime.load(args.model, args.adapter or None, dtype=args.dtype)


def tree(default: config.TreeConfig) -> config.TreeConfig:
  """The tree the flags ask for, `default` filling what they leave out."""
  args = flags.FLAGS
  values = config.to_json(default)
  asked = {
    'kind': args.tree,
    'num_nodes': args.num_nodes,
    'depth': args.depth,
    'branching': args.branching,
    'choices': _choices(args.choices),
  }
  values |= {name: value for name, value in asked.items() if value is not None}
  return config.from_json(config.TreeConfig, values)


def sampling() -> config.SamplingConfig:
  args = flags.FLAGS
  return config.SamplingConfig(args.temperature, args.top_k, args.top_p)


def _choices(path: str | None):
  """Rank paths from a JSON file, or None."""
  if not path:
    return None
  with open(path) as file:
    return topology.choices_from_json(file.read())
