"""What a run is (`RunConfig`, the same on every peer) and what a machine gives it (`PeerConfig`).

    run.toml --load--> RunConfig --canonical JSON--> digest: the name of the run

Every default stands here, and every key's explanation: `template` writes them into a new run.toml.
The digest covers every value, so two peers that disagree about one are told at the handshake.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from atoll import tables
from atoll.errors import ConfigError, ProtocolError
from atoll.ids import Digest, digest_of
from atoll.tables import about

LARGEST: Final = 10**15  # any JSON reader holds a whole number up to here exactly

Positive = Annotated[int, Meta(gt=0, le=LARGEST)]
NotNegative = Annotated[int, Meta(ge=0, le=LARGEST)]
PositiveFloat = Annotated[float, Meta(gt=0)]
NotNegativeFloat = Annotated[float, Meta(ge=0)]
Decay = Annotated[float, Meta(ge=0, lt=1)]
Codec = Literal["fp64", "fp32", "bf16", "int8", "int4", "sparse"]
Recompute = Literal["nothing", "selective", "layers"]
UpdateCodec = Literal["fp64", "fp32", "bf16", "int8", "int4", "sparse8"]


class RopeScaling(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Llama 3.1's stretching of the slow rotary frequencies (its model card, `rope_scaling`)."""

    factor: Annotated[PositiveFloat, about("how many times slower they turn")] = 8.0
    low_freq_factor: Annotated[
        PositiveFloat, about("all with fewer turns in the original length are stretched")
    ] = 1.0
    high_freq_factor: Annotated[
        PositiveFloat, about("those with more turns in it stay as they are")
    ] = 4.0
    original_sequence_length: Annotated[Positive, about("tokens, before stretching")] = 8192


class ModelConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Llama-3 architecture (arXiv 2407.21783, section 3.2)."""

    vocab_size: Annotated[Positive, about("rows of the embedding; the tokenizer may have fewer")]
    num_layers: Annotated[Positive, about("transformer blocks")]
    width: Annotated[Positive, about("of the residual stream; a multiple of num_heads")]
    num_heads: Annotated[Positive, about("query heads; a multiple of num_kv_heads")]
    num_kv_heads: Annotated[Positive, about("key and value heads, shared by groups of queries")]
    ffn_width: Annotated[Positive, about("inner width of the SwiGLU feed-forward")]
    tied_embeddings: Annotated[bool, about("one matrix for input and output embedding")] = False
    norm_eps: Annotated[PositiveFloat, about("added to the mean square in RMSNorm")] = 1e-5
    rope_theta: Annotated[PositiveFloat, about("base of the rotary frequencies")] = 500_000.0
    rope_scaling: RopeScaling | None = None
    init_std: Annotated[PositiveFloat, about("standard deviation of initial weights")] = 0.02

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads


class SourceConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One corpus of the mixture."""

    kind: Annotated[Literal["preset", "path", "huggingface"], about("where the name is looked up")]
    name: Annotated[
        str, Meta(min_length=1), about('"sotu", a file or folder, or a data set of Hugging Face')
    ]
    weight: Annotated[PositiveFloat, about("its part of the samples, relative to the others")] = 1.0
    text_field: Annotated[str, about("field of the text, in jsonl and parquet")] = "text"
    split: Annotated[str, about("split of a Hugging Face data set")] = "train"


class TokenizerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What turns text into tokens: a byte-level BPE trained on the sources, or a tokenizer.json."""

    kind: Annotated[Literal["train", "file"], about("trained on the sources, or a file")] = "train"
    path: Annotated[str, about('the tokenizer.json, for kind "file"')] = ""
    vocab_size: Annotated[Positive, about('tokens to train, for kind "train"')] = 4096


class DataConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the model reads."""

    sources: Annotated[tuple[SourceConfig, ...], Meta(min_length=1)]
    tokenizer: TokenizerConfig = TokenizerConfig()
    sequence_length: Annotated[Positive, about("tokens of a sample")] = 128
    own: Annotated[
        bool, about("attached loops may have other data; leases then count how much, not what")
    ] = False
    validation_share: Annotated[
        float, Meta(gt=0, lt=1), about("part of the documents that nobody trains on")
    ] = 0.05


class InnerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The optimizer of one peer, between two rounds."""

    optimizer: Annotated[
        Literal["adamw", "muon"], about("muon: for the matrices of the blocks; AdamW for the rest")
    ] = "adamw"
    lr: Annotated[PositiveFloat, about("learning rate, after warm-up and before cool-down")]
    batch_sequences: Annotated[Positive, about("samples of one inner step of one peer")]
    beta1: Annotated[Decay, about("decay of the mean of the gradients")] = 0.9
    beta2: Annotated[Decay, about("decay of the mean of their squares")] = 0.95
    eps: Annotated[PositiveFloat, about("added to the root of that mean")] = 1e-8
    muon_momentum: Annotated[Decay, about("decay of Muon's mean of the gradients")] = 0.95
    weight_decay: Annotated[NotNegativeFloat, about("of matrices, times the learning rate")] = 0.1
    clip_norm: Annotated[PositiveFloat, about("largest norm of a gradient")] = 1.0
    schedule: Annotated[
        Literal["stable", "cosine", "constant"],
        about("lr after warm-up: stable, then cool-down; or falling all the way; or as it is"),
    ] = "stable"
    warmup_steps: Annotated[NotNegative, about("first steps of the run, lr rising from 0")] = 0
    cooldown_steps: Annotated[
        NotNegative, about("last ones, lr falling as 1 - sqrt; schedule stable only")
    ] = 0
    final_share: Annotated[
        float, Meta(ge=0, le=1), about("share of lr that is left at the end of the run")
    ] = 0.0
    z_loss: Annotated[NotNegativeFloat, about("weight of the squared largest logit; 0: off")] = 0.0
    fresh_warmup_steps: Annotated[
        NotNegative, about("lr rises over so many on a peer that comes later")
    ] = 10


class OuterConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """SGD with Nesterov momentum on the mean pseudo-gradient (DiLoCo, arXiv 2311.08105)."""

    lr: Annotated[PositiveFloat, about("1 with momentum 0 is plain averaging")] = 0.7
    contributors: Annotated[
        NotNegative, about("rounds with fewer take a smaller lr, by the cube root; 0: none does")
    ] = 0
    momentum: Annotated[Decay, about("0.9 for long runs, less for short ones")] = 0.9
    momentum_warmup_rounds: Annotated[
        NotNegative, about("first rounds, the momentum rising from 0")
    ] = 0


class SyncConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the peers stay one model."""

    rounds: Annotated[Positive, about("outer steps of the whole run")]
    inner_steps: Annotated[Positive, about("of each peer in each round (the H of DiLoCo)")]
    pace: Annotated[
        Literal["steps", "time"],
        about(
            "steps: so many each; time: so many for the median peer, the others what they manage"
        ),
    ] = "steps"
    mode: Annotated[
        Literal["blocking", "overlap"], about("blocking: training waits for the exchange")
    ] = "blocking"
    fragments: Annotated[
        Positive, about("parts of the model that are synchronised one after the other")
    ] = 1
    fragment_pattern: Annotated[
        Literal["strided", "sequential"], about("how transformer blocks are dealt to them")
    ] = "strided"
    in_flight: Annotated[
        Positive, about("rounds that may be open at once, each of another fragment")
    ] = 1
    merge: Annotated[
        Literal["carry", "blend"], about("how an overlapped peer takes over the global weights")
    ] = "carry"
    blend_alpha: Annotated[
        Decay, about("share of the local weights that stays, with merge blend")
    ] = 0.5
    codec: Annotated[Codec, about("of the contributions")] = "int8"
    update_codec: Annotated[UpdateCodec, about("of their mean")] = "int8"
    min_peers: Annotated[Positive, about("a round with fewer contributors waits")] = 1
    region_size: Annotated[
        NotNegative, about("more members than this are divided into regions of so many; 0: never")
    ] = 64
    quorum: Annotated[
        float, Meta(gt=0, le=1), about("share of the peers that ends the wait, but for the grace")
    ] = 0.6
    grace_factor: Annotated[
        NotNegativeFloat, about("grace time for the others, as a share of the wait before it")
    ] = 0.5
    grace_floor_s: Annotated[NotNegativeFloat, about("and seconds on top of it")] = 2.0
    heartbeat_s: Annotated[PositiveFloat, about("seconds between two signs of life")] = 1.0
    silent_s: Annotated[PositiveFloat, about("without one, the peer counts as cut off")] = 10.0
    reconnect_s: Annotated[
        PositiveFloat, about("cut off for so long, it loses its leases to others")
    ] = 30.0
    clip_to_median: Annotated[
        PositiveFloat, about("largest norm of a contribution, in median norms of its round")
    ] = 3.0


class EvaluationConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a peer finds out about committed states while the run goes on."""

    every_rounds: Annotated[
        NotNegative, about("of the states after so many rounds, and of the last one; 0: of none")
    ] = 0
    samples: Annotated[Positive, about("validation samples that it reads, at most")] = 64
    prompt: Annotated[str, Meta(max_length=200), about("what a sample text goes on from")] = "The"
    sample_tokens: Annotated[
        int, Meta(ge=0, le=200), about("of that text, each the likeliest; 0: no text")
    ] = 40


class RunConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that all peers of a run must agree on. Its digest names the run."""

    name: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"),
        about("letters, digits, . _ - (64 at most)"),
    ]
    model: ModelConfig
    data: DataConfig
    inner: InnerConfig
    sync: SyncConfig
    outer: OuterConfig = OuterConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: Annotated[NotNegative, about("of the initial weights and the order of samples")] = 0
    initial: Annotated[
        str,
        Meta(pattern=r"^([0-9a-f]{64})?\Z"),
        about("digest of the weights that it begins with, by atoll new --init-from; empty: seed"),
    ] = ""

    @property
    def steps_per_round(self) -> int:
        """Inner steps per peer from one round to the next: each fragment has its turn in H."""
        return self.sync.inner_steps // self.sync.fragments

    @property
    def total_steps(self) -> int:
        """Inner steps per peer in the whole run."""
        return self.sync.rounds * self.steps_per_round

    @property
    def samples_per_round(self) -> int:
        """Samples that one peer trains on from one round to the next."""
        return self.steps_per_round * self.inner.batch_sequences


class PeerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one machine gives to a run. It changes a result by no more than rounding."""

    directory: Annotated[str, about("for keys, states and blobs; empty: one for each run")] = ""
    name: Annotated[str, about("how the others see it; empty: this machine's name")] = ""
    place: Annotated[
        str,
        Meta(max_length=60),
        about('where it is, for all to read: "Lisbon, PT"; a country at the end is on the map'),
    ] = ""
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], about("where it trains; auto: the fastest there is")
    ] = "auto"
    threads: Annotated[NotNegative, about("0: as many as torch takes by itself")] = 0
    nice: Annotated[
        int, Meta(ge=0, le=19), about("how far other programs go first; 19: always")
    ] = 0
    gpu_memory: Annotated[
        str, about('of each GPU at most: "50%", "8 GB"; empty: as much as is free')
    ] = ""
    hours: Annotated[
        str, about('it trains then, by local time: "22-7", "8:30-17"; empty: always')
    ] = ""
    devices: Annotated[
        NotNegative,
        about("GPUs, or processes on a CPU; 0: all the GPUs of its kind, or one process"),
    ] = 0
    machines: Annotated[
        int, Meta(ge=1), about("that are one peer together, this one first: see `atoll assist`")
    ] = 1
    site: Annotated[
        str, about('where the other machines reach this one, inside the site: "10.0.0.1:7779"')
    ] = ""
    micro_batch: Annotated[
        NotNegative, about("samples at once on each device; 0: as many as fit")
    ] = 0
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp8"],
        about(
            "of matrix products; auto: bf16 where the device is made for it; fp8: for large ones, "
            "on GPUs from Ada and Hopper on, with compile"
        ),
    ] = "auto"
    recompute: Annotated[
        Recompute,
        about("what the backward pass forms again to save memory: selective: all but products"),
    ] = "nothing"
    compile: Annotated[
        bool, about("layers run as compiled code: torch.compile; a trainer's first step takes long")
    ] = False
    accumulate: Annotated[
        Literal["shards", "whole"],
        about("gradients on several devices: exchanged with each micro-batch, or once a step"),
    ] = "shards"
    listen_host: Annotated[str, about("where it listens; 0.0.0.0: on every network")] = "0.0.0.0"
    listen_port: Annotated[int, Meta(ge=0, le=65535), about("0: any free one")] = 0
    advertise_host: Annotated[str, about("empty: the address that the host sees us come from")] = ""
    max_upload_bytes_per_s: Annotated[NotNegative, about("0: no limit")] = 0
    max_download_bytes_per_s: Annotated[NotNegative, about("0: no limit")] = 0
    congestion: Annotated[
        str, about("control of TCP's congestion, where the system has it; empty: the system's own")
    ] = "bbr"
    fetch_moments: Annotated[
        bool, about("begin with the inner optimizer of a peer that trains; twice the bytes to join")
    ] = False
    keep_states: Annotated[int, Meta(ge=2, le=LARGEST), about("committed states on disk")] = 2
    cache_directory: Annotated[
        str, about("tokenised corpora, for all runs on this machine; empty: within directory")
    ] = ""


# --- files ---------------------------------------------------------------------------------------


Config = TypeVar("Config", RunConfig, PeerConfig)


def load_run_config(path: Path) -> RunConfig:
    """Return the run that a TOML file describes.

    Raises:
        ConfigError: there is no such file, it is no TOML, a key is unknown or missing, a value is
            not allowed, or two of them cannot go together. The message names file and key.
    """
    hint = "check the path; `atoll new` writes a run.toml to start from"
    return _load(path, RunConfig, hint=hint)


def load_peer_config(path: Path) -> PeerConfig:
    """Return what a TOML file says about this machine; raises as `load_run_config`."""
    return _load(path, PeerConfig, hint="check the path; a file of one line will do: threads = 4")


def changed(peer: PeerConfig, overrides: Mapping[str, object]) -> PeerConfig:
    """Return the config with these values in place of its own, but for those that are None.

    Raises:
        ConfigError: a value is not allowed. The message names its key.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    return _convert({**msgspec.to_builtins(peer), **given}, PeerConfig)


def _load(path: Path, config: type[Config], *, hint: str) -> Config:
    with tables.errors_of(path):
        return _convert(tables.read(path, hint=hint), config)


def _convert(table: object, config: type[Config]) -> Config:
    converted = tables.convert(table, config)
    if isinstance(converted, RunConfig):
        check(converted)
    return converted


def template(config: RunConfig | PeerConfig) -> str:
    """Return a file that loads as `config`, with an explanation of every key."""
    return tables.template(config)


# --- values that cannot go together --------------------------------------------------------------


def check(config: RunConfig) -> None:
    """Raise ConfigError for the first combination of values that cannot work."""
    for key, problem in (
        *_impossible_model(config.model),
        *_impossible_run(config),
        *_impossible_sync(config),
    ):
        raise ConfigError(f"{key}: {problem}")


def _impossible_model(model: ModelConfig) -> Iterator[tuple[str, str]]:
    if model.width % model.num_heads:
        yield "model.width", f"{model.width} is not a multiple of num_heads = {model.num_heads}"
    if model.head_width % 2:  # rotary embeddings turn pairs
        yield "model.width", f"{model.width} / num_heads = {model.head_width} is not an even number"
    if model.num_heads % model.num_kv_heads:
        heads, kv_heads = model.num_heads, model.num_kv_heads
        yield "model.num_heads", f"{heads} is not a multiple of num_kv_heads = {kv_heads}"
    scaling = model.rope_scaling
    if scaling and scaling.low_freq_factor >= scaling.high_freq_factor:
        yield (
            "model.rope_scaling.low_freq_factor",
            f"{scaling.low_freq_factor:g} is not below high_freq_factor = "
            f"{scaling.high_freq_factor:g}",
        )


def _impossible_sync(config: RunConfig) -> Iterator[tuple[str, str]]:
    sync = config.sync
    if sync.fragments > config.model.num_layers:
        yield (
            "sync.fragments",
            f"{sync.fragments} is more than model.num_layers = {config.model.num_layers}",
        )
    if sync.inner_steps % sync.fragments:
        yield (
            "sync.inner_steps",
            f"{sync.inner_steps} is not a multiple of fragments = {sync.fragments}",
        )
    if config.evaluation.every_rounds % sync.fragments:  # in between no peer has a state on disk
        yield (
            "evaluation.every_rounds",
            f"{config.evaluation.every_rounds} is not a multiple of sync.fragments = "
            f"{sync.fragments}",
        )
    if sync.in_flight > sync.fragments:
        yield "sync.in_flight", f"{sync.in_flight} is more than fragments = {sync.fragments}"
    if sync.in_flight > 1 and sync.mode != "overlap":
        yield "sync.in_flight", f'{sync.in_flight} has no use without mode = "overlap"'
    if sync.merge == "blend" and sync.mode != "overlap":
        yield "sync.merge", 'blend has no use without mode = "overlap"'
    if sync.silent_s <= sync.heartbeat_s:
        yield "sync.silent_s", f"{sync.silent_s:g} is not above heartbeat_s = {sync.heartbeat_s:g}"


def _impossible_run(config: RunConfig) -> Iterator[tuple[str, str]]:
    tokenizer, inner = config.data.tokenizer, config.inner
    if tokenizer.kind == "file" and not tokenizer.path:
        yield "data.tokenizer.path", 'missing, with kind = "file"'
    if tokenizer.kind == "train" and tokenizer.path:
        yield "data.tokenizer.path", 'has no use with kind = "train"'
    if tokenizer.kind == "train" and tokenizer.vocab_size > config.model.vocab_size:
        yield (
            "data.tokenizer.vocab_size",
            f"{tokenizer.vocab_size} is more than model.vocab_size = {config.model.vocab_size}",
        )
    if inner.cooldown_steps and inner.schedule != "stable":
        yield "inner.cooldown_steps", f'has no use with schedule = "{inner.schedule}": set it to 0'
    if inner.final_share and inner.schedule == "constant":
        yield "inner.final_share", 'has no use with schedule = "constant": set it to 0'
    if inner.warmup_steps + inner.cooldown_steps > config.total_steps:
        yield (
            "inner.warmup_steps",
            f"{inner.warmup_steps} + cooldown_steps = {inner.cooldown_steps} is more than the "
            f"{config.total_steps} steps of the run (sync.rounds * sync.inner_steps)",
        )


# --- canonical bytes -----------------------------------------------------------------------------


def canonical(config: RunConfig) -> bytes:
    """Return JSON with sorted keys and no spaces: equal bytes mean equal configs, and back."""
    plain = _plain(msgspec.convert(msgspec.to_builtins(config), RunConfig))
    return msgspec.json.encode(plain, order="sorted")


def _plain(value: Any) -> Any:
    """Return structs as dicts, and -0.0 as the 0.0 that it is equal to."""
    match value:
        case Struct():
            return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
        case tuple():
            return [_plain(item) for item in value]
        case float():
            return value + 0.0
        case _:
            return value


@lru_cache(maxsize=8)  # whoever simulates a fleet parses the same one for each of its members
def parse_canonical(encoded: bytes) -> RunConfig:
    """Return the config that `canonical` made these bytes of.

    Raises:
        ProtocolError: they are anything else; they come from another machine.
    """
    try:
        config = _convert(msgspec.json.decode(encoded), RunConfig)
        if canonical(config) == encoded:
            return config
        problem = "not in canonical form"
    except (ConfigError, ValueError, RecursionError) as error:
        problem = str(error)
    hint = "the host may run another version of atoll"
    raise ProtocolError(f"not the config of a run: {problem}", hint=hint)


def run_digest(config: RunConfig) -> Digest:
    """Return what names the run: the digest of its canonical bytes."""
    return digest_of(canonical(config))
