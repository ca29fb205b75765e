"""Holds the file that is named to OpenAPI 3.1, and every example in it to its schema; says what is wrong."""

import json
import sys

import jsonschema_rs
from schemathesis.specs.openapi.definitions import OPENAPI_31

document = json.load(open(sys.argv[1], encoding="utf-8"))
wrong = []


def check(schema, value, where):
    validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
    wrong.extend(f"{where}: {error.message} at {error.instance_path}" for error in validator.iter_errors(value))


def with_components(schema):
    return {**schema, "components": document["components"]}


def visit(value, where):
    if isinstance(value, list):
        for index, item in enumerate(value):
            visit(item, f"{where}/{index}")
    elif isinstance(value, dict):
        schema = value.get("schema")
        if isinstance(schema, dict):
            check(DIALECT, schema, f"{where}/schema")
            examples = {name: example["value"] for name, example in value.get("examples", {}).items()}
            if "example" in value:
                examples["example"] = value["example"]
            for name, example in examples.items():
                check(with_components(schema), example, f"{where}/{name}")
        for name, member in value.items():
            if name not in ("schema", "example", "examples"):
                visit(member, f"{where}/{name}")


DIALECT = {"$ref": "https://json-schema.org/draft/2020-12/schema"}
check(OPENAPI_31, document, "the document")
visit(document["paths"], "/paths")
for name, schema in document["components"]["schemas"].items():
    check(DIALECT, schema, f"/components/schemas/{name}")
print("\n".join(wrong))
sys.exit(bool(wrong))
