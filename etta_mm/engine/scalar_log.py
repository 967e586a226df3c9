"""mmengine's log of numbers, ``scalars.json``: a record a line."""
import json
from pathlib import Path
from typing import Iterator


def read_records(log: Path) -> Iterator[dict]:
    """The records of a log but for one that was cut short, as by a full disk
    or a power failure; what was logged next may stand behind it in its line.

    Args:
        log (Path): The file.
    """
    for line in log.read_text(errors='replace').splitlines():
        for text in (line, line[line.rfind('{'):]):
            try:
                record = json.loads(text)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record
                break
