"""atoll: train one language model on many people's machines.

replica = atoll.attach(model, optimizer, invite="atoll1...")     see docs/attach.md
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoll.config import PeerConfig, load_run_config
    from atoll.train.attach import Replica, attach

__version__ = "0.1.0"
__all__ = ["PeerConfig", "Replica", "attach", "load_run_config"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: hosts and agents need nothing of it, and may have no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    where = "atoll.config" if name in ("PeerConfig", "load_run_config") else "atoll.train.attach"
    return getattr(import_module(where), name)
