"""From Python source to passages of English: docstrings and comments, without code, markup and project names.

Nothing is imported and nothing is run: a file is read as bytes, decoded as Python would decode it and parsed with
``ast``. Everything here is a pure function of the text, so two builds on one machine agree byte for byte. This file
needs the standard library only and also runs as a script: that is how ``pydocs`` uses all cores without forking a
process that has threads and without importing the caller's script a second time.
"""

from __future__ import annotations

import ast
import functools
import gc
import inspect
import io
import json
import re
import sys
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

MIN_WORDS = 12
MIN_COMMENT_WORDS = 6
MASK = "PROJECT"

# Searched for anywhere in an identifier, which is masked as a whole: LightningModule, torchvision, __torch_function__.
# "sympify" and "sympification" are a project's name made a verb.
_LONG_NAMES = re.compile(r"torch|sympy|sympif|networkx|lightning|hugging_?face|python|stdlib", re.I)
# Too short for that: a whole word or a part of a snake_case name (hf_hub_download), or the head of a CamelCase one.
_SHORT_NAMES = frozenset({"nx", "pl", "hf", "hub", "fabric"})
_CAMEL_HEADS = re.compile(r"_*(?:Hf|HF|HFH|NX|Hub|Lit|PL|Fabric)[A-Z]")
_IDENTIFIER = re.compile(r"\w+")
_TWO_WORDS = re.compile(r"\bhugging[\s-]face\b|\bstandard(?:\s+\w+)?\s+library\b|\U0001F917", re.I)
_REPEATED = re.compile(rf"\b{MASK}(?:(?:[\s/-]+|\.){MASK}\b)+")


@functools.lru_cache(maxsize=1 << 17)
def _masked(identifier: str) -> str:
    parts = identifier.lower().split("_")
    own = _LONG_NAMES.search(identifier) or _CAMEL_HEADS.match(identifier) or not _SHORT_NAMES.isdisjoint(parts)
    return MASK if own else identifier


def mask_names(text: str) -> str:
    """``text`` with every project's own name and aliases, alone or inside an identifier, replaced by ``MASK``."""
    text = _IDENTIFIER.sub(lambda match: _masked(match[0]), _TWO_WORDS.sub(MASK, text))
    # A lone surrogate (an escape in somebody's docstring) could not be written to a file.
    return _REPEATED.sub(MASK, text).encode("utf-8", "ignore").decode()


_SECTIONS = (
    r"args?|arguments?|keyword\s+arg(?:ument)?s|kwargs|(?:other\s+)?param(?:eter)?s?|attributes?|properties|methods?|"
    r"returns?|yields?|receives?|raises?|exceptions?|errors?|warns?|(?:for\s+)?examples?(?:\s+(?:usage|\d+))?|e\.g\.|"
    r"(?:sample\s+)?usage|see\s+also|references?|todos?|fixme|shapes?|inputs?|outputs?|options?|constants|functions|"
    r"classes|variables|fields|members|implementation\s+notes?|side\s+effects|keywords?|preconditions"
)
_ADMONITIONS = r"note|warning|important|tip|hint|caution|attention"
_HEADING = re.compile(rf"(?:#+\s*|\*\*|__)?(?:{_SECTIONS})\s*(?:\([^()]*\)\s*)?(?::|\*\*|__)", re.I)
_BARE_HEADING = re.compile(rf"(?:#+\s*)?(?:{_SECTIONS}|(?:{_ADMONITIONS})s?:{{0,2}})", re.I)
_PROSE_HEADING = re.compile(r"(?:explanation|description|overview|definitions?|summary)\s*:?", re.I)
_UNDERLINE = re.compile(r"([-=~^\"*+#_`.])\1{2,}(?: +\1{3,})*")
_PROMPT = re.compile(r">>>|\.\.\. |In \[\d*\]|\$ |% |```|~~~")
_FIELD = re.compile(
    r"(?i):(?:param|parameter|arg|argument|key|keyword|type|vartype|[ic]?var|raises?|except(?:ion)?|returns?|rtype|"
    r"yields?|meta|members|synopsis|note|example)[\s:]|@(?:param|return|rtype|type|note|author|raise)"
)
# An entry of a parameter list: "name: text", "name (type, optional): text", "name : type", "name -- text".
_ENTRY = re.compile(
    r"(?:[-*+]\s+)?(?:`+[^`]+`+|\*{1,2}[a-z_]\w*\*{0,2}|(?:[a-z]\w*|\w+_)[\w.]*)(?:,\s[\w*]+)*"
    r"(?:\s*\([^)]*\))?(?:\s*=\s*\S+)?(?:\s+--?|\s?:)\s"
)


def _cuts(line: str, before: str, following: str) -> bool:
    """True if the prose ends because an example, a parameter list or a section starts at this (stripped) line."""
    if _PROMPT.match(line) or _FIELD.match(line) or _HEADING.match(line) or _BARE_HEADING.fullmatch(line):
        return True
    if _UNDERLINE.fullmatch(following) and not _UNDERLINE.fullmatch(line) and len(line) <= 80:
        return True
    # Inside a sentence a wrapped line may begin as an entry does.
    return (not before or before[-1] in ".:!?" or line[0] in "-*+") and _ENTRY.match(line) is not None


_ADMONITION = re.compile(rf"( *)\.\. (?:{_ADMONITIONS}|admonition)::(.*)", re.I)
_LIST_ITEM = re.compile(r"\A(?:[-*+•]|\(?\d{1,2}[.)]|#\.)\s+")


def _plain_lines(docstring: str) -> Iterator[str]:
    """The lines of a docstring, dedented; admonitions and quotes stand at the level of the text around them."""
    inside: int | None = None
    for line in inspect.cleandoc(docstring).expandtabs(4).splitlines():
        indent = len(line) - len(line.lstrip())
        if inside is not None and line and indent <= inside:
            inside = None
        admonition = _ADMONITION.fullmatch(line)
        if admonition:
            inside = len(admonition[1])
            yield ""
            line = admonition[1] + admonition[2].strip()
        elif inside is not None and line:
            line = " " * inside + line.lstrip()
        if line.startswith("> "):
            line = "" if line.startswith("> [!") else line[2:]
        yield line


def _paragraphs(docstring: str) -> Iterator[list[str]]:
    """The paragraphs of prose, as stripped lines, up to where prose ends; blocks of code are left out."""
    lines = list(_plain_lines(docstring))
    paragraph: list[str] = []
    code_indent: int | None = None  # lines at least this deep belong to a literal block or a directive
    started = False
    for number, raw in enumerate(lines):
        line, indent = raw.strip(), len(raw) - len(raw.lstrip())
        if code_indent is not None and (not line or indent >= code_indent):
            continue
        code_indent = None
        if not line:
            yield paragraph
            paragraph = []
            continue
        following = lines[number + 1].strip() if number + 1 < len(lines) else ""
        title = _UNDERLINE.fullmatch(following) and (not started or _PROSE_HEADING.fullmatch(line))
        if (title and not _BARE_HEADING.fullmatch(line)) or _UNDERLINE.fullmatch(line):
            continue
        if _cuts(line, paragraph[-1] if paragraph else "", following):
            break
        directive = line.startswith(".. ")
        if directive or (started and not paragraph and indent >= 2 and not _LIST_ITEM.match(line)):
            code_indent = indent + directive  # an indented paragraph is code or a formula
            yield paragraph
            paragraph = []
            continue
        if line.endswith("::"):
            code_indent, line = indent + 1, line[:-1]
        started = True
        paragraph.append(line)
    yield paragraph


_URL = re.compile(r"<?\b(?:https?|ftp|hf|s3|gs)://[^\s>)\]]*>?|\bwww\.\w[^\s>)\]]*")
_ROLE = re.compile(r":[a-zA-Z][\w:+-]*:`([^`]*)`")
_TARGET = re.compile(r"([^`<]*?)\s*<[^>`]*>")
_MATH = re.compile(r":math:`([^`]*)`|\$+([^$\s]{1,3}|[^$]*[\\^=][^$]*)\$+|(?<![:`])`+([^`]*\\[^`]*)`+")
_TEX_STYLE = re.compile(r"\\(?:math\w+|text\w*|operatorname|left|right|[bB]ig|limits|[^A-Za-z])|[{}$]")
_TRAILING = re.compile(r"(?i)(?:\bsee|\b(?:for (?:example|instance)|examples?|usage|e\.?g\.?|i\.e\.?))\s*[:,.]*$")
_SPECIAL = re.compile(r"[`*\[@$<~]|//|www| [.,;:]")
_LEAD_IN = re.compile(r"(?<=[.!?])\s+[^.!?]*:$")  # to a list or an example that is left out
_MARKS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"`([^`<]+?)\s*<[^>`]*>`_{0,2}"), r"\1"),  # `text <target>`_
    (re.compile(r"\[`?([^\]`]*)`?\]\([^)\s]*\)"), r"\1"),  # [text](target)
    (re.compile(r"\[`+([^`\]]*)`+\]"), r"\1"),  # [`name`]
    (re.compile(r"\s?\[(?:\d+|\w+\d{2,4}\w?|[#*]\w*)\]_"), ""),  # [1]_
    (re.compile(r"`+([^`]*)`+_{0,2}|`"), r"\1"),
    (re.compile(r"(?<![\w*])(\*{1,2})(?=\S)([^*\n]*?\S)\1(?![\w*])"), r"\2"),
    (re.compile(r"\S+@\S+\.\w+|(?<!\w)~(?=[A-Za-z_])"), ""),
    (_URL, "URL"),
    (re.compile(r"(?:\b(\w+):? )?[<(\[]URL[>)\]]"), r"\1"),
    (re.compile(r"\s+"), " "),
    (re.compile(r" (?=[.,;:](?:\s|$))"), ""),
)


def _role(match: re.Match[str]) -> str:
    target = _TARGET.sub(r"\1", match[1]).strip()
    return target.rsplit(".", 1)[-1] if target.startswith("~") else target.lstrip("!")


def _math(match: re.Match[str]) -> str:
    return " ".join(_TEX_STYLE.sub("", match[match.lastindex or 0]).replace("\\", "").split())


def strip_markup(text: str) -> str:
    """``text`` on one line without reStructuredText, Markdown and TeX marks; an address becomes ``URL``."""
    if not _SPECIAL.search(text):
        return " ".join(text.split())
    text = _ROLE.sub(_role, _MATH.sub(_math, text))
    for pattern, replacement in _MARKS:
        text = pattern.sub(replacement, text)
    return text.strip()


_CREDIT = re.compile(
    r"(?i)copyright|\(c\)\s+\d{4}|licen[cs]e[ds]?\b|all rights reserved|^authors?\b|^(?:written|created) by|"
    r"permission (?:is|to)|warrant(?:y|ies)|\$(?:id|revision)"
)
_WORD = re.compile(r"\S*?[^\W\d_]\S*")
_NO_LETTER = re.compile(r"[\d_]+|[^\w ]+")


def is_english(text: str) -> bool:
    """True if the text consists mainly of words, not symbols or a table's rules, and is no credit or licence."""
    letters = len(_NO_LETTER.sub("", text))
    words = [word.strip(".,;:()'\"") for word in text.split()]
    spelled = sum(len(word) > 1 and word.isalpha() for word in words)
    return letters >= 0.78 * len(text) and spelled >= 0.45 * len(words) and not _CREDIT.search(text)


def enough_words(text: str, least: int = MIN_WORDS) -> bool:
    """True where ``text`` has at least ``least`` words (runs without a space that hold a letter)."""
    return len(_WORD.findall(text)) >= least


_SIGNATURE = re.compile(r"[A-Za-z_][\w.]*\s*\([^()]*(?:\([^()]*\)[^()]*)*\)\s*(?:->\s*.+|:|--?)?")


def prose(docstring: str) -> str:
    """The English of a docstring on one line, masked; empty if there is none.

    Prose ends at the first example, parameter list or section (Google, NumPy and Sphinx styles); literal blocks,
    directives, signatures, titles, credits and lines that only hold a link are left out.
    """
    kept: list[str] = []
    for paragraph in _paragraphs(docstring):
        lines = [line for line in paragraph if not (_URL.search(line) and len(_URL.sub("", line).split()) <= 4)]
        while lines and not kept and _SIGNATURE.fullmatch(lines[0]):
            lines = lines[1:]
        text = strip_markup(" ".join(_LIST_ITEM.sub("", line) for line in lines))
        if text and is_english(text):
            kept.append(text)
    return mask_names(_LEAD_IN.sub("", _TRAILING.sub("", " ".join(kept)).strip()))


def docstrings(tree: ast.Module) -> Iterator[str]:
    """The docstrings of the module, its classes and functions (nested ones too), in the order of the file."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield docstring
        # Only statements are followed: a definition never stands inside an expression.
        for name in ("finalbody", "orelse", "handlers", "body"):
            children = getattr(node, name, None)
            if isinstance(children, list):
                stack.extend(reversed(children))


_CODE = re.compile(
    r"(?:from \w[\w.]* import|import \w+$|(?:if|for|while|elif|else|try|except|with|def|class)\b.*:$|return\b|"
    r"print\s*\(|@\w+$|[\w.\[\]'\"]+\s*(?:[-+*/|&]?=)\s*\S|[\w.]+\(.*\)$|>>>|[)\]}]+,?$|\|)"
)
_PRAGMA = re.compile(r"!|\s*-\*-|\s*(?:type|noqa|pragma|pylint|mypy|fmt|vim?|flake8|coding|ruff)\s*[:=]", re.I)

# Strings are matched so that a "#" inside one begins no comment.
_COMMENT = re.compile(
    r"""\"{3}(?:[^"\\]|\\.|"(?!""))*"{3}|'{3}(?:[^'\\]|\\.|'(?!''))*'{3}|"""
    r""""(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|(?P<comment>\#[^\n]*)""",
    re.DOTALL,
)


def comments(text: str) -> Iterator[str]:
    """The English of a file's comments, masked: comment lines of one indent in a row are a passage."""
    block: list[str] = []
    expected = (-1, -1)  # where the next comment of the block would start, and its indent
    for match in _COMMENT.finditer(text):
        if match["comment"] is None:
            continue
        start = text.rfind("\n", 0, match.start()) + 1
        body = match[0].lstrip("#").strip()
        if text[start : match.start()].strip() or not body:
            continue
        if (start, match.start() - start) != expected:
            yield from _comment_passage(block)
            block = []
        expected = (match.end() + 1, match.start() - start)
        if not _PRAGMA.match(match[0][1:]):
            block.append(body)
    yield from _comment_passage(block)


def _comment_passage(block: list[str]) -> Iterator[str]:
    lines = [line for line in block if not _CODE.match(line) and not _UNDERLINE.fullmatch(line)]
    if lines and 2 * len(lines) > len(block):  # else it is mostly code that was commented out
        text = " ".join(_LIST_ITEM.sub("", line) for line in lines)
        if enough_words(text, MIN_COMMENT_WORDS) and is_english(text := strip_markup(text)):
            yield mask_names(text)


def extract(path: Path) -> tuple[list[str], list[str]] | None:
    """Passages (of docstrings, of at least ``MIN_WORDS`` words) and comments of a file; None where it is broken."""
    try:
        data = path.read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stray backslash in somebody's string is not our business
            tree = ast.parse(data)
    except (OSError, SyntaxError, ValueError, LookupError, RecursionError, MemoryError):
        return None
    return [passage for passage in map(prose, docstrings(tree)) if enough_words(passage)], list(comments(text))


if __name__ == "__main__":  # a JSON list of paths in, the list of their extracts out
    gc.disable()  # syntax trees have no cycles, and looking for some takes a sixth of the time
    json.dump([extract(Path(path)) for path in json.load(sys.stdin)], sys.stdout)
