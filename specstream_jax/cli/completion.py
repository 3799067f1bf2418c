# SPDX-License-Identifier: Apache-2.0
"""Prints what completes commands and flags in a shell.

specstream completion bash >> ~/.bashrc
specstream completion zsh > ~/.zfunc/_specstream   # a folder of $fpath
specstream completion fish > ~/.config/fish/completions/specstream.fish
"""

from collections.abc import Callable, Mapping, Sequence
import shlex

from absl import flags

from specstream_jax.cli import command_flags, help_texts

TAKES_NAMES = True
Flags = Mapping[str, Mapping[str, str]]


def define_flags() -> None:
  """This command has no flags of its own."""


def main(argv: Sequence[str]) -> int:
  """Prints the script of a shell."""
  shell = argv[1] if len(argv) == 2 else ' '.join(argv[1:])
  if shell not in SHELLS:
    raise ValueError(f'shell is {shell!r}; accepted: {", ".join(SHELLS)}')
  print(SHELLS[shell](collect()))
  return 0


def collect() -> dict[str, dict[str, str]]:
  """Command -> its flags as they are typed, with one line of help each."""
  common = {n: flags.FLAGS[n] for n in ('gin_file', 'recipe', 'debug')}
  found = {}
  for name in help_texts.COMMANDS:
    own = command_flags.of(name)
    found[name] = {
      typed(flag): help_texts.summary(flag)
      for _, flag in sorted((common | own).items())
    }
  return found


def typed(flag: flags.Flag) -> str:
  """--switch, or --flag= for what takes a value."""
  return f'--{flag.name}' + ('' if flag.flag_type() == 'bool' else '=')


def bash(found: Flags) -> str:
  """The script of bash."""
  cases = '\n'.join(
    f'    {name}) words={shlex.quote(" ".join(options))} ;;'
    for name, options in found.items()
  )
  return f"""# specstream: commands and flags
_specstream() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words=''
  if [ "$COMP_CWORD" -eq 1 ]; then
    words={shlex.quote(' '.join(found))}
  else case "${{COMP_WORDS[1]}}" in
{cases}
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  [[ "${{COMPREPLY[0]}}" == *= ]] && compopt -o nospace
}}
complete -o default -F _specstream specstream"""


def zsh(found: Flags) -> str:
  """The script of zsh."""
  cases = '\n'.join(
    f'    {name}) options=({_described(options)}) ;;'
    for name, options in found.items()
  )
  return f"""#compdef specstream
_specstream() {{
  local -a commands options
  commands=({_described(help_texts.COMMANDS)})
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  case "$words[2]" in
{cases}
  esac
  _describe -o option options -S '' || _files
}}
compdef _specstream specstream"""


def _described(items: Mapping[str, str]) -> str:
  """'name:what it is' words, as zsh wants them."""
  return ' '.join(
    shlex.quote(f'{name.replace(":", chr(92) + ":")}:{about}')
    for name, about in items.items()
  )


def fish(found: Flags) -> str:
  """The script of fish."""
  lines = ['# specstream: commands and flags']
  for name, about in help_texts.COMMANDS.items():
    lines.append(
      'complete -c specstream -n __fish_use_subcommand -a '
      f'{name} -d {_fish(about)}'
    )
  for name, options in found.items():
    for option, about in options.items():
      takes = ' -r' if option.endswith('=') else ''
      word = option.strip('-=')
      lines.append(
        f"complete -c specstream -n '__fish_seen_subcommand_from {name}' "
        f'-l {word}{takes} -d {_fish(about)}'
      )
  return '\n'.join(lines)


def _fish(text: str) -> str:
  """A word in single quotes, where fish knows two escapes."""
  escaped = text.replace('\\', '\\\\').replace("'", "\\'")
  return f"'{escaped}'"


SHELLS: dict[str, Callable[[Flags], str]] = {
  'bash': bash,
  'zsh': zsh,
  'fish': fish,
}
