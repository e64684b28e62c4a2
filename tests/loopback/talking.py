"""`atoll serve` and `atoll chat` beside a run that goes on: two processes, as a user has them."""

import json
import re
import subprocess
import sys
import urllib.request

from tests.loopback.cluster import Cluster, wait_until

WORDS = "The reef"


class Talking:
    """One answers programs, by an invite; the other a person, on the run's own disk."""

    def __init__(self, cluster: Cluster) -> None:
        reader = ("--dir", str(cluster.peers / "reader"), "--port", "0")
        self.serving = cluster.run_command("serve", "serve", cluster.invite, *reader)
        self.chat_log = cluster.peers / "chat.log"
        self._answered = 0  # characters of the log, when the last line was written
        arguments = ["chat", str(cluster.run), "--cache", str(cluster.cache), "--length", "4"]
        with self.chat_log.open("wb") as log:
            self.chat = subprocess.Popen(
                [sys.executable, "-m", "atoll.cli.main", *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
            )

    def follow(self, cluster: Cluster) -> None:
        """Talk with both until each has taken over a state that is newer than its first one."""
        for said in (self._served, self._chatted):
            wait_until(lambda said=said: states_in(said()), "the first state", watch=self.serving)
        first = max(states_in(self._served())[0], states_in(self._chatted())[0])
        wait_until(lambda: cluster.committed() > first + 1, "newer commits", watch=self.serving)
        wait_until(lambda: self._ask() and self._is_newer(self._served), "a newer model served")
        wait_until(lambda: self._write() and self._is_newer(self._chatted), "one to chat with")

    def end(self) -> None:
        """Let both end as a person does: with /quit, and by a signal."""
        self.serving.interrupt()
        self.chat.communicate("/quit\n", timeout=60)
        assert self.chat.returncode == 0, self._chatted()
        self.serving.wait()

    def close(self) -> None:
        self.chat.kill()
        self.chat.communicate()

    def _served(self) -> str:
        return self.serving.output

    def _chatted(self) -> str:
        return self.chat_log.read_text(errors="replace")

    @staticmethod
    def _is_newer(said) -> bool:
        first, *later = states_in(said())
        return bool(later) and later[-1] > first

    def _ask(self) -> bool:
        found = re.search(r"http://\S+/v1", self._served())
        body = {"model": "loopback", "prompt": WORDS, "max_tokens": 4}
        request = urllib.request.Request(
            f"{found[0]}/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            (choice,) = json.load(response)["choices"]
        return bool(choice["text"])

    def _write(self) -> bool:
        """Write a line, unless there is no answer to the last one yet."""
        if len(self._chatted()) > self._answered:
            self._answered = len(self._chatted())
            self.chat.stdin.write(f"{WORDS}\n")
            self.chat.stdin.flush()
        return True


def states_in(output: str) -> list[int]:
    """Return the states that were said to be in use, in order."""
    return [int(number) for number in re.findall(r"state (\d+) of \d+", output)]
