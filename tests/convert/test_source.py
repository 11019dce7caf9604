"""Where a checkpoint comes from: folders and the hub; what is missing is told."""

import json
import shutil

import numpy as np
import pytest

from convert.source import open_source
from convert.tensors import Kind, read_safetensors, write_safetensors
from par_jax.errors import UserError

WEIGHTS = "diffusion_pytorch_model.safetensors"


def shard(folder, stem, parts=2):
    """Splits a component's weights into files with an index."""
    whole = folder / f"{stem}.safetensors"
    tensors = read_safetensors(whole)
    names = sorted(tensors)
    where = {}
    for i in range(parts):
        file, mine = f"{stem}-{i + 1:05}-of-{parts:05}.safetensors", names[i::parts]
        kinds = {name: Kind(tensors[name].dtype, tensors[name].shape) for name in mine}
        write_safetensors(folder / file, kinds, ((name, [tensors[name][:]]) for name in mine))
        where |= dict.fromkeys(mine, file)
    whole.unlink()
    index = folder / f"{whole.name}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def test_a_whole_folder(published):
    source = open_source(str(published))
    assert list(source.components) == ["transformer", "vae", "text_encoder", "scheduler"]
    assert (source.revision, source.tokenizer) == (None, ())
    assert source.class_name("vae") == "AutoencoderKLOpenSora"
    sums = source.checksums()
    assert set(sums) == {str(path.relative_to(published)) for path in published.rglob("*") if path.is_file()}
    assert all(len(one) == 64 for one in sums.values())


@pytest.mark.parametrize("name", ["transformer", "vae", "scheduler"])
def test_a_missing_component(copy, name):
    shutil.rmtree(copy / name)
    with pytest.raises(UserError, match=f"{name} is missing"):
        open_source(str(copy))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("model_index.json", "holds no model_index.json"),
        ("vae/config.json", "config.json is missing"),
        ("scheduler/scheduler_config.json", "scheduler_config.json is missing"),
        (f"transformer/{WEIGHTS}", f"holds no weights: none of {WEIGHTS}, {WEIGHTS}.index.json, diffusion_pytorch"),
        ("text_encoder/model.safetensors", "none of model.safetensors, .*pytorch_model.bin"),
    ],
)
def test_a_missing_file(copy, path, said):
    (copy / path).unlink()
    with pytest.raises(UserError, match=said):
        open_source(str(copy))


def test_the_text_encoder_may_be_absent(copy):
    shutil.rmtree(copy / "text_encoder")
    assert "text_encoder" not in open_source(str(copy)).components


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff", "[" * 100000])
def test_damaged_json(copy, text):
    (copy / "vae" / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="config.json is damaged"):
        open_source(str(copy))


def test_shards(copy):
    before = open_source(str(copy)).components["transformer"].tensors
    index = shard(copy / "transformer", "diffusion_pytorch_model")
    after = open_source(str(copy)).components["transformer"]
    assert len(after.files) == 4
    assert set(before) == set(after.tensors)
    values = json.loads(index.read_text())
    moved = dict(values["weight_map"])
    name = next(iter(moved))
    moved[name], moved["mystery"] = moved[list(moved)[-1]], moved[name]
    index.write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(UserError, match=f"mystery is not in .*; {name} is in .*00001.*{name} is not in .*00002"):
        open_source(str(copy))
    for bad in ({}, {"weight_map": {"a": "../x"}}, {"weight_map": {"a": 3}}, {"weight_map": [1]}):
        index.write_text(json.dumps(bad))
        with pytest.raises(UserError, match="names no files of this folder"):
            open_source(str(copy))
    index.write_text(json.dumps(values))
    (copy / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="names files that are missing: .*00002"):
        open_source(str(copy))


def test_bin_files(copy):
    torch = pytest.importorskip("torch")
    for folder, stem in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        path = copy / folder / f"{stem}.safetensors"
        tensors = {name: torch.from_numpy(tensor[:]) for name, tensor in read_safetensors(path).items()}
        torch.save(tensors, copy / folder / ("pytorch_model.bin" if stem == "model" else f"{stem}.bin"))
        path.unlink()
        found = open_source(str(copy)).components[folder].tensors
        assert set(found) == set(tensors)
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(found[name][:], tensor)


def test_a_class_that_contradicts_the_index(copy, edit):
    edit(copy / "model_index.json", scheduler=["diffusers", "DDPMScheduler"])
    with pytest.raises(UserError, match="'FlowMatchEulerDiscreteScheduler', and the index 'DDPMScheduler'"):
        open_source(str(copy)).class_name("scheduler")
    edit(copy / "scheduler" / "scheduler_config.json", _class_name=...)
    assert open_source(str(copy)).class_name("scheduler") == "DDPMScheduler"
    edit(copy / "model_index.json", scheduler=...)
    assert open_source(str(copy)).class_name("scheduler") is None


def test_a_tokenizer(copy):
    (copy / "tokenizer").mkdir()
    with pytest.raises(UserError, match="has no tokenizer"):
        open_source(str(copy))
    vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}
    (copy / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (copy / "tokenizer" / "merges.txt").write_text("#version: 0.2\na b\n")
    assert [path.name for path in open_source(str(copy)).tokenizer] == ["merges.txt", "vocab.json"]
    (copy / "tokenizer" / "vocab.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as a tokenizer"):
        open_source(str(copy))


def test_the_hub(published, tmp_path, monkeypatch):
    import huggingface_hub

    snapshot = tmp_path / "snapshots" / "0123abc"
    shutil.copytree(published, snapshot)
    asked = {}

    def download(name, revision, allow_patterns):
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = open_source("BAAI/nova", "v1")
    assert (source.revision, source.name) == ("0123abc", "BAAI/nova")
    assert (asked["name"], asked["revision"]) == ("BAAI/nova", "v1")
    assert {"model_index.json", "transformer/*", "tokenizer/*"} <= set(asked["patterns"])


def test_the_hub_fails(monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    for kind, said in (
        (errors.LocalEntryNotFoundError, "the hub cannot be reached"),
        (errors.RepositoryNotFoundError, "neither a folder a/b nor a public"),
        (errors.RevisionNotFoundError, "has no revision 'v9'"),
        (ConnectionError, "could not be downloaded"),
    ):

        def fail(*args, kind=kind, **kwargs):
            raise kind.__new__(kind)  # some want the hub's answer

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(UserError, match=said):
            open_source("a/b", "v9")


def test_neither_a_folder_nor_an_id(published, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "a/b/c", "../x", str(tmp_path / "file")):
        with pytest.raises(UserError, match="there is no folder"):
            open_source(name)
    with pytest.raises(UserError, match="which has no --revision"):
        open_source(str(published), "main")
