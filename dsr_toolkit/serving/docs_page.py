"""`/docs`: what can be asked for, as a page without scripts, so that it shows without internet."""

from __future__ import annotations

from html import escape

STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem }
td, th { border-bottom: 1px solid #ddd; padding: .3rem .5rem; text-align: left; vertical-align: top }
code, pre { font-family: monospace; background: #f4f4f4; padding: 0 .2rem } pre { padding: .6rem; overflow-x: auto }
"""


def docs_page(described: dict, errors: dict, chat: dict[str, str]) -> str:
    """
    Args:
        described: of the handler. errors: code -> (status, when). chat: models of the OpenAI route.
    """
    tasks = "".join(_task(name, task) for name, task in described.items())
    rows = "".join(
        f"<tr><td><code>{code}</code></td><td>{status}</td><td>{escape(when)}</td></tr>"
        for code, (status, when) in errors.items()
    )
    models = ", ".join(f"<code>{escape(name)}</code>" for name in chat) or "none"
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Spatial models</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>
<h1>Spatial models</h1>
<p><code>POST /</code> takes <code>{{"task": …, "inputs": {{…}}, "parameters": {{…}}}}</code>; files are base64. With
<code>"stream": true</code> the text of an answer comes as server-sent events. <code>POST /v1/chat/completions</code>
speaks OpenAI's language for the models {models}. Schemas: <a href="openapi.json">openapi.json</a>,
<a href="tasks">tasks</a>; state: <a href="health">health</a>, <a href="ready">ready</a>,
<a href="metrics">metrics</a>.</p>
{tasks}<h2>Errors</h2><table><tr><th>code</th><th>status</th><th></th></tr>{rows}</table></body></html>"""


def _task(name: str, task: dict) -> str:
    models = ", ".join(f"<code>{escape(model)}</code>" for model in task["models"])
    tables = "".join(
        f"<h3>{part}</h3><table>{''.join(_field(*one) for one in task[part]['properties'].items())}</table>"
        for part in ("inputs", "parameters")
    )
    return f"<h2 id='{name}'><code>{name}</code></h2><p>{escape(task['about'])} Models: {models}.</p>{tables}"


def _field(name: str, schema: dict) -> str:
    kind = schema.get("type") or " or ".join(one["type"] for one in schema.get("anyOf", []))
    facts = [str(kind)]
    facts += [f"{word} {schema[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    if "default" in schema:
        facts.append(f"default {schema['default']!r}")
    choices = schema.get("enum") or schema.get("items", {}).get("enum")
    if choices:
        facts.append(f"of {', '.join(choices)}")
    about = escape(schema["description"])
    return f"<tr><td><code>{name}</code></td><td>{escape('; '.join(facts))}</td><td>{about}</td></tr>"
