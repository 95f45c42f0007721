"""The SQLite file under the feedback store: its tables, migrations and transactions, and the lock of its one writer.

In: a path. Out: an open file that is read and written row by row, in WAL mode, by its owner alone; a fault of the
file, the disk or the folder is a ``BadInput`` of one line. ``store.py`` defines what the rows mean.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from align.core.config import BadInput

APPLICATION_ID = 0x414C4642  # "ALFB": tells a feedback store from any other SQLite file
FAULTS = (sqlite3.Error, UnicodeError)  # a damaged file's own error message need not be text
PRIVATE = stat.S_IRUSR | stat.S_IWUSR
COMPANIONS = ("", ".writer", "-wal", "-shm")  # what belongs to a store, by what is added to its name
PATIENCE = 30.0  # seconds that a lock of another process is waited for

MIGRATIONS = (
    """
    CREATE TABLE log (sequence INTEGER PRIMARY KEY, salted_hash TEXT NOT NULL, entry_hash TEXT NOT NULL);
    CREATE TABLE bodies (
        sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, comparison_id TEXT, annotator TEXT, source TEXT,
        body TEXT NOT NULL, salt BLOB NOT NULL);
    CREATE INDEX bodies_by_key ON bodies (kind, comparison_id, annotator, source, sequence);
    CREATE TABLE tip (one INTEGER PRIMARY KEY CHECK (one = 1), length INTEGER NOT NULL, head TEXT NOT NULL);
    CREATE TRIGGER log_keeps BEFORE UPDATE ON log BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
    CREATE TRIGGER log_stays BEFORE DELETE ON log BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
    CREATE TRIGGER bodies_keep BEFORE UPDATE ON bodies BEGIN SELECT RAISE(ABORT, 'a body is never edited'); END;
    """,
    """
    CREATE TABLE campaigns (
        name TEXT PRIMARY KEY, url TEXT NOT NULL, project INTEGER NOT NULL, interface TEXT NOT NULL,
        config_hash TEXT NOT NULL, watermark TEXT, recovered INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE tasks (
        campaign TEXT NOT NULL, key TEXT NOT NULL, comparison_id TEXT NOT NULL, shown TEXT NOT NULL,
        purpose TEXT NOT NULL, answer TEXT, guideline TEXT, task_id INTEGER, PRIMARY KEY (campaign, key));
    CREATE INDEX tasks_by_comparison ON tasks (comparison_id);
    CREATE TABLE pulled (
        campaign TEXT NOT NULL, annotation_id INTEGER NOT NULL, created_at TEXT NOT NULL, task_id INTEGER NOT NULL,
        key TEXT, annotator TEXT NOT NULL, digest TEXT NOT NULL, outcome TEXT NOT NULL,
        PRIMARY KEY (campaign, annotation_id, created_at));
    CREATE INDEX pulled_by_task ON pulled (campaign, task_id);
    CREATE TABLE quarantine (
        campaign TEXT NOT NULL, annotation_id INTEGER, created_at TEXT, task_id INTEGER, key TEXT, annotator TEXT,
        reason TEXT NOT NULL, body TEXT, PRIMARY KEY (campaign, annotation_id, created_at, task_id));
    CREATE TABLE guidelines (
        version INTEGER PRIMARY KEY, campaign TEXT NOT NULL, sha256 TEXT NOT NULL, text TEXT NOT NULL,
        since TEXT NOT NULL, UNIQUE (campaign, sha256));
    CREATE TABLE excluded (annotator TEXT PRIMARY KEY, reason TEXT NOT NULL, since TEXT NOT NULL);
    """,
    """
    CREATE TABLE refreshed (campaign TEXT NOT NULL, key TEXT NOT NULL, older TEXT, moment TEXT);
    CREATE INDEX refreshed_by_task ON refreshed (campaign, key);
    CREATE TABLE secret (one INTEGER PRIMARY KEY CHECK (one = 1), salt BLOB NOT NULL);
    INSERT INTO secret VALUES (1, fresh_salt());
    ALTER TABLE campaigns ADD COLUMN pulled_at TEXT;
    ALTER TABLE pulled ADD COLUMN seconds REAL;
    CREATE TABLE reopened (
        campaign TEXT NOT NULL, key TEXT NOT NULL, people INTEGER NOT NULL, PRIMARY KEY (campaign, key));
    ALTER TABLE tasks ADD COLUMN pages TEXT;
    """,
    """
    CREATE TABLE stamps (
        campaign TEXT NOT NULL, task_id INTEGER NOT NULL, updated_at TEXT NOT NULL, PRIMARY KEY (campaign, task_id));
    UPDATE campaigns SET watermark = NULL;
    """,
)


class Unfinished(BadInput):
    """The rows were deleted, but copies of them may still be in the file."""


class Busy(BadInput):
    """Another process is writing; nothing else is wrong."""


class Database:
    """An open feedback file; ``guard`` is the writer's lock, None when reading."""

    def __init__(self, path: Path, write: bool) -> None:
        """Open the file, creating it when writing and bringing it to the newest schema.

        Raises:
            BadInput: not a feedback store, written by a newer version, not to be read or written here, or another
                writer has it.
        """
        self.path = path
        self.guard = claim(path) if write else None
        try:
            self.connection = connect(path, write)
        except BaseException:
            if self.guard:
                self.guard.close()
            raise
        if write:
            keep_private(path)

    def close(self) -> None:
        self.connection.close()
        if self.guard:
            self.guard.close()

    def read(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        """Return rows of a query."""
        with self.reading():
            return self.connection.execute(query, values).fetchall()

    def rows(self, query: str) -> Iterator[Any]:
        """Yield the rows of a query one by one: a whole table need not fit into memory."""
        with self.reading():
            yield from self.connection.execute(query)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn a fault of SQLite inside the block into a BadInput of one line."""
        try:
            yield
        except FAULTS as error:
            raise BadInput(f"{self.path}: cannot be read ({_reason(error)}); restore a copy") from None

    def write(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Execute a statement once per row, inside a transaction of the caller's or its own."""
        with self.transaction():
            self.connection.executemany(statement, list(rows))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all or nothing: the (outermost) block commits only when it ends without an exception."""
        if self.guard is None:
            raise BadInput(f"{self.path}: was opened for reading; open it with write=True")
        if self.connection.in_transaction:  # part of a larger one
            yield
            return
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            yield
            self.connection.execute("COMMIT")
        except FAULTS as error:
            self._roll_back()
            raise BadInput(f"{self.path}: cannot be written ({_reason(error)}); nothing was changed") from error
        except BaseException:
            self._roll_back()
            raise

    def rewrite(self) -> None:
        """Write the file anew without free pages, and empty the write-ahead log.

        What this store deletes is overwritten at once; what another program deleted here need not have been.

        Raises:
            Unfinished: a reader or a full disk keeps the old pages alive; what was deleted is deleted all the same.
        """
        try:
            is_busy = self._checkpoint()
            if not is_busy:
                self.connection.execute("VACUUM")
                is_busy = self._checkpoint()
        except FAULTS as error:
            raise Unfinished(
                f"{self.path}: erased, but free pages may hold copies ({_reason(error)}); mend it and erase again"
            ) from error
        if is_busy:
            raise Unfinished(f"{self.path}: erased, but a reader keeps old pages on disk; end it and erase once more")

    def _checkpoint(self) -> bool:
        return bool(self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])

    def _roll_back(self) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")


def claim(path: Path) -> IO[str]:
    """Take the writer's lock, which the system frees when the process ends, however it ends.

    A file of its own: closing any handle on the database would drop the locks SQLite holds on it.
    """
    file = path.with_name(path.name + ".writer")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        guard = os.fdopen(os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, PRIVATE), "a+")
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror}); choose another feedback= path") from error
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        guard.seek(0)
        holder = guard.read().strip()
        guard.close()
        who = f"process {holder}" if holder else "another process"
        raise Busy(f"{path}: {who} is writing to this feedback store; wait until it is done") from None
    with suppress(
        OSError
    ):  # the number is for the second writer's message; a full disk is reported by the store itself
        os.ftruncate(guard.fileno(), 0)
        os.write(guard.fileno(), str(os.getpid()).encode())
    return guard


def keep_private(path: Path) -> None:
    """Take a store, and what belongs to it, away from everybody but its owner, where everybody may read it.

    Who lets only a group in keeps it so. What SQLite puts beside the file takes over its mode.
    """
    for end in COMPANIONS:
        file = path.with_name(path.name + end)
        with suppress(OSError):
            if (mode := stat.S_IMODE(file.stat().st_mode)) & stat.S_IRWXO:
                file.chmod(mode & stat.S_IRWXU)


def connect(path: Path, write: bool) -> sqlite3.Connection:
    """Open the file, bringing it to the newest schema; a reader sees one moment until it closes.

    Raises:
        BadInput: not a feedback store, or written by a newer version.
    """
    address = path.resolve().as_uri()
    if write:
        with suppress(OSError):  # it is there; or SQLite says what is wrong
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, PRIVATE))
    mode = "mode=rwc" if write else "mode=ro&immutable=1" if _is_still(path) else "mode=ro"
    try:
        connection = sqlite3.connect(f"{address}?{mode}", uri=True, isolation_level=None, timeout=PATIENCE)
        try:
            version = _version(path, connection, write)
            if write:
                _migrate(connection, version)
        except BaseException:
            connection.close()
            raise
    except FAULTS as error:
        raise BadInput(f"{path}: cannot be opened as a feedback store ({_reason(error)})") from error
    if not write and version < len(MIGRATIONS):
        connection.close()
        with claim(path):
            connect(path, write=True).close()
        return connect(path, write=False)
    return connection


def _reason(error: Exception) -> str:
    """Return SQLite's own message, in one line and without the text that it was reading."""
    return " ".join(str(error).partition(" with text")[0].split())[:200]


def _is_still(path: Path) -> bool:
    """Return whether nobody writes, in a folder that is read-only to us: there SQLite cannot even note a reader."""
    return not os.access(path.parent, os.W_OK) and not path.with_name(path.name + "-wal").exists()


def _version(path: Path, connection: sqlite3.Connection, write: bool) -> int:
    """Return the schema that a file was written by."""
    if not write:
        connection.execute("BEGIN")  # the first read below fixes the moment that this reader sees
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    kind = int(connection.execute("PRAGMA application_id").fetchone()[0])
    is_empty = not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
    if kind != APPLICATION_ID and not (write and is_empty):
        raise BadInput(f"{path}: not a feedback store; name a feedback.db that 'import' or 'annotate' wrote")
    if version > len(MIGRATIONS):
        raise BadInput(f"{path}: written by a newer version (schema {version}); update align-suite")
    return version


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA secure_delete = ON")  # erased text must not survive in free pages
    connection.create_function("fresh_salt", 0, lambda: os.urandom(32))
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        stamp = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
        connection.executescript(f"BEGIN IMMEDIATE; {script} {stamp} COMMIT;")
