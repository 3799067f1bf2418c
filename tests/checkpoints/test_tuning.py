# SPDX-License-Identifier: Apache-2.0
"""tuning.json: kept by place, read back, damaged ones named."""

import dataclasses
import json

import pytest

from specstream_jax.checkpoints import shipped, tuning

PLACE = tuning.Place('2 cores', '0.12', 'float32', 1)
TUNED = tuning.Tuned(PLACE, 'streams:num_nodes=4', 'deferred', 2.5, 'e2e/test')


def test_each_place_has_its_own(tmp_path):
  folder = str(tmp_path)
  assert not tuning.is_there(folder)
  other = dataclasses.replace(
    TUNED, place=dataclasses.replace(PLACE, batch=4), fixed='streams'
  )
  for one in (TUNED, other, dataclasses.replace(TUNED, speedup=2.0)):
    assert tuning.keep(folder, one) == str(tmp_path / 'tuning.json')
  assert tuning.find(folder, PLACE) == dataclasses.replace(TUNED, speedup=2.0)
  assert tuning.find(folder, other.place) == other
  assert tuning.find(folder, dataclasses.replace(PLACE, jax='0.13')) is None


@pytest.mark.parametrize(
  'rows, bucket', [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (64, 64)]
)
def test_rows_are_tuned_in_powers_of_two(rows, bucket):
  assert tuning.bucket(rows) == bucket


def test_what_ships_is_tuned_in_the_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('SPECSTREAM_CACHE', str(tmp_path))
  folder = shipped.adapter_folder('e2e_nlg')
  written = tuning.keep(folder, TUNED)
  assert written.startswith(str(tmp_path / 'tuning' / 'e2e_nlg-'))
  assert tuning.find(folder, PLACE) == TUNED


@pytest.mark.parametrize(
  'damage, said',
  [
    (lambda value: value.update(format='x'), 'not of the format'),
    (lambda value: value.update(tuned={}), 'not of the format'),
    (lambda value: value['tuned'].append(3), 'entry 2 is no object'),
    (lambda value: value['tuned'][0].update(batch=0), 'entry 1: batch is 0'),
    (lambda value: value['tuned'][0].update(fixed=7), 'entry 1: fixed is 7'),
    (
      lambda value: value['tuned'][0].pop('drafter'),
      'entry 1: drafter is None',
    ),
    (
      lambda value: value['tuned'][0].update(drafter='garbage'),
      "entry 1: drafter 'garbage'.*tune again",
    ),
    (
      lambda value: value['tuned'][0].update(fixed='streams:no=1'),
      'entry 1: .*tune again',
    ),
    (
      lambda value: value['tuned'][0].update(schedule='soon'),
      "schedule is 'soon'; accepted: 'deferred' or 'parallel' or 'likely'",
    ),
  ],
)
def test_a_damaged_file_is_named(tmp_path, damage, said):
  where = tuning.keep(str(tmp_path), TUNED)
  value = json.loads((tmp_path / 'tuning.json').read_text())
  damage(value)
  (tmp_path / 'tuning.json').write_text(json.dumps(value))
  with pytest.raises(ValueError, match=said) as error:
    tuning.find(str(tmp_path), PLACE)
  assert where in str(error.value)


@pytest.mark.parametrize('text', ['', '{', '[]'])
def test_a_file_that_is_no_object_is_named(tmp_path, text):
  (tmp_path / 'tuning.json').write_text(text)
  with pytest.raises(ValueError, match=r'tuning\.json.*remove it, and tune'):
    tuning.find(str(tmp_path), PLACE)
