# SPDX-License-Identifier: Apache-2.0
"""Parameters of a JSON body, and the answer when one of them is wrong."""

from collections.abc import Callable, Mapping
import json
import re
from typing import Any

from specstream_jax.config import checks

# A folder of this machine, in quotes or bare, up to the name of the file.
_FOLDER = re.compile(r"""(?<=['"])/[^'"\n]*/|(?<![\w.'"/])(?:/[^/\s'"]+)+/""")
# Values that ask for nothing, of parameters that are not supported.
ASKS_NOTHING: dict[str, tuple[Any, ...]] = {
  'best_of': (1,),
  'suffix': ('',),
  'tool_choice': ('none', 'auto'),
  'response_format': ({'type': 'text'},),
  'parallel_tool_calls': (True,),
  'store': (False,),
}


class ApiError(Exception):
  """An answer that is no completion.

  Attributes:
    status: of HTTP.
    kind: as the API names it.
    param: the parameter that is wrong, or None.
    retry_after: seconds after which it may be worth while, or None.
  """

  def __init__(
    self,
    status: int,
    message: str,
    *,
    kind: str = 'invalid_request_error',
    param: str | None = None,
    retry_after: float | None = None,
  ):
    super().__init__(message)
    self.status, self.kind, self.param = status, kind, param
    self.retry_after = retry_after

  def body(self) -> dict[str, Any]:
    """In the API's shape."""
    error = {
      'message': str(self),
      'type': self.kind,
      'param': self.param,
      'code': self.status,
    }
    return {'error': error}


def check_names(body: Mapping[str, Any], known: set[str]) -> None:
  """Refuses parameters that would be passed over."""
  for name, value in body.items():
    asks_nothing = any(
      type(value) is type(nothing) and value == nothing
      for nothing in ASKS_NOTHING.get(name, ())
    )
    if name not in known and value is not None and not asks_nothing:
      raise unsupported(name)


def unsupported(name: str) -> ApiError:
  """What to raise for a parameter that would be passed over."""
  return ApiError(
    400, f'{name[:80]!r} is not supported here; leave it out', param=name[:80]
  )


def public(error: BaseException) -> str:
  """The message of an error, with the names of files but not their folders."""
  return _FOLDER.sub('', checks.message(error))


def naming(param: str | None) -> Callable[[Callable[[], Any]], Any]:
  """Calls a function whose ValueErrors become answers."""

  def call(function):
    try:
      return function()
    except ValueError as error:
      raise ApiError(400, public(error), param=param) from error

  return call


def need(body: Mapping[str, Any], name: str) -> Any:
  """A parameter that has to be there; raises ApiError if it is not."""
  if body.get(name) is None:
    raise ApiError(400, f'{name!r} is missing; it is needed', param=name)
  return body[name]


def listed(value: Any, name: str) -> list[Any]:
  """A value that is a list; raises ApiError if it is none."""
  if not isinstance(value, list):
    raise ApiError(
      400, f'{name} is {value!r:.80}; accepted: a list', param=name
    )
  return value


def mapping(value: Any, name: str) -> dict[str, Any]:
  """A value that is an object; raises ApiError if it is none."""
  if not isinstance(value, dict):
    raise ApiError(
      400, f'{name} is {value!r:.80}; accepted: an object', param=name
    )
  return value


def texts(value: Any, name: str) -> tuple[str, ...]:
  """A value that is a text or a list; raises ApiError if it is neither."""
  if value is None:
    return ()
  return (value,) if isinstance(value, str) else tuple(listed(value, name))


def flag(body: Mapping[str, Any], name: str, default: bool) -> bool:
  """A parameter that is true or false; raises ApiError if it is neither."""
  value = body.get(name)
  if not isinstance(value, bool | None):
    raise ApiError(
      400, f'{name} is {value!r:.80}; accepted: true or false', param=name
    )
  return default if value is None else value


def count(body: Mapping[str, Any], name: str, default: int) -> int:
  """A parameter that is a whole number; raises ApiError if it is none."""
  value = body.get(name)
  if value is None:
    return default
  if not isinstance(value, int) or isinstance(value, bool):
    raise ApiError(
      400, f'{name} is {value!r:.80}; accepted: a whole number', param=name
    )
  return value


def parse(data: bytes) -> dict[str, Any]:
  """The object of a JSON text.

  Raises:
    ApiError: it is none.
  """
  try:
    body = json.loads(data, parse_constant=_no_constant)
  except (ValueError, RecursionError) as error:
    raise ApiError(400, f'the body is no JSON: {str(error)[:200]}') from None
  if not isinstance(body, dict):
    raise ApiError(400, 'the body is no JSON object')
  return body


def _no_constant(name: str) -> Any:
  raise ValueError(f'{name} is no number of JSON')
