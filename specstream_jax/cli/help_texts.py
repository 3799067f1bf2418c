# SPDX-License-Identifier: Apache-2.0
"""What `specstream`, `--help` and `--helpfull` print."""

from collections.abc import Mapping, Sequence
import textwrap

from absl import flags

from specstream_jax.cli import recipes

COMMANDS = {
  'quickstart': 'fetch a model and show it decoding faster, with equal tokens',
  'fetch': 'bring a known model to the cache folder',
  'info': 'print what a model, an adapter or a folder of records holds',
  'adapt': 'make a model faster on your own rows, in one command',
  'prepare': 'run a task once and write token records for training',
  'train': 'train speculative streams and LoRA on token records',
  'train_medusa': 'train Medusa heads on token records, to compare with',
  'train_dart': 'train a DART layer on token records, to compare with',
  'distill': "write the model's own answers as training data",
  'generate': 'complete prompts',
  'chat': 'talk to a model in the terminal, accepted drafts in colour',
  'serve': 'answer many at once behind the OpenAI API, each with its adapter',
  'export': 'write model and adapter as folders that other engines load',
  'evaluate': 'compare speculative with plain decoding on a task',
  'bench': 'compare drafters on tasks: one table, one report',
  'profile': 'show where the time of a decode step goes on this machine',
  'tune': 'find the fastest draft tree on this machine, and keep it',
  'results': "write benchmarks as the paper's table",
  'check': 'prove that drafts change nothing: tokens, laws, logits, weights',
  'compile': 'try a TPU slice that is not there: memory, traffic, does it fit?',
  'completion': 'print what completes commands and flags in bash, zsh or fish',
}
GROUPS = {
  'start': ('quickstart', 'fetch', 'info', 'completion'),
  'train': (
    *('adapt', 'prepare', 'train', 'distill'),
    *('train_medusa', 'train_dart'),
  ),
  'decode': ('generate', 'chat', 'serve', 'export'),
  'measure': ('tune', 'profile', 'evaluate', 'bench', 'results', 'check'),
  'scale': ('compile',),
}
_FOOT = (
  'A switch --x is turned off with --nox. --gin.Class.field=value sets any\n'
  'config field that the command uses; config/ describes them. Gin files\n'
  'may do no more than that unless --trust_gin is given.'
)


def usage() -> str:
  """The text of `specstream --help`: commands in groups."""
  width = max(map(len, COMMANDS))
  lines = ['usage: specstream COMMAND [flags]', '']
  for group, names in GROUPS.items():
    lines.append(f'{group}:')
    lines += [f'  {name:{width}}  {COMMANDS[name]}' for name in names]
    lines.append('')
  listed = textwrap.fill(
    ', '.join(recipes.names()),
    initial_indent='  ',
    subsequent_indent='  ',
    break_on_hyphens=False,
  )
  return '\n'.join(
    [
      *lines,
      'specstream COMMAND --help lists the flags of a command.',
      '--gin_file=FILE and --gin.Class.field=value set any config field,',
      '--recipe=NAME those of a recipe that comes with the package:',
      listed,
    ]
  )


def command_usage(
  name: str, about: str, sections: Mapping[str, Sequence[str]], more: str = ''
) -> str:
  """The text of `specstream COMMAND --help`.

  Args:
    name: of the command.
    about: docstring of its module.
    sections: title -> names of flags, in order.
    more: what the command adds at the end.
  """
  lines = [f'usage: specstream {name} [flags]', '', about.strip(), '']
  for title, names in sections.items():
    if names:
      lines += [f'{title}:', *(_flag_help(flags.FLAGS[n]) for n in names), '']
  return '\n'.join([*lines, *filter(None, [more and f'{more}\n', _FOOT])])


def summary(flag: flags.Flag) -> str:
  """The help of a flag in one line, with its default."""
  text = ' '.join((flag.help or '').split()).replace('.; repeat', '; repeat')
  if flag.default not in (None, '', [], False):
    text += f' (default {flag.default_as_str})'
  return text


def _flag_help(flag: flags.Flag) -> str:
  head = f'  --{flag.name}'
  if isinstance(flag, flags.EnumFlag):
    head += f'=<{"|".join(map(str, flag.parser.enum_values))}>'
  elif flag.flag_type() != 'bool':
    head += f'=<{flag.flag_type()}>'
  return '\n'.join(
    [head, *(f'      {line}' for line in textwrap.wrap(summary(flag), 72))]
  )
