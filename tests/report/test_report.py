# SPDX-License-Identifier: Apache-2.0
"""The HTML page: complete, self-contained, escaped."""

from html import parser
import json
import re
import shutil
import subprocess

import evaluation_samples as samples
import pytest

from specstream_jax.report import page as page_lib

_VOID = {'meta', 'use', 'br', 'wbr'}


class _Page(parser.HTMLParser):
  """Checks that tags nest; collects tags and coloured runs."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.runs = [], [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag not in _VOID:
      self.open.append(tag)
    if dict(attrs).get('class', '').startswith('run run'):
      self.runs.append([dict(attrs)['title'], ''])

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)

  def handle_endtag(self, tag):
    if tag not in _VOID:
      assert self.open.pop() == tag

  def handle_data(self, data):
    if 'span' in self.open:
      self.runs[-1][1] += data


def test_page_has_the_numbers_and_is_well_formed():
  text = page_lib.render(samples.document())
  page = _Page(text)
  for number in ('1.79×', '1.62', '1.93', '2.30', '1.25', '1.84', '100.0%'):
    assert number in text
  for words in ('e2e_nlg/test', 'tiny-base', 'out/adapter', '71.25', '0.12.12'):
    assert words in text
  assert 'specstream evaluate --task=e2e_nlg' in text
  assert page.tags.count('svg') == 4


def test_page_loads_nothing_from_outside():
  text = page_lib.render(samples.document())
  assert not {'script', 'link', 'img', 'iframe'} & set(_Page(text).tags)
  loads = re.findall(r'(?:src=|href="|url\(|@import)"?([^"\s)]*)', text)
  assert all(target.startswith('#') for target in loads)


def test_each_call_is_one_coloured_run():
  page = _Page(page_lib.render(samples.document()))
  assert page.runs == [
    ['call 1: 1 drafts accepted, 2 tokens', ' Eagle is'],
    ['call 2: 0 drafts accepted, 1 tokens', ' near'],
  ]


def test_everything_is_escaped():
  evil = '<script>alert("x")</script>'
  sample = {
    'prompt': evil,
    'text': evil,
    'references': [evil],
    'accept_lengths': [0],
    'tokens': [evil, evil, evil],
  }
  run = samples.run(
    task=evil, drafter=evil, device=evil, dtype=evil, samples=[sample]
  )
  run = samples.run(
    **{**vars(run), 'quality': {key: {evil: 1.0} for key in run.quality}}
  )
  doc = page_lib.results.Document((run,), evil, {'base': evil}, {evil: evil})
  text = page_lib.render(doc)
  assert 'script' not in _Page(text).tags
  assert '<script' not in text
  assert '&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;' in text


def test_fastest_lossless_run_leads():
  lossy = samples.run(speedup=2.9, lossy=True, equal_fraction=0.5)
  runs = samples.run(), samples.run(speedup=1.8), lossy
  header = page_lib.render(samples.document(*runs)).partition('</header>')[0]
  assert 'Fastest of 2 lossless runs' in header and '1.80×' in header


@pytest.mark.parametrize('kind', ['lossy', 'synthetic'])
def test_what_is_not_lossless_says_so_in_table_plots_and_header(kind):
  run = samples.run(**{kind: True}, name='a drafter')
  text = page_lib.render(samples.document(run, samples.run(**{kind: True})))
  header = text.partition('</header>')[0]
  assert f'a drafter ({kind})' in header
  warning = {'lossy': 'Lossy acceptance', 'synthetic': 'Synthetic acceptance'}
  assert warning[kind] in header
  assert f'<td>{kind}</td>' in text
  assert f'a drafter ({kind})' in text[text.index('<svg') :]


def test_temperatures_are_told_apart():
  runs = [samples.run(temperature=t) for t in (0.0, 0.6)]
  text = page_lib.render(samples.document(*runs))
  assert 'T=0.6' in text[text.index('<svg') :]
  assert '>0.6</td>' in text


def test_disturbed_measurement_is_said():
  fast = samples.run(speedup=2.9)
  header = page_lib.render(samples.document(fast)).partition('</header>')[0]
  assert 'differ by more than 10 %' in header
  plain = page_lib.render(samples.document())
  assert 'Lossy' not in plain and 'differ by more' not in plain


def test_equal_names_are_numbered_in_plots():
  text = page_lib.render(samples.document(samples.run(), samples.run()))
  assert 'streams best_first 7 #1' in text
  assert 'streams best_first 7 #2' in text


def test_optional_plots(tmp_path):
  metrics = tmp_path / 'metrics.jsonl'
  metrics.write_text(json.dumps({'step': 1, 'loss/main': 2.0}) + '\n')
  path = tmp_path / 'report.html'
  page_lib.write(
    str(path),
    samples.document(),
    metrics_path=str(metrics),
    forward_cost={'float32': [(1, 2.0), (2, 3.0)]},
  )
  text = path.read_text(encoding='utf-8')
  assert _Page(text).tags.count('svg') == 6
  assert 'loss (nats per token)' in text
  assert 'tokens in one forward pass' in text


def test_a_single_category_is_no_picture():
  caption = 'Tokens per model call in each category'
  page = lambda **values: page_lib.render(
    samples.document(samples.run(**values))
  )
  assert caption not in page(by_category={'qa': 2.0})
  assert caption in page(by_category={'qa': 2.0, 'math': 3.0})


def test_others_stand_beside_the_runs_in_quality():
  page = page_lib.render(
    samples.document(),
    other_quality={'base model': {'rouge1': 12.5}, 'LoRA alone': {}},
  )
  heads = re.findall('<th scope="col"[^>]*>([^<]*)', page)
  place = heads.index('base model')
  assert heads[place - 1] == 'metric'
  assert heads[place + 1 : place + 3] == ['LoRA alone', 'autoregressive']
  assert '12.50' in page


def test_run_without_samples_or_scores():
  run = samples.run(
    samples=[], quality={'autoregressive': {}, 'speculative': {}}
  )
  text = page_lib.render(samples.document(run))
  assert 'Sample outputs' not in text and '<h2>Quality' not in text


def test_errors(tmp_path):
  doc = samples.document()
  empty = page_lib.results.Document((), '', {'base': ''}, {})
  with pytest.raises(ValueError, match='has 0 runs'):
    page_lib.render(empty)
  (tmp_path / 'taken').write_text('')
  with pytest.raises(ValueError, match='cannot write'):
    page_lib.write(str(tmp_path / 'taken' / 'report.html'), doc)


# Appended to the page: how wide each table is, and how much of it shows.
MEASURE = """<script>addEventListener('load', () => {
  document.title = [...document.querySelectorAll('.scroll')].map(
    box => [box.ariaLabel, box.scrollWidth, box.clientWidth].join(' ')
  ).join(';')
})</script></body>"""


@pytest.mark.skipif(not shutil.which('chromium'), reason='no chromium')
def test_tables_fit_a_screen_of_1200_pixels(tmp_path):
  runs = [
    samples.run(
      task='sql_create_context/test',
      name='streams:num_nodes=16,depth=4,branching=32,vocabulary=adapter,'
      f'ngram_table=/home/{"folder/" * number}',
      speedup_ci95=[10.12, 12.44],
      temperature=0.75,
      batch=16,
    )
    for number in (1, 9)
  ]
  page = page_lib.render(samples.document(*runs))
  path = tmp_path / 'report.html'
  path.write_text(page.replace('</body>', MEASURE))
  command = ['chromium', '--headless', '--no-sandbox', '--disable-gpu']
  done = subprocess.run(
    [*command, '--window-size=1200,900', '--dump-dom', path.as_uri()],
    capture_output=True,
    text=True,
    check=True,
    timeout=60,
  )
  title = re.search('<title>(.*)</title>', done.stdout)[1]
  found = [box.split() for box in title.split(';')]
  assert {name for name, *_ in found} == {'Runs', 'Quality'}
  assert all(int(width) <= int(shown) for _, width, shown in found)


def test_words_of_a_table_may_wrap_and_numbers_do_not():
  page = page_lib.render(
    samples.document(samples.run(name='streams:depth=4,x=1'))
  )
  assert '<td>streams:<wbr>depth=4,<wbr>x=1</td>' in page
  rules = dict(re.findall(r'^(t[hd], .*|td.number.*) \{([^}]*)\}', page, re.M))
  assert 'nowrap' not in rules['th, td']
  assert 'nowrap' in rules['td.number, th.number']
