"""Calls to an object store: repeated while it does not answer, and one sentence for what will not mend itself."""

import errno
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from bigjax.errors import UserError

T = TypeVar("T")

PATIENCE_S = 300.0
"""How long a call is repeated before it fails."""

FIRST_PATIENCE_S = 15.0
"""The same for a store that has not answered this process once: its address may be wrong."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 20.0
"""The pause before the second try, which doubles with each until it is the longest."""

MAX_REASON = 160
"""The most characters of a store's own words that a sentence quotes."""

_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_OF_CLIENTS = ("aiobotocore", "aiohttp", "aiohttp_retry", "asyncio", "azure", "botocore", "fsspec", "gcsfs", "google",
               "requests", "s3fs", "urllib3")  # fmt: skip
_REFUSED = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "DefaultCredentialsError",
            "RefreshError", "ProfileNotFound", "CredentialRetrievalError")  # fmt: skip
_TIMES = (TimeoutError, ConnectionError)


class StoreError(UserError, OSError):
    """An object store refuses a call, or has not answered for long; the message is one sentence."""

    def __init__(self, sentence: str, number: int = errno.EIO):
        OSError.__init__(self, number, sentence)

    def __str__(self) -> str:
        return str(self.strerror)


_told: set[str] = set()
_answered: set[str] = set()
_telling = threading.Lock()


def repeated(place: str, what: str, call: Callable[[], T]) -> T:
    """Return what `call` returns; repeat it with growing pauses while the store at `place` does not answer.

    The first time that a store does not answer is said on stderr, once a process and store.

    Args:
        what: is done to `place`, as "read" or "written to", for the sentence of an error.

    Raises:
        StoreError: the store refuses, or has not answered for `PATIENCE_S`.
        FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError: as on a disk.
    """
    store, start, tries = _store(place), time.monotonic(), 0
    while True:
        try:
            found = call()
        except Exception as error:
            final = _final(place, what, error)
            if final is not None:
                if isinstance(final, FileNotFoundError | FileExistsError):
                    _answered.add(store)
                raise final from error
            patience = PATIENCE_S if store in _answered else FIRST_PATIENCE_S
            reason, waited = _reason(error), time.monotonic() - start
            pause = min(FIRST_PAUSE_S * 2**tries, LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
            if waited + pause > patience:
                raise StoreError(
                    f"{place} cannot be {what}: {store} has not answered for {waited:.0f} s ({reason}); check the "
                    "network and AWS_ENDPOINT_URL"
                ) from error
            _tell(store, reason)
            time.sleep(pause)
            tries += 1
        else:
            _answered.add(store)
            return found


def _final(place: str, what: str, error: Exception) -> Exception | None:
    """Return what to raise for an error that another try would meet again; None where another try may help."""
    said, bucket = _reason(error), place.partition("://")[2].partition("/")[0]
    if "NoSuchBucket" in _code(error) or "bucket does not exist" in str(error):
        return StoreError(f"{place} cannot be {what}: there is no bucket {bucket!r}; make it, or choose another place",
                          errno.ENOENT)  # fmt: skip
    if type(error).__name__ in _REFUSED or isinstance(error, PermissionError) or _code(error) in ("401", "403"):
        return StoreError(
            f"{place} cannot be {what}: the store refuses these credentials ({said}); for S3 set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, for Google run gcloud auth application-default login",
            errno.EACCES,
        )
    if isinstance(error, FileNotFoundError | FileExistsError):
        # Its number must be set: callers quote `strerror`.
        number = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EEXIST
        return type(error)(number, os.strerror(number), place)
    if _code(error) == "PreconditionFailed":
        return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), place)
    if isinstance(error, UserError | IsADirectoryError | NotADirectoryError | NotImplementedError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.EINVAL, errno.ENAMETOOLONG) and _status(error) < 500:
        return StoreError(f"{place} cannot be {what}: {said}", error.errno)
    if isinstance(error, OSError | TimeoutError) or type(error).__module__.partition(".")[0] in _OF_CLIENTS:
        return None
    return error


def _code(error: BaseException | None) -> str:
    """Return the code by which a store names an error, or ""."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code", ""))
        if (status := getattr(error, "code", getattr(error, "status", None))) is not None:
            return str(status)
        error = error.__cause__
    return ""


def _status(error: BaseException | None) -> int:
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        error = error.__cause__
    return 0


def _reason(error: BaseException) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = " ".join(str(said).split()) or type(error).__name__
    return line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]}..."


def _store(place: str) -> str:
    scheme, _, rest = place.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def _tell(store: str, reason: str) -> None:
    with _telling:
        if store in _told:
            return
        _told.add(store)
    print(f"warning: {store} did not answer ({reason}); it is asked again, with growing pauses, and from now on "
          "without a word", file=sys.stderr, flush=True)  # fmt: skip
