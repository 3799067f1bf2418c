# SPDX-License-Identifier: Apache-2.0
"""Serves a model and its adapters behind the OpenAI API.

  specstream serve --model=MODEL --adapter=sql=FOLDER --adapter=chat=FOLDER
  curl localhost:8000/v1/completions --json '{"model": "sql", "prompt": "…"}'

The name in `model` selects the base or an adapter; rows of different adapters
decode in one batch, each with its own drafts, and get the tokens that they would
get alone. --fold serves one adapter alone, folded into the base, which is
faster. Everything is compiled before the first request; until then, and while
it ends, /health says 503. Listens on 127.0.0.1 unless told otherwise; SIGTERM
lets what runs come to its end. Needs `pip install 'specstream-jax[serve]'`.
"""

from collections.abc import Mapping, Sequence
import functools
import importlib.util
import os
import sys

from absl import flags

from specstream_jax import config, runtime
from specstream_jax.checkpoints import fitted, loading
from specstream_jax.cli import decoding_flags, weights_flags
from specstream_jax.config import checks, serving

_KEY = 'SPECSTREAM_API_KEY'
# Flags of the same name as fields of `EngineConfig`.
_SIZES = ('num_slots', 'cache_length', 'max_new_tokens', 'chunk', 'quantum')
_SIZES += ('max_waiting', 'max_lora_rank', 'schedule', 'prefix_cache_mb')
_SIZES += ('max_drafting_rows', 'max_folded')


def define_flags() -> None:
  """Defines the flags of this command."""
  flags.DEFINE_string(
    'model', 'smollm2-135m-instruct', 'Known name, folder, hub id or GGUF file.'
  )
  flags.DEFINE_string(
    'model_name', None, 'Name of the base in the API; the last part of --model.'
  )
  flags.DEFINE_multi_string(
    'adapter',
    [],
    'NAME=FOLDER of an adapter, also of a PEFT LoRA, or NAME=NAME of one that '
    'ships; may be repeated.',
  )
  flags.DEFINE_bool(
    'allow_runtime_adapters',
    False,
    'Requests may load those of --adapter, and others below --adapter_root.',
  )
  flags.DEFINE_string(
    'adapter_root', None, 'Folder whose folders are adapters to load later.'
  )
  flags.DEFINE_bool(
    'fold', False, 'Serve the one adapter alone, under the name of the model.'
  )
  flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'bfloat16'], 'Of weights and activations.'
  )
  decoding_flags.define_weights_dtype()
  weights_flags.define()
  flags.DEFINE_string(
    'drafter',
    None,
    "NAME or NAME:setting=value,…; 'none' is plain decoding, default 'streams' "
    'if an adapter brings some.',
  )
  define_sizes()
  flags.DEFINE_string('host', '127.0.0.1', 'Address; 0.0.0.0 is all of them.')
  flags.DEFINE_integer('port', 8000, 'Port; 0 takes a free one.')
  flags.DEFINE_string(
    'api_key', None, f'That requests must have; better in ${_KEY}.'
  )
  flags.DEFINE_multi_string(
    'allowed_origin',
    [],
    'Of pages elsewhere that may ask, such as https://chat.example.org; may be '
    'repeated.',
  )
  flags.DEFINE_integer(
    'max_body_kb', 4096, 'Largest body of a request.', lower_bound=1
  )
  flags.DEFINE_float(
    'shutdown_timeout',
    30.0,
    'Seconds for what runs at the end.',
    lower_bound=0.0,
  )


def define_sizes() -> None:
  """Declares the flags that `EngineConfig` has fields for."""
  flags.DEFINE_integer('num_slots', None, 'Rows that decode together; 8.')
  flags.DEFINE_integer(
    'cache_length',
    None,
    'Positions of each for prompt, new tokens and draft tree; 1024.',
  )
  flags.DEFINE_integer(
    'max_new_tokens', None, 'Most new tokens of a request; 512.'
  )
  flags.DEFINE_integer(
    'chunk', None, 'Tokens of a prompt read between two quanta; 64.'
  )
  flags.DEFINE_integer(
    'quantum', None, 'Most steps between two looks at the queue; 8.'
  )
  flags.DEFINE_integer(
    'max_waiting', None, 'Requests that may wait, others get 429; 256.'
  )
  flags.DEFINE_integer(
    'max_lora_rank', None, 'Room for LoRA of more adapters than the first.'
  )
  flags.DEFINE_integer(
    'prefix_cache_mb',
    None,
    'Memory for how prompts begin, which those that begin alike share; 256, 0 '
    'is off.',
  )
  flags.DEFINE_list(
    'batch_sizes',
    None,
    'Numbers of rows to compile for, up to --num_slots; 1,8,64,… and that.',
  )
  flags.DEFINE_integer(
    'max_drafting_rows',
    None,
    'If more rows run, nobody drafts; measured at the start.',
  )
  flags.DEFINE_integer(
    'max_folded',
    None,
    'Adapters that are folded into copies of the model for when all rows have '
    'the same; 2, and 0 never does.',
  )
  flags.DEFINE_enum('schedule', None, config.SCHEDULES, 'When streams run.')


def main(argv: Sequence[str]) -> int:
  """Serves until SIGTERM or Ctrl-C."""
  del argv
  args = flags.FLAGS
  missing = [
    name
    for name in ('starlette', 'uvicorn', 'prometheus_client')
    if importlib.util.find_spec(name) is None
  ]
  checks.check(
    not missing,
    f'{", ".join(missing)} is not installed, which serving needs; install it '
    "with pip install 'specstream-jax[serve]'",
  )
  # Only here, as the packages are no part of a plain installation.
  from specstream_jax.serving import (
    engine as engine_lib,
    guards,
    http,
    listening,
  )

  is_local = guards.is_loopback(args.host)
  name = args.model_name or os.path.basename(args.model.rstrip('/'))
  pairs, cfg = _pairs(args, name), _sizes(args)
  _check_runtime(args, cfg)
  options = http.Options(
    name=name,
    api_key=args.api_key or os.environ.get(_KEY, ''),
    max_body_bytes=1024 * args.max_body_kb,
    shutdown_timeout=args.shutdown_timeout,
    allowed_origins=tuple(args.allowed_origin),
    is_local=is_local,
  )

  def make() -> engine_lib.Engine:
    model, adapters = _load(args, pairs)
    made = engine_lib.Engine(
      model, cfg, drafter=args.drafter, adapters=adapters, tell=tell
    )
    _say(f'ready: {", ".join([name, *made.adapters])}')
    return made

  server = http.Server(None, options, _shelf(args, pairs))

  def tell(number, total):
    _say(f'compiling program {number} of {total}')
    server.warming_up = {'compiling': number, 'of': total}

  with listening.listen(args.host, args.port) as port:
    _say(
      f'serving {name} on http://{args.host}:{port.getsockname()[1]}/v1'
      + ' (this machine only; --host says where)' * is_local
    )
    listening.serve(server, port, make)
  return 0


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _pairs(args, name: str) -> dict[str, str]:
  """--adapter, path by name."""
  pairs = {}
  for text in args.adapter:
    key, equals, path = text.partition('=')
    checks.check(
      bool(key and equals and path),
      f'--adapter is {text!r}; accepted: NAME=FOLDER',
    )
    checks.check(
      key not in (*pairs, name),
      f'--adapter: the name {key!r} is taken; take another',
    )
    pairs[key] = path
  checks.check(
    not args.fold or len(pairs) == 1,
    f'--fold serves one adapter alone, and {len(pairs)} are given',
  )
  return pairs


def _check_runtime(args, cfg) -> None:
  """Raises ValueError if adapters are to be loaded later, and cannot be."""
  root = args.adapter_root
  checks.check(
    root is None or args.allow_runtime_adapters,
    '--adapter_root is for adapters that are loaded later; add '
    '--allow_runtime_adapters',
  )
  checks.check(
    root is None or os.path.isdir(root),
    f'--adapter_root is {root!r}, which is no folder; accepted: a folder of '
    'adapters',
  )
  has_room = not args.fold and bool(args.adapter or cfg.max_lora_rank)
  checks.check(
    has_room or not args.allow_runtime_adapters,
    '--allow_runtime_adapters needs room for adapters beside the model; give '
    'one with --adapter, or --max_lora_rank, and no --fold',
  )


def _load(args, pairs: Mapping[str, str]):
  """The model, and the adapters that it is served with side by side."""
  load = functools.partial(
    runtime.load,
    args.model,
    dtype=args.dtype,
    weights_dtype=args.weights_dtype,
    streamed=weights_flags.streamed(),
  )
  if args.fold:
    [path] = pairs.values()
    return load(path), {}
  model = load(None)
  if not pairs:
    return model, {}
  outline = _outline(args.model, args.dtype)
  return model, {key: fitted.read(path, outline) for key, path in pairs.items()}


@functools.cache
def _outline(model: str, dtype: str) -> loading.LoadedModel:
  """The base as adapters are held to it."""
  return loading.load_model(model, dtype=dtype, lazy=True)


def _shelf(args, pairs: Mapping[str, str]):
  """What requests may load; None if they may load nothing."""
  from specstream_jax.serving import shelf

  if not args.allow_runtime_adapters:
    return None
  read = lambda path: fitted.read(path, _outline(args.model, args.dtype))
  return shelf.Shelf(read, pairs, args.adapter_root or '')


def _sizes(args) -> serving.EngineConfig:
  """Sizes: flags before gin before defaults."""
  given = {name: getattr(args, name) for name in _SIZES}
  given = {name: value for name, value in given.items() if value is not None}
  if weights_flags.streamed() is not None:
    given.setdefault('schedule', weights_flags.SCHEDULE)
  if args.batch_sizes is not None:
    are_numbers = all(size.isdecimal() for size in args.batch_sizes)
    checks.check(
      are_numbers,
      f'--batch_sizes is {",".join(args.batch_sizes)!r}; accepted: numbers such '
      'as 1,4,8',
    )
    given['batch_sizes'] = tuple(map(int, args.batch_sizes))
  return serving.EngineConfig(**given)
