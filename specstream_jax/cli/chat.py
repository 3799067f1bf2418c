# SPDX-License-Identifier: Apache-2.0
"""Talks with a model in the terminal.

  specstream chat --adapter= --system='Answer in one sentence.'
  specstream chat --model=MODEL --adapter=FOLDER --temperature=0.7

Answers appear call by call, on the engine that `specstream serve` has. Tokens
that one call gave together have a colour, the stronger the more they are; the
end of an answer tells tokens per call and tokens per second. NO_COLOR=1 or
output that is no terminal has no colours. A model without a chat template, or
with an adapter that was not trained on chats, takes each line as a text to
continue with --nochat.

Lines that begin with / are for the program: /help lists them. Ctrl-C ends an
answer, Ctrl-D the conversation.
"""

from collections.abc import Sequence
import os
import signal
import sys

from absl import flags

from specstream_jax.cli import decoding_flags
from specstream_jax.config import checks, drafting, serving

HELP = """/help          this list
/reset         begin again, with the same --system
/drafts on     draft (off: decode plainly; the tokens are the same)
/quit          leave; so does Ctrl-D
Ctrl-C ends an answer."""


def define_flags() -> None:
  """Defines the flags of this command."""
  decoding_flags.define(generation_config='auto')
  flags.DEFINE_string('system', None, 'What the model is told before all else.')
  flags.DEFINE_bool(
    'chat',
    None,
    "Lines go through the model's chat template, --nochat continues each as it "
    'is; default: chat, which a model must be made for.',
  )
  flags.DEFINE_string(
    'drafter',
    None,
    "NAME or NAME:setting=value,…; 'none' is plain decoding, default 'streams' "
    'if there is an adapter.',
  )
  flags.DEFINE_integer(
    'cache_length',
    1024,
    'Positions for the conversation, the answer and the draft tree.',
    lower_bound=1,
  )


def main(argv: Sequence[str]) -> int:
  """Talks until /quit or Ctrl-D."""
  del argv
  args = flags.FLAGS
  checks.check(
    args.system is None or args.chat is not False,
    '--system is for chats, and --nochat continues texts; leave one out',
  )
  model = decoding_flags.load_model()
  is_chat = args.chat is not False
  checks.check(
    bool(model.chat_template) or not is_chat,
    'the model has no chat template; --nochat continues each line as a text',
  )
  checks.check(
    model.is_chat or args.chat is not None,
    'the adapter was not trained on chats; --adapter= leaves it out, --nochat '
    'continues each line as a text, --chat talks all the same',
  )
  # Only here, as they bring JAX programs.
  from specstream_jax.serving import conversation, engine as engine_lib

  tree = decoding_flags.tree(model.tree)
  talk = conversation.Conversation(
    engine_lib.Engine(model, _sizes(args), drafter=_drafter(args, model, tree)),
    sampling=decoding_flags.sampling(model),
    system=args.system,
    seed=args.seed,
    is_chat=is_chat,
  )
  _talk(talk, has_colour())
  return 0


def has_colour() -> bool:
  """Whether stdout is a terminal whose user has nothing against colours."""
  return sys.stdout.isatty() and not os.environ.get('NO_COLOR')


def painted(text: str, count: int) -> str:
  """The text of a call that gave `count` tokens."""
  if count < 2 or not text:
    return text
  # Of the 256 colours: green, over yellow, to red.
  shade = (34, 40, 112, 184, 214, 203)[min(count - 2, 5)]
  return f'\x1b[38;5;{shade}m{text}\x1b[0m'


def _drafter(args, model, tree) -> drafting.DrafterConfig:
  """The drafter of --drafter and of the flags of the tree."""
  return drafting.parse(
    args.drafter or ('streams' if model.stream else 'none'), tree
  )


def _sizes(args) -> serving.EngineConfig:
  """One row; every call is looked at, to be shown."""
  cfg = decoding_flags.decode()
  return serving.EngineConfig(
    num_slots=1,
    cache_length=args.cache_length,
    max_new_tokens=args.max_new_tokens or 512,
    quantum=1,
    schedule=cfg.schedule,
  )


def _talk(talk, is_coloured: bool) -> None:
  """Reads lines and answers them."""
  is_tty = sys.stdin.isatty()
  if is_tty:
    print('/help lists what there is beside talking.', file=sys.stderr)
  while True:
    try:
      line = input('> ' if is_tty else '')
    except EOFError:
      break
    except KeyboardInterrupt:
      print('\n/quit or Ctrl-D leaves', file=sys.stderr)
      continue
    if line.strip() == '/quit':
      break
    if line.startswith('/'):
      print(_command(talk, line.split()), file=sys.stderr)
    elif line.strip():
      _answer(talk, line, is_coloured)


def _command(talk, words: Sequence[str]) -> str:
  """Does what a line asks that begins with /; what to say about it."""
  match words:
    case ['/help']:
      return HELP
    case ['/reset']:
      talk.reset()
      return 'begun again'
    case ['/drafts', 'on' | 'off' as state]:
      talk.has_drafts = state == 'on'
      return f'drafts {state}'
  return f'{" ".join(words)!r} is no command; /help lists them'


def _answer(talk, line: str, is_coloured: bool) -> None:
  """Prints the answer to a line, and what it cost."""
  try:
    handle = talk.ask(line)
  except ValueError as error:
    print(f'{checks.message(error)}; /reset begins again', file=sys.stderr)
    return
  # An exception amid a turn of the engine would leave it half done.
  before = signal.signal(signal.SIGINT, lambda *_: handle.cancel())
  try:
    for piece in talk.pieces(handle):
      count = len(piece.tokens) if is_coloured else 0
      print(painted(piece.text, count), end='', flush=True)
  finally:
    signal.signal(signal.SIGINT, before)
  print(f'\n[{talk.cost(handle)}]')
