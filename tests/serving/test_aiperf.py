# SPDX-License-Identifier: Apache-2.0
"""AIPerf puts a server under load, and finds accepted drafts in its answers."""

import json
import shutil
import subprocess

import pytest
import served_address
import serving_models
import tokenizers

AIPERF = shutil.which('aiperf')
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    AIPERF is None, reason='aiperf is not on the path; docs/how_to/serve.md'
  ),
]
PROMPTS = ['ab', 'abcabcabc', 'a b c', 'ba' * 5]


def _tokenizer(folder):
  """One that AIPerf can load without a hub; the server counts the tokens."""
  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  made.add_tokens(letters)
  folder.mkdir()
  made.save(str(folder / 'tokenizer.json'))
  cfg = {'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': letters[0]}
  (folder / 'tokenizer_config.json').write_text(json.dumps(cfg))
  return folder


def test_under_load(tmp_path):
  prompts = tmp_path / 'prompts.jsonl'
  lines = (json.dumps({'text': text}) + '\n' for text in PROMPTS)
  prompts.write_text(''.join(lines))
  flags = {
    'endpoint-type': 'completions',
    'model': 'tuned,free,tiny',
    'model-selection-strategy': 'round_robin',
    'concurrency': 3,
    'request-count': 12,
    'input-file': prompts,
    'custom-dataset-type': 'single_turn',
    'extra-inputs': 'max_tokens:8',
    'tokenizer': _tokenizer(tmp_path / 'tokenizer'),
    'artifact-dir': tmp_path / 'found',
    'ui-type': 'none',
  }
  args = [f'--{name}={value}' for name, value in flags.items()]
  with served_address.served(serving_models.engine(max_waiting=32)) as address:
    command = [AIPERF, 'profile', f'--url={address}', *args]
    command += ['--streaming', '--use-server-token-count']
    done = subprocess.run(
      command, capture_output=True, text=True, timeout=600, check=False
    )
  assert done.returncode == 0, done.stdout + done.stderr
  [path] = (tmp_path / 'found').rglob('profile_export_aiperf.json')
  found = json.loads(path.read_text())
  assert found['request_count']['avg'] == 12
  assert not found.get('error_summary')
  # What it makes of the drafts of all answers: by steps, and in sum.
  counts = found['pooled_spec_decode_acceptance_histogram']
  steps = found['total_spec_decode_steps']['avg']
  accepted = found['total_accepted_draft_tokens']['avg']
  assert sum(counts.values()) == steps > 0
  assert sum(int(size) * n for size, n in counts.items()) == accepted
