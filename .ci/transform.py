"""Print the template that CloudFormation gets after the SAM transform; this runs in the SAM CLI's environment."""

import json
import sys
from pathlib import Path
from typing import Any

from samcli.yamlhelper import yaml_parse
from samtranslator.translator.transform import transform

# The transform requires code that is already uploaded.
CODE_PROPERTIES = {"AWS::Serverless::Function": "CodeUri", "AWS::Serverless::LayerVersion": "ContentUri"}
UPLOADED = "s3://bucket/key"


class NoManagedPolicies:
    """A replacement for the look-up of AWS's managed policies by name; the template uses none."""

    def load(self) -> dict[str, str]:
        """Return an empty map from policies' names to their ARNs."""
        return {}


def transformed(template: dict[str, Any]) -> dict[str, Any]:
    """Return the template with SAM's resources replaced by CloudFormation's."""
    template["Globals"]["Function"].pop("CodeUri", None)
    for resource in template["Resources"].values():
        if (name := CODE_PROPERTIES.get(resource["Type"])) is not None:
            resource["Properties"][name] = UPLOADED
    result: dict[str, Any] = transform(template, {}, NoManagedPolicies())
    return result


if __name__ == "__main__":
    json.dump(transformed(yaml_parse(Path(sys.argv[1]).read_text(encoding="utf-8"))), sys.stdout, indent=2)
