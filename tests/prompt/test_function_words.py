from attnguide.prompt.function_words import function_word_positions
from tests import tiny


def test_function_words_are_found_by_their_positions() -> None:
    prompt = tiny.model().tokenize("two red cats and a dog's ball")
    found = {prompt.text[slice(*span)] for p in function_word_positions(prompt) if (span := prompt.offsets[p])}
    assert "red" not in found and "ball" not in found and {"and", "a"} <= found
    assert not function_word_positions(tiny.model().tokenize("red cat"))
