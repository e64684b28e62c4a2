"""Units, and how a person reads them."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


def format_bytes(num_bytes: float) -> str:
    """Return e.g. `1.3 MB` (decimal units, as networks and disks are sold)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 999.95:  # what would round up to 1000 is one unit further
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def format_count(count: float) -> str:
    """Return e.g. `1.3 M`."""
    for unit in ("", " k", " M"):
        if abs(count) < 999.95:
            return f"{count:.0f}" if not unit else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.1f} B"


def plural(number: int, what: str) -> str:
    """Return e.g. `1 peer`, `2 peers`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def format_seconds(seconds: float) -> str:
    """Return e.g. `4.2 s`, `3 min 20 s`, `2 h 5 min`, `12 d 4 h`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 100:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
