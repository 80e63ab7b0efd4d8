"""Run docs/library.ipynb and keep what its cells print and show: python -m docs.notebook

Jupyter does the same; this needs nothing but what the library needs, and gives the same bytes.
"""

import ast
import base64
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parent / "library.ipynb"

Outputs = list[dict[str, Any]]


def cells_of(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells that hold code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def executed(code: str, names: dict[str, Any]) -> tuple[str, Any]:
    """Run a cell: what it prints, and the value of its last line if that is an expression."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    value = None
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, "cell", "exec"), names)  # noqa: S102
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)  # noqa: S307
    return printed.getvalue(), value


def outputs_of(printed: str, value: Any, *, count: int) -> Outputs:
    """As the notebook's format has them."""
    outputs: Outputs = []
    if printed:
        text = printed.splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    if value is not None:
        data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
        if hasattr(value, "_repr_png_"):
            data = {
                "image/png": base64.b64encode(value._repr_png_()).decode(),
                "text/plain": ["a picture"],
            }
        result = {"output_type": "execute_result", "execution_count": count, "metadata": {}}
        outputs.append({**result, "data": data})
    return outputs


def main() -> None:
    """Run every cell, and write the notebook with what came out."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    for count, cell in enumerate(cells_of(notebook), start=1):
        printed, value = executed("".join(cell["source"]), names)
        cell["execution_count"] = count
        cell["outputs"] = outputs_of(printed, value, count=count)
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    NOTEBOOK.write_text(text, encoding="utf-8")
    print(f"{NOTEBOOK}: {len(text) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
