"""A resolver of the template's intrinsic functions, and the location of an earlier template."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
EARLIER = ROOT / "tests" / "data" / "template-b2091fe.yaml"
"""The template of commit b2091fe, from which existing stacks are updated."""

_PSEUDO = {
    "AWS::AccountId": "000000000000",
    "AWS::NoValue": None,
    "AWS::Partition": "aws",
    "AWS::Region": "us-east-1",
    "AWS::StackName": "stack",
    "AWS::URLSuffix": "amazonaws.com",
}


def of_type(template: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the properties of all resources of a type, by the resources' names."""
    return {name: each.get("Properties", {}) for name, each in template["Resources"].items() if each["Type"] == kind}


def defaults(template: Mapping[str, Any]) -> dict[str, str]:
    """Return the default values of a template's parameters."""
    return {name: str(parameter["Default"]) for name, parameter in template["Parameters"].items()}


class Resolver:
    """A resolver of a template's functions; a resource's reference becomes `<name>` or `<name.attribute>`."""

    def __init__(self, template: Mapping[str, Any], parameters: Mapping[str, str] | None = None) -> None:
        """Set the given parameters' values; the other parameters have their defaults."""
        self._template = template
        self._values = _PSEUDO | defaults(template) | dict(parameters or {})

    def __call__(self, tree: Any) -> Any:
        """Return a part of the template with all functions resolved."""
        if isinstance(tree, list):
            return [each for each in map(self, tree) if each is not None]
        if not isinstance(tree, dict):
            return tree
        if len(tree) == 1:
            ((name, argument),) = tree.items()
            if name == "Ref":
                return self._values.get(argument, f"<{argument}>")
            if name == "Condition" and isinstance(argument, str):
                return self.holds(argument)
            if name.startswith("Fn::"):
                return getattr(self, f"_{name.removeprefix('Fn::').lower()}")(argument)
        return {key: value for key, each in tree.items() if (value := self(each)) is not None}

    def holds(self, condition: str) -> bool:
        """Return whether a condition of the template holds."""
        return bool(self(self._template["Conditions"][condition]))

    def rules(self) -> Iterator[str]:
        """Yield the descriptions of all assertions in the template's rules that the values violate."""
        for rule in self._template.get("Rules", {}).values():
            for assertion in rule["Assertions"]:
                if not self(assertion["Assert"]):
                    yield assertion["AssertDescription"]

    def _getatt(self, argument: Any) -> str:
        return f"<{'.'.join(argument) if isinstance(argument, list) else argument}>"

    def _if(self, argument: list[Any]) -> Any:
        condition, chosen, otherwise = argument
        return self(chosen if self.holds(condition) else otherwise)

    def _equals(self, argument: list[Any]) -> bool:
        first, second = self(argument)
        return str(first) == str(second)

    def _not(self, argument: list[Any]) -> bool:
        return not self(argument)[0]

    def _or(self, argument: list[Any]) -> bool:
        return any(self(argument))

    def _contains(self, argument: list[Any]) -> bool:
        values, value = self(argument)
        return str(value) in values

    def _join(self, argument: list[Any]) -> str:
        separator, parts = argument
        return str(separator).join(map(str, self(parts)))

    def _split(self, argument: list[Any]) -> list[str]:
        separator, text = argument
        return str(self(text)).split(separator)

    def _findinmap(self, argument: list[Any]) -> Any:
        name, first, second = self(argument)
        return self._template["Mappings"][name][first][second]

    def _sub(self, argument: Any) -> str:
        text, own = argument if isinstance(argument, list) else (argument, {})
        values = {name: self(value) for name, value in own.items()}
        parts = text.split("${")
        whole: str = parts[0]
        for part in parts[1:]:
            name, _, rest = part.partition("}")
            found = values[name] if name in values else self._values.get(name, f"<{name}>")
            whole += f"{found}{rest}"
        return whole
