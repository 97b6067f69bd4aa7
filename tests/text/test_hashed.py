"""The hashed encoder: equal everywhere, and rich enough to tell who has which attribute."""

import itertools
import time

import pytest
import torch

from sana_train.data.world.captions import captions
from sana_train.data.world.sampling import sample_scenes
from sana_train.data.world.scene import COLOURS, SHAPES, WorldSpec
from sana_train.protocols import TextEncoder
from sana_train.text.hashed import HashedTextEncoder, hash_vector, tokenise

CAPTION = "A red striped cube orbits two blue spheres, slowly."


@pytest.fixture(scope="module")
def encoder():
    return HashedTextEncoder()


def encode_one(encoder, caption):
    """(tokens, D) of one caption, padding removed."""
    context, mask = encoder.encode([caption])
    return context[0, mask[0]]


def test_it_is_a_text_encoder(encoder):
    assert isinstance(encoder, TextEncoder)
    context, mask = encoder.encode([CAPTION, "one disc"])
    assert context.shape == (2, encoder.max_tokens, encoder.dim)
    assert context.dtype == torch.float32
    assert mask.dtype == torch.bool
    assert mask.sum(dim=1).tolist() == [11, 2]
    assert (context[~mask] == 0).all()
    assert (context[mask].abs().sum(dim=-1) > 0).all()


def test_tokens_are_lower_cased_words_and_punctuation():
    assert tokenise("A red  CUBE, then\ntwo: x_1!") == [
        "a",
        "red",
        "cube",
        ",",
        "then",
        "two",
        ":",
        "x_1",
        "!",
    ]
    assert tokenise("Ein grüner Würfel") == ["ein", "grüner", "würfel"]


def test_vectors_are_equal_on_every_machine():
    """Pinned: shipped DiTs were trained on these vectors."""
    signs = "".join("+" if value > 0 else "-" for value in hash_vector("word/cube", 16, seed=0))
    assert signs == "+-++-+-+----+-++"
    assert HashedTextEncoder().fingerprint() == "a7351ef39701816a"


def test_encoding_depends_neither_on_history_nor_on_neighbours_in_the_batch(encoder):
    captions = [CAPTION, "a green ring above a checked disc", "cube"]
    fresh = HashedTextEncoder()
    expected, _ = fresh.encode(captions)
    for i in (2, 0, 1):
        torch.testing.assert_close(encoder.encode(captions[i : i + 1])[0][0], expected[i], rtol=0, atol=0)
    assert torch.equal(fresh.encode(captions)[0], expected)


def test_case_and_spacing_do_not_matter(encoder):
    first, _ = encoder.encode(["a red cube."])
    second, _ = encoder.encode([" A  Red cube ."])
    assert torch.equal(first, second)


def test_words_are_nearly_orthogonal():
    words = torch.stack([hash_vector(f"word/w{i}", 128, seed=0) for i in range(200)])
    gram = words @ words.T / 128
    assert torch.equal(gram.diagonal(), torch.ones(200))
    off_diagonal = (gram - torch.eye(200)).abs()
    assert off_diagonal.max() < 5.5 / 128**0.5


def test_bindings_are_readable_from_a_single_token():
    """Only the word before a noun tells which colour it has; a linear map must find it at the noun."""
    encoder = HashedTextEncoder()
    colours = ["red", "green", "blue", "white"]
    nouns = ["cube", "disc", "ring", "star", "cone"]
    rows, labels = [], []
    for (label, first), second in itertools.product(enumerate(colours), colours):
        for noun, other in itertools.permutations(nouns, 2):
            rows.append(encode_one(encoder, f"a {first} {noun} left of a {second} {other}")[2])
            labels.append(label)
    features = torch.cat([torch.stack(rows), torch.ones(len(rows), 1)], dim=1)
    targets = torch.nn.functional.one_hot(torch.tensor(labels), len(colours)).float()
    train = torch.arange(len(rows)) % 3 > 0
    weights = torch.linalg.lstsq(features[train], targets[train], driver="gelsd").solution
    read = (features[~train] @ weights).argmax(dim=1)
    assert (read == torch.tensor(labels)[~train]).all()


def shape_tokens(encoder, count):
    """(n, D) the token of every object's shape in ``count`` captions, and its classes by attribute."""
    scenes = sample_scenes(WorldSpec(), 0, "train", torch.arange(count))
    said = captions(scenes)
    context, _ = encoder.encode(said)
    rows, classes = [], {"colour": [], "texture": [], "frequency": [], "motion": []}
    for i, caption in enumerate(said):
        words = tokenise(caption)
        for slot in range(int(scenes.count[i])):
            name = [COLOURS[scenes.colour[i, slot]], SHAPES[scenes.shape[i, slot]]]
            place = next(k for k in range(1, len(words)) if words[k - 1 : k + 1] == name)
            rows.append(context[i, place])
            for attribute, labels in classes.items():
                labels.append(int(getattr(scenes, attribute)[i, slot]) + 1)
    return torch.stack(rows), {name: torch.tensor(labels) for name, labels in classes.items()}


def test_an_objects_attributes_are_readable_at_its_shape(encoder):
    """A linear probe on one token reads what any phrasing of the world says of the object."""
    tokens, classes = shape_tokens(encoder, 1500)
    features = torch.cat([tokens, torch.ones(len(tokens), 1)], dim=1)
    half = len(tokens) * 2 // 3
    for attribute, labels in classes.items():
        targets = torch.nn.functional.one_hot(labels).float()
        weights = torch.linalg.lstsq(features[:half], targets[:half], driver="gelsd").solution
        right = (features[half:] @ weights).argmax(dim=1) == labels[half:]
        assert right.float().mean() > 0.95, attribute


def test_the_order_of_words_changes_every_token_around(encoder):
    first = encode_one(encoder, "a red cube above a blue disc")
    second = encode_one(encoder, "a blue cube above a red disc")
    assert ((first - second).abs().sum(dim=1) > 0).all()


def test_vectors_have_the_scale_of_a_normalised_context(encoder):
    context, mask = encoder.encode(captions(sample_scenes(WorldSpec(), 0, "train", torch.arange(64))))
    assert 0.8 < context[mask].square().mean().sqrt() < 1.1


def test_position_is_part_of_the_token(encoder):
    tokens = encode_one(encoder, " ".join(["cube"] * encoder.max_tokens))[1:-1]
    distances = torch.cdist(tokens, tokens) + 1e9 * torch.eye(len(tokens))
    assert distances.min() > 0.5


def test_another_seed_is_another_vocabulary(encoder):
    other = HashedTextEncoder(seed=1)
    assert not torch.equal(other.encode([CAPTION])[0], encoder.encode([CAPTION])[0])
    fingerprints = {
        built.fingerprint()
        for built in (encoder, other, HashedTextEncoder(dim=64), HashedTextEncoder(max_tokens=49))
    }
    assert len(fingerprints) == 4


@pytest.mark.parametrize("caption", ["", "   \n"])
def test_an_empty_caption_is_refused(encoder, caption):
    with pytest.raises(ValueError, match=r"caption 1 of 2 .* has no words; expected 1 to 48 .*null context"):
        encoder.encode(["a cube", caption])


def test_a_long_caption_is_refused_not_cut(encoder):
    assert encoder.encode(["cube " * 48])[1].all()
    with pytest.raises(ValueError, match="has 49 tokens, expected at most 48; shorten it or raise"):
        encoder.encode(["cube " * 49])


def test_a_bare_string_is_refused(encoder):
    with pytest.raises(ValueError, match="sequence of captions"):
        encoder.encode(CAPTION)


@pytest.mark.parametrize("arguments", [{"dim": 0}, {"dim": 7}, {"max_tokens": 0}])
def test_impossible_sizes_are_refused(arguments):
    with pytest.raises(ValueError, match=r"even dim|at least 1"):
        HashedTextEncoder(**arguments)


def test_a_known_vocabulary_encodes_a_batch_quickly(encoder):
    """A few ms; the bound is loose for a busy machine, and far below hashing every word again."""
    words = [f"w{i}" for i in range(200)]
    captions = [" ".join(words[(7 * i + j) % 200] for j in range(30)) for i in range(256)]
    encoder.encode(captions)
    times = []
    for _ in range(5):
        start = time.process_time()
        encoder.encode(captions)
        times.append(time.process_time() - start)
    assert min(times) < 0.1
