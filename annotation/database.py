"""The SQLite file under the feedback store: its tables, its migrations, and the lock of its one writer.

In: a path. Out: an open connection, in WAL mode when writing, and the writer's lock. What the rows mean stands in
``store.py``.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path
from typing import IO

from align.core.config import BadInput

APPLICATION_ID = 0x414C4642  # "ALFB": tells a feedback store from any other SQLite file

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
)


def claim(path: Path) -> IO[str]:
    """Take the writer's lock, which the system frees when the process ends, however it ends.

    A file of its own: closing any handle on the database would drop the locks SQLite holds on it.
    """
    file = path.with_name(path.name + ".writer")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        guard = open(file, "a+")  # noqa: SIM115 (held until the store is closed)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror}); choose another feedback= path") from error
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        guard.seek(0)
        holder = guard.read().strip()
        guard.close()
        who = f"process {holder}" if holder else "another process"
        raise BadInput(f"{path}: {who} is writing to this feedback store; wait until it is done") from None
    guard.truncate(0)
    guard.write(str(os.getpid()))
    guard.flush()
    return guard


def connect(path: Path, write: bool) -> sqlite3.Connection:
    """Open the file, bringing it to the newest schema; a reader sees one moment until it closes.

    Raises:
        BadInput: not a feedback store, or written by a newer version.
    """
    mode = "rwc" if write else "ro"
    try:
        uri = f"{path.resolve().as_uri()}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30)
        if not write:
            connection.execute("BEGIN")  # the first read below fixes the moment that this reader sees
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        kind = int(connection.execute("PRAGMA application_id").fetchone()[0])
        is_empty = not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        if kind != APPLICATION_ID and not (write and is_empty):
            raise BadInput(f"{path}: not a feedback store; name a feedback.db that 'import' or 'annotate' wrote")
        if version > len(MIGRATIONS):
            raise BadInput(f"{path}: written by a newer version (schema {version}); update align-suite")
        if write:
            _migrate(connection, version)
        elif version < len(MIGRATIONS):
            connection.close()
            with claim(path):
                connect(path, write=True).close()
            return connect(path, write=False)
    except sqlite3.Error as error:
        raise BadInput(f"{path}: cannot be opened as a feedback store ({error})") from error
    return connection


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA secure_delete = ON")  # erased text must not survive in free pages
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        stamp = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
        connection.executescript(f"BEGIN IMMEDIATE; {script} {stamp} COMMIT;")
