"""Text that comes piece by piece, on a terminal, whose lines end between two words."""

from collections.abc import Callable

from rich.cells import cell_len


class Wrapped:
    """Holds a word back until it has ended, and begins a line with it if this one has no room.

    `write` puts text on a terminal that is `columns()` wide. A word longer than a line is broken
    where the terminal does it.
    """

    def __init__(self, write: Callable[[str], None], columns: Callable[[], int]) -> None:
        self._write = write
        self._columns = columns
        self._column = 0  # where the next character goes
        self._gap = ""  # between that and the word
        self._word = ""

    def write(self, text: str) -> None:
        for character in text:
            if character == "\n":
                self._end_word()
                self._write("\n")
                self._column, self._gap = 0, ""
            elif character in " \t":
                self._end_word()
                self._gap += " "
            else:
                self._word += character
        if cell_len(self._word) >= self._columns():
            self._end_word()

    def _end_word(self) -> None:
        if not self._word:
            return
        columns = self._columns()
        # The last column stays free: terminals differ in what they do behind it.
        # Without a gap it is more of a word that is longer than a line.
        if self._gap and self._column + cell_len(self._gap + self._word) >= columns:
            if self._column:
                self._write("\n")
            self._column, self._gap = 0, ""
        self._write(self._gap + self._word)
        end = self._column + cell_len(self._gap + self._word)
        self._column = (end - 1) % columns + 1
        self._gap = self._word = ""
