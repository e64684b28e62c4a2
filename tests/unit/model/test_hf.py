import json
import os

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from atoll.config import ModelConfig, RopeScaling
from atoll.errors import ConfigError, RunError
from atoll.model.flat import load_flat_, store_flat_
from atoll.model.hf import Text, export_hf, import_hf
from atoll.model.layout import lay_out
from atoll.model.llama import Llama
from atoll.model.shapes import num_parameters

CONFIG = ModelConfig(
    vocab_size=40, num_layers=2, width=32, num_heads=4, num_kv_heads=2, ffn_width=48
)
SCALING = RopeScaling(factor=4.0, original_sequence_length=16)
VARIANTS = {
    "plain": CONFIG,
    "tied": msgspec.structs.replace(CONFIG, tied_embeddings=True),
    "scaled": msgspec.structs.replace(CONFIG, rope_scaling=SCALING, norm_eps=1e-6),
    "tied, scaled": msgspec.structs.replace(
        CONFIG, tied_embeddings=True, rope_scaling=SCALING, rope_theta=10_000.0
    ),
    "one head for each": msgspec.structs.replace(CONFIG, num_kv_heads=4),
}
TOKENS = torch.arange(2 * 30).view(2, 30) * 7 % CONFIG.vocab_size

variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())


@pytest.fixture
def text(tmp_path):
    vocab = {"<|begin|>": 0, **{word: i for i, word in enumerate("abcdef", start=1)}}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|begin|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|begin|>"])
    path = tmp_path / "our-tokenizer.json"
    tokenizer.save(str(path))
    return Text(path, document_token="<|begin|>", document_token_id=0, sequence_length=30)


def random_model(config):
    torch.manual_seed(0)
    model = Llama(config).requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape) * 0.3)
    params_N = np.empty(num_parameters(config), np.float32)
    store_flat_(model, params_N, lay_out(config))
    return model, params_N


def their_config(config):
    scaling = config.rope_scaling
    return LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=config.ffn_width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        tie_word_embeddings=config.tied_embeddings,
        rms_norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
        rope_scaling=scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_sequence_length,
        },
        max_position_embeddings=64,
    )


@torch.no_grad()
def assert_equal_logits(ours, theirs):
    expected = theirs(TOKENS).logits
    assert expected.std() > 0.1
    assert (ours(TOKENS) - expected).abs().max() < 1e-5 * expected.abs().max()


@variants
def test_transformers_gives_the_same_logits_for_our_folder(config, text, tmp_path):
    model, params_N = random_model(config)
    export_hf(tmp_path / "out", config, params_N, text=text)
    theirs, report = LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    assert theirs.dtype == torch.float32
    assert_equal_logits(model, theirs)


@variants
def test_we_give_the_same_logits_for_their_folder(config, tmp_path):
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(their_config(config))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)
    read, params_N = import_hf(tmp_path)
    assert read == config
    model = Llama(read)
    load_flat_(model, params_N, lay_out(read))
    assert_equal_logits(model, theirs)


@variants
def test_what_goes_out_comes_in_again(config, text, tmp_path):
    _, params_N = random_model(config)
    export_hf(tmp_path / "out", config, params_N, text=text)
    read, read_N = import_hf(tmp_path / "out")
    assert read == config
    assert np.array_equal(read_N, params_N)


def test_a_large_model_is_split_into_files(text, tmp_path):
    _, params_N = random_model(CONFIG)
    export_hf(tmp_path / "out", CONFIG, params_N, text=text, shard_bytes=12_000)
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 3
    assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    assert all(len(load_file(s)) == 1 or s.stat().st_size < 13_000 for s in shards)
    assert np.array_equal(import_hf(tmp_path / "out")[1], params_N)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(theirs.lm_head.weight.flatten(), torch.from_numpy(params_N[-40 * 32 :]))


def test_weights_in_bf16_are_read_as_they_are(text, tmp_path):
    _, params_N = random_model(CONFIG)
    export_hf(tmp_path / "ours", CONFIG, params_N, text=text)
    LlamaForCausalLM.from_pretrained(tmp_path / "ours").bfloat16().save_pretrained(tmp_path / "out")
    rounded = torch.from_numpy(params_N).bfloat16()
    assert np.array_equal(import_hf(tmp_path / "out")[1], rounded.float().numpy())


def test_the_tokenizer_goes_with_it(text, tmp_path):
    export_hf(tmp_path / "out", CONFIG, random_model(CONFIG)[1], text=text)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("a c")["input_ids"] == [1, 3]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 0)
    assert tokenizer.model_max_length == 30


def test_read_only_parameters_can_go_out(text, tmp_path):
    _, params_N = random_model(CONFIG)
    params_N.setflags(write=False)
    export_hf(tmp_path / "out", CONFIG, params_N, text=text)
    assert np.array_equal(import_hf(tmp_path / "out")[1], params_N)


def test_a_folder_with_something_in_it_is_left_alone(text, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        export_hf(tmp_path / "out", CONFIG, random_model(CONFIG)[1], text=text)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_what_cannot_be_written_whole_leaves_nothing(text, tmp_path):
    text.tokenizer_path.unlink()
    with pytest.raises(RunError, match="our-tokenizer") as raised:
        export_hf(tmp_path / "out", CONFIG, random_model(CONFIG)[1], text=text)
    assert raised.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(text, tmp_path):
    export_hf(tmp_path / "out", CONFIG, random_model(CONFIG)[1], text=text)
    return tmp_path / "out"


def describe(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_refused(folder, reason):
    with pytest.raises(ConfigError, match=reason) as raised:
        import_hf(folder)
    assert str(folder) in str(raised.value)
    assert raised.value.hint


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("model_type", "gpt2", "model_type is 'gpt2', not 'llama'"),
        ("hidden_act", "gelu", "hidden_act is 'gelu'"),
        ("attention_bias", True, "attention_bias is True"),
        ("mlp_bias", True, "mlp_bias is True"),
        ("head_dim", 16, "of width 16 do not make a model of width 32"),
        ("num_attention_heads", 5, "5 heads and 2 key-value heads"),
        ("num_attention_heads", 0, "num_heads"),
        ("num_key_value_heads", 3, "4 heads and 3 key-value heads"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}, "rope_type is 'linear'"),
        ("rope_scaling", {"rope_type": "llama3"}, "factor"),
        ("vocab_size", "many", "vocab_size"),
        ("vocab_size", 41, r"embed_tokens.weight is torch.float32 of shape \(40, 32\)"),
        ("num_hidden_layers", 3, "there is no tensor model.layers.2"),
        ("num_hidden_layers", 1, "no tensor model.layers.1"),
    ],
)
def test_another_architecture_is_refused_by_name(folder, key, value, reason):
    describe(folder, **{key: value})
    assert_refused(folder, reason)


def test_heads_that_have_no_halves_to_rotate_are_refused(folder):
    describe(folder, num_attention_heads=32, head_dim=None)
    assert_refused(folder, "heads of width 1 do not make")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("num_bytes", [0, 5, 500])
def test_a_file_that_ends_early_is_refused(folder, name, num_bytes):
    os.truncate(folder / name, num_bytes)
    assert_refused(folder, "json of a Llama|cannot read")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    assert_refused(folder, name)


def test_a_damaged_index_is_refused(folder):
    (folder / "model.safetensors.index.json").write_bytes(b'{"weight_map": {"\xff"')
    assert_refused(folder, "cannot read")


def rewrite(folder, **changes):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | changes, folder / "model.safetensors")


def test_quantised_and_additional_tensors_are_refused(folder):
    rewrite(folder, **{"model.norm.weight": torch.ones(32, dtype=torch.int8)})
    assert_refused(folder, "model.norm.weight is torch.int8")
    rewrite(folder, **{"model.norm.weight": torch.ones(32), "model.norm.bias": torch.ones(32)})
    assert_refused(folder, "no tensor model.norm.bias")


def test_rotary_tables_of_old_files_are_ignored(folder):
    rewrite(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    import_hf(folder)
