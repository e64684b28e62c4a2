import pytest

from atoll.cli.operator import TOKEN_FILE, operator_token
from atoll.errors import RunError


def test_the_token_is_made_once(tmp_path):
    assert operator_token(tmp_path) == operator_token(tmp_path)
    assert len(operator_token(tmp_path)) == 64


@pytest.mark.parametrize("content", ["", "\n", "sesame"])
def test_a_token_that_anybody_could_guess_is_none(tmp_path, content):
    (tmp_path / TOKEN_FILE).write_text(content)
    with pytest.raises(RunError, match="guess"):
        operator_token(tmp_path)
