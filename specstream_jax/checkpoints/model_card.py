# SPDX-License-Identifier: Apache-2.0
"""README.md of an exported folder: what it is, where it comes from, how to use it."""

from collections.abc import Iterator, Mapping
import dataclasses
import json
from typing import Any

_MOST = 40  # lines of provenance


@dataclasses.dataclass(frozen=True)
class Card:
  """What a card says.

  Attributes:
    name: of the folder.
    format: `huggingface`, `peft` or `reference`.
    base: name of the base model.
    base_fingerprint: of its weights.
    adapter: name of the adapter, '' without.
    dtype: of the weights on disk.
    has_streams: whether there is a folder of streams.
    provenance: how the adapter was trained.
    version: of the package that wrote it.
  """

  name: str
  format: str
  base: str
  base_fingerprint: str
  adapter: str
  dtype: str
  has_streams: bool
  provenance: Mapping[str, Any]
  version: str


_USES = {
  'huggingface': """\
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({name!r})
tokenizer = AutoTokenizer.from_pretrained({name!r})""",
  'peft': """\
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(model, {name!r})""",
}
_STREAMS = {
  'huggingface': 'ss.load({name!r}, {streams!r})',
  'reference': 'ss.load({base!r}, {streams!r})',
}


def write(card: Card) -> str:
  """The text of README.md."""
  return '\n'.join(_lines(card)) + '\n'


def _lines(card: Card) -> Iterator[str]:
  # JSON is YAML, too, and quotes whatever a name may hold.
  yield '---'
  yield f'base_model: {json.dumps(card.base, ensure_ascii=False)}'
  if card.format in _USES:
    library = 'peft' if card.format == 'peft' else 'transformers'
    yield f'library_name: {library}'
  yield 'tags: [speculative-decoding, specstream]'
  yield '---'
  yield f'# {card.name}'
  yield ''
  tuned = f', tuned with the adapter `{card.adapter}`' if card.adapter else ''
  what = {
    'huggingface': f'The model `{card.base}`{tuned}, weights in {card.dtype}.',
    'peft': f'LoRA for the model `{card.base}`, from the adapter '
    f'`{card.adapter}`.',
    'reference': f'Speculative streams for the model `{card.base}`, which they '
    'leave as it is: load it from where it lies.',
  }
  yield what[card.format]
  yield f'Fingerprint of the base: `{card.base_fingerprint}`.'
  yield f'Written by `specstream export`, version {card.version}.'
  yield ''
  yield from _use(card)
  yield from _provenance(card.provenance)


def _use(card: Card) -> Iterator[str]:
  names = {'name': card.name, 'base': card.base}
  if card.format in _USES:
    yield from ('```python', _USES[card.format].format(**names), '```', '')
  if card.has_streams and card.format in _STREAMS:
    call = _STREAMS[card.format].format(streams=f'{card.name}/streams', **names)
    yield 'With its speculative streams it drafts for itself; the tokens stay.'
    yield from ('', '```python', 'import specstream_jax as ss')
    yield from (f'model = {call}', '```', '')


def _provenance(values: Mapping[str, Any]) -> Iterator[str]:
  rows = [row for row in _flat(values) if row[1] not in ('', 'None')]
  if not rows:
    return
  yield from ('## Training', '', '| setting | value |', '|---|---|')
  for name, value in rows[:_MOST]:
    text = value.replace('|', r'\|').replace('\n', ' ')
    yield f'| {name} | {text} |'
  if len(rows) > _MOST:
    yield f'| … | {len(rows) - _MOST} more in export.json |'


def _flat(values: Mapping[str, Any], prefix: str = '') -> Iterator[Any]:
  for name, value in values.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', str(value)
