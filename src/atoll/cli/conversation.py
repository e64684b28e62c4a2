"""A conversation with a model that goes on from what one writes.

    line -> a command, or more of the text -> tokens, as they come -> the text, longer

It has no screen: it writes text, and notes about it, with what it is given.
"""

from collections.abc import Callable
from itertools import count
from typing import Final

from msgspec import Struct

from atoll.model.generate import Sampling
from atoll.talk.completion import Wish, complete
from atoll.talk.source import Source, Speaker

HELP: Final = """\
What you write is the beginning of a text, and the model goes on with it.
An empty line lets it go on; Ctrl-C stops it, and once more ends the program.

/new             begin another text
/temperature T   how bold it is: 0 is always the likeliest word, 0.8 is usual
/length N        tokens that it writes at most, each time
/help            this
/quit            end"""


class Settings(Struct, kw_only=True):
    temperature: float = 0.8
    top_k: int = 50
    length: int = 100  # tokens, each time
    seed: int = 0


class Conversation:
    """`write` takes pieces of text, `note` whole lines about it."""

    def __init__(
        self,
        source: Source,
        speaker: Speaker,
        settings: Settings,
        *,
        write: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self._source = source
        self._speaker = speaker
        self._settings = settings
        self._write = write
        self._note = note
        self._text = ""
        self._seeds = count(settings.seed)  # the next answer to the same text is another one

    def hear(self, line: str) -> bool:
        """Do what the line says; return whether the conversation goes on."""
        word, _, rest = line.strip().partition(" ")
        match word:
            case "/quit":
                return False
            case "/help":
                self._note(HELP)
            case "/new":
                self._text = ""
                self._note("a new text begins")
            case "/temperature":
                self._set_temperature(rest)
            case "/length":
                self._set_length(rest)
            case _ if word.startswith("/"):
                self._note(f"no such command: {word}; /help lists them")
            case _:
                self._go_on(line)
        return True

    def _go_on(self, line: str) -> None:
        """Take over a newer model if there is one; then let it go on from the text and the line."""
        if (newer := self._source.newer()) is not None:
            self._speaker = newer
            self._note(f"{newer.version} is in use from now on")
        self._text += f"\n{line}" if self._text and line else line
        settings, speaker = self._settings, self._speaker
        num_new = min(settings.length, self._longest)
        # Of a long text, the model sees the end. As much as it was trained on has room for both.
        prompt = speaker.tokens_of(self._text)[-(speaker.max_tokens - num_new) :]
        wish = Wish(
            sampling=Sampling(
                temperature=settings.temperature, top_k=settings.top_k, seed=next(self._seeds)
            ),
            max_new_tokens=num_new,
        )
        try:
            for piece in complete(speaker, prompt, wish):
                self._text += piece.text
                self._write(piece.text)
                if piece.finish == "stop":
                    self._write(" [the text ends here]")
        except KeyboardInterrupt:
            self._write(" [stopped]")
        self._write("\n")

    @property
    def _longest(self) -> int:
        """Half of what the model was trained on: the other half is for what it goes on from."""
        return max(1, self._speaker.max_tokens // 2)

    def _set_temperature(self, text: str) -> None:
        settings = self._settings
        try:
            temperature = float(text) if text else settings.temperature
            if not 0 <= temperature < float("inf"):
                raise ValueError
        except ValueError:
            self._note(f"a temperature is a number from 0 on, as in: /temperature 0.8; not: {text}")
            return
        settings.temperature = temperature
        self._note(f"temperature {temperature:g}")

    def _set_length(self, text: str) -> None:
        settings = self._settings
        wanted = text or str(settings.length)
        if not wanted.isdecimal() or int(wanted) < 1:
            self._note(f"a length is a number of tokens, as in: /length 100; not: {text}")
            return
        settings.length = int(wanted)
        most = self._longest
        limit = f"; this model manages {most} at a time" if settings.length > most else ""
        self._note(f"at most {settings.length} tokens each time{limit}")
