"""A tokenizer is a function of its captions."""

from cmd_video.training.tokenizer import train_tokenizer


def test_a_tokenizer_of_the_same_captions_is_the_same():
    """Pairs that are as frequent as each other were once merged in an order dealt at random, at one time in ten."""
    captions = [
        f"a {size} {color} {shape} moves"
        for size in ("small", "large", "medium")
        for color in ("red", "teal", "pink", "cyan")
        for shape in ("ring", "star", "heart", "cross")
    ]
    found = {tuple(sorted(train_tokenizer(captions, vocab_size=700).get_vocab().items())) for _ in range(60)}
    assert len(found) == 1
