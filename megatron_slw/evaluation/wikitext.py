"""WikiText: its articles, its words, and the text that its tokens stand for.

WikiText writes every token with white space around it (`guest @-@ starring role .`). The rules that undo this, the
articles as units and what counts as a word are those of lm-evaluation-harness 0.4.13 (task `wikitext`), so that word
perplexities compare with published ones.
"""

from __future__ import annotations

import re

_TITLE = re.compile(r"^ ?= [^=\n]*[^=\n ] = ?$", re.MULTILINE)
"""Of an article; sections have more signs on each side."""
_BRACKETS = [
    (re.compile(r"\(\s*([^)]*?)\s*\)"), r"(\1)"),
    (re.compile(r"\[\s*([^\]]*?)\s*\]"), r"[\1]"),
    (re.compile(r"{\s*([^}]*?)\s*}"), r"{\1}"),
    (re.compile(r"\"\s*([^\"]*?)\s*\""), r'"\1"'),
    (re.compile(r"'\s*([^']*?)\s*'"), r"'\1'"),
]
_PUNCTUATION = (":", ";", ".", "!", "?", ",")


def is_title(line: str) -> bool:
    """Whether a line is the title of an article."""
    return _TITLE.fullmatch(line.rstrip("\n")) is not None


def articles(text: str) -> list[str]:
    """The text cut before the titles between blank lines; joined again the parts are the text.

    What stands before the first title belongs to the first article. There is one part where there is no title.
    """
    lines = text.splitlines(keepends=True)
    begins = []
    for number, line in enumerate(lines):
        alone = (number == 0 or not lines[number - 1].strip()) and (
            number + 1 == len(lines) or not lines[number + 1].strip()
        )
        if alone and is_title(line):
            begins.append(number)
    cuts = [0, *begins[1:], len(lines)]
    return ["".join(lines[a:b]) for a, b in zip(cuts, cuts[1:], strict=False) if a < b]


def count_words(article: str) -> int:
    """Parts between white space, the empty ones at both ends too, as lm-evaluation-harness counts."""
    return len(re.split(r"\s+", article))


def detokenize(article: str) -> str:
    """The text as it was before WikiText cut it into tokens, by lm-evaluation-harness's rules.

    Its rule for apostrophes before numbers matches nothing that occurs in prose and is left out.
    """
    text = article.replace("s '", "s'")
    for sign in ("-", ",", "."):
        text = text.replace(f" @{sign}@ ", sign)
    for sign in _PUNCTUATION:
        text = text.replace(f" {sign} ", f"{sign} ")
    for pattern, replacement in _BRACKETS:
        text = pattern.sub(replacement, text)
    for count in (4, 3, 2):
        text = text.replace(" ".join("=" * count), "=" * count)
    text = text.replace(" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}")
    text = text.replace(" \n", "\n").replace("\n ", "\n")
    return text.replace(" N ", " 1 ").replace(" 's", "'s")
