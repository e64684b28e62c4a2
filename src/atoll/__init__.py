"""atoll: train one language model on many people's machines."""

__version__ = "0.1.0"
