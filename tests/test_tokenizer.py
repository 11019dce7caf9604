"""Prompts to ids, from each form of a tokenizer/ folder."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from par_jax.errors import UserError
from par_jax.tokenizer import END, load_tokenizer, token_ids

WORDS = ["the robot pushes the cube to the goal", "the robot picks the ball", "a cube on a ball", "push it"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tokenizer in both forms, learned from a few words."""
    made = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.model.save(str(made))
    size = tokenizer.get_vocab_size()
    tokenizer.add_tokens(["  ", "    "])
    (made / "added_tokens.json").write_text(json.dumps({"    ": size + 1, "  ": size}))
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(made / "tokenizer.json"))
    return made


def _copied(folder, to, *names):
    for name in names:
        (to / name).write_bytes((folder / name).read_bytes())
    return to


def test_cut_and_padded(folder):
    tokenizer = load_tokenizer(folder)
    ids, counts = token_ids(tokenizer, ["the robot", "", WORDS[0] + WORDS[0], "push it"], 5)
    assert ids.shape == (4, 5)
    assert counts.tolist() == [len(tokenizer.encode("the robot").ids), 0, 5, len(tokenizer.encode("push it").ids)]
    assert not ids[1].any()
    for prompt, row, count in zip(["the robot", "push it"], ids[[0, 3]], counts[[0, 3]], strict=True):
        assert tokenizer.decode(row[:count].tolist()) == prompt
        assert not row[count:].any()


def test_both_forms_agree(folder, tmp_path):
    whole = load_tokenizer(folder)
    parts = load_tokenizer(_copied(folder, tmp_path, "vocab.json", "merges.txt", "added_tokens.json"))
    prompts = [*WORDS, "Über  the    cube,  twice!", f"one{END}two", " robot", ""]
    for length in (4, 64):
        ours, theirs = (token_ids(tokenizer, prompts, length) for tokenizer in (parts, whole))
        assert ours[0].tolist() == theirs[0].tolist()
        assert ours[1].tolist() == theirs[1].tolist()


def test_no_tokenizer_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"has no tokenizer: put a tokenizer.json there, or vocab.json and merges.txt"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"])
def test_damaged_files(folder, tmp_path, name):
    others = {"tokenizer.json"} if name == "tokenizer.json" else {"vocab.json", "merges.txt", "added_tokens.json"}
    _copied(folder, tmp_path, *others)
    (tmp_path / name).write_bytes(b"\xff{")
    with pytest.raises(UserError, match="cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)


def test_added_tokens_of_another_vocabulary(folder, tmp_path):
    _copied(folder, tmp_path, "vocab.json", "merges.txt")
    (tmp_path / "added_tokens.json").write_text('{"  ": 9999}')
    with pytest.raises(UserError, match="does not fit"):
        load_tokenizer(tmp_path)
