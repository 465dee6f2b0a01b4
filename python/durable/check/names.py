"""Names: what the names in one module mean, as far as its text says.

No import is followed. A name is known when the module imports it, defines it, or when it is a
builtin that nothing hides.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

Function = ast.FunctionDef | ast.AsyncFunctionDef

WORKFLOW_MARKS = ("durable.workflow.defn",)
ACTIVITY_MARKS = ("durable.activity.defn", "durable.activity.transactional")


@dataclass
class Module:
    """The top level of a module."""

    imports: dict[str, str] = field(default_factory=dict)
    """Local name to the dotted name it stands for."""
    functions: dict[str, Function] = field(default_factory=dict)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    variables: set[str] = field(default_factory=set)
    """Names that the module assigns."""
    set_variables: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, tree: ast.Module) -> Module:
        """Read the top level; imports count wherever they are."""
        module = cls()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module.imports.update(imported(node))
        for node in top_level(tree.body):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                module.functions[node.name] = node
            elif isinstance(node, ast.ClassDef):
                module.classes[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                module.variables |= assigned_names(node)
                module.set_variables |= set_names(node)
        return module

    def dotted(self, node: ast.expr, hidden: set[str]) -> str | None:
        """The full name that an expression stands for, or None; ``hidden`` are local names."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id in hidden:
            return None
        own = node.id in self.functions or node.id in self.classes or node.id in self.variables
        if own and node.id not in self.imports:
            return None
        return ".".join([self.imports.get(node.id, node.id), *reversed(parts)])

    def is_marked(self, node: Function | ast.ClassDef, marks: tuple[str, ...]) -> bool:
        """Whether a decorator of one of these full names is on a function or class."""
        for decorator in node.decorator_list:
            target = decorator.func if isinstance(decorator, ast.Call) else decorator
            if self.dotted(target, set()) in marks:
                return True
        return False


def imported(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """What an import binds."""
    if isinstance(node, ast.ImportFrom):
        source = "." * node.level + (node.module or "")
        return {alias.asname or alias.name: f"{source}.{alias.name}" for alias in node.names}
    return {
        alias.asname or alias.name.partition(".")[0]: alias.name
        if alias.asname
        else alias.name.partition(".")[0]
        for alias in node.names
    }


def top_level(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of a module, those under ``if`` and ``try`` included."""
    found: list[ast.stmt] = []
    for node in body:
        found.append(node)
        for name in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                found += top_level(getattr(node, name, []))
        if isinstance(node, ast.Try):
            for handler in node.handlers:
                found += top_level(handler.body)
    return found


def assigned_names(node: ast.Assign | ast.AnnAssign) -> set[str]:
    """The plain names that an assignment binds."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {
        part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)
    }


def set_names(node: ast.Assign | ast.AnnAssign) -> set[str]:
    """The names, and ``self.x`` as ``.x``, that an assignment makes sets."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    annotation = getattr(node, "annotation", None)
    if not (is_set_display(node.value) or is_set_annotation(annotation)):
        return set()
    found = set()
    for target in targets:
        if isinstance(target, ast.Name):
            found.add(target.id)
        elif isinstance(target, ast.Attribute):
            found.add(f".{target.attr}")
    return found


def is_set_annotation(node: ast.expr | None) -> bool:
    """Whether an annotation says set or frozenset."""
    if isinstance(node, ast.Subscript):
        node = node.value
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name in ("set", "frozenset", "Set", "FrozenSet", "AbstractSet", "MutableSet")


def is_set_display(node: ast.expr | None) -> bool:
    """Whether an expression is a set by its form alone."""
    if isinstance(node, ast.Set | ast.SetComp):
        return True
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("set", "frozenset")
    )


def parameters_of(node: Function | ast.Lambda) -> list[ast.arg]:
    """Every parameter of a function."""
    given = node.args
    rest = [each for each in (given.vararg, given.kwarg) if each is not None]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *rest]


def local_names(node: Function) -> set[str]:
    """The names that a function binds itself: they hide what the module means by them."""
    found = {each.arg for each in parameters_of(node)}
    outer: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            found.add(part.id)
        elif isinstance(part, ast.Lambda | ast.FunctionDef | ast.AsyncFunctionDef):
            found |= {each.arg for each in parameters_of(part)}
            if part is not node and not isinstance(part, ast.Lambda):
                found.add(part.name)
        elif isinstance(part, ast.ExceptHandler) and part.name:
            found.add(part.name)
        elif isinstance(part, ast.Global):
            outer.update(part.names)
    return found - outer
