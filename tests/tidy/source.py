"""Files of the tree as the checks see them; a C file's functions, prototypes and includes.

The C reader is a tokenizer and a brace counter, not a compiler: it knows the C that this tree is
written in. Comments, strings and directives are out of the way before anything is matched.
"""
import bisect
import dataclasses
import functools
import re

TOKEN = re.compile(r"#\w*|[A-Za-z_]\w*|\.\.\.|[^\s\w]|\d[\w.]*")
COMMENT_OR_STRING = re.compile(
    r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.DOTALL)
DIRECTIVE = re.compile(r"^[ \t]*#[ \t]*(\w*)(?:\\\n|[^\n])*", re.MULTILINE)
INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*([\"<])([^\">\n]+)[\">]", re.MULTILINE)
ATTRIBUTES = ("__attribute__", "_Alignas", "_Static_assert", "static_assert")


@dataclasses.dataclass
class Function:
    """A definition or a prototype. `body` holds the tokens between the outer braces."""

    name: str
    line: int          # of the name
    last_line: int     # of the closing brace; of the semicolon for a prototype
    is_static: bool
    parameter_count: int
    body: list = dataclasses.field(default_factory=list)

    @property
    def length(self):
        """Lines from the name to the closing brace."""
        return self.last_line - self.line + 1


@dataclasses.dataclass
class Token:
    """A word or a sign of C, and its line."""

    text: str
    line: int


@dataclasses.dataclass
class Include:
    """One #include."""

    name: str
    line: int
    is_system: bool


def blank(text):
    """As many lines, as many columns, nothing in them."""
    return re.sub(r"[^\n]", " ", text)


def without_comments(text):
    """The text with comments blanked and strings emptied."""
    def replace(match):
        found = match.group(0)
        if found.startswith("/"):
            return blank(found)
        return found[0] + blank(found[1:-1]) + found[-1]
    return COMMENT_OR_STRING.sub(replace, text)


def keep_only_conditionals(match):
    """#if and its like stay as one word: the brace counter needs them."""
    word = match.group(1)
    if word in ("if", "ifdef", "ifndef", "else", "elif", "endif"):
        word = {"ifdef": "if", "ifndef": "if", "elif": "else"}.get(word, word)
        return f"#{word}" + "\n" * match.group(0).count("\n")
    return blank(match.group(0))


class Source:
    """A text file; `path` is relative to the root, with slashes."""

    def __init__(self, path, text):
        self.path = path
        self.text = text
        self.lines = text.split("\n")

    @property
    def suffix(self):
        """".c", ".py", ..., or the whole name where it has no dot."""
        name = self.path.rsplit("/", 1)[-1]
        return name[name.rindex("."):] if "." in name[1:] else name

    @property
    def basename(self):
        """The name without its folders."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def is_c(self):
        """Whether the C reader can read it."""
        return self.suffix in (".c", ".h")

    @functools.cached_property
    def code(self):
        """C without comments and without what strings hold; same lines and columns."""
        return without_comments(self.text)

    @functools.cached_property
    def includes(self):
        """All #include lines, those in comments left out."""
        starts = [0] + [m.end() for m in re.finditer("\n", self.text)]
        found = []
        for match in INCLUDE.finditer(self.text):
            if self.code[match.start():match.end()].strip():
                line = bisect.bisect_right(starts, match.start())
                found.append(Include(match.group(2), line, match.group(1) == "<"))
        return found

    @functools.cached_property
    def tokens(self):
        """Words and signs without directives, but for #if, #else and #endif."""
        text = DIRECTIVE.sub(keep_only_conditionals, self.code)
        found, line, position = [], 1, 0
        for match in TOKEN.finditer(text):
            line += text.count("\n", position, match.start())
            position = match.start()
            found.append(Token(match.group(0), line))
        return found

    @functools.cached_property
    def declarations(self):
        """(functions, prototypes) at file level."""
        return read_declarations(self.tokens)

    @property
    def functions(self):
        """Definitions in this file."""
        return self.declarations[0]

    @property
    def prototypes(self):
        """Prototypes in this file."""
        return self.declarations[1]


def close_index(tokens, start, opening, closing):
    """Index of the sign that closes tokens[start]."""
    depth = 0
    for index in range(start, len(tokens)):
        if tokens[index].text == opening:
            depth += 1
        elif tokens[index].text == closing:
            depth -= 1
            if depth == 0:
                return index
    return len(tokens) - 1


def is_macro(name):
    """Whether a name is written as macros are."""
    return name == name.upper()


def is_storage_static(word):
    """`static`, or a macro that stands for `static inline` and an attribute."""
    return word == "static" or (is_macro(word) and word.endswith("_INLINE"))


def read_head(head):
    """What the tokens before a `{` or `;` declare: a Function, or None where it is none."""
    index, found = 0, None
    while index < len(head):
        text = head[index].text
        if text in ("=", "typedef"):
            return None
        if text == "(":
            closing = close_index(head, index, "(", ")")
            before = head[index - 1].text if index else ""
            inside = head[index + 1:closing]
            is_name = re.fullmatch(r"[A-Za-z_]\w*", before) and before not in ATTRIBUTES
            if found is None and is_name and not is_macro(before):
                if inside and inside[0].text == "*":
                    return None
                found = Function(before, head[index - 1].line, 0,
                    any(is_storage_static(token.text) for token in head), count_parameters(inside))
            index = closing
        index += 1
    return found


def count_parameters(inside):
    """How many parameters the tokens between the parentheses are."""
    if not inside or [token.text for token in inside] == ["void"]:
        return 0
    depth, commas = 0, 0
    for token in inside:
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        commas += token.text == "," and depth == 0
    return commas + 1


def body_end(tokens, start):
    """Index of the brace that closes tokens[start]. The branches of an #if count once."""
    depth, saved = 0, []
    for index in range(start, len(tokens)):
        text = tokens[index].text
        if text == "#if":
            saved.append(depth)
        elif text == "#else" and saved:
            depth = saved[-1]
        elif text == "#endif" and saved:
            saved.pop()
        elif text == "{":
            depth += 1
        elif text == "}":
            depth -= 1
            if depth == 0:
                return index
    return len(tokens) - 1


def read_declarations(tokens):
    """All functions and prototypes at file level, `extern "C" {` looked through."""
    functions, prototypes, head = [], [], []
    index = 0
    while index < len(tokens):
        token = tokens[index]
        if token.text.startswith("#"):
            pass
        elif token.text == "{" and [t.text for t in head] == ["extern", '"', '"']:
            head = []
        elif token.text == "{":
            end = body_end(tokens, index)
            function = read_head(head)
            if function is not None:
                function.last_line = tokens[end].line
                function.body = tokens[index + 1:end]
                functions.append(function)
                head = []
            index = end
        elif token.text == ";":
            prototype = read_head(head)
            if prototype is not None:
                prototype.last_line = token.line
                prototypes.append(prototype)
            head = []
        elif token.text != "}":
            head.append(token)
        index += 1
    return functions, prototypes
