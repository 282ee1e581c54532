"""docs/errors.md lists every message that the package raises, as the code itself says it.

Write it anew with `python -m tests.test_errors_page`.
"""

import ast
import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errors.md"
PACKAGE = ROOT / "jaxunlearn"

HEAD = """# What an error says, and what to do

Every message names what it is about: a file and line, a key, an option or an argument. It says
what was found there, and what was expected or what to do. The command line prints it as one line
and ends with exit status 2. From Python errors are exceptions of the types below. `ConfigError` and
`CheckpointError` are kinds of `ValueError`, `SplitNotFoundError` and `SourceError` of `OSError`.

Search this page for words of your message. A `{place}` stands for what differs from case to case:
`{hint}` and `{nearest name}` are the nearest right name where one is near, `{number of rows}` is a
count, and `{error}` is what a library below said. Alternatives are written `{one | other}`. Each
message stands under the source file that raises it. Three are not listed, as the code builds them
from parts: a device that is out of memory, a file that is not JSON, and a value of another type in
a JSON file.
"""

SECTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "Command line": (
        ("cli", "flags"),
        "The option is named first. `jaxunlearn COMMAND --help` lists the options of a command, and"
        " `jaxunlearn run --keys` the keys of a configuration that can be overridden.",
    ),
    "Configuration": (
        ("config",),
        "The message begins with the file and line, or with the dotted key, which may also come"
        " from an override such as `--unlearn.lr 1e-4` or from `--sweep`. Correct that key;"
        " `jaxunlearn run --keys` shows every key with its type, default and meaning. Nothing has"
        " been computed or written yet.",
    ),
    "Files, names and processes": (
        ("core",),
        "A damaged JSON or text file is named with its line: bring it back or write it anew. When"
        " several processes do not find each other, give each of them the same address and count,"
        " and its own number ([scale.md](scale.md)).",
    ),
    "Data, tokenizers and prompts": (
        ("data",),
        "The message names the file and the line, counted from 1, in JSON lines, and else the row,"
        " counted from 0; or the key of the configuration that asks for the data. What a file may"
        " hold, and how columns are named: [data.md](data.md). A download that failed may pass: try"
        " again, or give a local folder.",
    ),
    "Model files and sizes": (
        ("models",),
        "The model's folder is named with the key of its config.json or with the tensor. A value"
        " that is not supported would make the model compute something else, so there is no way"
        " around it but another model; an unknown key that changes nothing may be removed from"
        " config.json. A file that cannot be read was most often not downloaded to its end. For"
        " meshes the sizes of the axes must multiply to the number of devices.",
    ),
    "Run folder and trackers": (
        ("record",),
        "The folder of a run is named with the damaged or missing file. Bring the file back from a"
        " copy, or remove what the message names, and the same command computes it again.",
    ),
    "Running, resuming and evaluating a folder": (
        ("pipeline",),
        "Messages about a folder: a folder belongs to one configuration and to the data and weights"
        " that it was begun with; use another `--out` for anything else, and the same command to go"
        " on where a run stopped. Messages about a key: correct it in the configuration. A loss"
        " that is not finite asks for a lower learning rate.",
    ),
    "Training and checkpoints": (
        ("training",),
        "A damaged checkpoint is named: remove it, and the run goes on from an earlier one. One"
        " with other leaves or shapes is of another model: use another folder.",
    ),
    "Devices and memory before a run": (
        ("forecasting",),
        "A forecast needs the sizes of the model and the lengths of the data: give local ones, or"
        " names that it knows. What to do when a program does not fit: [scale.md](scale.md).",
    ),
    "Objectives": (
        ("objectives",),
        "The objective or the argument is named first, with its shape. Losses take"
        " log-probabilities or logits with a mask of bools, one row a sequence; how an objective of"
        " your own is declared: [extending.md](extending.md).",
    ),
    "Effects": (
        ("effects",),
        "The function and its argument are named first. What the functions expect of models,"
        " batches and directions, and which method does what: [effects.md](effects.md).",
    ),
    "Evaluation": (
        ("evaluation",),
        "The split and its row, or the key under `evaluate`, is named. What each suite needs:"
        " [evaluation.md](evaluation.md).",
    ),
    "Metrics": (
        ("metrics",),
        "The metric's argument or the log's file is named. Infinite or missing losses come from a"
        " model that has diverged, or from an item without label tokens: leave it out before the"
        " metric is taken.",
    ),
    "Reports and figures": (
        ("reporting",),
        "A table lacks what a figure needs: finish the run, or bring the table back. The columns:"
        " [tables.md](tables.md).",
    ),
}
"""{title: (its packages, what to do)}. A package with a message must be in one of them."""


REMEDIES: dict[str, str] = {
    "data/encoder.py": (
        "A row and its question must fit the context of the model: shorten it, set "
        "`data.too_long: drop`, or take a model with a longer one. A token beyond the "
        "vocabulary means that tokenizer and model were put together from two places."
    ),
    "data/encoding.py": (
        "Without a tokenizer of its own a model's folder is no use here: copy tokenizer.json "
        "and tokenizer_config.json of the model that it was made from."
    ),
    "data/fictional/generator.py": ("Correct the key of this name under `data.fictional`."),
    "data/formats.py": (
        "The file is not what its ending says. Open it at the line that is named, or save it "
        "again, as JSON lines for instance."
    ),
    "data/order.py": ("Arguments from Python: correct the one that is named."),
    "data/packing.py": (
        "Arguments from Python: plan with all sequences that are to be packed, and number "
        "them from 0."
    ),
    "data/planning.py": (
        "Arguments from Python: give sequences with a label each, and none longer than the width."
    ),
    "data/prompts.py": (
        "Chat templates are code of the model's makers, and not each keeps a question apart "
        "from its answer. `data.prompt: tofu` takes no template."
    ),
    "data/refusals.py": (
        "Substitute answers are the lines of the file idontknow.jsonl beside the data, plain "
        "text in spite of its name; without one those that are shipped are taken."
    ),
    "data/rows.py": (
        "The row is named first. `data.question_key`, `data.answer_key`, `data.text_key` say "
        "which columns are read where the names are others; [data.md](data.md) lists the "
        "forms."
    ),
    "data/sources.py": (
        "A split is a file of the folder by its name, or a split of the hub's data set; the "
        "message lists those there are."
    ),
    "models/adapters.py": ("Give the module itself for NNX, and what `init` returned for Linen."),
    "models/decoder/config.py": (
        "Of a run these are keys of `new_model`, `compute` or `train.lora`; of a model's "
        "folder, what its config.json adds up to."
    ),
    "models/decoder/decode.py": ("Ask for fewer tokens, or shorten the prompts."),
    "models/decoder/sampling.py": ("Correct the argument; temperature 0 takes no other."),
    "models/decoder/transformer.py": ("Arguments from Python: correct the one that is named."),
    "models/families/__init__.py": (
        "[extending.md](extending.md) says how a family is added, which is a table where the "
        "architecture is one of these under another name."
    ),
    "models/families/rotary.py": (
        "Keys of config.json. Where two contradict each other, the file was edited by hand, "
        "or written by two versions of transformers: keep what the makers publish."
    ),
    "models/families/window.py": ("Keys of config.json. Compare it with the makers' file."),
    "models/hf/config.py": (
        "Keys of config.json. `should be` means a slip in the file: compare it with the "
        "makers'. `is not supported` means another model: there is no switch for it."
    ),
    "models/hf/hub.py": (
        "A hub name is OWNER/NAME; anything else is a folder, relative to where the command "
        "was given. Without a network, download the model elsewhere and name its folder."
    ),
    "models/hf/lora.py": (
        "Save the adapter again with PEFT as plain LoRA of the blocks' matrices, or merge it "
        "there (`merge_and_unload`) and name the merged model."
    ),
    "models/hf/tensors.py": (
        "Most often a download that broke off, or a file of Git LFS that was not fetched. Shapes "
        "that differ mean a config.json of another model, and integers mean quantised weights."
    ),
    "models/hf/weights.py": (
        "Most often a download that broke off: compare the sizes of the files with the hub's. "
        "Shapes that differ mean a config.json of another model."
    ),
    "models/sharding.py": (
        "`compute.data`, `compute.fsdp` and `compute.tensor` must multiply to the devices in "
        "use, and `tensor` must divide heads and widths."
    ),
    "models/sizes.py": (
        "Name a folder with a config.json, which is all that a forecast reads of it."
    ),
    "record/attack_results.py": ("Remove the file, and `jaxunlearn relearn` computes it again."),
    "record/erase.py": ("`--overwrite` removes no file that it does not know."),
    "record/folder.py": (
        "Look for a slip in the path: a run's folder has a config.yaml, a model's a config.json."
    ),
    "record/lock.py": (
        "The lock goes with its process: nothing is to be removed by hand. A process on "
        "another host is named with it."
    ),
    "record/manifest.py": (
        "The disk, a copy that broke off or an editor changed the file. Bring it back from a "
        "copy; where a folder is named that may be removed, that part alone is computed "
        "again. To trust the files as they are, remove manifest.jsonl: nothing is compared "
        "then."
    ),
    "record/tables.py": (
        "Remove the file that is named: `jaxunlearn run` with the run's configuration writes "
        "it again from its parts, or names the objective that it computes again."
    ),
    "record/trackers.py": (
        "Correct `track`, or leave it out: files of the run hold all the numbers."
    ),
    "pipeline/call.py": (
        "The argument of `jaxunlearn.unlearn` is named; [python.md](python.md) lists them "
        "with their forms."
    ),
    "pipeline/checks.py": (
        "Two keys that do not fit each other, or the data: the message gives both numbers; "
        "change either."
    ),
    "pipeline/evaluate.py": (
        "A run has its data and models in its folder; --config, --base, --out and --retrained "
        "are for a model alone, and --only is for a run."
    ),
    "pipeline/evaluation_stage.py": (
        "The flag or the key under `evaluate` is named; 0 questions need no ROUGE."
    ),
    "pipeline/export.py": (
        "`base` and `retrained` are whole models; only objectives of a run with `train.lora` "
        "have adapters."
    ),
    "pipeline/finetune.py": (
        "A model that is broken before the first step has damaged weights, or is computed in "
        "a type too narrow for it (`compute.dtype`); the folder binds to nothing yet. One "
        "that breaks later asks for a lower learning rate; `--debug-nans` names the "
        "operation."
    ),
    "pipeline/memory.py": (
        "Give params, DecoderConfig and tokenizer of one model, as an earlier result has them "
        "in `params`, `model` and `tokenizer`."
    ),
    "pipeline/outcome.py": (
        "`result.summary`, `result.tables` and `result.stopped` say what there is."
    ),
    "pipeline/prepare.py": (
        "Sets to forget and to retain overlap, or are of another kind than the objective "
        "needs: name other splits under `data`."
    ),
    "pipeline/relearn.py": ("Remove the file that is named, and the attack is run again."),
    "pipeline/resume.py": (
        "A folder belongs to one configuration and to the data and weights that its results "
        "came from. For anything else choose another `--out`, or `--overwrite` it."
    ),
    "pipeline/stored.py": (
        "Give `jaxunlearn run` the same configuration again: it goes on where it stopped, and "
        "does what is not finished."
    ),
    "pipeline/subject.py": (
        "The key that names the model comes first. Weights that are not finite are damaged: "
        "compare their files' sizes and checksums with the hub's."
    ),
    "metrics/membership.py": (
        "Arguments from Python: one entry for each text, and no text without labels."
    ),
    "metrics/memorization.py": (
        "Correct the argument; the definitions differ in what is compared."
    ),
    "metrics/open_unlearning_log.py": (
        "The log was cut short, edited, or written by another metric: write it again with "
        "OpenUnlearning's evaluation."
    ),
    "metrics/privacy.py": (
        "A NaN score comes from a model that has diverged. A retain model whose AUC is 1 "
        "tells sets apart that it never saw: they differ in more than what was trained on."
    ),
    "metrics/relearning.py": ("Correct the key or the flag that is named."),
    "metrics/tofu.py": (
        "An infinite loss comes from a model that has diverged: evaluate one that has not, or "
        "leave the item out."
    ),
    "metrics/tofu_log.py": (
        "The log was cut short or edited: write it again with TOFU's evaluation, or with "
        "`jaxunlearn evaluate`."
    ),
    "metrics/uwc.py": ("No mixture is needed: compare the models as they are."),
}
"""{file: what to do about its messages}, in the sections whose messages have little in common."""

NO_ERRORS = ("AssertionError", "AttributeError", "Stopped")
"""Not listed: no input of a user leads to the first two, and the last one is no error."""


class Message(NamedTuple):
    """One message: the file under the package, the exception's type, the text with its places."""

    file: str
    error: str
    text: str


def page() -> str:
    found = messages()
    parts = [HEAD]
    for title, (packages, advice) in SECTIONS.items():
        of_section = [message for message in found if package(message) in packages]
        if not of_section:
            continue
        parts.append(f"## {title}\n\n{advice}\n")
        for file, group in itertools.groupby(of_section, lambda message: message.file):
            remedy = f": {REMEDIES[file]}" if file in REMEDIES else ""
            parts.append(f"`jaxunlearn/{file}`{remedy}\n")
            parts += [f"- {message.error}: {code(message.text)}" for message in group]
            parts.append("")
    return "\n".join(parts)


def package(message: Message) -> str:
    first, _, rest = message.file.partition("/")
    return first if rest else first.removesuffix(".py")


def code(text: str) -> str:
    """A code span of Markdown, whatever backquotes the text has."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


@functools.cache
def messages() -> list[Message]:
    """Those of all modules, in the order of files and lines."""
    found: dict[Message, None] = {}  # a message that is raised in two places is listed once
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        found |= dict.fromkeys(messages_of(path.read_text(encoding="utf-8"), name))
    return list(found)


def messages_of(source: str, file: str) -> Iterator[Message]:
    """The messages of a module: of exceptions that it makes, of `fail`, of lists of problems."""
    module = Module(ast.parse(source))
    for error, node, function in module.raised():
        for text in module.texts(node, function):
            text = " ".join(text.split())
            # An error that only passes on what another one says has no words of its own.
            if re.search(r"[a-z]{2}", without_places(text)):
                yield Message(file, error, text)


class Module:
    """The syntax tree of a module, and what its names stand for."""

    def __init__(self, tree: ast.Module):
        self.tree = tree
        self.functions = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        self.constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name) and isinstance(node.value.value, str)
        }

    def raised(self) -> Iterator[tuple[str, ast.expr, ast.AST]]:
        """(the exception's type, its message, the function around it), by line."""
        for function, node in self._nodes():
            if isinstance(node, ast.Call) and node.args:
                name = ast.unparse(node.func).rpartition(".")[2]
                if name in parameters(function):  # the caller gives the type
                    name = parameters(function)[name]
                if is_error(name):
                    yield name, node.args[0], function
                elif name == "first_does" and len(node.args) > 1:  # what the other processes raise
                    yield "ValueError", node.args[1], function
                elif name.lstrip("_") == "fail":
                    yield self._type_of_fail(name), node.args[-1], function
            elif isinstance(node, ast.Yield) and node.value and is_problems(function):
                yield "ValueError", node.value, function

    def texts(self, node: ast.expr, function: ast.AST) -> list[str]:
        """All texts that an expression may have, with places for what is known at run time."""
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=values):
                parts = [self._part(value, function) for value in values]
                return ["".join(chosen) for chosen in itertools.product(*parts)]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                pairs = itertools.product(self.texts(left, function), self.texts(right, function))
                return [first + second for first, second in pairs]
            case ast.Name(id=name):
                written = [
                    value
                    for value in assigned(function, name)
                    if isinstance(value, ast.JoinedStr | ast.Constant)
                ]
                if written:
                    return [text for value in written for text in self.texts(value, function)]
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                helper = self.functions[name]
                returned = [n.value for n in ast.walk(helper) if isinstance(n, ast.Return)]
                texts = [value for value in returned if value and ast.unparse(value) != "None"]
                found = [text for value in texts for text in self.texts(value, helper)]
                return found or [f"{{{self.place(node)}}}"]
        return [f"{{{self.place(node)}}}"]

    def place(self, node: ast.expr) -> str:
        """A word or two for a value that is known at run time."""
        match node:
            case ast.Name(id=name):
                return self.constants.get(name, name.strip("_"))
            case ast.Attribute(value=value, attr="__name__"):
                return self.place(value)
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                return name.strip("_")
            case ast.Attribute():
                return ast.unparse(node)
            case ast.Call(func=ast.Name(id="type"), args=[value]):
                return f"type of {self.place(value)}"
            case ast.Call(func=ast.Name(id="len"), args=[value]):
                return f"number of {self.place(value)}"
            case ast.Call(func=ast.Name(id="map"), args=[_, value]):
                return self.place(value)
            case ast.Call(func=ast.Attribute(attr="join"), args=[value]):
                return self.place(value)
            case ast.Call(func=ast.Attribute(value=value, attr="get" | "values")):
                return self.place(value)
            case ast.Call(func=ast.Name(id="nearest" | "_nearest_of"), args=[value, *_]):
                return f"nearest {self.place(value)}"
            case ast.Call(func=ast.Name(id=name)) if name.startswith("_") and not node.args:
                return name.strip("_").replace("_", " ")
            case ast.Call(args=[value, *_]):
                return self.place(value)
            case ast.IfExp(body=body, orelse=other):
                return " | ".join(filter(None, (self.place(body), self.place(other))))
            case ast.Constant(value=value):
                return str(value).strip()
            case ast.JoinedStr(values=values):
                return "".join(self.place(value) for value in values)
            case ast.FormattedValue(value=value) | ast.Starred(value=value):
                return self.place(value)
            case ast.Subscript(slice=ast.Constant(value=int())):
                return ast.unparse(node)
            case ast.Subscript(slice=ast.Constant(value=str(key))):
                return key
            case ast.Subscript(value=ast.Name(id=name), slice=key) if name.isupper():
                return self.place(key)
            case ast.Subscript(value=value):
                return self.place(value)
            case ast.GeneratorExp(elt=value) | ast.ListComp(elt=value):
                return self.place(value)
            case ast.BoolOp(values=values):
                return " | ".join(filter(None, map(self.place, values)))
            case ast.List(elts=[value, *_]):
                return self.place(value)
        return ast.unparse(node)

    def _part(self, node: ast.expr, function: ast.AST) -> list[str]:
        """What a part of an f-string may be."""
        match node:
            case ast.Constant(value=value):
                return [str(value)]
            case ast.FormattedValue(value=ast.Name(id=name)) if name in self.constants:
                return [self.constants[name]]
            case ast.FormattedValue(value=ast.Name(id=name)):
                calls = [v for v in assigned(function, name) if isinstance(v, ast.Call)]
                texts = [text for call in calls for text in self.texts(call, function)]
                texts += self._given(name, function)
            case ast.FormattedValue(value=ast.Call() as call):
                texts = self.texts(call, function)
            case _:
                texts = []
        # A sentence is written out; for a value, what it is called says more.
        if any(re.search(r"[a-z]{2}\W+[a-z]{2}", without_places(text)) for text in texts):
            return texts
        return [f"{{{self.place(node)}}}"]

    def _given(self, name: str, function: ast.AST) -> list[str]:
        """What the module's calls of a function pass for one of its parameters."""
        if not isinstance(function, ast.FunctionDef):
            return []
        names = [argument.arg for argument in function.args.args]
        return [
            text
            for caller, call in self._nodes()
            if name in names and isinstance(call, ast.Call) and len(call.args) == len(names)
            if ast.unparse(call.func) == function.name
            for text in self.texts(call.args[names.index(name)], caller)
        ]

    def _nodes(self) -> Iterator[tuple[ast.AST, ast.AST]]:
        """(the innermost function around it, or the module, and a node), by line."""
        found: list[tuple[ast.AST, ast.AST]] = []

        def walk(node: ast.AST, function: ast.AST) -> None:
            for child in ast.iter_child_nodes(node):
                found.append((function, child))
                walk(child, child if isinstance(child, ast.FunctionDef) else function)

        walk(self.tree, self.tree)
        return iter(sorted(found, key=lambda pair: getattr(pair[1], "lineno", 0)))

    def _type_of_fail(self, name: str) -> str:
        """The type that the module's method `fail` raises."""
        made = [
            ast.unparse(node.func)
            for node in ast.walk(self.functions[name])
            if isinstance(node, ast.Call) and is_error(ast.unparse(node.func))
        ]
        return made[0]


def is_error(name: str) -> bool:
    """Whether a name is that of an error of the package or of Python which users may see."""
    return name not in NO_ERRORS and bool(re.fullmatch(r"[A-Z]\w*Error", name))


def is_problems(function: ast.AST) -> bool:
    """Whether a function yields sentences about what is wrong, which an error then lists."""
    if not isinstance(function, ast.FunctionDef) or function.returns is None:
        return False
    about = (ast.get_docstring(function) or "").startswith("A sentence for")
    return about and ast.unparse(function.returns) == "Iterator[str]"


def parameters(function: ast.AST) -> dict[str, str]:
    """The parameters of a function that have a name for their default, with it."""
    if not isinstance(function, ast.FunctionDef):
        return {}
    given = function.args.args[len(function.args.args) - len(function.args.defaults) :]
    pairs = zip(given, function.args.defaults, strict=True)
    return {name.arg: value.id for name, value in pairs if isinstance(value, ast.Name)}


def assigned(function: ast.AST, name: str) -> list[ast.expr]:
    """What a function assigns to a local name."""
    found = []
    for node in ast.walk(function):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.NamedExpr) and any(
            isinstance(target, ast.Name) and target.id == name for target in targets
        ):
            found.append(node.value)
    return found


def without_places(text: str) -> str:
    return re.sub(r"\{[^{}]*\}", "", text)


def test_the_page_is_what_the_code_says():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.test_errors_page"


def test_every_package_with_a_message_has_advice_and_no_advice_is_left_over():
    with_messages = {package(message) for message in messages()}
    advised = [name for packages, _ in SECTIONS.values() for name in packages]
    assert sorted(advised) == sorted(with_messages)


def test_every_file_of_the_long_sections_has_a_remedy_and_none_is_left_over():
    """A file of two messages or more; a single one says enough."""
    files = [message.file for message in messages()]
    assert set(REMEDIES) <= set(files)
    by_file = {package(message) for message in messages() if message.file in REMEDIES}
    long = {m.file for m in messages() if package(m) in by_file and files.count(m.file) > 1}
    assert long <= set(REMEDIES)


def test_every_link_of_the_page_leads_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", page())
    assert links and all((PAGE.parent / link).is_file() for link in links)


def test_every_message_of_a_user_is_found():
    """All statements that raise with words of their own, counted in another way."""
    missed = []
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        found = " ".join(m.text for m in messages_of(source, path.name))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                made = ast.unparse(node.exc.func)
                for part in ast.walk(node.exc) if made not in NO_ERRORS else ():
                    if isinstance(part, ast.Constant) and is_words(part.value):
                        words = " ".join(part.value.split())
                        missed += [] if words in found else [(path.name, node.lineno, words)]
    assert not missed


def is_words(value: object) -> bool:
    return isinstance(value, str) and bool(re.search(r"[a-z]{2} [a-z]{2}", value))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('raise ValueError(f"{key}: {len(xs)} is too few")', "{key}: {number of xs} is too few"),
        ('raise ValueError("a" f" word {nearest(name, known)}")', "a word {nearest name}"),
        ('WHERE = "--here"\nraise ValueError(f"{WHERE}: is wrong")', "--here: is wrong"),
        ('def f():\n  text = f"no {x!r}"\n  raise ValueError(text)', "no {x}"),
        ('raise fault(1)\ndef fault(n):\n  return OSError(f"{n} is bad")', "{n} is bad"),
        (
            'def _which(x):\n  return f"take the {x}"\nraise ValueError(f"bad; {_which(1)}")',
            "bad; take the {x}",
        ),
        (
            "def f():\n  raise ValueError(f\"{', '.join(map(repr, names))} differ\")",
            "{names} differ",
        ),
    ],
)
def test_a_message_becomes_a_text_with_places(source, expected):
    assert [message.text for message in messages_of(source, "x.py")] == [expected]


def test_an_error_that_only_passes_on_another_one_has_no_words():
    assert not list(messages_of('raise ValueError(f"{key}: {error}")', "x.py"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
