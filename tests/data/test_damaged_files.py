# SPDX-License-Identifier: Apache-2.0
"""Files cut short or of the wrong kind end in one line, not a stack trace."""

import gzip
import json

import pytest

from specstream_jax.checkpoints import files, huggingface_config
from specstream_jax.data import readers

CONFIG = {
  'architectures': ['LlamaForCausalLM'],
  'vocab_size': 8,
  'hidden_size': 4,
  'intermediate_size': 4,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
}


@pytest.mark.parametrize('name', ['a.csv.gz', 'a.jsonl.gz'])
@pytest.mark.parametrize('skip', [False, True])
def test_cut_gzip(tmp_path, name, skip):
  line = '{"prompt": "a", "completion": "b"}\n'
  text = {'csv': 'mr,ref\n' + 'a,b\n' * 9, 'jsonl': line * 9}
  whole = gzip.compress(text[name.split('.')[1]].encode())
  (tmp_path / name).write_bytes(whole[:-9])
  read = readers.read_csv if 'csv' in name else readers.read_jsonl
  with pytest.raises(ValueError, match='damaged or cut short'):
    read(str(tmp_path / name), skip_bad_rows=skip)


def test_header_that_is_not_csv(tmp_path):
  (tmp_path / 'a.csv').write_text('"mr"x,ref\na,b\n')
  with pytest.raises(ValueError, match=r'a\.csv:1: header is not CSV'):
    readers.read_csv(str(tmp_path / 'a.csv'))


def test_json_that_is_no_object(tmp_path):
  (tmp_path / 'a.json').write_text('[]')
  with pytest.raises(ValueError, match='a JSON list, not an object'):
    files.read_json(str(tmp_path / 'a.json'))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'num_hidden_layers': '3'}, "num_hidden_layers is '3'; accepted: an int"),
    ({'num_attention_heads': 0}, 'num_attention_heads is 0'),
    ({'rope_scaling': 'linear'}, "rope_scaling is 'linear'; accepted: an obj"),
    ({'rope_theta': 'abc'}, "rope_theta is 'abc'; accepted: a number"),
    ({'layer_types': 5}, 'layer_types = 5 is not understood'),
    ({'architectures': 'Llama'}, "architectures 'Llama'; accepted"),
  ],
)
def test_config_values_of_the_wrong_type(change, message):
  assert huggingface_config.parse(CONFIG, 'x').num_layers == 1
  raw = json.loads(json.dumps(CONFIG | change))
  with pytest.raises(ValueError, match=message):
    huggingface_config.parse(raw, 'config.json')
