# SPDX-License-Identifier: Apache-2.0
"""Flags of weights that pass through memory instead of staying there."""

from typing import Any

from absl import flags

from specstream_jax import config
from specstream_jax.cli import sizes

# Of streams, where nobody says: one pass a call.
SCHEDULE = 'parallel'


def define() -> None:
  """Declares --weights, --memory_budget and --resident_layers."""
  flags.DEFINE_enum(
    'weights',
    'resident',
    ['resident', 'stream', 'host'],
    'resident: all weights stay in memory. stream: layers are read from disk in '
    'every call, for models larger than memory; embeddings, LM head and adapter '
    'stay. host: layers lie in the memory of the host of a GPU or TPU, and are '
    'copied to it in every call.',
  )
  flags.DEFINE_string(
    'memory_budget',
    None,
    'With --weights=stream or host: memory of the device for weights, such as 2GB, 500MiB or bytes; '
    'as many layers stay as fit. If not given, --resident_layers stay.',
  )
  flags.DEFINE_integer(
    'resident_layers',
    None,
    'With --weights=stream or host: so many layers stay; 0 if not given.',
    lower_bound=0,
  )


def streamed() -> config.StreamedWeightsConfig | None:
  """How weights are streamed; None where they stay, or there is no such flag.

  Raises:
    ValueError: flags contradict each other.
  """
  args = flags.FLAGS
  if 'weights' not in args:
    return None
  asked = {'memory_budget': args.memory_budget}
  asked['resident_layers'] = args.resident_layers
  given = [name for name, value in asked.items() if value is not None]
  if args.weights == 'resident':
    if given:
      raise ValueError(f'--{given[0]} is for --weights=stream; add that')
    return None
  if len(given) == 2:
    raise ValueError(
      '--memory_budget says how many layers stay; leave out --resident_layers'
    )
  values: dict[str, Any] = {name: asked[name] for name in given}
  values['source'] = 'host' if args.weights == 'host' else 'disk'
  if args.memory_budget is not None:
    values['memory_budget'] = sizes.num_bytes(
      args.memory_budget, 'memory_budget'
    )
  return config.StreamedWeightsConfig(**values)


def schedule(args: Any) -> str:
  """--schedule; not given and with streamed weights, `SCHEDULE`."""
  if args.weights == 'resident' or args['schedule'].present:
    return args.schedule
  return SCHEDULE
