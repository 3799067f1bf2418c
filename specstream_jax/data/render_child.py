# SPDX-License-Identifier: Apache-2.0
"""The process that renders chat templates: JSON lines in, JSON lines out.

A template is a program that came with somebody's model. Here it can neither
reach the files of this account nor hang or fill the process that decodes, which
ends this one when its time is up. Run as a script, by `render_process`, so it
imports little.

The names that templates find are those that the Transformers library gives
them.
"""

import contextlib
import datetime
import functools
import json
import signal
import sys
from typing import Any

import jinja2
from jinja2 import ext, nodes, sandbox

MAX_BYTES = 2**30
MAX_CHARACTERS = 2**24
READY = {'ready': True}


class Generation(ext.Extension):
  """`{% generation %}…{% endgeneration %}`, which marks an answer in training.

  It renders as what it holds; names that are set within stay within.
  """

  tags = {'generation'}

  def parse(self, parser: Any) -> nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(['name:endgeneration'], drop_needle=True)
    return nodes.Scope(body, lineno=line)


def raise_exception(message: str) -> None:
  """How a template refuses what it is given."""
  raise jinja2.TemplateError(message)


def strftime_now(spec: str) -> str:
  """The time of day, as `datetime.strftime` writes it."""
  return datetime.datetime.now().strftime(spec)


def tojson(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: Any = None,
  sort_keys: bool = False,
) -> str:
  """JSON in the order of the value, its characters as they are."""
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


@functools.cache
def environment() -> sandbox.ImmutableSandboxedEnvironment:
  """What templates are written for."""
  made = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, ext.loopcontrols],
  )
  made.filters['tojson'] = tojson
  made.globals |= {
    'raise_exception': raise_exception,
    'strftime_now': strftime_now,
  }
  return made


@functools.lru_cache(maxsize=8)
def compiled(source: str) -> jinja2.Template:
  """The template of a source."""
  return environment().from_string(source)


def answer(source: str, names: dict[str, Any]) -> dict[str, str]:
  """{'text': rendered} or {'error': what is wrong}."""
  try:
    text = compiled(source).render(names)
  except jinja2.TemplateSyntaxError as error:
    return {'error': f'line {error.lineno}: {error.message}'}
  except jinja2.TemplateError as error:
    return {'error': str(error)}
  except MemoryError:
    return {'error': f'takes more than {MAX_BYTES:,} bytes of memory'}
  except Exception as error:  # whatever its expressions come to
    return {'error': f'{error} ({type(error).__name__})'}
  if len(text) > MAX_CHARACTERS:
    return {
      'error': f'renders {len(text):,} characters; at most {MAX_CHARACTERS:,}'
    }
  return {'text': text}


def limit_memory() -> None:
  """Holds this process to `MAX_BYTES`, where the system can."""
  with contextlib.suppress(ImportError, OSError, ValueError):
    import resource  # not on every system

    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))


def main() -> None:
  """Answers until its input ends."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
  limit_memory()
  print(json.dumps(READY), flush=True)
  for line in sys.stdin.buffer:
    print(json.dumps(answer(**json.loads(line))), flush=True)


if __name__ == '__main__':
  main()
