"""The layers' matrix products in 8 bits: at most twice as fast as in 16, on GPUs that have them.

    input, weight   --largest value--> scale --> e4m3 --+--> product, summed in fp32 --> bf16
    gradient        --largest value--> scale --> e5m2 --+

The float8 training of torchao, with one scale for each tensor (formats: arXiv 2209.05433). Weights,
gradients and moments stay in fp32, under the same names; norms, attention, embedding, head and loss
are as with bf16, and so are matrices that are too small to gain (`model.shapes`). Several devices
gather weights in bf16. Unless layers are compiled, scaling and casting cost more than is gained.
"""

from importlib.util import find_spec
from typing import Final

import torch

from atoll.config import ModelConfig
from atoll.errors import ConfigError
from atoll.model.llama import Llama
from atoll.model.shapes import gains_by_fp8, parameter_specs, require_fp8_shapes
from atoll.train.device import device_name

CAPABILITY: Final = (8, 9)  # of NVIDIA's GPUs from Ada and Hopper on


def require_fp8(device: torch.device, model: ModelConfig, *, sequence_length: int) -> None:
    """Refuse what cannot be, before anything is built.

    Raises:
        ConfigError: the device has no such products, the package is missing, or shapes do not fit.
    """
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY
    if not able:
        raise ConfigError(
            f"this device has no matrix products in 8 bits: {device_name(device)}",
            hint='precision = "fp8" is for NVIDIA GPUs from Ada and Hopper on (RTX 4090, H100); '
            'choose "bf16" or "auto" here',
        )
    if find_spec("torchao") is None:
        raise ConfigError(
            'precision = "fp8" takes the package torchao, which is not installed',
            hint="pip install 'atoll[fp8]'",
        )
    require_fp8_shapes(model, sequence_length=sequence_length)


def fp8_(model: Llama, *, emulated: bool = False) -> None:
    """Let the large matrices of the layers multiply so; before layers are compiled or sharded.

    Parameters keep their names and values. Emulated, values are rounded to 8 bits all the same, and
    multiplied in fp32 on any device: for tests.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    large = {spec.name for spec in parameter_specs(model.config) if gains_by_fp8(spec)}
    convert_to_float8_training(
        model,
        config=Float8LinearConfig(emulate=emulated),
        module_filter_fn=lambda _, name: f"{name}.weight" in large,
    )
