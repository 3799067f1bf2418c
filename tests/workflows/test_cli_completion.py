# SPDX-License-Identifier: Apache-2.0
"""Usage in groups, help of drafters, completion scripts."""

import shutil
import subprocess

import commands
import pytest

from specstream_jax.cli import completion, drafter_help, help_texts, main
from specstream_jax.config import drafting

FLAGS = {
  'bench': {'--tasks=': "it's [a] list: of names", '--resume': 'go on'},
  'info': {'--debug': ''},
}


def test_every_command_is_in_one_group():
  grouped = [name for names in help_texts.GROUPS.values() for name in names]
  assert sorted(grouped) == sorted(help_texts.COMMANDS)
  text = help_texts.usage()
  assert text.index('start:') < text.index('  adapt ') < text.index('scale:')


def test_usage_is_what_the_bare_command_prints(capsys):
  with pytest.raises(SystemExit, match=r'^0$'):
    main.run([])
  assert capsys.readouterr().out.strip() == help_texts.usage()


def test_help_of_bench_has_every_drafter_and_setting():
  text = drafter_help.text()
  for name in drafting.DRAFTERS:
    assert f'\n  {name}: ' in text
    for setting in drafting.DrafterConfig(name=name).reads():
      assert setting == 'tree' or f'\n  {setting}: ' in text, setting
  assert 'window: columns of the lookahead branch.' in text
  assert 'num_nodes=16: M including the root' in text


def test_own_flags_come_first_and_those_of_libraries_on_request():
  short = commands.run('results', '--help').out
  long = commands.run('results', '--helpfull').out
  assert short.index('\nflags:') < short.index('\nflags of every command:')
  assert '--pdb_post_mortem' not in short
  assert long.index('flags of every command:') < long.index('--pdb_post_mortem')


def test_commands_say_where_their_results_will_be(tmp_path):
  done = commands.run(
    'distill', f'--output_dir={tmp_path}', '--prompts=/nowhere.jsonl'
  )
  assert done.err.startswith(f'results will be in {tmp_path}\n')
  commands.assert_message('distill', done.err)


def test_flags_of_every_command_are_collected():
  done = commands.run('completion', 'bash')
  assert done.status == 0, done.err
  for text in ('adapt) words=', '--time_limit=', '--skip_bad_rows ', 'fetch'):
    assert text in done.out, text


@pytest.mark.parametrize('args', [(), ('tcsh',), ('bash', 'zsh')])
def test_other_shells_are_refused(args):
  commands.refusal('completion', *args, match='accepted: bash, zsh, fish')


@pytest.mark.parametrize('shell', list(completion.SHELLS))
def test_scripts_are_whole(shell):
  script = completion.SHELLS[shell](FLAGS)
  assert 'resume' in script and 'tasks' in script
  if shutil.which(shell):
    done = subprocess.run(
      [shell, '-n'], input=script, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_bash_completes_commands_and_flags():
  script = completion.bash(FLAGS)
  ask = (
    '{}\nCOMP_WORDS=({})\nCOMP_CWORD={}\n_specstream\necho "${{COMPREPLY[*]}}"'
  )

  def complete(words, number):
    done = subprocess.run(
      ['bash', '-c', ask.format(script, words, number)],
      capture_output=True,
      text=True,
    )
    return done.stdout.split()

  assert complete('specstream b', 1) == ['bench']
  assert complete('specstream bench --r', 2) == ['--resume']
  assert complete('specstream bench --', 2) == ['--tasks=', '--resume']
