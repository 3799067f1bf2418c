# SPDX-License-Identifier: Apache-2.0
"""A chat in the terminal; runs of accepted drafts are in colour.

  specstream chat
  specstream chat --temperature=0.7 --system='Answer in one sentence.'

Each colour is one call of the model that gave more than one token. Below an
answer stands how many tokens a call gave, and how fast they came. Ctrl-C ends
an answer, Ctrl-D the chat. Lines that begin with / are commands: /help lists
them. Without a terminal, every line of stdin is a turn, and there are no
colours; NO_COLOR in the environment switches them off, too.
"""

from collections.abc import Callable, Iterator, Sequence
import os
import sys

from absl import flags

from specstream_jax import runtime
from specstream_jax.cli import decoding_flags
from specstream_jax.config import checks, serving
from specstream_jax.serving import conversation, engine, requests

_COMMANDS = {
  '/help': 'this list',
  '/drafts on': 'draft answers (the default, where the model has drafts)',
  '/drafts off': 'decode without: same tokens, more calls',
  '/reset': 'forget what was said',
  '/quit': 'leave',
}
_COLOURS = (36, 33, 35, 32)  # of runs, in turns: cyan, yellow, magenta, green
_DIM = 2


def define_flags() -> None:
  """Defines the flags of this command."""
  decoding_flags.define_model()
  decoding_flags.define_adapter(runtime.AUTO_CHAT)
  decoding_flags.define_weights()
  decoding_flags.define_schedule()
  decoding_flags.define_sampling(generation_config='auto')
  flags.DEFINE_string('system', '', 'What the model is told first.')
  flags.DEFINE_string(
    'drafter',
    None,
    "NAME or NAME:setting=value,…; 'none' is plain decoding, default 'streams' "
    'if there is an adapter.',
  )
  flags.DEFINE_integer(
    'max_new_tokens', 512, 'Most new tokens of an answer.', lower_bound=1
  )
  flags.DEFINE_integer(
    'cache_length', 2048, 'Tokens that a chat may have in all.', lower_bound=64
  )


def main(argv: Sequence[str]) -> int:
  """Chats until the input ends."""
  del argv
  args = flags.FLAGS
  model = decoding_flags.load_model()
  conversation.check_can_chat(model)  # before minutes of compiling
  if model.adapter_dir and not model.is_chat:
    print(
      f'note: the adapter {args.adapter!r} was not trained on chats; '
      '--adapter= leaves it out',
      file=sys.stderr,
    )
  schedule = args.schedule
  cfg = serving.EngineConfig(
    num_slots=1,
    cache_length=args.cache_length,
    max_new_tokens=args.max_new_tokens,
    quantum=1,  # a look after each call, whose tokens have a colour
    **({'schedule': schedule} if schedule else {}),
  )
  sampling = decoding_flags.sampling(model)
  print('compiling …', file=sys.stderr, flush=True)
  served = engine.Engine(model, cfg, drafter=args.drafter)
  served.start()
  chat = conversation.Conversation(
    model, served, system=args.system, sampling=sampling, seed=args.seed
  )
  try:
    _talk(chat, _Screen())
  finally:
    served.close(0)
  return 0


class _Screen:
  """Where a chat is seen.

  Attributes:
    is_terminal: whether somebody types, and reads.
  """

  def __init__(self):
    self.is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    self._has_colours = sys.stdout.isatty() and not os.environ.get('NO_COLOR')

  def show(self, text: str, colour: int = 0) -> None:
    """Prints at once, without a line break."""
    if self._has_colours and colour:
      text = f'\033[{colour}m{text}\033[0m'
    print(text, end='', flush=True)

  def note(self, text: str) -> None:
    """Prints a line that is no part of the chat."""
    self.show(f'{text}\n', _DIM)


def _talk(chat: conversation.Conversation, screen: _Screen) -> None:
  """Turns, until the input ends or /quit."""
  if screen.is_terminal:
    screen.note('/help lists commands; Ctrl-C ends an answer, Ctrl-D the chat')
  for line in _lines(screen):
    text = line.strip()
    if text == '/quit':
      return
    if text.startswith('/'):
      screen.note(_command(chat, text))
    elif text:
      _turn(chat, text, screen)


def _lines(screen: _Screen) -> Iterator[str]:
  """What is typed, or the lines of stdin."""
  if not screen.is_terminal:
    yield from sys.stdin
    return
  _edit_lines()
  while True:
    try:
      yield input('> ')
    except EOFError:
      print()
      return
    except KeyboardInterrupt:
      screen.note('\nCtrl-D or /quit leaves')


def _edit_lines() -> None:
  """Arrow keys move and bring back lines, where Python was built with that."""
  try:
    import readline
  except ImportError:
    return
  del readline


def _command(chat: conversation.Conversation, text: str) -> str:
  """Does what a line that begins with / says; what to show of it."""
  if text == '/reset':
    chat.reset()
    return 'forgotten'
  if text in ('/drafts on', '/drafts off'):
    chat.has_drafts = text.endswith('on')
    return f'drafts are {text.split()[1]}'
  listed = '\n'.join(f'  {name:12} {what}' for name, what in _COMMANDS.items())
  unknown = '' if text == '/help' else f'{text} is no command; there are:\n'
  return unknown + listed


def _turn(chat: conversation.Conversation, text: str, screen: _Screen) -> None:
  """One answer, as it comes; Ctrl-C ends it."""
  try:
    handle = chat.ask(text)
  except ValueError as error:
    screen.note(f'{checks.message(error)}\n/reset makes room for another chat')
    return
  runs = _coloured(screen.show)
  try:
    for piece in handle:
      runs(piece)
  except KeyboardInterrupt:
    handle.cancel()
  answer = handle.result()
  chat.keep(answer)
  screen.show('\n')
  screen.note(_summary(answer))


def _coloured(
  show: Callable[[str, int], None],
) -> Callable[[requests.Piece], None]:
  """Shows pieces, those of several tokens in colours that take turns."""
  count = 0

  def piece_shown(piece: requests.Piece) -> None:
    nonlocal count
    is_run = len(piece.tokens) > 1
    show(piece.text, _COLOURS[count % len(_COLOURS)] if is_run else 0)
    count += is_run

  return piece_shown


def _summary(answer: requests.Completion) -> str:
  """What an answer took, in a line."""
  metrics = answer.metrics
  parts = [f'{metrics.num_new_tokens} tokens']
  after = metrics.num_new_tokens - 1  # the prompt's pass gave the first one
  if metrics.num_calls and metrics.first_token is not None:
    seconds = max(metrics.total - metrics.first_token, 1e-9)
    parts.append(f'{after / metrics.num_calls:.1f} per call')
    parts.append(f'{after / seconds:.0f} tokens/s')
  if answer.finish_reason not in ('eos', 'stop'):
    reason = {'length': 'max_new_tokens', 'cancelled': 'Ctrl-C'}
    ended = reason.get(answer.finish_reason, answer.finish_reason)
    parts.append(f'ended by {ended}')
  return f'[{", ".join(parts)}]'
