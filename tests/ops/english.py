"""The prose of a text or of Python source as sentences, and the rules of plain English that a program can check."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator

MAX_WORDS = 25

# Phrases that need a second reading, and words for which the field has a term. Each pattern has its replacement.
BANNED = {
    r"so (?:much|many)": "say how much",
    r"what (?:[\w`']+ ){0,3}(?:is|are|was|were)": "name the thing",
    r"lest": "so that … not",
    r"of late": "recently, or a time in seconds",
    r"for ?ever": "without end, or a limit",
    r"in turns": "interleaved",
    r"likewise": "also",
    r"roads?": "request path",
    r"(?:set|sets|setting|put|puts|lie|lies) aside": "paused",
    r"rest(?:s|ed|ing)? until": "paused",
    r"patient(?:ly)?|patience": "deferrable, or a timeout",
    r"gather(?:s|ed|ing)? in few": "batched",
    r"places|(?<!\bin )place": "batch slot, module, file, or position",
}
_BANNED = re.compile(rf"\b(?:{'|'.join(BANNED)})\b", re.IGNORECASE)

_FENCE = re.compile(r"^```\w*\n.*?^```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n|\n(?= {4}))+")
_CODE = re.compile(r"`[^`\n]+`")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_ITEM = re.compile(
    r"^\s*(?:[-*]|\d+\.)\s+|^\s*\S+(?:, \S+)*\s{2,}(?=\S)"
)  # of a list, or of a list of names in a docstring
_END = re.compile(r"(?<=[.!?…])[\"')*_]*\s+")
_WORD = re.compile(r"[^\W_][\w'’.,%/+-]*")


def paragraphs(markdown: str) -> Iterator[str]:
    """Yield each paragraph and each list item as one line; code blocks, tables, headings and pictures are left out."""
    text = _INDENTED.sub("\n", _FENCE.sub("\n", markdown))
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        is_prose = bool(line.strip()) and not re.match(r"\s*(\||#|!\[|<)", line)
        if (not is_prose or _ITEM.match(line)) and lines:
            yield " ".join(lines)
            lines = []
        if is_prose:
            lines.append(_ITEM.sub("", line).strip())


def sentences(markdown: str) -> Iterator[str]:
    """Yield the sentences of the prose. A code span counts as one word, a link as its text."""
    for paragraph in paragraphs(markdown):
        yield from _END.split(_LINK.sub(r"\1", _CODE.sub("`code`", paragraph)))


def num_words(sentence: str) -> int:
    """Return the number of words; signs that stand alone are none."""
    return len(_WORD.findall(sentence))


def long_sentences(markdown: str) -> list[str]:
    """Return the sentences of more than `MAX_WORDS` words, each with its number."""
    return [f"{num_words(each)}: {each}" for each in sentences(markdown) if num_words(each) > MAX_WORDS]


def banned_phrases(markdown: str) -> list[str]:
    """Return each banned phrase with the words around it; tables count, code does not."""
    text = _LINK.sub(r"\1", _CODE.sub("`code`", _INDENTED.sub("\n", _FENCE.sub("\n", markdown))))
    text = " ".join(text.split())
    return [text[max(0, found.start() - 30) : found.end() + 30] for found in _BANNED.finditer(text)]


def prose_of(source: str) -> Iterator[str]:
    """Yield each docstring of Python source, and each run of comments that begin in one column."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, owners) and (text := ast.get_docstring(node)):
            yield text + "\n"
    lines: list[str] = []
    after = (-1, -1)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start != after and lines:
                yield " ".join(lines)
                lines = []
            lines.append(token.string.lstrip("# "))
            after = (token.start[0] + 1, token.start[1])
    yield " ".join(lines)


def messages_of(source: str) -> Iterator[str]:
    """Yield each string of Python source that has several words and is no docstring; a value in it is one word."""
    tree = ast.parse(source)
    others = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            others |= {id(value) for value in node.values}
    for node in ast.walk(tree):
        text = _text_of(node) if id(node) not in others else ""
        if text.count(" ") > 2:
            yield text


def _text_of(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(value.value) if isinstance(value, ast.Constant) else "`code`" for value in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
