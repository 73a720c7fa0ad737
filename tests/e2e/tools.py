"""Tools that the embedded model was trained on, and what they return."""

import json

CITIES = ("Paris", "Rome", "Oslo", "Cairo", "Lima", "Tokyo", "Delhi", "Quito", "Accra", "Bern")

CALCULATOR = {
    "name": "calculator",
    "description": "Evaluate an arithmetic expression.",
    "parameters": {
        "type": "object",
        "properties": {"expression": {"type": "string",
                                      "description": "The expression to evaluate."}},
        "required": ["expression"],
    },
}
WEATHER = {
    "name": "get_weather",
    "description": "Get the current weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Name of the city."}},
        "required": ["city"],
    },
}
FUNCTIONS = [CALCULATOR, WEATHER]
OPENAI_TOOLS = [{"type": "function", "function": f} for f in FUNCTIONS]
RESPONSES_TOOLS = [{"type": "function", "strict": False, **f} for f in FUNCTIONS]
ANTHROPIC_TOOLS = [{"name": f["name"], "description": f["description"],
                    "input_schema": f["parameters"]} for f in FUNCTIONS]


def question(index):
    """What a user asks in round `index`."""
    if index % 2 == 0:
        return f"What is {12 + index}*{37 - index}?"
    return f"What is the weather in {CITIES[index % len(CITIES)]}?"


def run_tool(name, arguments, index):
    """The result of a call. Whatever a small model passes, it gets an answer."""
    assert name in ("calculator", "get_weather"), name
    assert isinstance(arguments, dict), arguments
    if name == "calculator":
        return json.dumps({"result": 100 + index})
    return json.dumps({"temperature": 10 + index, "sky": "clear"})
