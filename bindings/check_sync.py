"""One header, two languages, one set of layers: are they still in step?

    python bindings/check_sync.py [LIBRARY]     default: build/release/libminimax2.so

Prints one sentence for each violation and exits 1 if there is any. Checked:
  - the library exports the functions of csrc/minimax2.h, all of them and nothing else;
  - every function has a comment in the header, is in both bindings' cdef, and is used by both;
  - every field of the header's structs is used by both;
  - the version stands in csrc/api.c, and nowhere else another one;
  - only one module of each binding touches the library;
  - the library imports nothing that ends, interrupts or writes into its host;
  - csrc obeys the layer law, and its file names are unique.
A source file of more than 800 lines is a warning.
"""

import re
import subprocess
import sys
from pathlib import Path

import gen_cdef

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "csrc" / "minimax2.h"

# A layer includes only itself and layers to its left.
LAYERS = ("base", "tensor", "kernels", "text", "model", "run", "api")
MOST_LINES = 800

# Functions that a binding has no use for, and why.
UNUSED = {
    "python": {"mm2_model_retain": "Python counts references to the one handle itself",
               "mm2_tokenizer_encode": "encode() comes back in between, with mm2_encoding_run",
               "mm2_text_complete": "replies hold back what is not complete"},
    "lua": {"mm2_tokenizer_encode": "encode() comes back in between, with mm2_encoding_run"},
}
# Structs that a binding takes whole, by asking for their fields' names.
WHOLE = {
    "python": {"mm2_attention", "mm2_config", "mm2_cost", "mm2_limits", "mm2_plan",
               "mm2_prefix_stats", "mm2_sampling", "mm2_speculation", "mm2_tokenizer_info"},
    "lua": set(),
}
# Fields that a binding has no use for, and why.
UNUSED_FIELDS = {
    "python": {},
    "lua": {},
}
# Functions whose comment stands elsewhere: the header's opening speaks of all _init functions.
DOCUMENTED_AT_THE_TOP = {"mm2_model_options_init", "mm2_session_options_init",
                         "mm2_batch_options_init"}

COMMENTS = {".lua": re.compile(r"--[^\n]*"), ".py": re.compile(r"#[^\n]*"),
            ".c": re.compile(r"/\*.*?\*/", re.DOTALL)}

# What a library must not call: it belongs to its host.
BANNED = re.compile(
    r"""abort | _?_?exit | _Exit | quick_exit | __assert\w* | system | popen | execv?[pe]* | raise
    | (__)?v?(s|sn|f|d|as|w|sw|fw)?printf(_chk)? | f?puts(_unlocked)? | f?putc(har)?(_unlocked)?
    | fwrite(_unlocked)? | perror | psignal | _IO_put[cs]
    | signal | __sysv_signal | bsd_signal | sigaction | sigset
    | setlocale | uselocale | setenv | unsetenv | putenv | clearenv
    | (_|__|sig)?longjmp(_chk)?""", re.VERBOSE)


def functions():
    """The names of the header's functions, in its order."""
    return re.findall(r"\b(mm2_\w+)\(", gen_cdef.cdef(HEADER))


def structs():
    """The header's structs: name -> names of the fields that bindings must know. `size` comes first
    in those that may grow and is set by their _init function; `reserved` is nobody's."""
    found = {}
    for body, name in re.findall(r"struct \w+ \{([^}]*)\} (\w+);", gen_cdef.cdef(HEADER)):
        fields = re.findall(r"(\w+)(?:\[\d+\])?[,;]", body)
        found[name] = [field for field in fields
                       if field != "size" and not field.startswith("reserved")]
    return found


def symbols(library, which):
    """Names in the dynamic symbol table, without symbol versions."""
    command = ["nm", "-D", "--format=posix", which, str(library)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return sorted({line.split()[0].split("@")[0] for line in lines})


def check_library(library, names):
    """Exports and imports."""
    if not library.exists():
        yield f"{library} is not built: run make lib"
        return
    exported = symbols(library, "--defined-only")
    for name in exported:
        if name not in names:
            yield f"{library.name} exports {name}, which is not in minimax2.h"
    for name in names:
        if name not in exported:
            yield f"{library.name} does not export {name}, which is in minimax2.h"
    for name in symbols(library, "--undefined-only"):
        if BANNED.fullmatch(name):
            yield f"{library.name} calls {name}, which a library must leave to its host"


def check_comments(names):
    """A comment before the function in its paragraph, on its line, or one that names it."""
    text = HEADER.read_text()
    comments = " ".join(re.findall(r"/\*.*?\*/", text, re.DOTALL))
    paragraphs = re.split(r"\n[ \t]*\n", text)
    for name in names:
        own = next((p for p in paragraphs if re.search(rf"\b{name}\(", COMMENTS[".c"].sub("", p))),
                   "")
        declaration = re.search(rf"\b{name}\((?:[^;]*);[^\n]*", own)
        before = own[:declaration.end()] if declaration else ""
        if "/*" not in before and not re.search(rf"\b{name}\b", comments) \
                and name not in DOCUMENTED_AT_THE_TOP:
            yield f"minimax2.h has no comment on {name}"


def check_fields(language, texts):
    """Each field is used in a file that names its struct. texts: (whole, code) of the files."""
    for struct, fields in structs().items():
        code = "\n".join(code for whole, code in texts if re.search(rf"\b{struct}\b", whole))
        for field in fields:
            name = f"{struct}.{field}"
            used = re.search(rf"[.>]{field}\b|['\"]{field}['\"]|\b{field}\s*=", code)
            if used and name in UNUSED_FIELDS[language]:
                yield f"check_sync.py excuses {language} from {name} without need"
            elif not used and name not in UNUSED_FIELDS[language] and struct not in WHOLE[language]:
                yield f"the {language} binding does not use {name}"


def check_version():
    """csrc/api.c has it; setup.py reads it there."""
    version = re.search(r'return "(\d+\.\d+\.\d+)";', (ROOT / "csrc" / "api.c").read_text())
    if not version:
        yield "csrc/api.c has no version"
        return
    for other in re.findall(r'"(\d+\.\d+\.\d+)"', HEADER.read_text()):
        if other != version[1]:
            yield f"minimax2.h speaks of version {other}, csrc/api.c is {version[1]}"
    if re.search(r"^version\b", (ROOT / "pyproject.toml").read_text(), re.MULTILINE):
        yield "pyproject.toml has a version of its own; setup.py takes that of csrc/api.c"


def check_bindings(names):
    """The cdefs are fresh; functions and fields are used; one module alone touches the library."""
    lua = sorted((ROOT / "lua" / "minimax2").glob("*.lua"))
    python = sorted((ROOT / "python" / "minimax2").glob("*.py"))
    glue = sorted((ROOT / "bindings").glob("*.c"))
    if not gen_cdef.LUA.exists() or gen_cdef.LUA.read_text() != gen_cdef.lua_text():
        yield "lua/minimax2/cdef.lua is not what bindings/gen_cdef.py writes: run it"
    if not re.search(r"\bgen_cdef\.cdef\(\)", (ROOT / "bindings" / "cffi_build.py").read_text()):
        yield "bindings/cffi_build.py does not take its cdef from bindings/gen_cdef.py"

    sources = {
        "lua": [path for path in lua if path.name != "cdef.lua"],
        "python": [path for path in python + glue if path.name != "_cffi.c"],
    }
    for language, paths in sources.items():
        texts = [(path.read_text(), COMMENTS[path.suffix].sub("", path.read_text()))
                 for path in paths]
        used = {name for _, code in texts for name in re.findall(r"\bmm2_\w+", code)}
        yield from check_fields(language, texts)
        for name in names:
            if name not in used and name not in UNUSED[language]:
                yield f"the {language} binding does not use {name}"
        for name in UNUSED[language]:
            if name in used or name not in names:
                yield f"check_sync.py excuses {language} from {name} without need"
    for path in sources["lua"]:
        if path.name != "native.lua" and re.search(r"\bffi\.(C|load|cdef)\b", path.read_text()):
            yield f"lua/minimax2/{path.name} touches the library itself; native.lua alone may"
    for path in python:
        if not path.name.startswith("_native") and re.search(r"\b_cffi\b", path.read_text()):
            yield (f"python/minimax2/{path.name} touches the library itself; _native.py and "
                   "_native_text.py alone may")


def layer_of(path):
    """The layer of a file, by its path from csrc; None if it has none."""
    name = path.parts[0] if len(path.parts) > 1 else path.stem
    return LAYERS.index(name) if name in LAYERS else None


def check_sources():
    """Layers, names, lengths. Yields (sentence, is_warning)."""
    csrc = ROOT / "csrc"
    seen = {}
    for path in sorted(p for p in csrc.rglob("*") if p.suffix in (".c", ".h")):
        here = path.relative_to(csrc)
        text = path.read_text()
        if here.name in seen:
            yield f"csrc has two files called {here.name}: {seen[here.name]} and {here}", False
        seen[here.name] = here
        if text.count("\n") > MOST_LINES:
            yield f"csrc/{here} has {text.count(chr(10))} lines, more than {MOST_LINES}", True
        if here == Path("minimax2.h"):
            continue
        layer = layer_of(here)
        if layer is None:
            yield f"csrc/{here} is in no layer: {' < '.join(LAYERS)}", False
            continue
        for target in re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE):
            if target == "minimax2.h":
                continue
            to = layer_of(Path(target))
            if not (csrc / target).exists() or to is None:
                yield f"csrc/{here} includes {target}, which is no file of csrc", False
            elif to > layer:
                yield (f"csrc/{here} includes {target}: {LAYERS[layer]} may not use the layer "
                       f"{LAYERS[to]}"), False


def main(arguments):
    library = Path(arguments[0]) if arguments else ROOT / "build" / "release" / "libminimax2.so"
    names = functions()
    violations = [*check_library(library, names), *check_comments(names), *check_bindings(names),
                  *check_version()]
    for sentence, is_warning in check_sources():
        if is_warning:
            print("warning:", sentence)
        else:
            violations.append(sentence)
    for sentence in violations:
        print(sentence)
    print(f"check_sync: {len(names)} functions, {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
