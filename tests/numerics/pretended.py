"""An inner step, a snapshot and a merge on a GPU that is not there: python pretended.py LIBRARY

Tensors are fake: of each, torch computes size, dtype and device, and no values. So everything runs
as on CUDA, at full size, and says how much memory there is at once and where the CPU has to wait
for the device. `pretended_cuda.cpp` is the library.

One line of JSON for each case: the waits of a step, peaks as shares of the prediction, and what a
snapshot asks of its stream.
"""

import ctypes
import json
import sys
import traceback
import weakref
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1])  # before torch looks for it

import numpy as np
import torch
from msgspec.structs import replace
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import atoll
from atoll.config import DataConfig, InnerConfig, RunConfig, SourceConfig, SyncConfig
from atoll.data.batches import Batch
from atoll.model.layout import layout_of
from atoll.model.memory import Training, trainer_bytes
from atoll.model.norm import _RmsNorm
from atoll.model.presets import PRESETS
from atoll.train import exchanged
from atoll.train.channel import Merge, Snapshot
from atoll.train.exchanged import let_gpu_reach, merge_, start_snapshot
from atoll.train.inner import Computing, InnerLoop
from atoll.train.parallel import ALONE
from atoll.train.recompute import recompute_
from atoll.train.shared import SharedVectors
from atoll.train.trainer import build

OURS = str(Path(atoll.__file__).parent)
CUDA = torch.device("cuda", 0)
MODEL = replace(PRESETS["1b"], num_layers=4)
WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default}


class Watched(TorchDispatchMode):
    """Notes what is on the device, and each line of ours that has the CPU wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.products: set[str] = set()  # their dtypes
        self.peak_bytes = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in WAITS:
            self.waits.append(_our_line())
            return 1.0
        result = function(*args, **kwargs)
        if function is torch.ops.aten.mm.default:
            self.products.add(str(result.dtype))
        self._note(result)
        if _comes_from_the_device(args, result) and not self._goes_on(function, args):
            self.waits.append(_our_line())
        return result

    def _goes_on(self, function: object, args: tuple[Any, ...]) -> bool:
        """Return whether it is a copy that nobody waits for, to memory where that is possible."""
        asked = function is torch.ops.aten.copy_.default and len(args) > 2 and args[2]
        return bool(asked) and args[0].untyped_storage()._cdata in Driver.reached

    def _note(self, result: object) -> None:
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cuda":
                storage = tensor.untyped_storage()
                self._storages[id(storage)] = weakref.ref(storage)
        held = {at: s for at, known in self._storages.items() if (s := known()) is not None}
        self._storages = {at: self._storages[at] for at in held}
        self.peak_bytes = max(self.peak_bytes, sum(storage.nbytes() for storage in held.values()))


def _comes_from_the_device(args: object, result: object) -> bool:
    here = any(isinstance(t, torch.Tensor) and t.device.type == "cuda" for t in tree_iter(args))
    return here and isinstance(result, torch.Tensor) and result.device.type == "cpu"


def _our_line() -> str:
    """Return the innermost line of atoll, and what it says."""
    ours = [f for f in traceback.extract_stack() if f.filename.startswith(OURS)]
    return f"{Path(ours[-1].filename).name}: {ours[-1].line}"


# --- what torch.cuda has of its own ---------------------------------------------------------------

SAID: list[str] = []


ALREADY_PINNED = 712


class Driver:
    """What torch passes on to CUDA's driver."""

    pinned: ClassVar[list[range]] = []  # addresses
    reached: ClassVar[dict[int, torch.UntypedStorage]] = {}  # what tensors of such memory stand on

    @classmethod
    def cudaHostRegister(cls, address: int, num_bytes: int, flags: int) -> int:  # noqa: N802
        if any(address in pinned for pinned in cls.pinned):
            return ALREADY_PINNED
        cls.pinned.append(range(address, address + num_bytes))
        return 0

    @classmethod
    def cudaHostUnregister(cls, address: int) -> int:  # noqa: N802
        cls.pinned = [pinned for pinned in cls.pinned if pinned.start != address]
        return 0


def from_numpy(values: np.ndarray, *, make=torch.from_numpy) -> torch.Tensor:
    tensor = make(values)
    if any(values.ctypes.data in pinned for pinned in Driver.pinned):
        storage = tensor.untyped_storage()
        Driver.reached[storage._cdata] = storage
    return tensor


class Stream:
    """A stream that notes what is asked of it."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.name = "current" if device is None else "copying"

    def wait_stream(self, other: "Stream") -> None:
        SAID.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        SAID.append(f"wait for {self.name}")


@contextmanager
def on_stream(stream: Stream):
    SAID.append(f"on {stream.name}")
    yield
    SAID.append("on current")


def attend(q, k, v, *, attn_mask, is_causal, enable_gqa):
    """Return what the kernel gives that CUDA chooses; where it has none but the plain one, fail."""
    if attn_mask is None and q.dtype == torch.bfloat16:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)[0]
    assert not enable_gqa, "all scores of all heads would exist"
    assert q.shape[1] == k.shape[1]
    bias = None if attn_mask is None else attn_mask.expand(-1, q.shape[1], -1, -1)
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(q, k, v, bias, True, 0.0, is_causal)[0]


def rms_norm(x, _shape, weight, eps):
    """Return what CUDA's kernel gives, which keeps as much; a build for the CPU has none."""
    return _RmsNorm.apply(x, weight, eps)


def pretended() -> ExitStack:
    stack = ExitStack()
    for name, value in (
        # Else autocast warns, and leaves products in fp32.
        ("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        ("torch.cuda.is_bf16_supported", lambda: True),
        ("torch.cuda.cudart", lambda: Driver),
        ("torch.cuda.synchronize", lambda device: SAID.append("wait for all")),
        ("torch.from_numpy", from_numpy),
        ("torch.cuda.Stream", Stream),
        ("torch.cuda.current_stream", lambda device: Stream()),
        ("torch.cuda.stream", on_stream),
        ("torch.nn.functional.scaled_dot_product_attention", attend),
        ("torch.nn.functional.rms_norm", rms_norm),
        ("torch.Tensor.pin_memory", lambda tensor: tensor),
        ("torch.Tensor.record_stream", lambda t, s: SAID.append(f"kept for {s.name}")),
    ):
        stack.enter_context(patch(name, value))
    return stack


# --- the cases ------------------------------------------------------------------------------------


class Samples:
    """Zeros, in one document or in two."""

    def __init__(self, config: RunConfig, *, packed: bool) -> None:
        self._length, self._packed = config.data.sequence_length, packed

    def batch(self, start: int, stop: int) -> Batch:
        tokens_BT = np.zeros((stop - start, self._length), np.int64)
        document_T = np.arange(self._length) * (2 if self._packed else 1) // self._length
        return Batch(tokens_BT, tokens_BT, np.tile(document_T, (len(tokens_BT), 1)))


def case(*, packed: bool = False, recompute: str = "nothing", precision: str = "bf16"):
    """Return what was seen; bytes are shares of the prediction."""
    config = RunConfig(
        name="x",
        model=MODEL,
        data=DataConfig(sources=(SourceConfig(kind="preset", name="sotu"),), sequence_length=8192),
        inner=InnerConfig(lr=1e-3, batch_sequences=2, z_loss=1e-4),
        sync=SyncConfig(rounds=1, inner_steps=1),
    )
    layout = layout_of(config)
    vectors = SharedVectors.private(Path(), layout.num_values)
    how = Training(1, recomputes=recompute == "layers", fp8=precision == "fp8")
    SAID.clear()
    with pretended(), FakeTensorMode(allow_non_fake_inputs=True), Watched() as watched:
        let_go = let_gpu_reach(vectors, CUDA)
        model = build(config.model, CUDA, ranks=ALONE, precision=precision)
        recompute_(model, recompute)
        samples = Samples(config, packed=packed)
        computing = Computing(micro_batch=1, bf16=True)
        loop = InnerLoop(model, samples, config, how=computing)
        loop.step([(0, 2)], step=0)  # makes the moments
        watched.waits.clear()
        watched.peak_bytes = 0
        loop.step([(0, 2)], step=1)
        of_step, watched.peak_bytes = watched.peak_bytes, 0
        waits = list(watched.waits)
        watched.waits.clear()

        loop.drop_gradients()
        everything = {"start": 0, "stop": layout.num_values}
        finish = start_snapshot(model, layout, vectors=vectors, snapshot=Snapshot(**everything))
        assert finish is not None
        at_snapshot, watched.peak_bytes = watched.peak_bytes, 0
        waits_of_snapshot = list(watched.waits)
        finish()
        said, SAID[:] = list(SAID), []
        for merging in ("replace", "carry", "blend"):
            merge_(
                model, layout, vectors=vectors, merge=Merge(how=merging, alpha=0.5, **everything)
            )
        at_merge = watched.peak_bytes
        said_by_merges = list(SAID)
        let_go()
        let_go()  # which changes nothing
        assert not Driver.pinned
        assert not exchanged._PINNED
    predicted = trainer_bytes(config, how)
    total = predicted.total - (0 if packed else predicted.masks)
    return {
        "packed": packed,
        "recompute": recompute,
        "precision": precision,
        "products": sorted(watched.products),
        "waits": waits,
        "waits_of_snapshot": waits_of_snapshot,
        "step": of_step / total,
        "snapshot": at_snapshot / total,
        "merge": at_merge / total,
        "said": said,
        "said_by_merges": said_by_merges,
    }


if __name__ == "__main__":
    for settings in (
        {},
        {"packed": True, "recompute": "selective"},
        {"recompute": "layers"},
        {"precision": "fp8"},
    ):
        sys.stdout.write(json.dumps(case(**settings)) + "\n")
