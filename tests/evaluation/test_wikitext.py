"""WikiText's articles and the text behind its tokens, against lm-evaluation-harness where it is installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_slw.evaluation.wikitext import articles, count_words, detokenize

PAGE = (
    " = Robert <unk> = \n \n He had a guest @-@ starring role in 1 @,@ 000 films ( or 2 @.@ 5 a year ) , "
    "it 's said : \" yes \" . \n \n = = Career = = \n \n = = = Film = = = \n \n "
    "At 5 ° C the players ' bus [ sic ] { x } ; N men ! ? \n"
)


def test_detokenized_text_reads_as_it_was_written() -> None:
    assert detokenize(PAGE) == (
        " = Robert <unk> =\n\nHe had a guest-starring role in 1,000 films (or 2.5 a year), it's said: \"yes\".\n\n"
        "== Career ==\n\n=== Film ===\n\nAt 5°C the players' bus [sic] {x}; 1 men!?\n"
    )


def test_an_article_begins_at_a_title_between_blank_lines() -> None:
    first = " \n = One = \n \n a = b = c \n = No title = \n x \n \n = = Section = = \n \n y \n \n"
    text = first + " = Two ( film ) = \n \n z"
    found = articles(text)
    assert "".join(found) == text
    assert [part.strip().splitlines()[0].strip() for part in found] == ["= One =", "= Two ( film ) ="]
    assert articles("no title\nat all") == ["no title\nat all"] and articles("") == []


def test_words_are_counted_as_the_harness_does() -> None:
    assert count_words(" a b \n c ") == 5  # both empty ends too
    assert count_words("a b") == 2


def test_rules_are_those_of_the_harness(shared_text: Path) -> None:
    theirs = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext")
    pages = articles((shared_text / "wikitext-2-test.txt").read_text())
    assert len(pages) == 60, "the articles of WikiText-2's test set"
    for page in (*pages, PAGE):
        assert detokenize(page) == theirs.wikitext_detokenizer({"page": page})
        assert count_words(page) == theirs.process_results({"page": page}, (0.0,))["word_perplexity"][1]


def test_the_rule_that_is_left_out_matches_nothing(shared_text: Path) -> None:
    assert not re.search(r"/' [0-9]/", (shared_text / "wikitext-2-test.txt").read_text())
