"""What is printed: tables of text, and the words in them."""

from gradprune_jax._tables import text_table


def test_a_table_of_text_has_no_blanks_at_the_ends_of_its_lines():
    rows = [("a", "long cell", ""), ("b", "", "")]
    for left in (None, 0, 1, 3):
        lines = text_table(("path", "what", "kept"), rows, left=left).splitlines()
        assert [line.rstrip() for line in lines] == lines
        assert lines[1] == "----  ---------  ----"
    assert text_table(("path", "n"), [], left=1) == "path  n\n----  -"
    assert text_table(("n",), [("7",), ("12",)], left=0) == " n\n--\n 7\n12"
