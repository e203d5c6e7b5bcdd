"""Objects of a store behind a URL: whole objects, conditional puts, verified copies.

obstore does all requests and takes credentials from the environment. No error and no log shows more
of a failure than its status and the object's name, since requests may carry signatures.
"""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import xxhash
from thinrow.core.files.permissions import file_mode, make_folder
from thinrow.errors import StoreCorruptError, StoreError, StoreUnavailableError, UsageError
from thinrow.remote.limits import PIECE_BYTES
from thinrow.store.layout import HIGHEST
from thinrow.store.place import SCHEMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Content", "ListedObject", "ObjectStore"]

DELETED_AT_ONCE = 500
PARTS_AT_ONCE = 4
"""Parts of one large file that are uploaded at once, 5 MiB each."""
RETRIES_MAX = 5
RETRY_TIMEOUT_S = 60
"""Longest time that one request is retried."""
ACCESS_HINT = "check the network, the bucket and the credentials in the environment"


@dataclass(frozen=True, slots=True)
class Content:
    """A small object, and the version of it that was read."""

    data: bytes
    version: dict[str, str | None]
    """Condition for replacing exactly this version."""


@dataclass(frozen=True, slots=True)
class ListedObject:
    """One object of a listing."""

    key: str
    bytes: int
    modified_ts: int


class ObjectStore:
    """The objects below a URL. Thread-safe.

    Args:
        url: `s3://BUCKET/PATH`, `gs://…`, `az://…`, or `file:///PATH` of a shared file system.
        create: Makes the folder of a `file://` URL.

    Raises:
        UsageError: The URL names no object store, or its library is not installed.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            raise UsageError(
                f"{_shown(url)} is no URL of a store; write s3://, gs://, az:// or file:// and a "
                f"path, or the path of a folder."
            )
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise UsageError(
                f"{_shown(url)} has more than a place in it; leave out credentials and queries, "
                f"which the environment gives."
            )
        if parts.scheme != "file" and not parts.netloc:
            raise UsageError(f"{url} names no bucket; write {parts.scheme}://BUCKET/PATH.")
        self.url = url.rstrip("/")
        self._folder: Path | None = None
        options: dict[str, Any] = {}
        if parts.scheme == "file":
            if parts.netloc or not parts.path.strip("/"):
                raise UsageError(f"{url} names no folder; write file:///PATH.")
            self._folder = Path(parts.path)
            if create:
                make_folder(self._folder)
            elif not self._folder.is_dir():
                raise UsageError(f"There is no folder {self._folder}; check the URL {url}.")
            if (self._folder / HIGHEST).exists():
                raise UsageError(
                    f"{self._folder} holds a store as local folders do; name it without file://."
                )
        else:
            # Options of the client would replace those that the environment gives.
            options["retry_config"] = {
                "max_retries": RETRIES_MAX,
                "retry_timeout": timedelta(seconds=RETRY_TIMEOUT_S),
            }
        self._api = _library()
        try:
            self._store: Any = self._api.store.from_url(self.url, **options)
        except Exception as error:
            raise UsageError(
                f"{self.url} cannot be opened ({type(error).__name__}); {ACCESS_HINT}."
            ) from None

    def read(self, key: str, bytes_max: int) -> Content | None:
        """Returns a small object; None if there is none.

        Raises:
            StoreCorruptError: It is larger than the limit.
            StoreUnavailableError: The store does not answer.
        """
        with self._naming(key, "read"):
            try:
                result = self._api.get(self._store, key)
            except FileNotFoundError:
                return None
            if result.meta["size"] > bytes_max:
                raise StoreCorruptError(
                    f"{self.url}/{key} is damaged: it has more than {bytes_max:,} bytes."
                )
            version = {"e_tag": result.meta["e_tag"], "version": result.meta["version"]}
            return Content(bytes(result.bytes()), version)

    def create(self, key: str, data: bytes) -> bool:
        """Writes a new object; returns False if there is one already, maybe by a retry of this."""
        with self._naming(key, "write"):
            try:
                self._api.put(self._store, key, data, mode="create")
            except self._api.exceptions.AlreadyExistsError:
                return False
            return True

    def replace(self, key: str, data: bytes, replaced: Content | None) -> bool:
        """Replaces an object if it is still as it was read.

        Args:
            key: The object.
            data: Its new content.
            replaced: The version that was read; None if there was no object.

        Returns:
            False if it is another one by now, maybe by a retry of this.
        """
        if replaced is None:
            return self.create(key, data)
        with self._naming(key, "write"):
            if self._folder is not None:
                return self._replace_file(key, data, replaced)
            condition = {name: text for name, text in replaced.version.items() if text is not None}
            try:
                self._api.put(self._store, key, data, mode=condition)
            except (self._api.exceptions.PreconditionError, FileNotFoundError):
                return False
            return True

    def _replace_file(self, key: str, data: bytes, replaced: Content) -> bool:
        """Replaces a file by comparing and writing under a lock, as a file system has no etags."""
        assert self._folder is not None
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.open(self._folder / f".{key.replace('/', '-')}.lock", flags, file_mode())
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            current = self.read(key, max(len(replaced.data), 1))
            if current is None or current.data != replaced.data:
                return False
            self._api.put(self._store, key, data, mode="overwrite")
            return True
        except StoreCorruptError:
            return False  # it has grown, so it is another
        finally:
            os.close(lock)

    def write(self, key: str, data: bytes) -> None:
        """Writes a small object, whether or not there is one."""
        with self._naming(key, "write"):
            self._api.put(self._store, key, data, mode="overwrite")

    def upload(self, key: str, path: Path) -> None:
        """Writes a whole file as one object, which appears once all of it is there."""
        with self._naming(key, "write"):
            self._api.put(self._store, key, path, max_concurrency=PARTS_AT_ONCE)

    def copy(self, source: str, target: str) -> None:
        """Copies an object within the store, which moves no data through this machine."""
        with self._naming(source, "copy"):
            self._api.copy(self._store, source, target)

    def download(
        self,
        key: str,
        path: Path,
        byte_count: int,
        xxh3: str,
        received: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Copies an object into a file, which appears verified and on disk, or not at all.

        Args:
            key: The object.
            path: The file; its folder exists.
            byte_count: Size that it must have.
            xxh3: XXH3 (64 bits) that it must have, hexadecimal.
            received: Receives the bytes of each piece; may raise an error to end the copy.

        Raises:
            StoreCorruptError: The object is missing, or another one than expected.
            StoreUnavailableError: The store does not answer.
            OSError: The file cannot be written.
        """
        # A name of its own: a thread that was not waited for may still write to the last one.
        part = path.with_name(f"{path.name}.{uuid4().hex}.part")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(part, flags, file_mode()), "wb") as file:
                for piece in self._verified(key, byte_count, xxh3):
                    received(len(piece))
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        part.replace(path)

    def check(self, key: str, byte_count: int, xxh3: str) -> None:
        """Reads an object; raises as `download` does."""
        for _ in self._verified(key, byte_count, xxh3):
            pass

    def _verified(self, key: str, byte_count: int, xxh3: str) -> Iterator[memoryview]:
        """Yields the pieces of an object; raises StoreCorruptError after the last if it differs."""
        hasher = xxhash.xxh3_64()
        done = start = 0
        while done < byte_count:
            try:
                for piece in self._pieces(key, start, byte_count - start):
                    hasher.update(piece)
                    done += len(piece)
                    yield piece
            except StoreUnavailableError:
                # A slow network may end any request; as long as each brings something, go on.
                if done == start:
                    raise
            start = done
        if hasher.hexdigest() != xxh3:
            raise self.damaged(key, "its checksum differs")

    def _pieces(self, key: str, start: int, byte_count: int) -> Iterator[memoryview]:
        """Yields the pieces of one request; raises StoreCorruptError if they are too few bytes."""
        options = {"range": (start, start + byte_count)} if start else {}
        with self._naming(key, "read"):
            try:
                found = self._api.get(self._store, key, options=options)
            except FileNotFoundError:
                raise self.damaged(key, "it is gone") from None
            except self._api.exceptions.GenericError as error:
                # A file system has no status for a range beyond the end.
                if self._folder is not None or _status(error).startswith("416"):
                    raise self.damaged(key, "it is too short") from None
                raise
        if found.meta["size"] != start + byte_count:
            raise self.damaged(key, "its size differs")
        pieces = iter(found.stream(min_chunk_size=PIECE_BYTES))
        while True:
            # Apart from what the caller does with a piece, whose errors are others.
            with self._naming(key, "read"):
                piece = next(pieces, None)
            if piece is None:
                break
            byte_count -= len(piece)
            yield memoryview(piece)
        if byte_count:
            raise self.damaged(key, "it is too short")

    def damaged(self, key: str, reason: str) -> StoreCorruptError:
        """Returns the error that names a missing or altered object."""
        return StoreCorruptError(
            f"{self.url}/{key} is damaged ({reason}); restore the object from a copy of the "
            f"bucket, or go back with thinrow store rollback."
        )

    def listed(self, prefix: str = "") -> Iterator[ListedObject]:
        """Yields all objects whose key begins with the folder `prefix`."""
        with self._naming(prefix or "*", "list"):
            for batch in self._api.list(self._store, prefix or None):
                for meta in batch:
                    modified_ts = int(meta["last_modified"].timestamp() * 1000)
                    yield ListedObject(meta["path"], meta["size"], modified_ts)

    def find(self, key: str) -> ListedObject | None:
        """Returns an object's size and time; None if there is no such object."""
        with self._naming(key, "read"):
            try:
                meta = self._api.head(self._store, key)
            except FileNotFoundError:
                return None
            return ListedObject(key, meta["size"], int(meta["last_modified"].timestamp() * 1000))

    def has_versions(self, key: str) -> bool:
        """Returns True if the bucket keeps versions of objects, which deletion leaves there."""
        with self._naming(key, "read"):
            version = self._api.head(self._store, key)["version"]
            return version is not None and self.url.startswith(("s3:", "az:"))

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes objects; those that are gone already count as deleted."""
        for start in range(0, len(keys), DELETED_AT_ONCE):
            batch = list(keys[start : start + DELETED_AT_ONCE])
            with self._naming(batch[0], "delete"):
                if self._folder is None:
                    self._api.delete(self._store, batch)
                    continue
                for key in batch:
                    try:
                        self._api.delete(self._store, key)
                    except FileNotFoundError:
                        continue

    @contextmanager
    def _naming(self, key: str, verb: str) -> Iterator[None]:
        """Turns errors of the library into ours, which name the object and show no request."""
        try:
            yield
        except (StoreError, UsageError):
            raise
        except (
            PermissionError,
            self._api.exceptions.PermissionDeniedError,
            self._api.exceptions.UnauthenticatedError,
        ):
            raise StoreError(
                f"Cannot {verb} {self.url}/{key}: permission denied; {ACCESS_HINT}."
            ) from None
        except (OSError, NotImplementedError, self._api.exceptions.BaseError) as error:
            raise StoreUnavailableError(
                f"Cannot {verb} {self.url}/{key}: {_status(error) or type(error).__name__}; "
                f"{ACCESS_HINT}."
            ) from None

    def __repr__(self) -> str:
        return f"ObjectStore({self.url})"


def _status(error: Exception) -> str:
    """Returns the part of a library's error that cannot hold a signature or a token."""
    text = str(error)
    if "BadScheme" in text:
        return "its server has no TLS, which AWS_ALLOW_HTTP=true allows"
    match = re.search(r"status code: (\d{3}[A-Za-z ]*)", text)
    if match:
        return match[1].strip()
    match = re.search(r"\(os error (\d+)\)", text)
    if match:
        return os.strerror(int(match[1]))
    match = re.search(r"HTTP error: ([a-z ]+)", text)
    return match[1].strip() if match else ""


def _shown(url: str) -> str:
    """Returns a URL without what may be secret in it."""
    return re.sub(r"//[^/@]*@", "//…@", url).split("?")[0].split("#")[0]


def _library() -> Any:  # noqa: ANN401 - the module, which may not be installed
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError as error:
        raise UsageError(
            "Stores in object stores need obstore; run pip install 'thinrow[remote]'."
        ) from error
    return obstore
