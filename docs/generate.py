"""The pages of docs/reference, which follow from the code: `make docs` writes them anew."""

import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the examples, which are those of the golden bytes

from tests.golden.test_wire import EXAMPLES, tag_of  # noqa: E402

from atoll.config import LARGEST, PeerConfig, RunConfig  # noqa: E402
from atoll.net import wire  # noqa: E402
from atoll.net.framing import frame  # noqa: E402
from atoll.tables import keys  # noqa: E402

BYTES_IN_A_LINE = 16
MOST = f" and at most {LARGEST:g}"  # of any whole number: nothing to read about


def pages() -> dict[str, str]:
    """Return the text of each page, by its file name."""
    return {"config.md": config_page(), "messages.md": messages_page()}


# --- every key -----------------------------------------------------------------------------------


def config_page() -> str:
    lines = [
        "# Every key",
        "",
        "Made from the types in `src/atoll/config.py`. A key without a "
        "default has to be given; `atoll new` gives all of them.",
        "",
        "## run.toml",
        "",
        "What a run is, the same on every peer. Its digest is the name of the run, so none of it "
        "can change while the run goes on.",
        *_tables(RunConfig),
        "",
        "## A machine's own file",
        "",
        "For `atoll join --config FILE`; what stands on the command line comes on top. It changes "
        "no result by more than rounding.",
        *_tables(PeerConfig),
    ]
    return "\n".join(lines) + "\n"


def _tables(struct: type[msgspec.Struct]) -> Iterator[str]:
    for table, of_table in groupby(keys(struct), key=lambda key: key.table):
        if table:
            yield from ("", f"### `[{table}]`")
        yield from ("", "| key | default | allowed | |", "|---|---|---|---|")
        for key in of_table:
            default = f"`{key.default}`" if key.default else ""
            allowed = _cell(key.allowed.removesuffix(MOST))
            yield f"| `{key.name}` | {default} | {allowed} | {_cell(key.explanation)} |"


def _cell(text: str) -> str:
    return re.sub(r"matches (\S+)", r"matches `\1`", text).replace("|", "\\|")


# --- every message -------------------------------------------------------------------------------


def messages_page() -> str:
    lines = [
        "# Every message",
        "",
        f"Made from `src/atoll/net/wire.py`: protocol {wire.PROTOCOL}. "
        "Each example is one of those whose bytes `tests/golden/wire` keeps: its fields as JSON "
        "would have them (bytes in base64), and the whole frame, with the length in front. Who "
        "says what, and when: [protocol](../protocol.md).",
    ]
    for message in EXAMPLES:
        fields = msgspec.json.format(msgspec.json.encode(message), indent=2).decode()
        told = [line.strip() for line in (type(message).__doc__ or "").strip().splitlines()]
        lines += [
            "",
            f"## `{type(message).__name__}`",
            "",
            *([*told, ""] if told else []),
            "```json",
            fields,
            "```",
            "",
            "```text",
            *_hex(frame(message)),
            "```",
        ]
        assert tag_of(message) in fields
    return "\n".join(lines) + "\n"


def _hex(whole: bytes) -> Iterator[str]:
    for start in range(0, len(whole), BYTES_IN_A_LINE):
        part = whole[start : start + BYTES_IN_A_LINE]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        yield f"{start:04x}  {part.hex(' '):<{3 * BYTES_IN_A_LINE}} {text}".rstrip()


def write(folder: Path) -> None:
    """Write the pages where they differ, so that Sphinx builds only those anew."""
    folder.mkdir(exist_ok=True)
    for name, text in pages().items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
