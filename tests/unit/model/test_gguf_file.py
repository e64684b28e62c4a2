"""A GGUF file holds the model, as readers of the format see it: the package, and transformers."""

import re

import gguf
import numpy as np
import pytest
import torch
from msgspec.structs import replace
from tokenizers import Tokenizer as Rules, models
from transformers import LlamaForCausalLM

from atoll.config import ModelConfig, RopeScaling
from atoll.data.tokenizer import Tokenizer
from atoll.errors import ConfigError
from atoll.model.flat import load_flat_
from atoll.model.generate import Sampling, generate
from atoll.model.gguf_file import export_gguf
from atoll.model.hf import Text, export_hf
from atoll.model.layout import lay_out
from atoll.model.llama import Llama
from atoll.model.shapes import num_parameters

CONFIG = ModelConfig(
    vocab_size=300, num_layers=2, width=32, num_heads=4, num_kv_heads=2, ffn_width=48
)
PROMPT = [0, 70, 71, 72]


@pytest.fixture
def text(tmp_path):
    tokenizer = Tokenizer.train(["the reef, the atoll, the islands"] * 3, vocab_size=280)
    tokenizer.save(tmp_path / "tokenizer.json")
    return Text(
        tmp_path / "tokenizer.json",
        document_token="<|begin|>",
        document_token_id=tokenizer.start_token,
        sequence_length=64,
    )


def random_params(config):
    rng = np.random.default_rng(0)
    return (rng.standard_normal(num_parameters(config)) * 0.3).astype(np.float32)


def fields(reader):
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("tied", [False, True])
def test_all_three_formats_generate_the_same_tokens(text, tmp_path, tied):
    config = replace(CONFIG, tied_embeddings=tied)
    params_N = random_params(config)
    model = Llama(config)
    load_flat_(model, params_N, lay_out(config))
    ours = list(generate(model, PROMPT, max_new_tokens=24, sampling=Sampling(temperature=0)))
    assert tied or len(set(ours)) > 3, "else it says little"
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT]))

    export_hf(tmp_path / "folder", config, params_N, text=text)
    export_gguf(tmp_path / "model.gguf", config, params_N, text=text, name="reef")
    for place, options in ((tmp_path / "folder", {}), (tmp_path, {"gguf_file": "model.gguf"})):
        theirs = LlamaForCausalLM.from_pretrained(place, **options)
        with torch.no_grad():
            torch.testing.assert_close(theirs(torch.tensor([PROMPT])).logits, logits)
        tokens = theirs.generate(
            torch.tensor([PROMPT]), max_new_tokens=24, do_sample=False, eos_token_id=None
        )
        assert tokens[0, len(PROMPT) :].tolist() == ours


def test_the_file_describes_model_and_tokenizer(text, tmp_path):
    config = replace(CONFIG, rope_scaling=RopeScaling(factor=4.0, original_sequence_length=64))
    export_gguf(tmp_path / "model.gguf", config, random_params(config), text=text, name="reef")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    known = fields(reader)
    assert known["general.name"] == "reef"
    assert known["llama.context_length"] == 64
    assert known["llama.attention.head_count_kv"] == 2
    assert (known["tokenizer.ggml.model"], known["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    tokens = known["tokenizer.ggml.tokens"]
    vocabulary = Rules.from_file(str(text.tokenizer_path)).get_vocab()
    assert all(tokens[token] == content for content, token in vocabulary.items())
    assert len(tokens) == config.vocab_size
    assert known["tokenizer.ggml.token_type"][text.document_token_id] == gguf.TokenType.CONTROL
    assert known["tokenizer.ggml.token_type"][-1] == gguf.TokenType.UNUSED
    divisors = next(t.data for t in reader.tensors if t.name == "rope_freqs.weight")
    assert divisors.shape == (config.head_width // 2,)
    assert (divisors[0], divisors[-1]) == (1.0, 4.0)  # the fastest is kept, the slowest stretched


def test_a_tokenizer_without_a_name_in_the_format_is_refused(text, tmp_path):
    Rules(models.WordLevel({"<|begin|>": 0}, unk_token="<|begin|>")).save(str(text.tokenizer_path))
    with pytest.raises(ConfigError, match="cannot have this tokenizer") as caught:
        export_gguf(tmp_path / "x.gguf", CONFIG, random_params(CONFIG), text=text, name="x")
    assert "export a folder" in caught.value.hint
    assert not list(tmp_path.glob("*gguf*"))


def test_a_file_that_is_there_is_left_alone(text, tmp_path):
    (tmp_path / "x.gguf").write_text("mine")
    with pytest.raises(ConfigError, match=re.escape("x.gguf exists")):
        export_gguf(tmp_path / "x.gguf", CONFIG, random_params(CONFIG), text=text, name="x")
    assert (tmp_path / "x.gguf").read_text() == "mine"
