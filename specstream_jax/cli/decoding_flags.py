# SPDX-License-Identifier: Apache-2.0
"""Flags that every decoding command shares, and the configs they make."""

from collections.abc import Sequence
import dataclasses
import sys
from typing import Any

from absl import flags
import gin

from specstream_jax import config, processes, runtime
from specstream_jax.checkpoints import tuning
from specstream_jax.cli import text_flags, weights_flags
from specstream_jax.decoding import topology
from specstream_jax.workflows import tune


def define(*, generation_config: str) -> None:
  """Declares the flags of model, tree, schedule and sampling.

  None as a default leaves the value to gin or to the adapter.

  Args:
    generation_config: default of --generation_config.
  """
  define_model()
  define_adapter()
  define_weights()
  flags.DEFINE_enum(
    'tree',
    None,
    ['best_first', 'full', 'chain', 'fixed'],
    "Kind of draft tree; the adapter's own if not given.",
  )
  flags.DEFINE_integer(
    'num_nodes',
    None,
    'Nodes of a best_first tree, with the root. More save more calls and make '
    'each of them dearer.',
  )
  flags.DEFINE_integer(
    'depth',
    None,
    'How many tokens ahead drafts reach; at most the number of streams.',
  )
  flags.DEFINE_integer(
    'branching',
    None,
    'Children per node; of a best_first tree, candidates per depth.',
  )
  flags.DEFINE_string(
    'choices',
    None,
    'JSON file of rank paths for --tree=fixed, such as [[0], [1], [0, 0]].',
  )
  define_schedule()
  flags.DEFINE_integer(
    'max_new_tokens', None, 'Most new tokens per prompt; 64 if not given.'
  )
  define_sampling(generation_config=generation_config)


def define_model() -> None:
  """Declares --model."""
  flags.DEFINE_string(
    'model',
    'smollm2-135m-instruct',
    'The model: a known name, a folder, a hub id or a GGUF file.',
  )


def define_dtype(default: str = 'float32') -> None:
  """Declares --dtype."""
  flags.DEFINE_enum(
    'dtype',
    default,
    ['float32', 'bfloat16'],
    'Number type of weights and activations.',
  )


def define_weights() -> None:
  """Declares --dtype and --weights_dtype, of a command that decodes."""
  define_dtype()
  define_weights_dtype()


def define_weights_dtype() -> None:
  """Declares --weights_dtype."""
  flags.DEFINE_enum(
    'weights_dtype',
    '',
    config.WEIGHTS_DTYPES,
    'int8 stores the matrices of the model in 8 bits: another model, near the '
    'one in --dtype. A TPU then reads half of the bytes of bfloat16 weights, by '
    'its compiler; on a CPU it saves memory, and no gain in time was shown.',
  )


def define_schedule(default: str | None = None) -> None:
  """Declares --schedule."""
  flags.DEFINE_enum(
    'schedule',
    default,
    config.SCHEDULES,
    'When streams run: parallel, in one pass with the tree (GPU, TPU); '
    'deferred, after it and for the accepted token alone (CPU); likely, in one '
    'pass at the nodes where it probably ends, deferred where it does not.',
  )


def define_sampling(*, generation_config: str) -> None:
  """Declares the flags that `sampling` reads, and --seed.

  Args:
    generation_config: default of --generation_config.
  """
  define_generation_config(generation_config)
  flags.DEFINE_float(
    'temperature',
    None,
    'How much chance there is in drawing a token; 0, the default, takes the '
    'likeliest.',
  )
  flags.DEFINE_integer(
    'top_k', None, 'Draw among so many likeliest tokens; 0 is off.'
  )
  flags.DEFINE_float(
    'top_p',
    None,
    'Draw among the likeliest tokens that have this probability together; 1 '
    'is off.',
  )
  flags.DEFINE_float(
    'min_p',
    None,
    "Leave out tokens below this share of the best one's probability; 0 is off.",
  )
  flags.DEFINE_float(
    'repetition_penalty',
    None,
    'Divides the logits of tokens that the text already has; 1 is off.',
  )
  flags.DEFINE_list(
    'logit_bias', None, 'ID:NUMBER,…, added to the logits of token ids.'
  )
  flags.DEFINE_list('suppress_tokens', None, 'Token ids never drawn.')
  flags.DEFINE_integer(
    'min_new_tokens', None, 'EOS is not drawn before so many new tokens.'
  )
  flags.DEFINE_bool('ignore_eos', None, 'Go on after EOS, up to the limit.')
  flags.DEFINE_integer(
    'seed', 0, 'Seed of the noise when the temperature is above 0.'
  )


def define_adapter(default: str = runtime.AUTO) -> None:
  """Declares --adapter, by default one that ships with the model it is of."""
  name = runtime.DEFAULT_ADAPTER
  if default == runtime.AUTO_CHAT:
    name = runtime.CHAT_ADAPTER
  flags.DEFINE_string(
    'adapter',
    default,
    'Folder of an adapter or of a PEFT LoRA, or the name of one that ships; '
    f'{default} is {name} with the model it belongs to and none with others; '
    'empty is none.',
  )


def define_generation_config(default: str) -> None:
  """Declares --generation_config, which `own_sampling` reads."""
  flags.DEFINE_enum(
    'generation_config',
    default,
    ['auto', 'none'],
    "auto draws tokens as the model's generation_config.json says, where no "
    'flag says otherwise, and names what it took; none does not read it.',
  )


def define_shard() -> None:
  """Declares --shard, which `shard` reads."""
  flags.DEFINE_string(
    'shard',
    'auto',
    'Which part of the work this run does: 1/4 is the second of four. auto '
    'takes its place in the launched job, 0/1 without one.',
  )


def shard() -> tuple[int, int]:
  """(this run's number, of how many)."""
  args = flags.FLAGS
  return processes.shard(
    args.shard, num_processes=args.num_processes, process_id=args.process_id
  )


def load_model(*, adapter: str = '') -> runtime.Model:
  """The model of --model, --adapter, --dtype and --weights_dtype.

  Args:
    adapter: where --adapter is not given.
  """
  args = flags.FLAGS
  is_given = args['adapter'].present
  name = args.adapter if is_given else adapter or args.adapter
  return runtime.load(
    args.model,
    name or None,
    dtype=args.dtype,
    weights_dtype=args.weights_dtype,
    streamed=weights_flags.streamed(),
    fuse=True,
  )


def decode() -> config.DecodeConfig:
  """Sizes and schedule: flags before gin before defaults."""
  args = flags.FLAGS
  return _override(
    config.DecodeConfig(),
    max_new_tokens=args.max_new_tokens,
    schedule=args.schedule,
  )


def schedule() -> str | None:
  """--schedule, then gin's; None where nobody said."""
  bound = gin.get_bindings(config.DecodeConfig)
  asked = flags.FLAGS.schedule if 'schedule' in flags.FLAGS else None
  return asked or bound.get('schedule')


def tuned(model: runtime.Model, num_rows: int) -> tuning.Tuned | None:
  """What was tuned for the model and so many rows, and no flag speaks against.

  Raises:
    ValueError: tuning.json is damaged.
  """
  found = tune.find(model, num_rows)
  if found is None or tree(model.tree) != model.tree:
    return None
  return found if schedule() in (None, found.schedule) else None


def tree(default: config.TreeConfig) -> config.TreeConfig:
  """The tree of flags, then gin, `default` filling what they leave out."""
  args = flags.FLAGS
  values = config.to_json(default) | gin.get_bindings(config.TreeConfig)
  asked = {
    'kind': args.tree,
    'num_nodes': args.num_nodes,
    'depth': args.depth,
    'branching': args.branching,
    'choices': _choices(args.choices),
  }
  values |= {name: value for name, value in asked.items() if value is not None}
  if args.choices and values['kind'] != 'fixed':
    raise ValueError('--choices is for --tree=fixed; add that, or leave it out')
  return config.from_json(config.TreeConfig, values)


def own_sampling(model: runtime.Model) -> config.SamplingConfig:
  """How tokens are drawn without flags: gin before the model's wishes.

  Those come before the defaults, and are named on stderr, if
  --generation_config asks for them.
  """
  cfg = config.SamplingConfig()
  if flags.FLAGS.generation_config == 'none':
    return cfg
  wishes = model.wishes()
  if line := wishes.line():
    print(line, file=sys.stderr)
  bound = gin.get_bindings(config.SamplingConfig)
  return _override(
    wishes.sampling, **{name: getattr(cfg, name) for name in bound}
  )


def sampling(model: runtime.Model) -> config.SamplingConfig:
  """How tokens are drawn: flags before `own_sampling`."""
  args = flags.FLAGS
  return _override(
    own_sampling(model),
    temperature=args.temperature,
    top_k=args.top_k,
    top_p=args.top_p,
    min_p=args.min_p,
    repetition_penalty=args.repetition_penalty,
    logit_bias=_biases(args.logit_bias),
    suppress_tokens=_token_ids(args.suppress_tokens),
    min_new_tokens=args.min_new_tokens,
    ignore_eos=args.ignore_eos,
  )


def _token_ids(texts: Sequence[str] | None) -> tuple[int, ...] | None:
  """Token ids of --suppress_tokens, or None."""
  if texts is None:
    return None
  try:
    return tuple(map(int, texts))
  except ValueError:
    raise ValueError(
      f'--suppress_tokens is {",".join(texts)!r}; accepted: token ids, parted '
      'by commas'
    ) from None


def _biases(texts: Sequence[str] | None) -> tuple[Any, ...] | None:
  """(token id, bias) pairs of --logit_bias, or None."""
  if texts is None:
    return None
  pairs = [text.partition(':') for text in texts]
  try:
    return tuple((int(token), float(bias)) for token, _, bias in pairs)
  except ValueError:
    raise ValueError(
      f'--logit_bias is {",".join(texts)!r}; accepted: ID:NUMBER, parted by '
      'commas, such as 42:-5,7:1.5'
    ) from None


def numbers(
  name: str, texts: Sequence[str], kind: type[float] | type[int] = float
) -> tuple[Any, ...]:
  """A list flag's numbers; raises ValueError naming the flag."""
  try:
    return tuple(map(kind, texts))
  except ValueError:
    noun = {int: 'whole numbers', float: 'numbers'}[kind]
    raise ValueError(
      f'--{name} is {",".join(texts)!r}; accepted: {noun}, parted by commas'
    ) from None


def _override(cfg: Any, **values: Any) -> Any:
  """The config with the values that are not None."""
  given = {name: value for name, value in values.items() if value is not None}
  return dataclasses.replace(cfg, **given)


def _choices(path: str | None):
  """Rank paths from a JSON file, or None."""
  if not path:
    return None
  try:
    return topology.choices_from_json(text_flags.read(path, 'choices'))
  except ValueError as error:
    raise ValueError(f'--choices={path}: {error}') from error
