"""Embedding writes into a folder of its own, and never among files of the user."""

import pytest

from rqa_ray.corpus.embed import embed, encode_missing
from rqa_ray.corpus.shards import EmbeddingFolder
from rqa_ray.corpus_settings import EmbedSettings
from rqa_ray.errors import InputError
from tests.conftest import write_lines


def refused(tiny_model, document_path, output_dir) -> str:
    settings = EmbedSettings(
        embedding_model_name_or_path=tiny_model, document_path=[str(document_path)], output_dir=str(output_dir)
    )
    with pytest.raises(InputError) as error:
        embed(settings)
    return str(error.value)


def test_the_folder_of_the_documents_is_refused_and_keeps_its_files(tiny_model, tmp_path):
    documents = tmp_path / "documents.jsonl"
    write_lines(documents, [{"page_content": "alpha"}])
    (tmp_path / "other.parquet").write_bytes(b"theirs")
    said = refused(tiny_model, documents, tmp_path)
    assert said == f"--output_dir {tmp_path}: has the input {documents} in it; choose another folder"
    said = refused(tiny_model, tmp_path, tmp_path / "embeddings")
    assert said == f"--output_dir {tmp_path}/embeddings: is in the input {tmp_path}; choose another folder"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["documents.jsonl", "other.parquet"]


def test_a_folder_of_other_files_is_refused_and_keeps_them(tiny_model, files, tmp_path):
    (tmp_path / "other.parquet").write_bytes(b"theirs")
    said = refused(tiny_model, files["full_dataset_file_path"], tmp_path)
    assert said == f"{tmp_path}: has files that are no embeddings (other.parquet); choose an empty folder"
    with pytest.raises(InputError, match="has files that are no embeddings"):  # for other jobs, also with --overwrite
        encode_missing(EmbeddingFolder(str(tmp_path)), {}, None, None, None, overwrite=True)
    assert (tmp_path / "other.parquet").read_bytes() == b"theirs"
