"""Scan: which code of a module is workflow code, and what in it no replay could repeat.

Workflow code are the functions and classes with ``@workflow.defn``, and every function and class of
the same module that they name, directly or through others. Activities are not: anything goes there.
Nor is what is passed to ``workflow.side_effect`` or inside of ``with workflow.unsafe_allowed()``.

This reads text and guesses no types, so it can miss things; what it finds is a line that a comment
``# durable: allow`` takes out again.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from durable.check.names import (
    ACTIVITY_MARKS,
    WORKFLOW_MARKS,
    Function,
    Module,
    is_set_annotation,
    is_set_display,
    local_names,
    parameters_of,
    set_names,
)
from durable.check.rules import (
    AWAITED,
    CALLS,
    GLOBAL,
    METHODS,
    MUTATORS,
    NO_AWAIT,
    ORDERED_BY_CALLEE,
    SEEDED,
    SET_ORDER,
    VALUES,
    Rule,
    rule_for,
)
from durable.errors import InvalidArgumentError

ALLOW = re.compile(r"#\s*durable:\s*allow\b")
SIDE_EFFECT = "durable.workflow.side_effect"
UNSAFE = "durable.workflow.unsafe_allowed"
FILE_BYTES_MAX = 16 * 1024 * 1024


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that no replay could repeat. Line and column count from 1."""

    path: str
    line: int
    column: int
    rule: str
    what: str
    instead: str
    workflow: str
    """The workflow whose code it is; the first, if there are more."""
    function: str

    def render(self) -> str:
        """``file:line:column: what; use ...``, on one line."""
        where = self.workflow
        if self.function != self.workflow:
            where += f", in {self.function}"
        return (
            f"{self.path}:{self.line}:{self.column}: {self.rule}: {self.what}; "
            f"use {self.instead} (workflow {where})"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_file(path: str | Path) -> list[Finding]:
    """The findings in a Python file; raise InvalidArgumentError when it cannot be read as one."""
    try:
        if Path(path).stat().st_size > FILE_BYTES_MAX:
            raise InvalidArgumentError(f"{path} is over {FILE_BYTES_MAX:,} bytes")
        source = Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {path}: {error.strerror}") from None
    return check_source(source, str(path))


def check_source(source: str | bytes, path: str = "<string>") -> list[Finding]:
    """The findings in the text of a module, in order; raise InvalidArgumentError for no Python."""
    try:
        tree = ast.parse(source, filename=path)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None) or 1
        raise InvalidArgumentError(f"{path}:{line}: this is not Python: {error}") from None
    text = source.decode(errors="replace") if isinstance(source, bytes) else source
    module = Module.of(tree)
    found: dict[tuple[int, int, str], Finding] = {}
    for workflow, function, node in workflow_code(tree, module):
        for at, rule, what in Scanner(module, node).findings():
            key = (at.lineno, at.col_offset, rule.id)
            found.setdefault(
                key,
                Finding(
                    path,
                    at.lineno,
                    at.col_offset + 1,
                    rule.id,
                    what,
                    rule.instead,
                    workflow,
                    function,
                ),
            )
    allowed = {number for number, line in enumerate(text.splitlines(), 1) if ALLOW.search(line)}
    return sorted(each for each in found.values() if each.line not in allowed)


def workflow_code(
    tree: ast.Module, module: Module
) -> Iterator[tuple[str, str, Function | ast.ClassDef]]:
    """Workflow, function and node of everything that runs as workflow code, each once."""
    seen: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if not module.is_marked(node, WORKFLOW_MARKS):
            continue
        queue: list[Function | ast.ClassDef] = [node]
        while queue:
            code = queue.pop(0)
            if id(code) in seen:
                continue
            seen.add(id(code))
            yield node.name, code.name, code
            queue += named_in(code, module)


def named_in(code: Function | ast.ClassDef, module: Module) -> Iterator[Function | ast.ClassDef]:
    """The functions and classes of the module that some code names; no activities, no workflows."""
    hidden = local_names(code) if not isinstance(code, ast.ClassDef) else set()
    for node in ast.walk(code):
        if not isinstance(node, ast.Name) or node.id in hidden:
            continue
        target = module.functions.get(node.id) or module.classes.get(node.id)
        if target is None:
            continue
        if not module.is_marked(target, ACTIVITY_MARKS) and not module.is_marked(
            target, WORKFLOW_MARKS
        ):
            yield target


class Scanner:
    """Looks through one function or class."""

    def __init__(self, module: Module, node: Function | ast.ClassDef) -> None:
        self.module = module
        self.node = node
        self.hidden: set[str] = set()
        self.globals: set[str] = set()
        self.sets: set[str] = set(module.set_variables)
        self.found: list[tuple[ast.expr | ast.stmt, Rule, str]] = []

    def findings(self) -> list[tuple[ast.expr | ast.stmt, Rule, str]]:
        """Node, rule and sentence of each finding."""
        if isinstance(self.node, ast.ClassDef):
            for part in ast.walk(self.node):
                if isinstance(part, ast.Assign | ast.AnnAssign):
                    self.sets |= {name for name in set_names(part) if name.startswith(".")}
                    if isinstance(part, ast.AnnAssign) and part in self.node.body:
                        self.sets |= {f".{name}" for name in set_names(part)}
            for member in self.node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                    self.scan_function(member)
        else:
            self.scan_function(self.node)
        return self.found

    def scan_function(self, node: Function) -> None:
        """Look through a function's body, with its own names."""
        before = self.hidden, self.globals, self.sets
        self.hidden = self.hidden | local_names(node)
        self.globals = {
            name for part in ast.walk(node) if isinstance(part, ast.Global) for name in part.names
        }
        self.sets = {name for name in self.sets if name not in self.hidden} | {
            each.arg for each in parameters_of(node) if is_set_annotation(each.annotation)
        }
        for part in ast.walk(node):
            if isinstance(part, ast.Assign | ast.AnnAssign):
                self.sets |= set_names(part)
        for statement in node.body:
            self.visit(statement)
        self.hidden, self.globals, self.sets = before

    def visit(self, node: ast.AST) -> None:
        """Look at a node and below."""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if not self.module.is_marked(node, ACTIVITY_MARKS):
                self.scan_function(node)
            return
        if isinstance(node, ast.With | ast.AsyncWith) and any(
            isinstance(item.context_expr, ast.Call)
            and self.name_of(item.context_expr.func) == UNSAFE
            for item in node.items
        ):
            return
        if isinstance(node, ast.Call):
            self.judge_call(node)
            if self.name_of(node.func) == SIDE_EFFECT:
                return
        elif isinstance(node, ast.Attribute | ast.Name):
            name = self.name_of(node)
            rule = rule_for(name, VALUES) if name else None
            if rule is not None:
                self.report(node, rule, f"{name} {rule.what}")
        elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            self.judge_order(node.iter)
        elif isinstance(node, ast.Starred):
            self.judge_order(node.value)
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete):
            self.judge_targets(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            self.judge_dropped(node.value)
        for child in ast.iter_child_nodes(node):
            self.visit(child)

    # -- judging -----------------------------------------------------------------------------

    def judge_call(self, node: ast.Call) -> None:
        """A call by full name, by method name, and what it does to what it is called on."""
        name = self.name_of(node.func)
        if name is not None:
            rule = rule_for(name, CALLS)
            if rule is not None and not (name in SEEDED and (node.args or node.keywords)):
                self.report(node, rule, f"{name}() {rule.what}")
            if name in ORDERED_BY_CALLEE:
                for argument in node.args:
                    self.judge_order(argument)
            if rule is not None:
                return
        if not isinstance(node.func, ast.Attribute):
            return
        method, target = node.func.attr, node.func.value
        rule = METHODS.get(method)
        if rule is not None:
            self.report(node, rule, f".{method}() {rule.what}")
        elif method == "join" and node.args:
            self.judge_order(node.args[0])
        elif method == "pop" and not node.args and self.is_set(target):
            self.report(node, SET_ORDER, f"{ast.unparse(node)} {SET_ORDER.what} from run to run")
        elif method in MUTATORS and (shared := self.shared(target)):
            self.report(node, GLOBAL, f"{shared}.{method}() {GLOBAL.what}")

    def judge_order(self, node: ast.expr) -> None:
        """Something that takes the items of ``node`` in order."""
        if self.is_set(node):
            shown = ast.unparse(node)
            shown = shown if len(shown) <= 40 else f"{shown[:39]}…"
            self.report(node, SET_ORDER, f"{shown} {SET_ORDER.what} from process to process")

    def judge_dropped(self, node: ast.Call) -> None:
        """A call whose result nobody takes."""
        called = node.func
        own = None
        if isinstance(called, ast.Name) and called.id not in self.hidden:
            own = self.module.functions.get(called.id)
        is_async = isinstance(own, ast.AsyncFunctionDef)
        is_activity = own is not None and self.module.is_marked(own, ACTIVITY_MARKS)
        if is_async or is_activity or self.name_of(called) in AWAITED:
            self.report(node, NO_AWAIT, f"{ast.unparse(called)}() {NO_AWAIT.what}")

    def judge_targets(self, node: ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete) -> None:
        """An assignment that reaches out of the run."""
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else [node.target]
        for target in targets:
            if isinstance(target, ast.Name):
                shared = target.id if target.id in self.globals else None
            elif isinstance(target, ast.Subscript | ast.Attribute):
                shared = self.shared(target.value)
            else:
                shared = None
            if shared is not None:
                self.report(target, GLOBAL, f"setting {ast.unparse(target)} {GLOBAL.what}")

    def is_set(self, node: ast.expr) -> bool:
        """Whether an expression is a set, as far as the text says."""
        if is_set_display(node):
            return not isinstance(node, ast.Call) or self.name_of(node.func) is not None
        if isinstance(node, ast.Name):
            return node.id in self.sets
        if isinstance(node, ast.Attribute):
            is_own = isinstance(node.value, ast.Name) and node.value.id == "self"
            return is_own and f".{node.attr}" in self.sets
        if isinstance(node, ast.BinOp):
            operators = ast.BitOr | ast.BitAnd | ast.Sub | ast.BitXor
            is_operation = isinstance(node.op, operators)
            return is_operation and (self.is_set(node.left) or self.is_set(node.right))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            derived = ("union", "intersection", "difference", "symmetric_difference", "copy")
            return node.func.attr in derived and self.is_set(node.func.value)
        return False

    def shared(self, node: ast.expr) -> str | None:
        """The module variable or class that an expression starts at, or None."""
        while isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        if not isinstance(node, ast.Name) or node.id in self.hidden:
            return None
        known = node.id in self.module.variables or node.id in self.module.classes
        return node.id if known and node.id not in self.module.imports else None

    def name_of(self, node: ast.expr) -> str | None:
        return self.module.dotted(node, self.hidden)

    def report(self, node: ast.expr | ast.stmt, rule: Rule, what: str) -> None:
        self.found.append((node, rule, what))
