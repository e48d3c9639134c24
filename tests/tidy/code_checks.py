"""Limits and habits of code: lengths, comments, names, control flow."""
import ast
import collections
import re

from finding import Finding

FUNCTION_LINES_MAX = 70
KERNEL_LINES_MAX = 120
FILE_LINES_MAX = 800
PARAMETERS_MAX = 7
NESTING_MAX = 4
DOCUMENTED_SHARE_MIN = 0.90
PURPOSE_WORDS_MIN = 3

KERNEL_ROOM = re.compile(r"lib/kernels/\w+/")
VAGUE_NAMES = re.compile(r"(utils?|common|misc|helpers?|stuff)\.\w+")
PUBLIC_HEADERS = ("lib/include/", "client/include/")
PUBLIC_ROOMS = ("lib/", "client/src/")
# A prefix a room, for what other files can link to. kvarnctl and tests are programs of their own.
PREFIXES = {"lib/": "kvarn_", "proto/": "kvarn_", "server/": "kvd_", "client/src/": "kvarn_"}


def python_functions(source):
    """(name, first line, last line) of each function of a Python file."""
    for node in ast.walk(ast.parse(source.text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node.lineno, node.end_lineno


def check_function_length(tree):
    """At most 70 lines a function, 120 in lib/kernels/."""
    findings, count = [], 0
    for source in tree.code_files():
        limit = FUNCTION_LINES_MAX
        if source.path.startswith("lib/kernels/"):
            limit = KERNEL_LINES_MAX
        if source.is_c:
            spans = [(f.name, f.line, f.last_line) for f in source.functions]
        elif source.suffix == ".py":
            spans = list(python_functions(source))
        else:
            continue
        count += len(spans)
        for name, first, last in spans:
            if last - first + 1 > limit:
                findings.append(Finding(source.path, first,
                    f"{name}() has {last - first + 1} lines, at most {limit}"))
    return findings, {"functions": count}


def check_file_length(tree):
    """At most 800 lines a file of code."""
    findings, count = [], 0
    for source in tree.code_files():
        count += 1
        lines = source.text.count("\n")
        if lines > FILE_LINES_MAX:
            findings.append(Finding(source.path, lines,
                f"{lines} lines, at most {FILE_LINES_MAX}"))
    return findings, {"files": count}


def first_comment(source):
    """Text of the comment that a file begins with; "" where it begins with something else."""
    text = source.text
    if source.is_c:
        match = re.match(r"/\*(.*?)\*/", text, re.DOTALL)
    elif source.suffix == ".py":
        match = re.match(r"(?:#![^\n]*\n)?\"\"\"(.*?)\"\"\"", text, re.DOTALL)
    elif source.suffix == ".proto":
        match = re.match(r"((?://[^\n]*\n)+)", text)
    elif source.suffix == ".def":
        match = re.match(r"/\*(.*?)\*/", text, re.DOTALL)
    else:
        match = re.match(r"(?:#![^\n]*\n)?((?:#[^\n]*\n)+)", text)
    return match.group(1) if match else ""


def check_header_comment(tree):
    """Each file of code begins with its purpose; headers of the daemon name their thread."""
    findings, count = [], 0
    for source in tree.code_files():
        if source.basename == "CMakeLists.txt" and "/" not in source.path:
            continue
        count += 1
        comment = first_comment(source)
        if len(re.findall(r"[A-Za-z]{2,}", comment)) < PURPOSE_WORDS_MIN:
            findings.append(Finding(source.path, 1, "does not begin with a comment of purpose"))
        elif source.path.startswith("server/") and source.suffix == ".h":
            if "Thread" not in comment:
                findings.append(Finding(source.path, 1, "does not say which thread may call it"))
    return findings, {"files": count}


def documented_lines(source):
    """Lines that a comment stands above (or in) without an empty line between."""
    documented, is_told = set(), False
    for number, (line, code) in enumerate(zip(source.lines, source.code.split("\n")), 1):
        if not line.strip():
            is_told = False
        elif line.strip() != code.strip():
            is_told = True
        if is_told:
            documented.add(number)
    return documented


def check_prototype_comments(tree):
    """Contracts stand at prototypes: 90 % of those in headers have a comment above.

    Not in the headers of one instruction set: their inline functions stand for one instruction, and
    what the kernels made of them do is said in lib/kernels/kernels.h.
    """
    bare, count = [], 0
    for source in tree.c_files():
        if source.suffix != ".h" or KERNEL_ROOM.match(source.path):
            continue
        documented = documented_lines(source)
        for prototype in source.prototypes + source.functions:
            count += 1
            if prototype.line not in documented:
                bare.append(Finding(source.path, prototype.line,
                    f"{prototype.name}() has no comment"))
    share = 1 - len(bare) / count if count else 0
    counts = {"prototypes": count, "% documented": round(100 * share, 1)}
    return (bare if count and share < DOCUMENTED_SHARE_MIN else []), counts


def check_function_shape(tree):
    """At most 7 parameters; at most 4 blocks inside each other."""
    findings, count = [], 0
    for source in tree.c_files():
        for function in source.functions + source.prototypes:
            count += 1
            if function.parameter_count > PARAMETERS_MAX:
                findings.append(Finding(source.path, function.line,
                    f"{function.name}() has {function.parameter_count} parameters, "
                    f"at most {PARAMETERS_MAX}"))
            deepest = nesting(function.body)
            if deepest > NESTING_MAX:
                findings.append(Finding(source.path, function.line,
                    f"{function.name}() nests {deepest} blocks, at most {NESTING_MAX}"))
    return findings, {"functions": count}


def is_block(body, index, opened):
    """Whether the `{` at `index` opens a block: no initialiser, no compound literal."""
    before = body[index - 1].text if index else ";"
    if before == "{":
        return opened[-1]
    if before != ")":
        return before in ("else", "do", ";", "}", ":")
    depth = 0
    for back in range(index - 1, 0, -1):
        depth += {")": 1, "(": -1}.get(body[back].text, 0)
        if depth == 0:
            word = body[back - 1].text
            return re.fullmatch(r"[A-Za-z_]\w*", word) is not None and word != "return"
    return False


def nesting(body):
    """Depth of the deepest block of a body."""
    opened, deepest = [True], 0
    for index, token in enumerate(body):
        if token.text == "{":
            opened.append(is_block(body, index, opened))
            deepest = max(deepest, sum(opened) - 1)
        elif token.text == "}":
            opened.pop()
    return deepest


def check_goto(tree):
    """goto goes forward only, to a label that is there."""
    findings, count = [], 0
    for source in tree.c_files():
        for function in source.functions:
            words = [token.text for token in function.body]
            for index, word in enumerate(words):
                if word != "goto":
                    continue
                count += 1
                label = words[index + 1]
                ahead = zip(words[index + 2:], words[index + 3:])
                if (label, ":") not in ahead:
                    findings.append(Finding(source.path, function.body[index].line,
                        f"goto {label} goes backward in {function.name}()"))
    return findings, {"gotos": count}


def check_unique_names(tree):
    """A file name means one file, a linked function one function; no file is named after nothing.

    Kernels have one file an instruction set, and a header may have the name of the public header
    that it goes with.
    """
    findings = []
    files, functions = collections.defaultdict(list), collections.defaultdict(list)
    for source in tree.c_files():
        if VAGUE_NAMES.fullmatch(source.basename):
            findings.append(Finding(source.path, 1, "is named after nothing"))
        if not source.path.startswith(("lib/kernels/",) + PUBLIC_HEADERS):
            files[source.basename].append(source.path)
        if source.path.startswith("tests/") and not source.path.startswith("tests/support/"):
            continue
        for function in source.functions:
            if not function.is_static:
                functions[function.name].append((source.path, function.line))
    for name, paths in files.items():
        for path in paths[1:]:
            findings.append(Finding(path, 1, f"{name} is also {paths[0]}"))
    for name, places in functions.items():
        for path, line in places[1:] if name != "main" else ():
            findings.append(Finding(path, line, f"{name}() is also in {places[0][0]}"))
    return findings, {"files": sum(map(len, files.values())), "functions": len(functions)}


def check_prefixes(tree):
    """What other files can link to is named after its library; no typedef hides a struct.

    In libraries kvarn_x is public, that is, declared in a public header; kvarn__x is not. Kernels
    are named kvarn_<op>_<isa> and stay inside.
    """
    findings, count = [], 0
    public = {prototype.name for source in tree.c_files()
              if source.path.startswith(PUBLIC_HEADERS) for prototype in source.prototypes}
    for source in tree.c_files():
        room = next((room for room in PREFIXES if source.path.startswith(room)), None)
        for function in source.functions if room else ():
            if function.is_static or function.name == "main":
                continue
            count += 1
            name, is_kernel = function.name, source.path.startswith("lib/kernels/")
            if not name.startswith(PREFIXES[room]):
                message = f"{name}() is not static and not {PREFIXES[room]}..."
            elif room in PUBLIC_ROOMS and not is_kernel and (
                    name.startswith("kvarn__") == (name in public)):
                message = f"{name}(): kvarn_ is for public headers, kvarn__ for the rest"
            else:
                continue
            findings.append(Finding(source.path, function.line, message))
        for number, line in enumerate(source.code.split("\n"), 1):
            if re.match(r"\s*typedef\s+(struct|enum|union)\b", line):
                findings.append(Finding(source.path, number, "typedef of a struct, enum or union"))
    return findings, {"functions": count}
