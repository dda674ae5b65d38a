"""Plain tables of text in HTML; long ones are folded and cut into pages of rows."""

from collections.abc import Sequence
from html import escape

MANY = 60  # rows shown at once; the rest is folded


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    wrap: Sequence[int] = (),
    code: Sequence[int] = (),
    numbers: Sequence[int] = (),
    fold: str = "",
) -> str:
    """A table, every cell escaped; columns in `wrap` break, in `code` are set as code.

    numbers: columns set to the right.  fold: what a folded table is called; "" shows the first
    rows and folds those beyond `MANY`.
    """
    if fold:
        whole = _table(head, rows, wrap, code, numbers)
        return f"<details class='data'><summary>{escape(fold)}</summary>{whole}</details>"
    shown = _table(head, rows[:MANY], wrap, code, numbers)
    if len(rows) <= MANY:
        return shown
    rest = _table(head, rows[MANY:], wrap, code, numbers)
    more = f"{len(rows) - MANY:,} more rows"
    return f"{shown}<details class='data'><summary>{more}</summary>{rest}</details>"


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    wrap: Sequence[int],
    code: Sequence[int],
    numbers: Sequence[int],
) -> str:
    kinds = {**dict.fromkeys(wrap, "wrap"), **dict.fromkeys(numbers, "right")}
    heads = "".join(
        f'<th scope="col" class="{"right" if k in numbers else "left"}">{escape(name)}</th>'
        for k, name in enumerate(head)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{kinds.get(k, "left")}">'
            f"{f'<code>{escape(value)}</code>' if k in code else escape(value)}</td>"
            for k, value in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    top = f"<thead><tr>{heads}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'
