# SPDX-License-Identifier: Apache-2.0
"""The task table: templates, shipped rows, references, helpful errors."""

import urllib.error
import urllib.request

import pytest

from specstream_jax.data import prompts, registry, sources


def test_e2e_template_is_the_one_adapters_are_trained_on():
  assert prompts.E2E.inputs('name[A]') == 'name[A]\nDescription:'
  assert prompts.E2E.targets('A is good.') == ' A is good.'


def test_parse_mr():
  mr = 'name[The Vaults], customer rating[5 out of 5], near[A, B]'
  assert prompts.parse_mr(mr) == {
    'name': 'The Vaults',
    'customer rating': '5 out of 5',
    'near': 'A, B',
  }
  with pytest.raises(ValueError, match='no attribute at character 8'):
    prompts.parse_mr('name[A], broken')
  with pytest.raises(ValueError, match='is empty'):
    prompts.parse_mr('')


def test_shipped_rows_load_and_parse():
  task = registry.get('e2e_sample')
  train, test = task.load_split('train'), task.load_split('test')
  assert (len(train), len(test)) == (256, 64)
  assert {len(example.references) for example in train} == {1}
  assert sum(len(example.references) for example in test) == 440
  for example in train + test:
    mr = example.inputs.removesuffix('\nDescription:')
    assert 'name' in prompts.parse_mr(mr)


@pytest.mark.parametrize('name', ['test.csv', 'testset_w_refs.csv'])
def test_e2e_groups_references_of_test_but_not_train(tmp_path, name):
  text = 'mr,ref\nname[A],one\nname[B],two\nname[A],three\n'
  for file in (name, 'train.csv'):
    (tmp_path / file).write_text(text, encoding='utf-8')
  task = registry.get('e2e_nlg')
  test = task.load_split('test', str(tmp_path))
  assert [example.references for example in test] == [
    ('one', 'three'),
    ('two',),
  ]
  assert task.pairs(test)[1] == ('name[A]\nDescription:', ' three')
  assert len(task.load_split('train', str(tmp_path))) == 3


def test_jsonl_task_counts_skipped_rows(tmp_path):
  path = tmp_path / 'train.jsonl'
  path.write_text('{"prompt": "a", "completion": "b"}\n{}\n', encoding='utf-8')
  for task, data_dir in (
    (registry.get('jsonl'), str(tmp_path)),
    (registry.jsonl_task('mine', {'train': str(path)}), None),
  ):
    loaded = task.load('train', data_dir, skip_bad_rows=True)
    assert loaded.num_skipped == 1
    assert task.pairs(loaded.examples) == [('a', 'b')]


def test_unknown_names_list_the_known_ones():
  with pytest.raises(
    ValueError, match='accepted: dialogsum, e2e_cleaned, e2e_nlg'
  ):
    registry.get('e2e')
  with pytest.raises(ValueError, match='accepted: train, dev, test'):
    registry.get('e2e_nlg').load('validation')
  with pytest.raises(ValueError, match='needs --data_dir'):
    registry.get('jsonl').load('train')


def test_unreachable_download_says_how_to_pass_files(tmp_path, monkeypatch):
  def refuse(*args, **kwargs):
    raise urllib.error.URLError('no network')

  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(urllib.request, 'urlopen', refuse)
  with pytest.raises(ValueError, match=r'pass --data_dir .* devset\.csv'):
    sources.download_e2e('dev')
  assert not list(tmp_path.rglob('*.csv*'))
