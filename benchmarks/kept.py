"""What the rows of a benchmark's table were made with, kept beside it."""

import json
from pathlib import Path

from submission.errors import UserError
from submission.files import make_folder, write_bytes


def same_settings(table: Path, settings: dict[str, object]) -> None:
    """Keep beside `table` what its rows are made with; UserError where it was made with something else.

    What a call that came to no row was given does not count.
    """
    record = table.with_name(f"{table.name}.json")
    now = {
        name: " ".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in settings.items()
    }
    if not (table.exists() and record.exists()):
        write_bytes(make_folder(record.parent) / record.name, json.dumps(now, indent=1).encode())
        return
    try:
        before = json.loads(record.read_bytes())
        changed = next((name for name in now if before[name] != now[name]), None)
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{record}: not the settings of {table.name}; move both away") from None
    if changed:
        raise UserError(f"{table}: was made with {changed} {before[changed]}; use the same, or another -o")
