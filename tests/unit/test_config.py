"""What a config file may say, and what is answered when it says something else."""

import re
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from atoll.config import (
    DataConfig,
    InnerConfig,
    ModelConfig,
    OuterConfig,
    PeerConfig,
    RopeScaling,
    RunConfig,
    SourceConfig,
    SyncConfig,
    TokenizerConfig,
    canonical,
    changed,
    check,
    load_peer_config,
    load_run_config,
    parse_canonical,
    run_digest,
    template,
)
from atoll.errors import ConfigError, ProtocolError
from atoll.model.presets import PRESETS

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
MODEL = ModelConfig(
    vocab_size=4096,
    num_layers=4,
    width=128,
    num_heads=4,
    num_kv_heads=2,
    ffn_width=384,
    tied_embeddings=True,
)
RUN = RunConfig(
    name="a-run",
    model=MODEL,
    data=DataConfig(sources=(SourceConfig(kind="preset", name="sotu"),)),
    inner=InnerConfig(lr=1e-3, batch_sequences=8),
    sync=SyncConfig(rounds=10, inner_steps=5),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.toml"


def error_of(file: Path, text: str) -> ConfigError:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_run_config(file)
    assert str(caught.value).startswith(f"{file}: ")
    return caught.value


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load_and_carry_the_explanations_of_today(path: Path):
    config = load_run_config(path)
    assert config.name == path.stem
    assert path.read_text(encoding="utf-8") == template(config), "rewrite it with `template`"


def test_the_shipped_configs_are_these():
    assert [path.stem for path in CONFIGS] == ["150m", "1b", "demo", "intellect-1"]
    for path in CONFIGS:
        preset = "tiny" if path.stem == "demo" else path.stem
        assert load_run_config(path).model == PRESETS[preset]


def test_intellect_1_is_the_published_one():
    config = load_run_config(next(path for path in CONFIGS if path.stem == "intellect-1"))
    assert config.inner == InnerConfig(
        lr=7.5e-5,
        batch_sequences=128,
        beta1=0.9,
        beta2=0.95,
        weight_decay=0.1,
        clip_norm=1.0,
        warmup_steps=1000,
        cooldown_steps=90_400 - 74_700,
        z_loss=2e-4,
    )
    assert config.outer == OuterConfig(lr=0.7, momentum=0.9)
    assert (config.sync.inner_steps, config.sync.codec, config.total_steps) == (100, "int8", 90_400)
    assert config.data.sequence_length == 8192


def test_every_key_and_every_table_is_explained():
    scaled = msgspec.structs.replace(MODEL, rope_scaling=RopeScaling())
    for config in (RUN, msgspec.structs.replace(RUN, model=scaled), PeerConfig(directory="d")):
        lines = template(config).splitlines()
        for above, line in pairwise(lines):
            if " = " in line or line.startswith("["):
                assert re.search("# .*[a-z]{2}", line) or re.match("# .*[a-z]{2}", above), line


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)  # no lone surrogates
sources = st.builds(
    SourceConfig,
    kind=st.sampled_from(["preset", "path", "huggingface"]),
    name=texts,
    weight=st.floats(1e-300, 1e300),
)
runs = st.builds(
    RunConfig,
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"),
    model=st.sampled_from(
        [
            MODEL,
            PRESETS["8b"],
            msgspec.structs.replace(MODEL, rope_scaling=RopeScaling(factor=32.0)),
        ]
    ),
    data=st.builds(
        DataConfig,
        sources=st.lists(sources, min_size=1, max_size=3).map(tuple),
        tokenizer=st.one_of(
            st.builds(TokenizerConfig, vocab_size=st.integers(1, 4096)),
            st.builds(TokenizerConfig, kind=st.just("file"), path=texts),
        ),
        validation_share=st.floats(0, 1, exclude_min=True, exclude_max=True),
    ),
    inner=st.builds(
        InnerConfig,
        lr=st.floats(0, exclude_min=True, allow_infinity=False),
        batch_sequences=st.integers(1, 10**15),
    ),
    outer=st.builds(OuterConfig, momentum=st.floats(0, 0.99)),
    sync=st.builds(
        SyncConfig,
        rounds=st.integers(1, 10**6),
        inner_steps=st.integers(1, 10**6),
        codec=st.sampled_from(["fp64", "fp32", "bf16", "int8"]),
    ),
    seed=st.integers(0, 10**15),
)


@settings(deadline=None)
@given(config=runs)
def test_a_template_loads_as_the_config_it_was_made_of(config, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "template.toml"
    file.write_text(template(config), encoding="utf-8", newline="\n")
    assert load_run_config(file) == config


def test_what_is_left_out_has_its_default(file: Path):
    file.write_text(
        'name = "a-run"\n'
        "model = {vocab_size = 4096, num_layers = 4, width = 128, num_heads = 4,"
        " num_kv_heads = 2, ffn_width = 384, tied_embeddings = true}\n"
        'data.sources = [{kind = "preset", name = "sotu"}]\n'
        "inner = {lr = 1e-3, batch_sequences = 8}\n"
        "sync = {rounds = 10, inner_steps = 5}\n"
    )
    assert load_run_config(file) == RUN


def test_a_peer_config_loads_and_refuses_likewise(file: Path):
    peer = PeerConfig(directory='C:\\a "dir"', threads=2, max_upload_bytes_per_s=10**6)
    file.write_text(template(peer), encoding="utf-8")
    assert load_peer_config(file) == peer
    file.write_text('directory = "d"\ndevice = "tpu"')
    with pytest.raises(ConfigError, match="device: 'tpu' is not one of auto, cpu, cuda, mps"):
        load_peer_config(file)


# --- what is wrong with a file -------------------------------------------------------------------


def test_a_file_that_cannot_be_read(file: Path):
    with pytest.raises(ConfigError, match="no such file") as caught:
        load_run_config(file)
    assert "atoll new" in caught.value.hint
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_run_config(file.parent)
    file.write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match="not a TOML file"):
        load_run_config(file)


def test_bad_toml_is_an_error_with_its_line(file: Path):
    assert "line 3" in str(error_of(file, '\nname = "a"\nseed = \n'))


@pytest.mark.parametrize(
    ("line", "instead", "message", "hint"),
    [
        ("codec", '"int9"', "sync.codec: 'int9' is not one of fp64, fp32, bf16, int8", "contrib"),
        ("rounds", "0", "sync.rounds: 0 is not a whole number above 0", "outer steps"),
        ("rounds", "1.0", "sync.rounds: 1.0 is not a whole number", ""),
        ("rounds", "true", "sync.rounds: True is not a whole number", ""),
        ("rounds", "10000000000000000000000", "is not a whole number above 0 and at most 1e", ""),
        ("quorum", "1.01", "sync.quorum: 1.01 is not a number above 0 and at most 1", ""),
        ("quorum", '"all"', "sync.quorum: 'all' is not a number", ""),
        ("eps", "inf", "inner.eps: inf is not a number above 0", ""),
        ("eps", "nan", "inner.eps: nan is not a number above 0", ""),
        ("beta2", "1.0", "inner.beta2: 1.0 is not a number at least 0 and below 1", ""),
        ("tied_embeddings", "1", "model.tied_embeddings: 1 is not true or false", ""),
        ("split", "7", "data.sources[0].split: 7 is not a string", ""),
        ("prompt", f'"{201 * "a"}"', "is not a string of at most 200 characters", ""),
        ("name", '""', "name: '' is not a string that matches", "letters, digits"),
        ("name", '"../up"', "name: '../up' is not a string that matches", ""),
        ("name", '"line\\n"', r"name: 'line\n' is not a string that matches", ""),
    ],
)
def test_a_value_that_is_not_allowed(file: Path, line: str, instead: str, message: str, hint: str):
    text = re.sub(rf"(?m)^{line} = \S+", lambda _: f"{line} = {instead}", template(RUN), count=1)
    error = error_of(file, text)
    assert message in str(error)
    assert hint in error.hint


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("[outer]\nlr", "[outer]\nlearning_rate", "outer.learning_rate: unknown key", "lr"),
        ("\nmomentum =", "\nmomentun =", "outer.momentun: unknown key", "did you mean momentum?"),
        ("[outer]", "[auter]", "auter: unknown key", "did you mean outer?"),
        ("split =", "text_feld =", "data.sources[0].text_feld: unknown key", "text_field?"),
        ("inner_steps =", "# =", "sync.inner_steps: missing", "H of DiLoCo"),
        ("[[data.sources]]", "[data.sources]", "data.sources: not a list", "[[data.sources]]"),
        ("[data.tokenizer]", "[[data.tokenizer]]", "is not a table", ""),
        ("seed = 0", "outer = 3", "outer: 3 is not a table", ""),
    ],
)
def test_a_key_that_has_no_place(file: Path, old: str, new: str, message: str, hint: str):
    text = template(RUN)
    assert old in text
    if "outer = 3" in new:
        text = text.partition("[outer]")[0]
    error = error_of(file, text.replace(old, new))
    assert message in str(error)
    assert hint in error.hint


def test_no_source_and_no_model(file: Path):
    empty = re.sub(r"(?s)\[\[data.sources\]\].*?\n\n", "", template(RUN))
    error = error_of(file, empty)
    assert "data.sources: missing" in str(error)
    assert "corpus" in error.hint
    message = "data.sources: not a list of at least one table"
    assert message in str(error_of(file, empty.replace("[data]", "[data]\nsources = []")))
    assert "model: missing" in str(error_of(file, 'name = "a"'))


# --- values that cannot go together --------------------------------------------------------------


def with_sync(**changes: object) -> RunConfig:
    return msgspec.structs.replace(RUN, sync=msgspec.structs.replace(RUN.sync, **changes))


def with_model(**changes: object) -> RunConfig:
    return msgspec.structs.replace(RUN, model=msgspec.structs.replace(MODEL, **changes))


def with_inner(**changes: object) -> RunConfig:
    return msgspec.structs.replace(RUN, inner=msgspec.structs.replace(RUN.inner, **changes))


def with_tokenizer(**changes: object) -> RunConfig:
    tokenizer = TokenizerConfig(**changes)
    return msgspec.structs.replace(RUN, data=msgspec.structs.replace(RUN.data, tokenizer=tokenizer))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (with_model(num_heads=3), "model.width: 128 is not a multiple of num_heads = 3"),
        (with_model(num_heads=4, num_kv_heads=3), "model.num_heads: 4 is not a multiple of num_kv"),
        (with_model(width=132), "model.width: 132 / num_heads = 33 is not an even number"),
        (
            with_model(rope_scaling=RopeScaling(low_freq_factor=4.0)),
            "model.rope_scaling.low_freq_factor: 4 is not below high_freq_factor = 4",
        ),
        (with_tokenizer(vocab_size=4097), "data.tokenizer.vocab_size: 4097 is more than model.voc"),
        (with_tokenizer(kind="file"), "data.tokenizer.path: missing"),
        (with_tokenizer(path="a.json"), "data.tokenizer.path: has no use"),
        (with_inner(warmup_steps=26, cooldown_steps=25), "inner.warmup_steps: 26 + cooldown_steps"),
        (
            with_sync(heartbeat_s=10.0, silent_s=10.0),
            "sync.silent_s: 10 is not above heartbeat_s = 10",
        ),
        (with_sync(fragments=5), "sync.fragments: 5 is more than model.num_layers = 4"),
        (with_sync(fragments=3, inner_steps=10), "sync.inner_steps: 10 is not a multiple of frag"),
        (
            with_sync(mode="overlap", fragments=2, inner_steps=8, in_flight=3),
            "sync.in_flight: 3 is more than fragments = 2",
        ),
        (
            with_sync(fragments=2, inner_steps=8, in_flight=2),
            'sync.in_flight: 2 has no use without mode = "overlap"',
        ),
        (with_sync(merge="blend"), 'sync.merge: blend has no use without mode = "overlap"'),
    ],
)
def test_values_that_cannot_go_together(file: Path, config: RunConfig, message: str):
    assert message in str(error_of(file, template(config)))
    with pytest.raises(ProtocolError, match="not the config of a run"):
        parse_canonical(canonical(config))


def test_values_that_just_go_together():
    check(with_inner(warmup_steps=25, cooldown_steps=25))
    check(with_tokenizer(kind="file", path="a.json", vocab_size=10**6))
    check(with_sync(fragments=4, inner_steps=8, mode="overlap", merge="blend"))
    check(with_sync(fragments=4, inner_steps=8, mode="overlap", in_flight=4))
    check(with_tokenizer(vocab_size=4096))


# --- canonical bytes -----------------------------------------------------------------------------


@settings(deadline=None)
@given(config=runs)
def test_canonical_bytes_parse_as_the_config_they_were_made_of(config: RunConfig):
    assert parse_canonical(canonical(config)) == config


def test_whole_numbers_and_minus_zero_are_equal_and_have_equal_bytes():
    given_ = with_inner(clip_norm=1, z_loss=-0.0)
    equal = with_inner(clip_norm=1.0, z_loss=0.0)
    assert given_ == equal
    assert canonical(given_) == canonical(equal)
    assert run_digest(given_) == run_digest(equal)
    assert run_digest(given_) != run_digest(with_inner(clip_norm=1.5))


def test_canonical_bytes_do_not_change_by_accident():
    """A changed digest is another run: every peer with the older version is turned away."""
    encoded = canonical(RUN)
    assert encoded.startswith(b'{"data":{"own":false,"sequence_length":128,"sources":[{"kind"')
    assert run_digest(RUN) == "1f370978ae5856c9f5dbd979b94c5f5789b1c5491be0045a1ce58d153c75141a"


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"5",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        canonical(RUN) + b" ",
        canonical(RUN).replace(b":0.02", b":2e-2"),
        canonical(RUN).replace(b'"seed":0', b'"seed":0,"seed":0'),
        canonical(RUN).replace(b'"seed":0', b'"seed":0,"sead":0'),
        canonical(RUN).replace(b'"seed":0', b'"seed":-1'),
        canonical(RUN).replace(b'"seed":0', b'"seed":1e999'),
        canonical(RUN).replace(b'"seed":0,', b""),
    ],
    ids=range(12),
)
def test_bytes_of_another_machine_that_are_no_config(encoded: bytes):
    assert encoded != canonical(RUN)
    with pytest.raises(ProtocolError, match="not the config of a run"):
        parse_canonical(encoded)


@settings(deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_a_protocol_error_or_another_config(data: st.DataObject):
    encoded = bytearray(canonical(RUN))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(ProtocolError):
        assert parse_canonical(bytes(encoded)) != RUN


def test_what_follows_from_a_config():
    assert RUN.model.head_width == 32
    assert RUN.total_steps == 50
    assert RUN.samples_per_round == 40


def test_the_command_line_comes_on_top_of_a_peers_file(tmp_path):
    (tmp_path / "peer.toml").write_text('name = "anna"\nthreads = 2\nkeep_states = 5\n')
    peer = changed(load_peer_config(tmp_path / "peer.toml"), {"threads": 4, "device": None})
    assert peer == PeerConfig(name="anna", threads=4, keep_states=5)
    with pytest.raises(ConfigError, match="device: 'tpu' is not one of auto, cpu, cuda, mps"):
        changed(peer, {"device": "tpu"})
