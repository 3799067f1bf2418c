# SPDX-License-Identifier: Apache-2.0
"""Writes prompts of many kinds, for a lossless adapter of no particular task.

Kinds are those of Spec-Bench (writing to coding, translation, summaries, plain
and document questions, arithmetic), texts are not: they come from the files
given here and from templates, and --exclude leaves out whatever shares a run of
words with a benchmark. Summaries and document questions need passages, which
may be answers that the model itself wrote before:

  python launch/experiments/general_prompts.py --instructions=instruction-data.json \
    --questions=wikisql_train.jsonl.gz --german=sentences.txt \
    --exclude=question.jsonl --output=prompts.jsonl
  specstream distill --chat --prompts=prompts.jsonl --output_dir=distilled
  python launch/experiments/general_prompts.py --passages=distilled/train.jsonl \
    --kinds=summary,documents --exclude=question.jsonl --output=more.jsonl

The same flags write the same file.
"""

from collections.abc import Callable, Iterator
import json
import random
import re

from absl import flags
import script

from specstream_jax.data import readers
from specstream_jax.outputs import writing

FLAGS = flags.FLAGS

Prompts = Iterator[str]


def _split(text):
  return tuple(text.split(', '))


_TOPICS = _split(
  'a mountain village, a night train, a lighthouse, the first snow, a lost letter, '
  'a street market, an old violin, a garden in spring, a harbour at dawn, a library, '
  'a family recipe, a bicycle trip, a chess club, a new neighbour, a desert road, '
  'a robot that paints, a school play, a thunderstorm, a clockmaker, a river ferry'
)
_READERS = _split(
  'a friend, a child of ten, a customer, a new colleague, a town council, a landlord, '
  'readers of a local paper, a grandparent, a teacher, a team before a deadline'
)
_PERSONS = _split(
  'a ship captain, a museum guide, a medieval blacksmith, a gardener, a detective, '
  'an astronaut, a tired chef, a librarian, a football coach, a village doctor, '
  'a radio host, a wise old turtle, a train conductor, a beekeeper'
)
_SUBJECTS = _split(
  'photosynthesis, plate tectonics, vaccines, gravity, electric motors, rainbows, '
  'the water cycle, black holes, enzymes, batteries, antibiotics, ocean currents, '
  'the immune system, semiconductors, evolution, acids and bases, radio waves, '
  'the greenhouse effect, DNA replication, volcanoes, lasers, tides, friction'
)
_THEMES = _split(
  'the printing press, the industrial revolution, ancient Rome, inflation, democracy, '
  'the Silk Road, the Renaissance, human rights, supply and demand, impressionism, '
  'stoicism, urbanisation, the cold war, folk tales, trade unions, public libraries, '
  'the Olympic games, jazz, architecture, migration, the French revolution'
)
_PROGRAMS = _split(
  'reverses a linked list, counts the vowels of a string, merges two sorted lists, '
  'checks whether a word is a palindrome, reads a CSV file and sums a column, '
  'finds all prime numbers below n, computes the mean and the median of a list, '
  'flattens a nested list, removes duplicates and keeps the order, '
  'converts Celsius to Fahrenheit, finds the longest word of a text, '
  'implements a stack, searches a sorted array, multiplies two matrices, '
  'validates an e-mail address, sorts dictionaries by a key, draws random passwords, '
  'computes the greatest common divisor, parses a date, counts words in a file'
)
_LANGUAGES = ('Python', 'Python', 'Python', 'JavaScript', 'C++', 'Java')
_NAMES = _split(
  'Ana, Ben, Chloe, Dario, Emma, Farid, Greta, Hugo, Ines, Jonas, Kira, Luis'
)
_THINGS = _split(
  'apples, books, marbles, stamps, tickets, cookies, pencils, shells'
)

_OPEN = (
  'Write a short story about {topic}.',
  'Write a poem about {topic}.',
  'Describe {topic} in one vivid paragraph.',
  'Write a blog post about {topic}, with a title and three sections.',
  'Write an e-mail to {reader} about {topic}. Keep it short and polite.',
  'Write a speech for {reader} about {theme}.',
  'Explain {subject} to {reader}.',
  'How does our knowledge of {subject} affect daily life? Give examples.',
  'What are the main causes and effects of {subject}?',
  'List five facts about {subject}.',
  'Compare {subject} with {subject2}.',
  'Describe an experiment that shows something about {subject}.',
  'What was the importance of {theme}? Justify your answer.',
  'Give an outline of an essay on {theme}.',
  'Discuss arguments for and against: {theme} changed how people live.',
  'How are {theme} and {theme2} connected?',
  'Imagine that you are {person}. What do you think about {theme}?',
  'You are {person}. Introduce yourself, then tell me about {topic}.',
  'Speak like {person} and answer: what makes a good day?',
  'Write a {language} program that {program}.',
  'Write a function in {language} that {program}, and explain how it works.',
  'How would you test a {language} function that {program}?',
  'Sort these into two groups and say why: {topic}, {subject}, {topic2}, {theme}.',
  'Extract the names and numbers as JSON: {name} bought {a} {thing}, {name2} has {b}.',
  'If all {thing} of {name} are red and {name2} took one of them, what colour is it? '
  'Explain step by step.',
  '{name} is older than {name2}. {name2} is older than {name3}. Who is the youngest?',
  'Give me ten ideas for {topic}.',
  'Write a dialogue between {person} and {person2} about {topic}.',
)
_ARITHMETIC = (
  '{name} has {a} {thing}. {name2} has {k} times as many. How many {thing} do they '
  'have together?',
  '{name} buys {a} {thing} for ${k} each and pays with a ${big} note. How much change '
  'does {name} get?',
  'A class of {big} pupils is split into groups of {k}. Each group gets {a} {thing}. '
  'How many {thing} are needed?',
  '{name} reads {a} pages a day from Monday to Friday and {b} pages on each day of the '
  'weekend. How many pages does {name} read in {k} weeks?',
  'A shop sold {a} {thing} in the morning and {b} in the afternoon. It had {big} at '
  'first. What percentage is left?',
  '{name} drives {big} km at {speed} km per hour, rests for {k} hours and drives back '
  'at the same speed. How long is the trip?',
  '{name} earns ${a} per hour and works {b} hours a week. After {k} weeks {name} spends '
  'half of the money. How much is left?',
  'A recipe for {k} people needs {a} grams of flour. How much do {b} people need?',
  'There are {big} {thing} in a box. {name} takes a fifth of them, then {name2} takes '
  '{a}. How many remain?',
  'A rectangle is {a} cm long and {b} cm wide. What are its area and its perimeter?',
  'What is {a} times {b} minus {big}?',
  'Solve for x: {k}x + {a} = {big}.',
)
_DOCUMENT_QUESTIONS = (
  'What is the text about?',
  'What is the main point of the text?',
  'Which examples does the text give?',
  'Why does this matter, according to the text?',
  'What does the text say first, and what last?',
)


def define_flags() -> None:
  """Declares the flags."""
  flags.DEFINE_string(
    'instructions', None, 'JSON list of {"instruction": …, "input": …}.'
  )
  flags.DEFINE_string(
    'questions', None, 'JSONL (.gz) rows with a "question", as WikiSQL’s.'
  )
  flags.DEFINE_string('german', None, 'Text file, a German sentence per line.')
  flags.DEFINE_list(
    'given', [], 'JSONL files (.gz) of prompts to take as they are.'
  )
  flags.DEFINE_string('passages', None, 'JSONL with texts as "completion".')
  flags.DEFINE_list(
    'kinds', [k for k in KINDS if k != 'given'], 'What to write.'
  )
  flags.DEFINE_integer(
    'per_kind', 400, 'Most prompts of a kind.', lower_bound=1
  )
  flags.DEFINE_string('exclude', None, 'JSONL of a benchmark to stay clear of.')
  flags.DEFINE_integer(
    'overlap', 8, 'Words in a row that count as taken from it.', lower_bound=1
  )
  flags.DEFINE_integer('seed', 0, 'Of all choices.')
  flags.DEFINE_string('output', None, 'JSONL to write.', required=True)


def instructions(rng: random.Random) -> Prompts:
  """What users ask, as given."""
  path = _given('instructions')
  rows = readers.read_jsonl(path, pair=_instruction).pairs
  for text, _ in rng.sample(rows, len(rows)):
    yield text


def questions(rng: random.Random) -> Prompts:
  """Questions about facts."""
  rows = _read(_given('questions'), 'question')
  for text in rng.sample(rows, len(rows)):
    if re.match(r'(who|what|when|where|which|how|why)\b[^"]*\?$', text.lower()):
      yield text.strip()


def translation(rng: random.Random) -> Prompts:
  """Sentences to translate, of five words at least."""
  with open(_given('german'), encoding='utf-8') as file:
    texts = [line.strip() for line in file if len(line.split()) > 4]
  for text in rng.sample(texts, len(texts)):
    yield f'Translate German to English: {text}'


def arithmetic(rng: random.Random) -> Prompts:
  """Word problems."""
  while True:
    yield _fill(rng.choice(_ARITHMETIC), rng)


def open_ended(rng: random.Random) -> Prompts:
  """Writing, roles, reasoning, code, extraction, science, the humanities."""
  while True:
    yield _fill(rng.choice(_OPEN), rng)


def summary(rng: random.Random) -> Prompts:
  """Passages to shorten."""
  for text in _passages(rng):
    yield f'Summarize: {text}'


def documents(rng: random.Random) -> Prompts:
  """A passage, and a question about it."""
  for text in _passages(rng):
    yield f'{text}\n\n{rng.choice(_DOCUMENT_QUESTIONS)}'


def given(rng: random.Random) -> Prompts:
  """Prompts of files, as they are."""
  texts = [t for path in _given('given') for t in _read(path, 'prompt')]
  yield from rng.sample(texts, len(texts))


KINDS: dict[str, Callable[[random.Random], Prompts]] = {
  'instructions': instructions,
  'questions': questions,
  'translation': translation,
  'arithmetic': arithmetic,
  'open': open_ended,
  'summary': summary,
  'documents': documents,
  'given': given,
}
_ATTEMPTS = 20  # per prompt; templates repeat themselves


def choose(
  kind: str, count: int, seed: int, taken: set[str], length: int
) -> tuple[list[str], int]:
  """Prompts of a kind without repetition, and how many were too near.

  Args:
    kind: of KINDS.
    count: most prompts.
    seed: of the choice, with the kind.
    taken: runs of `length` words not to share.
    length: in words.
  """
  prompts: dict[str, None] = {}
  num_near = 0
  attempts = zip(range(count * _ATTEMPTS), KINDS[kind](_rng(kind, seed)))
  for _, prompt in attempts:
    if prompt in prompts:
      continue
    if taken.isdisjoint(runs(prompt, length)):
      prompts[prompt] = None
    else:
      num_near += 1
    if len(prompts) == count:
      break
  return list(prompts), num_near


def runs(text: str, length: int) -> set[str]:
  """All runs of `length` words, in lower case and without punctuation.

  A shorter text is one run.
  """
  words = re.findall(r'\w+', text.lower())
  starts = range(max(len(words) - length, 0) + 1)
  return {' '.join(words[i : i + length]) for i in starts}


def _rng(kind, seed):
  return random.Random(f'{seed} {kind}')


def _given(flag):
  value = getattr(FLAGS, flag)
  if not value:
    raise ValueError(f'--{flag} is needed for these --kinds')
  return value


def _instruction(row):
  """A row's text, or what is wrong with it."""
  texts = row.get('instruction'), row.get('input') or ''
  if not all(isinstance(text, str) for text in texts) or not texts[0].strip():
    return 'has no text under "instruction", or an input that is not text'
  return '\n\n'.join(filter(None, texts)), ''


def _read(path, *fields):
  """Texts under the first of the fields that each row has; a text or a list."""

  def pair(row):
    found = next((row[f] for f in fields if row.get(f)), None)
    texts = found if isinstance(found, list) else [found]
    if not all(isinstance(text, str) for text in texts):
      return f'has no text under {" or ".join(map(repr, fields))}'
    return [(text, '') for text in texts]

  return [text for text, _ in readers.read_jsonl(path, pair=pair).pairs]


def _passages(rng):
  """Texts of 40 to 120 words that are prose."""
  texts = _read(_given('passages'), 'completion')
  prose = [' '.join(x.split()) for x in texts if '```' not in x]
  fit = [x for x in dict.fromkeys(prose) if 40 <= len(x.split()) <= 120]
  return rng.sample(fit, len(fit))


def _fill(template, rng):
  pairs = {
    'topic': _TOPICS,
    'subject': _SUBJECTS,
    'theme': _THEMES,
    'person': _PERSONS,
    'name': _NAMES,
  }
  values = {
    'reader': rng.choice(_READERS),
    'program': rng.choice(_PROGRAMS),
    'language': rng.choice(_LANGUAGES),
    'thing': rng.choice(_THINGS),
    'a': rng.randint(11, 60),
    'b': rng.randint(4, 40),
    'k': rng.randint(2, 9),
    'big': rng.choice(range(100, 1000, 20)),
    'speed': rng.choice((40, 50, 60, 80)),
  }
  for name, choices in pairs.items():
    for suffix, value in zip(('', '2', '3'), rng.sample(choices, 3)):
      values[name + suffix] = value
  return template.format(**values)


def main() -> None:
  """Writes the file, a line per kind on the way."""
  if FLAGS.given and 'given' not in FLAGS.kinds:
    raise ValueError(
      f'--given={",".join(FLAGS.given)} is read for the kind given, which '
      f'--kinds={",".join(FLAGS.kinds)} leaves out; add it'
    )
  unknown = [kind for kind in FLAGS.kinds if kind not in KINDS]
  if unknown:
    raise ValueError(f'kinds {unknown}; accepted: {list(KINDS)}')
  taken = set()
  if FLAGS.exclude:
    for text in _read(FLAGS.exclude, 'turns', 'prompt'):
      taken |= runs(text, FLAGS.overlap)
  lines = []
  for kind in dict.fromkeys(FLAGS.kinds):
    prompts, num_near = choose(
      kind, FLAGS.per_kind, FLAGS.seed, taken, FLAGS.overlap
    )
    print(f'{kind}: {len(prompts)} prompts, {num_near} too near to --exclude')
    lines += [
      json.dumps({'prompt': text, 'kind': kind}, ensure_ascii=False) + '\n'
      for text in prompts
    ]
  if not lines:
    raise ValueError('no prompt is left')
  writing.write_text(FLAGS.output, ''.join(lines))


if __name__ == '__main__':
  define_flags()
  script.run(main)
