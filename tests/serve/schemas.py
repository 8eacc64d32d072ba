"""Random JSON schemas, of the kinds that people write and some that they do not."""

import random

NAMES = ["name", "id", "größe", 'with "quotes"', "a b", "items", "tags", "🙂", "x_1", "kind", ""]
PATTERNS = [r"^[a-z]{2,5}$", r"^\d{3}-\d{4}$", r"^(red|green|blue)$", r"^[A-F0-9]+$", r"^a?b*c$"]
FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "email"]


def make_schema(r: random.Random, depth: int = 3, refs: tuple[str, ...] = ()) -> dict:
    """A schema that at least one JSON text satisfies."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern", "format"]
    if depth:
        kinds += ["object", "array", "tuple", "any", "ref", "types", "map"] * 2 + ["object"] * 3
    kind = r.choice(kinds)
    if kind == "ref" and not refs:
        kind = "object"
    schema: dict = {}
    if r.random() < 0.2:
        schema["description"] = "what it is"
    return schema | _KINDS[kind](r, depth, refs)


def make_root(r: random.Random) -> dict:
    """A whole schema, perhaps with definitions, one of which may hold itself."""
    defs = {f"d{i}": make_schema(r, 1) for i in range(r.randrange(3))}
    if r.random() < 0.3:
        item = {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}
        defs["node"] = {
            "type": "object",
            "properties": {"value": {"type": "integer"}, "children": item},
            "required": ["value"],
            "additionalProperties": False,
        }
    root = make_schema(r, 3, tuple(defs))
    return root | ({"$defs": defs} if defs else {})


def _value(r, depth=1):
    kinds = [None, True, False, 0, -3, 17, 2.5, "", "text", "ü🙂", 'q"\\\n']
    if depth and r.random() < 0.3:
        return r.choice([[], [_value(r, 0)], {}, {r.choice(NAMES): _value(r, 0)}])
    return r.choice(kinds)


def _string(r, depth, refs):
    low = r.randrange(4)
    return {"type": "string"} | r.choice(
        [{}, {"minLength": low}, {"maxLength": low + 2}, {"minLength": low, "maxLength": low + 3}]
    )


def _integer(r, depth, refs):
    low = r.randrange(-50, 50)
    bounds = [
        {"minimum": low},
        {"maximum": low},
        {"minimum": low, "maximum": low + r.randrange(90)},
    ]
    bounds += [
        {"exclusiveMinimum": low, "exclusiveMaximum": low + 9},
        {"multipleOf": r.choice([2, 5, 7])},
    ]
    return {"type": "integer"} | r.choice([{}, *bounds])


def _number(r, depth, refs):
    low = round(r.uniform(-9, 9), 2)
    return {"type": "number"} | r.choice(
        [{}, {"minimum": low}, {"maximum": low}, {"minimum": low, "maximum": low + 2}]
    )


def _object(r, depth, refs):
    names = r.sample(NAMES, r.randrange(5))
    schema = {"type": "object", "properties": {n: make_schema(r, depth - 1, refs) for n in names}}
    if r.random() < 0.8:
        schema["required"] = r.sample(names, r.randrange(len(names) + 1))
    if r.random() < 0.8:
        schema["additionalProperties"] = False
    return schema


def _map(r, depth, refs):
    return {"type": "object", "additionalProperties": make_schema(r, depth - 1, refs)}


def _array(r, depth, refs):
    low = r.randrange(3)
    return {"type": "array", "items": make_schema(r, depth - 1, refs)} | r.choice(
        [{}, {"minItems": low}, {"minItems": low, "maxItems": low + 2}, {"maxItems": low}]
    )


def _tuple(r, depth, refs):
    places = [make_schema(r, depth - 1, refs) for _ in range(r.randrange(1, 4))]
    return {"type": "array", "prefixItems": places, "items": False, "minItems": len(places)}


def _any(r, depth, refs):
    return {"anyOf": [make_schema(r, depth - 1, refs) for _ in range(r.randrange(1, 4))]}


_KINDS = {
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": lambda r, depth, refs: {"type": "boolean"},
    "null": lambda r, depth, refs: {"type": "null"},
    "enum": lambda r, depth, refs: {"enum": [_value(r) for _ in range(r.randrange(1, 6))]},
    "const": lambda r, depth, refs: {"const": _value(r)},
    "pattern": lambda r, depth, refs: {"type": "string", "pattern": r.choice(PATTERNS)},
    "format": lambda r, depth, refs: {"type": "string", "format": r.choice(FORMATS)},
    "object": _object,
    "map": _map,
    "array": _array,
    "tuple": _tuple,
    "any": _any,
    "ref": lambda r, depth, refs: {"$ref": f"#/$defs/{r.choice(refs)}"},
    "types": lambda r, depth, refs: {
        "type": r.sample(["string", "integer", "boolean", "null"], r.randrange(1, 4))
    },
}
