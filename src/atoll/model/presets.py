"""Models to start from, by name: from one that trains on a laptop in minutes to INTELLECT-1."""

from typing import Final

from atoll.config import ModelConfig

PRESETS: Final[dict[str, ModelConfig]] = {
    "tiny": ModelConfig(  # 1.3 M
        vocab_size=4096,
        num_layers=4,
        width=128,
        num_heads=4,
        num_kv_heads=2,
        ffn_width=384,
        tied_embeddings=True,
    ),
    "small": ModelConfig(  # 16 M
        vocab_size=8192,
        num_layers=8,
        width=384,
        num_heads=6,
        num_kv_heads=2,
        ffn_width=1024,
        tied_embeddings=True,
    ),
    "150m": ModelConfig(  # 151 M
        vocab_size=32_768,
        num_layers=20,
        width=768,
        num_heads=12,
        num_kv_heads=4,
        ffn_width=2048,
        tied_embeddings=True,
    ),
    "1b": ModelConfig(  # 1.24 B, the shapes of Llama 3.2 1B
        vocab_size=128_256,
        num_layers=16,
        width=2048,
        num_heads=32,
        num_kv_heads=8,
        ffn_width=8192,
        tied_embeddings=True,
    ),
    "8b": ModelConfig(  # 8.03 B, the shapes of Llama 3 8B
        vocab_size=128_256,
        num_layers=32,
        width=4096,
        num_heads=32,
        num_kv_heads=8,
        ffn_width=14_336,
    ),
    "intellect-1": ModelConfig(  # 10.21 B, arXiv 2412.01152
        vocab_size=128_256,
        num_layers=42,
        width=4096,
        num_heads=32,
        num_kv_heads=8,
        ffn_width=14_336,
    ),
}
